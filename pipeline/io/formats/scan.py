"""Reads whatever a path holds and leaves Hounsfield units in the working folder: what the sandbox runs."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pipeline.errors import UnsupportedFormatError
from pipeline.geometry import Scan
from pipeline.io.formats.archive import FileMember, Member, members_of_folder, members_of_zip, open_zip
from pipeline.io.formats.content import HEAD_BYTES, Content, identify
from pipeline.io.formats.dicom import read_series
from pipeline.io.formats.gate import require_no_program
from pipeline.io.formats.images import read_image
from pipeline.io.formats.limits import SizeLimits

HU_FILE: Final = "hu.raw"
IDENTITY_FILE: Final = "identity.json"

READ_AS: Final = "NIfTI (.nii, .nii.gz), NRRD, MetaImage (.mha) and DICOM series (a zip or a folder)"


def leave_hounsfield(
    path: str, max_voxels: int, max_bytes: int, max_files: int, is_noisy: bool = True
) -> dict[str, Any]:
    """Read `path`, write `hu.raw` (int16 of this machine, z-y-x) to the working folder and say where it lies.

    Whom a DICOM scan is of goes to `identity.json`, apart from the answer, which may be quoted.

    Returns:
        `grid`, `findings` and `source`, as JSON holds them, and whether there is an identity.

    Raises:
        PipelineError: as its kinds say.
    """
    limits = SizeLimits(max_voxels, max_bytes, max_files, is_noisy)
    scan = _read(Path(path), Path.cwd(), limits)
    scan.volume.hu.tofile(HU_FILE)
    if scan.identity is not None:
        Path(IDENTITY_FILE).write_text(json.dumps(scan.identity.as_json()), encoding="ascii")
    return {
        "grid": asdict(scan.volume.grid),
        "findings": [asdict(finding) for finding in scan.findings],
        "source": asdict(scan.source) if scan.source else None,
        "has_identity": scan.identity is not None,
    }


def _read(path: Path, folder: Path, limits: SizeLimits) -> Scan:
    if path.is_dir():
        return _read_members(members_of_folder(path, limits), folder, limits)
    limits.check_bytes(path.stat().st_size)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    content = identify(head)
    require_no_program(head)
    if content is Content.ZIP:
        with open_zip(path, limits) as archive:
            return _read_members(members_of_zip(archive, limits), folder, limits)
    if content is Content.DICOM:
        return read_series([FileMember(path, content)], folder, limits)
    if content.is_image:
        return read_image(path, content, folder, limits)
    if content is Content.NIFTI_PAIR:
        raise UnsupportedFormatError("The NIfTI header has its pixels in another file; send one .nii or .nii.gz.")
    raise UnsupportedFormatError(f"The file is {content.value}. Read are {READ_AS}.")


def _read_members(members: Iterable[Member], folder: Path, limits: SizeLimits) -> Scan:
    """The DICOM series among them, or else the only image; what is neither is left out (viewers, reports, pictures)."""
    listed = list(members)
    series = [member for member in listed if member.content is Content.DICOM]
    if series:
        return read_series(series, folder, limits)
    images = [member for member in listed if member.content.is_image]
    if len(images) == 1:
        return read_image(images[0].as_file(folder / "member"), images[0].content, folder, limits)
    if images:
        raise UnsupportedFormatError(f"There are {len(images)} images; send one.", evidence={"images": len(images)})
    if any(member.content is Content.ZIP for member in listed):
        raise UnsupportedFormatError("The zip holds another zip, and no scan beside it; send one series in one zip.")
    raise UnsupportedFormatError(f"None of the {len(listed)} files holds a CT. Read are {READ_AS}.")
