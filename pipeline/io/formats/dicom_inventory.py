"""What the files of a series hold: every CT slice, and what was left out.

PatientID is kept as a digest under a key that this process forgets: it tells whether two slices are of one patient, and
is never returned, logged or written.
"""

import hashlib
import os
import re
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
    UnsupportedFormatError,
)
from pipeline.io.formats.archive import Member
from pipeline.io.formats.dicom_headers import (
    GEOMETRY,
    Slice,
    class_name,
    frames_of,
    is_localizer,
    slice_of,
    stored_pixels,
    why_no_slice,
)
from pipeline.io.formats.dicom_tags import FAULTS, MODALITIES, OVERLAY_BITS, TAGS, number_of, text
from pipeline.io.formats.gate import DeflatedError, HeaderBudget, HeaderFile, require_no_program
from pipeline.io.formats.limits import SizeLimits

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
        deflated: files that were not opened, since they may unpack to anything.
    """

    slices: list[Slice] = field(default_factory=list)
    images: int = 0
    localizers: int = 0
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    other_modalities: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    deflated: int = 0

    def leave_out(self, reason: str, series: str, images: int = 1) -> None:
        self.left_out.setdefault(reason, Counter())[series] += images

    def counted(self) -> dict[str, object]:
        """For the evidence of a refusal."""
        counts: dict[str, object] = {
            "images": self.images,
            "slices": len(self.slices),
            "series": len({s.series for s in self.slices}),
            "localizers": self.localizers,
            "deflated": self.deflated,
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
        ScanTooLargeError: headers or slices beyond those of any CT.
    """
    budget = HeaderBudget()
    for number, member in enumerate(members):
        path = member.as_file(folder / f"{number:06d}.dcm")
        with path.open("rb") as file:
            head = file.read(4096)
        require_no_program(head)
        try:
            _add(found, path, head, budget)
        except DeflatedError:
            found.deflated += 1
        except (*FAULTS, OSError) as error:
            # pydicom raises it without a number; with one it is the disk's.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DamagedFileError("A DICOM file is damaged: its header cannot be read.") from error
        limits.check_files(len(found.slices))
    if found.deflated and not found.slices:
        raise UnsupportedFormatError(
            f"{found.deflated} DICOM files are deflated (TransferSyntaxUID 1.2.840.10008.1.2.1.99), which is not read, "
            "and no others hold CT slices. Send the series uncompressed, in a zip.",
            evidence={"tag": "TransferSyntaxUID", "value": "1.2.840.10008.1.2.1.99"},
        )
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


def _add(found: Inventory, path: Path, head: bytes, budget: HeaderBudget) -> None:
    """Count what the file holds, and keep its slices."""
    parsed = read_header(path, head, budget)
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
        found.other_modalities[modality if modality in MODALITIES else "unknown"] += 1
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
    pixels = stored_pixels(path, header, pixels_at, frames)
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


def read_header(path: Path, head: bytes, budget: HeaderBudget) -> tuple[Dataset, int] | None:
    """The tags above and where PixelData begins; None of what is no DICOM after all.

    Raises:
        DamagedFileError: it cannot be read.
        ScanTooLargeError: more of it than `budget` has left.
        DeflatedError: the dataset is deflated.
    """
    budget.add_file()
    tail = b""
    with path.open("rb") as file:
        items = 0
        while block := file.read(_COPY_BYTES):
            block = tail + block  # a tag may begin in one block and end in the next
            items += max(block.count(tag) for tag in _ITEM_TAGS)
            tail = block[-3:]
    budget.take_items(items)
    with HeaderFile(path, budget) as file:
        try:
            wanted: list[Any] = [*TAGS, OVERLAY_BITS]
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)
        except (*FAULTS, OSError) as error:
            if head[128:132] != b"DICM":
                return None
            raise DamagedFileError("A DICOM file is damaged: its header cannot be read.") from error
        return header, file.tell()
