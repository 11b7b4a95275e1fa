"""The DICOM tags that are read, and what is written under them, whatever it means.

None of them names a patient but PatientID, of which `dicom_inventory` keeps a digest; what names the patient of the
stack that is scored is read by `dicom_identity` alone.
"""

import re
import struct
from functools import cache
from typing import Final

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag, Tag

from pipeline.errors import DamagedFileError
from pipeline.io.formats.shown import shown

TAGS: Final = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "ImageType",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "AcquisitionTime",
    "ContentTime",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "ConvolutionKernel",
    "SliceThickness",
    "SpacingBetweenSlices",
    "KVP",
    "EchoNumbers",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "ContrastBolusAgent",
    "ContrastBolusAgentSequence",
    "ContrastBolusRoute",
    "LossyImageCompression",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable",
)

#: The values that PS3.3 (C.7.3.1.1.1) and older editions define. Others may be anything, a name included.
MODALITIES: Final = frozenset(
    re.findall(
        r"\w+",
        "ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL "
        "IVOCT IVUS KER KO LEN LS M3D MG MR MS NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PLAN POS PR PT PX REG "
        "RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN "
        "TEXTUREMAP TG US VA VF XA XAPROTOCOL XC AS CD CF CP CS DD DF DM DS EC FA FS LP MA OPR ST TH VM",
    )
)

#: OverlayBitsAllocated of the first overlay: 16 where it lies in unused bits of the pixels.
OVERLAY_BITS: Final = 0x60000100

_BINARY: Final = ("US", "SS", "UL", "SL", "FL", "FD", "UV", "SV")

#: What pydicom raises on headers that are none.
FAULTS: Final = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    ValueError,
    NotImplementedError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
    RecursionError,
    struct.error,
)


@cache
def _known(keyword: str) -> tuple[BaseTag, bool]:
    """The tag, and whether its values are binary; looked up once, since a series asks for half a million."""
    return Tag(keyword), dictionary_VR(keyword) in _BINARY


def text(data: Dataset, keyword: str) -> str:
    """What is written under `keyword`, whatever it means; empty where it is missing.

    pydicom checks numbers when they are asked for and raises where they are none: a number that nobody needs must not
    break a scan.
    """
    tag, is_binary = _known(keyword)
    element = data.get_item(tag)
    if element is None or element.value is None:
        return ""
    # By the dictionary, since implicit files name no representations, and others name wrong ones.
    if isinstance(element.value, bytes) and not is_binary:
        return element.value.decode("latin-1").strip(" \0")
    try:
        value = data.get(keyword)
    except FAULTS:
        return ""
    parts = value if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value]
    return "\\".join("" if part is None else str(part) for part in parts).strip(" \0")


def number_of(data: Dataset, keyword: str, missing: int = 0) -> int:
    """A whole number; `missing` where there is none."""
    number = whole(text(data, keyword))
    return missing if number is None else number


def whole(written: str) -> int | None:
    """The number that is written, where it is a whole one."""
    return int(written) if re.fullmatch(r"[+-]?\d{1,12}", written) else None


def numbers_of(written: str, tag: str, count: int) -> list[float]:
    """Raises: DamagedFileError: not `count` finite numbers."""
    try:
        numbers = [float(part) for part in written.split("\\")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.all(np.isfinite(numbers)):
        raise DamagedFileError(
            f"{tag} is {shown(written)} in a CT slice; {count} finite numbers are wanted. The geometry is damaged: "
            "send the original series.",
            evidence={"tag": tag, "value": shown(written)},
        )
    return numbers


def seconds_of_day(written: str) -> float | None:
    match = re.fullmatch(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d*)?)?", written)
    return None if match is None else sum(float(part or 0) * s for part, s in zip(match.groups(), (3600, 60, 1)))  # noqa: B905
