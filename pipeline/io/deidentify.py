"""Takes what may name a patient out of a stored scan, in the same kind of child process that reads it."""

import shutil
import tempfile
from pathlib import Path

from pipeline.io.read import ReadLimits, confinement_of
from pipeline.io.sandbox import call_confined, open_left

_FUNCTION = "pipeline.io.formats.deidentify:leave_deidentified"
_LEFT = "deidentified"


def deidentify(path: Path, target: Path, key: bytes, limits: ReadLimits) -> None:
    """Write what may be kept of the scan at `path` to `target`: the same volume, to `read_ct`.

    DICOM loses what the Basic Profile of PS3.15 names, all that is private or unknown, and files that are no CT slices;
    NIfTI, NRRD and MetaImage lose their texts, comments and extensions. The bits of the voxels stay as they are.

    Args:
        key: of the mapping of UIDs; the same for scans that shall be known to belong together.

    Raises:
        PipelineError: as `read_ct`; UnsupportedFormatError also where BurnedInAnnotation says that pixels hold text.
        SandboxMissingError: as `read_ct`.
    """
    with tempfile.TemporaryDirectory(prefix="lobewise-deidentify-", dir=target.parent) as name:
        folder, scan = Path(name), str(path.resolve(strict=True))
        arguments = {
            "path": scan,
            "key": key.hex(),
            "max_voxels": limits.max_voxels,
            "max_bytes": limits.max_bytes,
            "max_files": limits.max_files,
        }
        call_confined(_FUNCTION, arguments, folder, confinement_of(scan, limits))
        with open_left(folder, _LEFT) as left, target.open("wb") as copy:
            shutil.copyfileobj(left, copy, 1 << 20)
