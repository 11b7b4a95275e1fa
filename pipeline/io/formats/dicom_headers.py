"""What a DICOM header says about each slice: where it lies, how its pixels are stored, what tells it from others."""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64
from pydicom.dataset import Dataset
from pydicom.uid import UID

from pipeline.errors import DamagedFileError
from pipeline.geometry import Triple
from pipeline.io.formats.dicom_tags import (
    FAULTS,
    OVERLAY_BITS,
    number_of,
    numbers_of,
    seconds_of_day,
    text,
    whole,
)
from pipeline.io.formats.placement import FARTHEST_MM
from pipeline.io.formats.shown import shown

#: Direction cosines of parallel slices differ by less.
SAME_DIRECTION: Final = 0.01

GEOMETRY: Final = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
#: JPEG baseline and extended; of JPEG-LS and JPEG 2000 the header alone says whether something was lost.
_LOSSY: Final = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_UNKNOWN_LENGTH: Final = 0xFFFFFFFF
NO_CONTRAST: Final = ("", "NONE", "NO", "N", "0")


@dataclass(frozen=True)
class StoredPixels:
    """Where in a file its pixels lie, and as what.

    Attributes:
        offset: of the first byte of PixelData's value; None where the file has no PixelData.
        length: bytes of the value; None where it is a sequence of fragments.
        shape: rows, columns.
        has_overlay: unused bits hold an overlay.
        frame_offsets: ExtendedOffsetTable.
    """

    path: Path
    syntax: str
    is_little_endian: bool
    offset: int | None
    length: int | None
    frames: int
    shape: tuple[int, int]
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    has_overlay: bool
    frame_offsets: bytes


@dataclass(frozen=True)
class StoredRescale:
    """RescaleSlope, RescaleIntercept and RescaleType as they are written; empty where they are missing."""

    slope: str
    intercept: str
    kind: str
    has_table: bool

    @property
    def is_hounsfield(self) -> bool:
        """Whether it does not say that the values are anything else."""
        return not self.has_table and re.sub(r"[^A-Z]", "", self.kind.upper()) in ("", "HU", "HOUNSFIELD")


@dataclass(frozen=True)
class Slice:
    """One slice, as its header describes it.

    Attributes:
        frame: index within a multi-frame file; 0 in all others.
        uid: SOPInstanceUID.
        sop_class: SOPClassUID.
        position_mm: LPS (x, y, z) of the first pixel's centre.
        rows_and_columns: direction cosines along a row, then along a column.
        spacing_mm: between rows, between columns.
        traits: what may tell volumes of one series apart, by name.
        content_time_s: ContentTime in seconds of the day: when the slice was computed.
        between_slices: SpacingBetweenSlices as it is written.
        patient: a digest; None where there is no PatientID.
    """

    pixels: StoredPixels
    frame: int
    uid: str
    sop_class: str
    study: str
    series: str
    frame_of_reference: str
    series_number: int | None
    instance: int | None
    position_mm: Triple
    rows_and_columns: tuple[float, ...]
    spacing_mm: tuple[float, float]
    rescale: StoredRescale
    traits: Mapping[str, object]
    content_time_s: float | None
    between_slices: str
    patient: bytes | None
    is_lossy: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.pixels.shape

    @property
    def normal(self) -> Float64[np.ndarray, "3"]:
        return np.cross(self.rows_and_columns[:3], self.rows_and_columns[3:])

    @property
    def is_contrasted(self) -> bool:
        return bool(self.traits["contrast"])


def class_name(header: Dataset) -> str:
    meta = getattr(header, "file_meta", None) or {}
    return str(UID(text(header, "SOPClassUID") or str(meta.get("MediaStorageSOPClassUID", ""))).name)


def is_localizer(image_type: str) -> bool:
    return "LOCALIZER" in (word.strip() for word in image_type.upper().split("\\"))


def why_no_slice(header: Dataset) -> str:
    """Why an image under Modality CT is no slice of one; empty where it may be."""
    samples, photometric = number_of(header, "SamplesPerPixel", 1), text(header, "PhotometricInterpretation").upper()
    if samples != 1:
        return f"SamplesPerPixel is {samples}, not 1 (colours)"
    if photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        return f"PhotometricInterpretation is {shown(photometric)}, not 'MONOCHROME2'"
    name = class_name(header)
    if "Image Storage" in name and "CT" not in name.split() and "Secondary Capture" not in name:
        return f"SOPClassUID says {shown(name)[1:-1]}, not CT Image Storage, under Modality CT"
    if number_of(header, "NumberOfFrames", 1) > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return "PerFrameFunctionalGroupsSequence, which says where each frame lies, is missing"
    return ""


@dataclass(frozen=True)
class FrameGroups:
    """What is said about one frame: in its own groups, in those that all share, or in the file itself."""

    levels: tuple[Dataset, ...]
    header: Dataset

    def text(self, sequence: str, keyword: str, *, top: bool = True) -> str:
        for level in self.levels:
            items = level.get(sequence)
            if items and (written := text(items[0], keyword)):
                return written
        return text(self.header, keyword) if top else ""


def frames_of(header: Dataset, frames: int) -> Iterator[FrameGroups]:
    shared = header.get("SharedFunctionalGroupsSequence") or []
    each = header.get("PerFrameFunctionalGroupsSequence")
    if each is not None and len(each) != frames:
        raise DamagedFileError(
            f"NumberOfFrames is {frames}, but PerFrameFunctionalGroupsSequence describes {len(each)} frames.",
            evidence={"frames": frames, "described": len(each)},
        )
    for frame in range(frames):
        yield FrameGroups((*([each[frame]] if each else []), *shared[:1]), header)


def stored_pixels(path: Path, header: Dataset, pixels_at: int, frames: int) -> StoredPixels:
    is_implicit, is_little_endian = header.original_encoding
    order = "<" if is_little_endian in (None, True) else ">"
    with path.open("rb") as file:
        file.seek(pixels_at)
        start = file.read(12)
    offset, length = None, None
    if len(start) >= 8 and struct.unpack(f"{order}HH", start[:4]) == (0x7FE0, 0x0010):
        is_long = not is_implicit and len(start) == 12
        offset = pixels_at + (12 if is_long else 8)
        (length,) = struct.unpack(f"{order}I", start[8:12] if is_long else start[4:8])
    syntax = str(getattr(header, "file_meta", {}).get("TransferSyntaxUID", "") or "")
    allocated = number_of(header, "BitsAllocated")
    stored = number_of(header, "BitsStored", allocated)
    return StoredPixels(
        path=path,
        syntax=syntax,
        is_little_endian=order == "<",
        offset=offset,
        length=None if length == _UNKNOWN_LENGTH else length,
        frames=frames,
        shape=(number_of(header, "Rows"), number_of(header, "Columns")),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=number_of(header, "HighBit", stored - 1),
        is_signed=number_of(header, "PixelRepresentation") == 1,
        has_overlay=OVERLAY_BITS in header and header[OVERLAY_BITS].value not in (None, 1),
        frame_offsets=bytes(header.get("ExtendedOffsetTable") or b""),
    )


def slice_of(pixels: StoredPixels, frame: int, header: Dataset, groups: FrameGroups, patient: bytes | None) -> Slice:
    written = {tag: groups.text(sequence, tag) for tag, sequence in GEOMETRY.items()}
    x, y, z = numbers_of(written["ImagePositionPatient"], "ImagePositionPatient", 3)
    if max(abs(x), abs(y), abs(z)) > FARTHEST_MM:
        raise DamagedFileError(
            f"ImagePositionPatient is {shown(written['ImagePositionPatient'])} in a CT slice; up to {FARTHEST_MM:.0f} "
            "mm from the origin are read. Send the original series.",
            evidence={"tag": "ImagePositionPatient", "value": shown(written["ImagePositionPatient"])},
        )
    between_rows, between_columns = numbers_of(written["PixelSpacing"], "PixelSpacing", 2)
    if min(between_rows, between_columns) <= 0:
        raise DamagedFileError(
            f"PixelSpacing is {shown(written['PixelSpacing'])} in a CT slice; two numbers above 0 are wanted. Send the "
            "original series.",
            evidence={"tag": "PixelSpacing", "value": shown(written["PixelSpacing"])},
        )
    rescaling = "PixelValueTransformationSequence"
    contrast = {text(header, tag).upper() for tag in ("ContrastBolusAgent", "ContrastBolusRoute")}
    frame_content = "FrameContentSequence"
    return Slice(
        pixels=pixels,
        frame=frame,
        uid=text(header, "SOPInstanceUID"),
        sop_class=text(header, "SOPClassUID"),
        study=text(header, "StudyInstanceUID"),
        series=text(header, "SeriesInstanceUID"),
        frame_of_reference=text(header, "FrameOfReferenceUID"),
        series_number=whole(text(header, "SeriesNumber")),
        instance=whole(text(header, "InstanceNumber")),
        position_mm=(x, y, z),
        rows_and_columns=_directions(written["ImageOrientationPatient"]),
        spacing_mm=(between_rows, between_columns),
        rescale=StoredRescale(
            groups.text(rescaling, "RescaleSlope"),
            groups.text(rescaling, "RescaleIntercept"),
            groups.text(rescaling, "RescaleType"),
            has_table="ModalityLUTSequence" in header,
        ),
        # In the order in which they are asked; see `dicom_stacks`.
        traits={
            "temporal_position": (
                groups.text(frame_content, "TemporalPositionIndex") or text(header, "TemporalPositionIdentifier")
            ),
            "kernel": groups.text("CTReconstructionSequence", "ConvolutionKernel"),
            "image_type": groups.text("CTImageFrameTypeSequence", "FrameType", top=False) or text(header, "ImageType"),
            "thickness_mm": groups.text("PixelMeasuresSequence", "SliceThickness"),
            "kvp": groups.text("CTXRayDetailsSequence", "KVP"),
            "echo": text(header, "EchoNumbers"),
            "trigger_time": text(header, "TriggerTime"),
            "cardiac_phase": groups.text("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
            "contrast": not all(name in NO_CONTRAST for name in contrast) or bool(_has_agents(header)),
            "stack": groups.text(frame_content, "StackID", top=False),
            "acquisition": (
                groups.text(frame_content, "FrameAcquisitionNumber", top=False) or text(header, "AcquisitionNumber")
            ),
            "acquisition_time_s": seconds_of_day(text(header, "AcquisitionTime")),
        },
        content_time_s=seconds_of_day(text(header, "ContentTime")),
        between_slices=groups.text("PixelMeasuresSequence", "SpacingBetweenSlices"),
        patient=patient,
        is_lossy=text(header, "LossyImageCompression") == "01" or pixels.syntax in _LOSSY,
    )


def _has_agents(header: Dataset) -> bool:
    try:
        return bool(header.get("ContrastBolusAgentSequence"))
    except FAULTS:
        return False


def _directions(written: str) -> tuple[float, ...]:
    """Unit vectors at right angles; stored cosines are rounded to a few digits."""
    tag = "ImageOrientationPatient"
    pair = np.asarray(numbers_of(written, tag, 6)).reshape(2, 3)
    lengths = np.linalg.norm(pair, axis=1)
    if np.any(np.abs(lengths - 1) > SAME_DIRECTION) or abs(pair[0] @ pair[1]) > SAME_DIRECTION:
        raise DamagedFileError(
            f"{tag} is {shown(written)} in a CT slice; two unit vectors at right angles are wanted. The geometry is "
            "damaged: send the original series.",
            evidence={"tag": tag, "value": shown(written)},
        )
    row = pair[0] / lengths[0]
    column = pair[1] - (pair[1] @ row) * row
    return (*(float(v) for v in row), *(float(v) for v in column / np.linalg.norm(column)))
