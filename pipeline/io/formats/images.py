"""NIfTI, NRRD and MetaImage files: header, geometry, then pixels as plain numbers, all read by ourselves."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.errors import DamagedFileError, PipelineError
from pipeline.geometry import Scan, Volume, as_evidence
from pipeline.io.formats.content import Content
from pipeline.io.formats.gate import require_ratio
from pipeline.io.formats.image_header import MAX_HEADER_BYTES, ImageHeader
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.formats.metaimage import parse_metaimage
from pipeline.io.formats.nifti import parse_nifti, readable_by_all
from pipeline.io.formats.nrrd import parse_nrrd
from pipeline.io.formats.placement import EXACT_DEGREES, degrees_from_right_angles, place
from pipeline.io.formats.unpack import Packing, unpacked
from pipeline.io.formats.voxels import to_hounsfield

_BLOCK_BYTES: Final = 1 << 20

PARSERS: Final[Mapping[Content, Callable[[bytes], ImageHeader]]] = {
    Content.NIFTI: parse_nifti,
    Content.NIFTI_GZ: parse_nifti,
    Content.NRRD: parse_nrrd,
    Content.METAIMAGE: parse_metaimage,
}


def read_image(path: Path, content: Content, folder: Path, limits: SizeLimits) -> Scan:
    """Read one file that holds a whole volume; what it unpacks to goes to `folder`.

    Raises:
        UnreadableScanError: as its kinds say.
    """
    packing = Packing.GZIP if content is Content.NIFTI_GZ else Packing.PLAIN
    _, header = parse_image(path, content)
    limits.check_voxels(header.sizes)
    limits.check_bytes(header.data_bytes)
    if limits.is_noisy and {packing, header.packing} != {Packing.PLAIN}:
        require_ratio(path.stat().st_size, header.data_bytes)
    grid, findings = place(header.placement, header.sizes)
    source = header.source
    if source.nifti is not None and degrees_from_right_angles(header.placement.steps_mm) > EXACT_DEGREES:
        source = replace(source, nifti=readable_by_all(source.nifti, grid))
    noticed = (*header.findings, *findings)
    try:
        pixels = _pixels(path, packing, header, folder)
    except PipelineError as error:
        if noticed:
            error.evidence["findings"] = as_evidence(noticed)
        raise
    hu, value_findings = to_hounsfield(pixels, header.slope, header.intercept)
    return Scan(Volume(hu, grid), (*noticed, *value_findings), source)


def parse_image(path: Path, content: Content) -> tuple[bytes, ImageHeader]:
    """The file's first bytes, unpacked if all of it is packed, and what they say.

    Raises DamagedFileError, UnsupportedFormatError: as the parser of the format.
    """
    head = _head(path, Packing.GZIP if content is Content.NIFTI_GZ else Packing.PLAIN)
    return head, PARSERS[content](head)


def unpacked_pixels(path: Path, content: Content, header: ImageHeader) -> Iterator[bytes]:
    """The bytes of the voxels, unpacked, in blocks; no others. Raises DamagedFileError: some are missing."""
    whole = content is Content.NIFTI_GZ
    packing = Packing.GZIP if whole else header.packing
    with path.open("rb") as file:
        file.seek(0 if whole else header.data_at)
        plain = packing is Packing.PLAIN
        blocks = iter(lambda: file.read(_BLOCK_BYTES), b"") if plain else unpacked(file.read, packing, _BLOCK_BYTES)
        skip, left = header.data_at if whole else 0, header.data_bytes
        for block in blocks:
            wanted = block[skip : skip + left]
            skip, left = max(0, skip - len(block)), left - len(wanted)
            yield wanted
            if not left:
                return
    raise DamagedFileError("The file is cut short: it holds fewer pixels than its header says.")


def _pixels(path: Path, packing: Packing, header: ImageHeader, folder: Path) -> np.ndarray:
    if packing is not Packing.PLAIN:
        return _mapped(_unpack(path, 0, packing, header.data_at + header.data_bytes, folder), header)
    if header.packing is not Packing.PLAIN:
        unpacked_to = _unpack(path, header.data_at, header.packing, header.data_bytes, folder)
        return _mapped(unpacked_to, header, data_at=0)
    return _mapped(path, header)


def _head(path: Path, packing: Packing) -> bytes:
    with path.open("rb") as file:
        if packing is Packing.PLAIN:
            return file.read(MAX_HEADER_BYTES)
        head = b""
        for block in unpacked(file.read, packing, MAX_HEADER_BYTES):
            head += block
            if len(head) >= MAX_HEADER_BYTES:
                break
        return head[:MAX_HEADER_BYTES]


def _mapped(path: Path, header: ImageHeader, data_at: int | None = None) -> np.ndarray:
    """The pixels z-y-x, not yet in memory."""
    offset = header.data_at if data_at is None else data_at
    present = path.stat().st_size - offset
    if present < header.data_bytes:
        raise DamagedFileError(
            f"The file is cut short: it holds fewer pixels than its header says ({max(present, 0)} of "
            f"{header.data_bytes} bytes). Export or send it again.",
            evidence={"bytes_expected": header.data_bytes, "bytes_present": max(present, 0)},
        )
    if present > header.data_bytes + MAX_HEADER_BYTES:
        raise DamagedFileError(
            f"The file holds more than its header says ({present} bytes for {header.data_bytes}): its sizes are wrong. "
            "Export it again.",
            evidence={"bytes_expected": header.data_bytes, "bytes_present": present},
        )
    return np.memmap(path, header.dtype, "r", offset, header.sizes[::-1])


def _unpack(path: Path, begin: int, packing: Packing, expected_bytes: int, folder: Path) -> Path:
    """Unpack no more than the header lets expect, and a little."""
    target = folder / "unpacked"
    with path.open("rb") as source, target.open("wb") as copy:
        source.seek(begin)
        for block in unpacked(source.read, packing, _BLOCK_BYTES):
            copy.write(block)
            if copy.tell() > expected_bytes + MAX_HEADER_BYTES:
                raise DamagedFileError(
                    f"The file unpacks to more than its header says ({expected_bytes} bytes): its sizes are wrong. "
                    "Export it again.",
                    evidence={"bytes_expected": expected_bytes},
                )
    return target
