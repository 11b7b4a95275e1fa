"""What DICOM headers say about each slice: where it lies, how its pixels are stored, what tells it from others.

Only the tags below are read. None of them names a patient but PatientID, which is kept as a digest under a key that
this process forgets: it tells whether two slices are of one patient, and is never returned, logged or written.
"""

import hashlib
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from jaxtyping import Float64
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from pipeline.errors import DamagedFileError, NotChestCTError, ScanTooLargeError, UnsupportedFormatError
from pipeline.geometry import Triple
from pipeline.io.formats.archive import Member
from pipeline.io.formats.limits import SizeLimits

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

#: OverlayBitsAllocated of the first overlay: 16 where it lies in unused bits of the pixels.
OVERLAY_BITS: Final = 0x60000100

#: Direction cosines of parallel slices differ by less.
SAME_DIRECTION: Final = 0.01

#: A CT of 2000 frames has about 30,000 items. Each takes pydicom 40 microseconds, so more of them is an attack.
MOST_ITEMS: Final = 200_000

#: What a deflated file may hold besides its pixels.
MOST_HEADER_BYTES: Final = 16 << 20

_GEOMETRY: Final = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
_ITEM_TAGS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_BINARY: Final = ("US", "SS", "UL", "SL", "FL", "FD", "UV", "SV")
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_UNKNOWN_LENGTH: Final = 0xFFFFFFFF
_COPY_BYTES: Final = 1 << 20
_PATIENT_KEY: Final = os.urandom(32)
_NO_CONTRAST: Final = ("", "NONE", "NO", "N", "0")

#: What pydicom raises on headers that are none.
_FAULTS: Final = (
    InvalidDicomError,
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
        position_mm: LPS (x, y, z) of the first pixel's centre.
        rows_and_columns: direction cosines along a row, then along a column.
        spacing_mm: between rows, between columns.
        traits: what may tell volumes of one series apart, by name.
        times: AcquisitionTime and ContentTime in seconds of the day.
        between_slices: SpacingBetweenSlices as it is written.
        patient: a digest; None where there is no PatientID.
    """

    pixels: StoredPixels
    frame: int
    uid: str
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
    times: tuple[float | None, float | None]
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


@dataclass
class Inventory:
    """What the headers hold.

    Attributes:
        images: CT images or frames, localizers not counted.
        left_out: reasons why images are no slices, each with the series of every such image.
        other_modalities: images of each.
    """

    slices: list[Slice] = field(default_factory=list)
    images: int = 0
    localizers: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    other_modalities: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, series: str) -> None:
        self.left_out.setdefault(reason, []).append(series)

    def counted(self) -> dict[str, object]:
        """For the evidence of a refusal."""
        counts: dict[str, object] = {
            "images": self.images,
            "slices": len(self.slices),
            "series": len({s.series for s in self.slices}),
        }
        if self.other_modalities:
            counts["modalities"] = sorted({*self.other_modalities, *(["CT"] if self.images else [])})
        return counts


def take_stock(members: Iterable[Member], folder: Path, limits: SizeLimits) -> Inventory:
    """Every CT slice among `members`, which are copied to `folder` as far as needed.

    Raises:
        NotChestCTError: images, but of another modality.
        UnsupportedFormatError: no CT slice that says where it lies.
        DamagedFileError: a header cannot be read.
    """
    found = Inventory()
    inflated_bytes = 0
    for number, member in enumerate(members):
        path = member.as_file(folder / f"{number:06d}.dcm")
        with path.open("rb") as file:
            head = file.read(4096)
        if _DEFLATED.encode() in head:
            path = _inflate(path, head, folder / f"{number:06d}.inflated", limits)
            inflated_bytes += path.stat().st_size
            limits.check_bytes(inflated_bytes)
            _add(found, path, head, _DEFLATED)
        else:
            _add(found, path, head, "")
    if not (found.images or found.localizers or found.other_modalities):
        raise UnsupportedFormatError("The DICOM files hold no images (Rows and Columns are missing in all of them).")
    if not (found.images or found.localizers):
        seen = sorted(found.other_modalities)
        raise NotChestCTError(
            f"The DICOM images are {', '.join(seen)}, not CT; send the CT series.", evidence={"modalities": seen}
        )
    if not found.slices:
        reasons = [f"{reason} in {len(series)} of {found.images}" for reason, series in found.left_out.items()]
        if not reasons:
            raise UnsupportedFormatError(
                f"The DICOM files hold {found.localizers} localizer images (ImageType) and no other CT slices.",
                evidence={"localizers": found.localizers},
            )
        detail = f"The DICOM files hold no CT slices that can be stacked: {'; '.join(reasons)} CT images."
        evidence = {"left_out": {reason: len(series) for reason, series in found.left_out.items()}}
        if all(reason.startswith("SOPClassUID") for reason in found.left_out):
            raise NotChestCTError(detail, evidence=evidence)
        raise UnsupportedFormatError(f"{detail} Send the original series.", evidence=evidence)
    return found


# Files


def _add(found: Inventory, path: Path, head: bytes, syntax: str) -> None:
    """Count what the file holds, and keep its slices."""
    parsed = _header(path, head)
    if parsed is None:
        return
    header, pixels_at = parsed
    modality = (text(header, "Modality") or ("CT" if _class_name(header).startswith("CT ") else "unknown")).upper()
    if not (_whole(header, "Rows") and _whole(header, "Columns")):
        if modality == "CT" and "CT Image Storage" in _class_name(header):
            raise DamagedFileError(
                "A CT slice is damaged or cut short: its header ends before Rows and Columns.",
                evidence={"bytes": path.stat().st_size},
            )
        return
    if modality != "CT":
        found.other_modalities[re.sub(r"[^A-Za-z0-9 ]", "?", modality[:16])] += 1
        return
    frames = _whole(header, "NumberOfFrames", 1) or 1
    if _is_localizer(text(header, "ImageType")):
        found.localizers += 1
        return
    series = text(header, "SeriesInstanceUID")
    found.images += frames
    patient_id = text(header, "PatientID").upper()
    patient = hashlib.blake2b(patient_id.encode(), key=_PATIENT_KEY, digest_size=16).digest() if patient_id else None
    if "PatientID" in header:
        del header["PatientID"]
    reason = _no_slice(header)
    if reason:
        for _ in range(frames):
            found.leave_out(reason, series)
        return
    pixels = _pixels(path, header, pixels_at, syntax, frames)
    for frame, groups in enumerate(_frames(header, frames)):
        if _is_localizer(groups.text("CTImageFrameTypeSequence", "FrameType", top=False)):
            found.localizers += 1
            found.images -= 1
            continue
        lacking = [tag for tag, sequence in _GEOMETRY.items() if not groups.text(sequence, tag)]
        if lacking:
            found.leave_out(f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing", series)
        else:
            found.slices.append(_slice(pixels, frame, header, groups, patient))


def _header(path: Path, head: bytes) -> tuple[Dataset, int] | None:
    """The tags above and where PixelData begins; None of what is no DICOM after all."""
    items = 0
    with path.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            items += max(block.count(tag) for tag in _ITEM_TAGS)
        if items > MOST_ITEMS:
            raise ScanTooLargeError(
                f"The header of a DICOM file has {items} sequence items; up to {MOST_ITEMS} are read.",
                evidence={"items": items, "most_items": MOST_ITEMS},
            )
        file.seek(0)
        try:
            wanted: list[Any] = [*TAGS, OVERLAY_BITS]
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)
        except _FAULTS as error:
            if head[128:132] != b"DICM":
                return None
            raise DamagedFileError("A DICOM file is damaged: its header cannot be read.") from error
        return header, file.tell()


def _inflate(path: Path, head: bytes, target: Path, limits: SizeLimits) -> Path:
    """What a file in Deflated Explicit VR Little Endian unpacks to, as a file of its own.

    No more is unpacked than the header says that the pixels take, since 11 MB of zeros unpack to 11 GB.
    """
    if head[128:144][4:8] != b"\x02\x00\x00\x00":
        raise DamagedFileError("A deflated DICOM file is damaged: it does not say how long its meta header is.")
    begin = 144 + int.from_bytes(head[140:144], "little")
    stream = zlib.decompressobj(-15)
    allowed = MOST_HEADER_BYTES
    has_header = False
    try:
        with path.open("rb") as source, target.open("wb") as copy:
            source.seek(begin)
            waiting = b""
            while not stream.eof:
                waiting = waiting or source.read(_COPY_BYTES)
                if not waiting:
                    raise DamagedFileError("A deflated DICOM file is cut short: its end is missing.")
                copy.write(stream.decompress(waiting, _COPY_BYTES))
                waiting = stream.unconsumed_tail
                if copy.tell() > allowed and not has_header:
                    copy.flush()
                    allowed += _bytes_of_pixels(target, limits)
                    has_header = True
                if copy.tell() > allowed:
                    raise ScanTooLargeError(
                        f"A deflated DICOM file unpacks to more than the {allowed} bytes that its header calls for.",
                        evidence={"max_bytes": allowed},
                    )
    except zlib.error as error:
        raise DamagedFileError("A deflated DICOM file is damaged: it cannot be unpacked.") from error
    return target


def _bytes_of_pixels(path: Path, limits: SizeLimits) -> int:
    parsed = _header(path, b"")
    if parsed is None:
        return 0
    header, _ = parsed
    sizes = [_whole(header, "Columns"), _whole(header, "Rows"), _whole(header, "NumberOfFrames", 1) or 1]
    limits.check_voxels(sizes)
    return sizes[0] * sizes[1] * sizes[2] * max(_whole(header, "BitsAllocated") // 8, 1)


# Tags


def text(data: Dataset, keyword: str) -> str:
    """What is written under `keyword`, whatever it means; empty where it is missing.

    pydicom checks numbers when they are asked for and raises where they are none: a number that nobody needs must not
    break a scan.
    """
    element = data.get_item(keyword)
    if element is None or element.value is None:
        return ""
    # By the dictionary, since implicit files name no representations, and others name wrong ones.
    if isinstance(element.value, bytes) and dictionary_VR(keyword) not in _BINARY:
        return element.value.decode("latin-1").strip(" \0")
    try:
        value = data.get(keyword)
    except _FAULTS:
        return ""
    parts = value if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value]
    return "\\".join("" if part is None else str(part) for part in parts).strip(" \0")


def _whole(data: Dataset, keyword: str, missing: int = 0) -> int:
    """A whole number; `missing` where there is none."""
    number = whole(text(data, keyword))
    return missing if number is None else number


def whole(written: str) -> int | None:
    """The number that is written, where it is a whole one."""
    return int(written) if re.fullmatch(r"[+-]?\d{1,12}", written) else None


def _numbers(written: str, tag: str, count: int) -> list[float]:
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


def shown(written: str) -> str:
    """What is written, in a form that a sentence can hold."""
    return repr(re.sub(r"[^\x20-\x7e]", "?", written[:64]))


def _seconds(written: str) -> float | None:
    match = re.fullmatch(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d*)?)?", written)
    return None if match is None else sum(float(part or 0) * s for part, s in zip(match.groups(), (3600, 60, 1)))  # noqa: B905


def _class_name(header: Dataset) -> str:
    return str(UID(text(header, "SOPClassUID")).name)


def _is_localizer(image_type: str) -> bool:
    return "LOCALIZER" in image_type.upper().split("\\")


def _no_slice(header: Dataset) -> str:
    """Why an image under Modality CT is no slice of one; empty where it may be."""
    samples, photometric = _whole(header, "SamplesPerPixel", 1), text(header, "PhotometricInterpretation").upper()
    if samples != 1:
        return f"SamplesPerPixel is {samples}, not 1 (colours)"
    if not photometric.startswith("MONOCHROME") and photometric:
        return f"PhotometricInterpretation is {shown(photometric)}, not 'MONOCHROME2'"
    name = _class_name(header)
    if "Image Storage" in name and "CT" not in name.split() and "Secondary Capture" not in name:
        return f"SOPClassUID says {name}, not CT Image Storage, under Modality CT"
    if _whole(header, "NumberOfFrames", 1) > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return "PerFrameFunctionalGroupsSequence, which says where each frame lies, is missing"
    return ""


# Slices


@dataclass(frozen=True)
class _Groups:
    """What is said about one frame: in its own groups, in those that all share, or in the file itself."""

    levels: tuple[Dataset, ...]
    header: Dataset

    def text(self, sequence: str, keyword: str, *, top: bool = True) -> str:
        for level in self.levels:
            items = level.get(sequence)
            if items and (written := text(items[0], keyword)):
                return written
        return text(self.header, keyword) if top else ""


def _frames(header: Dataset, frames: int) -> Iterator[_Groups]:
    try:
        shared = header.get("SharedFunctionalGroupsSequence") or []
        each = header.get("PerFrameFunctionalGroupsSequence")
        if each is not None and len(each) != frames:
            raise DamagedFileError(
                f"NumberOfFrames is {frames}, but PerFrameFunctionalGroupsSequence describes {len(each)} frames.",
                evidence={"frames": frames, "described": len(each)},
            )
        for frame in range(frames):
            yield _Groups((*([each[frame]] if each else []), *shared[:1]), header)
    except _FAULTS as error:
        raise DamagedFileError("A DICOM file is damaged: its functional groups cannot be read.") from error


def _pixels(path: Path, header: Dataset, pixels_at: int, syntax: str, frames: int) -> StoredPixels:
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
    if not syntax:
        syntax = str(getattr(header, "file_meta", {}).get("TransferSyntaxUID", "") or "")
    allocated = _whole(header, "BitsAllocated")
    stored = _whole(header, "BitsStored", allocated)
    return StoredPixels(
        path=path,
        syntax=syntax,
        is_little_endian=order == "<",
        offset=offset,
        length=None if length == _UNKNOWN_LENGTH else length,
        frames=frames,
        shape=(_whole(header, "Rows"), _whole(header, "Columns")),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=_whole(header, "HighBit", stored - 1),
        is_signed=_whole(header, "PixelRepresentation") == 1,
        has_overlay=OVERLAY_BITS in header and header[OVERLAY_BITS].value not in (None, 1),
        frame_offsets=bytes(header.get("ExtendedOffsetTable") or b""),
    )


def _slice(pixels: StoredPixels, frame: int, header: Dataset, groups: _Groups, patient: bytes | None) -> Slice:
    written = {tag: groups.text(sequence, tag) for tag, sequence in _GEOMETRY.items()}
    x, y, z = _numbers(written["ImagePositionPatient"], "ImagePositionPatient", 3)
    between_rows, between_columns = _numbers(written["PixelSpacing"], "PixelSpacing", 2)
    rescaling = "PixelValueTransformationSequence"
    contrast = {text(header, tag).upper() for tag in ("ContrastBolusAgent", "ContrastBolusRoute")}
    frame_content = "FrameContentSequence"
    return Slice(
        pixels=pixels,
        frame=frame,
        uid=text(header, "SOPInstanceUID"),
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
            "contrast": not all(name in _NO_CONTRAST for name in contrast) or bool(_has_agents(header)),
            "stack": groups.text(frame_content, "StackID", top=False),
            "acquisition": (
                groups.text(frame_content, "FrameAcquisitionNumber", top=False) or text(header, "AcquisitionNumber")
            ),
        },
        times=(_seconds(text(header, "AcquisitionTime")), _seconds(text(header, "ContentTime"))),
        between_slices=groups.text("PixelMeasuresSequence", "SpacingBetweenSlices"),
        patient=patient,
        is_lossy=text(header, "LossyImageCompression") == "01",
    )


def _has_agents(header: Dataset) -> bool:
    try:
        return bool(header.get("ContrastBolusAgentSequence"))
    except _FAULTS:
        return False


def _directions(written: str) -> tuple[float, ...]:
    """Unit vectors at right angles; stored cosines are rounded to a few digits."""
    tag = "ImageOrientationPatient"
    pair = np.asarray(_numbers(written, tag, 6)).reshape(2, 3)
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
