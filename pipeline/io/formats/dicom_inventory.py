"""What the files of a series hold: every CT slice, and what was left out.

PatientID is kept as a digest under a key that this process forgets: it tells whether two slices are of one patient, and
is never returned, logged or written.
"""

import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom.dataset import Dataset

from pipeline.errors import (
    DamagedFileError,
    NotChestCTError,
    PipelineError,
    ScanTooLargeError,
    UnsupportedFormatError,
)
from pipeline.io.formats.archive import Member
from pipeline.io.formats.dicom_headers import (
    DEFLATED,
    GEOMETRY,
    Slice,
    class_name,
    frames_of,
    is_localizer,
    slice_of,
    stored_pixels,
    why_no_slice,
)
from pipeline.io.formats.dicom_tags import FAULTS, OVERLAY_BITS, TAGS, number_of, text
from pipeline.io.formats.limits import SizeLimits

#: A CT of 2000 frames has about 30,000 items. Each takes pydicom 40 microseconds, so more of them is an attack.
MOST_ITEMS: Final = 200_000

#: What a deflated file may hold besides its pixels.
MOST_HEADER_BYTES: Final = 16 << 20

_ITEM_TAGS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_COPY_BYTES: Final = 1 << 20
_PATIENT_KEY: Final = os.urandom(32)


@dataclass
class Inventory:
    """What the headers hold.

    Attributes:
        images: CT images or frames, localizers not counted.
        left_out: reasons why images are no slices, each with how many of which series.
        other_modalities: images of each.
        unknown: files that are DICOM, but nobody can tell what they hold.
    """

    slices: list[Slice] = field(default_factory=list)
    images: int = 0
    localizers: int = 0
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    other_modalities: Counter[str] = field(default_factory=Counter)
    unknown: int = 0

    def leave_out(self, reason: str, series: str, images: int = 1) -> None:
        self.left_out.setdefault(reason, Counter())[series] += images

    def counted(self) -> dict[str, object]:
        """For the evidence of a refusal."""
        counts: dict[str, object] = {
            "images": self.images,
            "slices": len(self.slices),
            "series": len({s.series for s in self.slices}),
            "localizers": self.localizers,
        }
        if self.other_modalities:
            counts["modalities"] = sorted({*self.other_modalities, *(["CT"] if self.images else [])})
        return {name: count for name, count in counts.items() if count}

    def nothing_to_stack(self) -> PipelineError:
        """Why the images, or all but a few of them, are no slices."""
        lacking = {reason: series.total() for reason, series in self.left_out.items()}
        reasons = "; ".join(f"{reason} in {images} of {self.images}" for reason, images in lacking.items())
        detail = f"The DICOM files hold no CT slices that can be stacked: {reasons} CT images."
        if all(reason.startswith("SOPClassUID") for reason in lacking):
            return NotChestCTError(f"{detail} Send the CT series.", evidence={"left_out": lacking})
        return UnsupportedFormatError(f"{detail} Send the original series.", evidence={"left_out": lacking})


def take_stock(members: Iterable[Member], folder: Path, limits: SizeLimits, found: Inventory) -> None:
    """Every CT slice among `members`, which are copied to `folder` as far as needed, comes into `found`.

    Raises:
        NotChestCTError: images, but of another modality.
        UnsupportedFormatError: no CT slice that says where it lies.
        DamagedFileError: a header cannot be read.
    """
    inflated_bytes = 0
    for number, member in enumerate(members):
        path = member.as_file(folder / f"{number:06d}.dcm")
        with path.open("rb") as file:
            head = file.read(4096)
        try:
            if DEFLATED.encode() in head:
                path = _inflate(path, head, folder / f"{number:06d}.inflated", limits)
                inflated_bytes += path.stat().st_size
                limits.check_bytes(inflated_bytes)
                _add(found, path, head, DEFLATED)
            else:
                _add(found, path, head, "")
        except (*FAULTS, OSError) as error:
            # pydicom raises it without a number; with one it is the disk's.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DamagedFileError("A DICOM file is damaged: its header cannot be read.") from error
    if not (found.images or found.localizers or found.other_modalities):
        raise UnsupportedFormatError("The DICOM files hold no images (Rows and Columns are missing in all of them).")
    if not (found.images or found.localizers):
        seen = sorted(found.other_modalities)
        raise NotChestCTError(
            f"The DICOM images are {', '.join(seen)}, not CT; send the CT series.", evidence={"modalities": seen}
        )
    if not found.slices and found.left_out:
        raise found.nothing_to_stack()
    if not found.slices:
        raise UnsupportedFormatError(
            f"The DICOM files hold {found.localizers} localizer images (ImageType) and no other CT slices; send the "
            "whole series."
        )


def _add(found: Inventory, path: Path, head: bytes, syntax: str) -> None:
    """Count what the file holds, and keep its slices."""
    parsed = _header(path, head)
    if parsed is None:
        return
    header, pixels_at = parsed
    is_ct_class = "CT Image Storage" in class_name(header)
    modality = (text(header, "Modality") or ("CT" if is_ct_class else "unknown")).upper()
    if not (number_of(header, "Rows") and number_of(header, "Columns")):
        if is_ct_class and (modality == "CT" or not re.fullmatch("[A-Z]{2,8}", modality)):
            raise _cut_short(path)
        # Reports and the like have a class that the standard names; a file without one may be a slice that is damaged.
        if head[128:132] == b"DICM" and not re.search("Storage|Directory", class_name(header)):
            found.unknown += 1
        return
    if modality != "CT":
        found.other_modalities[re.sub(r"[^A-Za-z0-9 ]", "?", modality[:16])] += 1
        return
    frames = number_of(header, "NumberOfFrames", 1) or 1
    if is_localizer(text(header, "ImageType")):
        found.localizers += 1
        return
    series = text(header, "SeriesInstanceUID")
    found.images += frames
    patient_id = text(header, "PatientID").upper()
    patient = hashlib.blake2b(patient_id.encode(), key=_PATIENT_KEY, digest_size=16).digest() if patient_id else None
    if "PatientID" in header:
        del header["PatientID"]
    reason = why_no_slice(header)
    if reason:
        found.leave_out(reason, series, frames)
        return
    pixels = stored_pixels(path, header, pixels_at, syntax, frames)
    for frame, groups in enumerate(frames_of(header, frames)):
        if is_localizer(groups.text("CTImageFrameTypeSequence", "FrameType", top=False)):
            found.localizers += 1
            found.images -= 1
            continue
        lacking = [tag for tag, sequence in GEOMETRY.items() if not groups.text(sequence, tag)]
        if lacking and pixels.offset is None:
            raise _cut_short(path)
        if lacking:
            found.leave_out(f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing", series)
        else:
            found.slices.append(slice_of(pixels, frame, header, groups, patient))


def _cut_short(path: Path) -> DamagedFileError:
    size = path.stat().st_size
    return DamagedFileError(
        f"A CT slice is damaged or cut short: its {size} bytes end before PixelData. Send the whole file.",
        evidence={"tag": "PixelData", "bytes": size},
    )


def _header(path: Path, head: bytes) -> tuple[Dataset, int] | None:
    """The tags above and where PixelData begins; None of what is no DICOM after all."""
    items, tail = 0, b""
    with path.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            block = tail + block  # a tag may begin in one block and end in the next
            items += max(block.count(tag) for tag in _ITEM_TAGS)
            tail = block[-3:]
        if items > MOST_ITEMS:
            raise ScanTooLargeError(
                f"The header of a DICOM file has {items} sequence items; up to {MOST_ITEMS} are read.",
                evidence={"items": items, "most_items": MOST_ITEMS},
            )
        file.seek(0)
        try:
            wanted: list[Any] = [*TAGS, OVERLAY_BITS]
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)
        except (*FAULTS, OSError) as error:
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
    sizes = [number_of(header, "Columns"), number_of(header, "Rows"), number_of(header, "NumberOfFrames", 1) or 1]
    limits.check_voxels(sizes)
    return sizes[0] * sizes[1] * sizes[2] * max(number_of(header, "BitsAllocated") // 8, 1)
