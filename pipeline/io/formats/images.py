"""NIfTI, NRRD and MetaImage files: the pixels are read as plain numbers, ITK places them."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import SimpleITK as sitk
from isal import isal_zlib

from pipeline.errors import DamagedFileError, UnsupportedFormatError
from pipeline.geometry import Finding, Grid, Scan, Volume
from pipeline.io.formats.content import Content
from pipeline.io.formats.headers import MAX_HEADER_BYTES, ImageHeader, Packing, parse_metaimage, parse_nifti, parse_nrrd
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.formats.voxels import to_hounsfield

_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class _Reader:
    """How a format is read: our parser of its header, ITK's reader of the geometry, the name ITK expects."""

    parse: Callable[[bytes], ImageHeader]
    image_io: str
    file_name: str


_READERS: Final[Mapping[Content, _Reader]] = {
    Content.NIFTI: _Reader(parse_nifti, "NiftiImageIO", "geometry.nii"),
    Content.NRRD: _Reader(parse_nrrd, "NrrdImageIO", "geometry.nrrd"),
    Content.METAIMAGE: _Reader(parse_metaimage, "MetaImageIO", "geometry.mha"),
}


def read_image(path: Path, content: Content, folder: Path, limits: SizeLimits) -> Scan:
    """Read one file that holds a whole volume; what it unpacks to goes to `folder`.

    Raises:
        UnreadableScanError: as its kinds say.
    """
    packing = Packing.GZIP if content is Content.NIFTI_GZ else Packing.PLAIN
    reader = _READERS[Content.NIFTI if content is Content.NIFTI_GZ else content]
    with path.open("rb") as file:
        if packing is Packing.PLAIN:
            head = file.read(MAX_HEADER_BYTES)
        else:
            head = next(_unpacked(file, packing, MAX_HEADER_BYTES), b"")[:MAX_HEADER_BYTES]
    header = reader.parse(head)
    limits.check_voxels(header.sizes)
    limits.check_bytes(header.data_bytes)
    grid = _grid(reader, header, folder)
    if packing is not Packing.PLAIN:
        pixels = _mapped(_unpack(path, 0, packing, header.data_at + header.data_bytes, folder), header)
    elif header.packing is not Packing.PLAIN:
        unpacked = _unpack(path, header.data_at, header.packing, header.data_bytes, folder)
        pixels = _mapped(unpacked, header, data_at=0)
    else:
        pixels = _mapped(path, header)
    hu, findings = to_hounsfield(pixels, header.slope, header.intercept)
    if not header.placed:
        message = "The file does not say how the patient lies in it: the format's default was assumed."
        findings = (Finding("orientation-assumed", "warning", message), *findings)
    return Scan(Volume(hu, grid), findings)


# Geometry


def _grid(reader: _Reader, header: ImageHeader, folder: Path) -> Grid:
    """What ITK makes of the header that we wrote."""
    path = folder / reader.file_name
    path.write_bytes(header.rewritten)
    information = sitk.ImageFileReader()
    information.SetImageIO(reader.image_io)
    information.SetFileName(str(path))
    try:
        information.ReadImageInformation()
    except RuntimeError as error:
        # ITK's message names files and lines of its own, so it is not passed on.
        if "orthonormal" in str(error):
            detail = "The file's axes are not at right angles (a tilted gantry); send the DICOM series instead."
            raise UnsupportedFormatError(detail) from error
        raise DamagedFileError("The header is damaged: its geometry cannot be read.") from error
    if information.GetSize()[:3] != header.sizes:
        raise DamagedFileError("The header is damaged: it contradicts itself.")
    # The first three axes; those that follow have length one.
    n = information.GetDimension()
    (x, y, z), (ox, oy, oz) = information.GetSize()[:3], information.GetOrigin()[:3]
    sx, sy, sz = information.GetSpacing()[:3]
    rows = [information.GetDirection()[row * n : row * n + 3] for row in range(3)]
    return Grid((z, y, x), (sz, sy, sx), (ox, oy, oz), (rows[0], rows[1], rows[2]))


# Pixels


def _mapped(path: Path, header: ImageHeader, data_at: int | None = None) -> np.ndarray:
    """The pixels z-y-x, not yet in memory."""
    offset = header.data_at if data_at is None else data_at
    present = path.stat().st_size - offset
    if present < header.data_bytes:
        raise DamagedFileError(
            "The file is cut short: it holds fewer pixels than its header says.",
            evidence={"bytes_expected": header.data_bytes, "bytes_present": max(present, 0)},
        )
    return np.memmap(path, header.dtype, "r", offset, header.sizes[::-1])


def _unpack(path: Path, begin: int, packing: Packing, expected_bytes: int, folder: Path) -> Path:
    """Unpack no more than the header lets expect, and a little."""
    target = folder / "unpacked"
    with path.open("rb") as source, target.open("wb") as copy:
        source.seek(begin)
        for block in _unpacked(source, packing, _BLOCK_BYTES):
            copy.write(block)
            if copy.tell() > expected_bytes + MAX_HEADER_BYTES:
                raise DamagedFileError("The file unpacks to more than its header says.")
    return target


def _unpacked(source: IO[bytes], packing: Packing, block_bytes: int) -> Iterator[bytes]:
    """The stream in blocks of at most `block_bytes`; its checksum is checked at the end."""
    stream: Any = isal_zlib.decompressobj(wbits=packing.value)
    try:
        while not stream.eof:
            packed = stream.unconsumed_tail or source.read(block_bytes)
            if not packed:
                raise DamagedFileError("The file is cut short: its compressed part has no end.")
            yield stream.decompress(packed, block_bytes)
    except (isal_zlib.error, zlib.error) as error:  # type: ignore[misc]  # isal's stub names no class
        raise DamagedFileError("The file is damaged: its compressed part cannot be unpacked.") from error
