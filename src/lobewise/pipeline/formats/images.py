"""NIfTI, NRRD and MetaImage files, read by ITK once their headers were found harmless."""

import gzip
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import SimpleITK as sitk
from isal import igzip, isal_zlib

from lobewise.pipeline.errors import DamagedFileError, ScanTooLargeError, UnsupportedFormatError
from lobewise.pipeline.formats.content import Content
from lobewise.pipeline.formats.headers import (
    MAX_HEADER_BYTES,
    ImageHeader,
    parse_metaimage,
    parse_nifti,
    parse_nrrd,
)
from lobewise.pipeline.formats.limits import SizeLimits
from lobewise.pipeline.formats.voxels import RawVolume
from lobewise.pipeline.volume import Finding, grid_of

_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class _Reader:
    """How a format is read: our parser of its header, ITK's reader of its pixels, the name ITK expects."""

    parse: Callable[[bytes], ImageHeader]
    image_io: str
    file_name: str


_READERS: Final[Mapping[Content, _Reader]] = {
    Content.NIFTI: _Reader(parse_nifti, "NiftiImageIO", "scan.nii"),
    Content.NRRD: _Reader(parse_nrrd, "NrrdImageIO", "scan.nrrd"),
    Content.METAIMAGE: _Reader(parse_metaimage, "MetaImageIO", "scan.mha"),
}


def read_image(path: Path, content: Content, folder: Path, limits: SizeLimits) -> RawVolume:
    """Read one file that holds a whole volume; copies of it go to `folder`.

    Raises:
        UnreadableScanError: as its kinds say.
    """
    if content is Content.NIFTI_GZ:
        path, content = _gunzip(path, folder / "unpacked", limits), Content.NIFTI
    reader = _READERS[content]
    header = reader.parse(_head_of(path))
    limits.check_voxels(header.sizes)
    _check_length(path, header)
    image = _execute(reader, _harmless_copy(path, header, folder / reader.file_name))
    findings = () if header.placed else (_assumed_orientation(),)
    return RawVolume(sitk.GetArrayViewFromImage(image), grid_of(image), findings, keep_alive=image)


def _gunzip(path: Path, target: Path, limits: SizeLimits) -> Path:
    """The header comes first, so that a bomb is known before it goes off."""
    try:
        with igzip.open(path, "rb") as source, target.open("wb") as copy:
            head = source.read(MAX_HEADER_BYTES)
            header = parse_nifti(head)
            limits.check_voxels(header.sizes)
            limits.check_bytes(header.data_at + header.data_bytes)
            allowed = header.data_at + header.data_bytes + MAX_HEADER_BYTES
            copy.write(head)
            while block := source.read(_COPY_BYTES):
                copy.write(block)
                if copy.tell() > allowed:
                    raise DamagedFileError("The file unpacks to more than its header says.")
    except (EOFError, gzip.BadGzipFile, isal_zlib.error) as error:  # type: ignore[misc]  # its stub names no class
        raise DamagedFileError("The gzip is damaged or cut short.") from error
    return target


def _head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_HEADER_BYTES)


def _check_length(path: Path, header: ImageHeader) -> None:
    present = path.stat().st_size - header.data_at
    if not header.packed and present < header.data_bytes:
        raise DamagedFileError(
            "The file is cut short: it holds fewer pixels than its header says.",
            evidence={"bytes_expected": header.data_bytes, "bytes_present": max(present, 0)},
        )


def _harmless_copy(path: Path, header: ImageHeader, target: Path) -> Path:
    """The file under the name ITK expects, with the header that we wrote, if the format's may name files."""
    if not header.rewritten:
        target.symlink_to(path.resolve())
        return target
    with path.open("rb") as source, target.open("wb") as copy:
        source.seek(header.data_at)
        copy.write(header.rewritten)
        shutil.copyfileobj(source, copy, _COPY_BYTES)
    return target


def _execute(reader: _Reader, path: Path) -> sitk.Image:
    file_reader = sitk.ImageFileReader()
    file_reader.SetImageIO(reader.image_io)
    file_reader.SetFileName(str(path))
    try:
        image = file_reader.Execute()
    except RuntimeError as error:
        raise _explained(str(error)) from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UnsupportedFormatError("The file holds colours, not a CT.")
    return image if image.GetDimension() == 3 else _first_volume(image)


def _first_volume(image: sitk.Image) -> sitk.Image:
    """Axes after the third have length one: the header said so."""
    size = image.GetSize()
    volume: sitk.Image = sitk.Extract(image, [*size[:3], *([0] * (len(size) - 3))])
    return volume


def _explained(message: str) -> Exception:
    """ITK's words name files and lines of its own; ours say what to do."""
    if "orthonormal" in message:
        return UnsupportedFormatError(
            "The file's axes are not at right angles (a tilted gantry); send the DICOM series instead."
        )
    if "llocat" in message:
        return ScanTooLargeError("Reading the file needs more memory than this service gives it.")
    return DamagedFileError("The file is damaged: its pixels or its geometry cannot be read.")


def _assumed_orientation() -> Finding:
    message = "The file does not say how the patient lies in it: the format's default was assumed."
    return Finding("orientation-assumed", "warning", message)
