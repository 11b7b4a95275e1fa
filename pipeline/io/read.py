"""Reads a CT in a child process that may fail, and notes what is unusual about it.

The child (`sandbox`) runs `formats.scan`; back come the pixels in a file of the child's private folder, and the grid
and what was noticed as JSON. Whom a DICOM scan is of comes back in a file of its own (`source_identity`), and in
nothing else.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DamagedFileError
from pipeline.findings import findings_of_scan
from pipeline.geometry import Finding, GeometrySource, Grid, NiftiGeometry, Scan, Triple, Volume
from pipeline.intensities import normalise
from pipeline.io.sandbox import Confinement, call_confined, open_left
from pipeline.source_identity import SourceIdentity

_READER = "pipeline.io.formats.scan:leave_hounsfield"
_HU_FILE = "hu.raw"
_IDENTITY_FILE = "identity.json"
#: Of the largest series that is read; a slice takes some 200.
_IDENTITY_BYTES = 16 << 20


@dataclass(frozen=True)
class ReadLimits:
    """What a scan may cost to read.

    Attributes:
        max_voxels: of the volume; checked from headers before anything is allocated.
        max_bytes: of the file, and again of what it unpacks to.
        max_files: in a zip or a folder.
        seconds: until the reader must have finished.
        memory_bytes: address space of the reader.
        is_sandbox_required: nothing is read unless the kernel gives all protections of `confinement`.
    """

    max_voxels: int = 512 * 512 * 2000
    max_bytes: int = 4 << 30
    max_files: int = 10_000
    seconds: float = 120.0
    memory_bytes: int = 10 << 30
    is_sandbox_required: bool = False


def read_ct(path: Path, limits: ReadLimits = ReadLimits()) -> Scan:
    """Read NIfTI, NRRD, MetaImage or a DICOM series (zip or folder) as Hounsfield units on its own grid.

    The format is known by content; the file's name does not matter. Axes stay as they are stored, whatever their
    order and direction; only the slices of a DICOM series are put in order. What is doubtful, and what of the values
    was corrected, is in the scan's findings; nothing is repaired silently.

    Raises:
        UnsupportedFormatError: none of these formats, or not one volume of plain numbers.
        DamagedFileError: broken, cut short, or the reader crashed or took too long.
        ScanTooLargeError: over the limits.
        NotChestCTError: DICOM of another modality.
        FileNotFoundError: there is no such path.
        SandboxMissingError: the sandbox is required, and the kernel does not give it whole.
    """
    stored = _read_stored(path, limits, is_noisy=True)
    volume, corrections = normalise(stored.volume)
    findings = (*stored.findings, *corrections)
    return Scan(volume, (*findings, *findings_of_scan(volume, findings)), stored.source, stored.identity)


def read_volume(path: Path, limits: ReadLimits = ReadLimits()) -> Scan:
    """The same with the values as they are stored, and no word about what they mean: a mask, or labels.

    Raises:
        UnsupportedFormatError, DamagedFileError, ScanTooLargeError, NotChestCTError, FileNotFoundError: as `read_ct`.
    """
    return _read_stored(path, limits, is_noisy=False)


def _read_stored(path: Path, limits: ReadLimits, *, is_noisy: bool) -> Scan:
    with tempfile.TemporaryDirectory(prefix="lobewise-read-") as name:
        folder = Path(name)
        scan = str(path.resolve(strict=True))
        arguments = {
            "path": scan,
            "max_voxels": limits.max_voxels,
            "max_bytes": limits.max_bytes,
            "max_files": limits.max_files,
            "is_noisy": is_noisy,
        }
        answer = call_confined(_READER, arguments, folder, confinement_of(scan, limits))
        # The child met bytes that nobody vouches for, so what it left is checked too.
        try:
            z, y, x = map(int, answer["grid"]["shape"])
            rows = [_triple(row) for row in answer["grid"]["direction"]]
            spacing_mm, origin_mm = _triple(answer["grid"]["spacing_mm"]), _triple(answer["grid"]["origin_mm"])
            grid = Grid((z, y, x), spacing_mm, origin_mm, (rows[0], rows[1], rows[2]))
            findings = tuple(Finding(**finding) for finding in answer["findings"])
            source = _source(answer["source"])
            with open_left(folder, _HU_FILE) as left:
                size_bytes = os.fstat(left.fileno()).st_size
                if min(z, y, x) < 1 or z * y * x > limits.max_voxels or size_bytes != 2 * z * y * x:
                    raise ValueError(f"{size_bytes} bytes of a grid of {grid.shape}")
                hu = np.fromfile(left, np.int16).reshape(grid.shape)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFileError("The reader did not leave what it announced.") from error
        identity = _identity(folder, z) if answer.get("has_identity") else None
    return Scan(Volume(hu, grid), findings, source, identity)


def confinement_of(scan: str, limits: ReadLimits) -> Confinement:
    """Of a child that meets this scan."""
    return Confinement(
        limits.memory_bytes,
        limits.max_bytes,
        limits.seconds,
        readable=(scan,),
        is_required=limits.is_sandbox_required,
    )


def _identity(folder: Path, planes: int) -> SourceIdentity:
    with open_left(folder, _IDENTITY_FILE) as left:
        text = left.read(_IDENTITY_BYTES)
    try:
        return SourceIdentity.parse(json.loads(text), planes)
    except (AttributeError, KeyError, TypeError, ValueError):
        # Not as the cause, which might quote a patient's data.
        raise DamagedFileError("The reader did not leave what it announced.") from None


def _source(answer: dict[str, Any]) -> GeometrySource:
    nifti: NiftiGeometry | None = None
    if answer["nifti"] is not None:
        listed = {name: tuple(value) for name, value in answer["nifti"].items() if isinstance(value, list)}
        nifti = NiftiGeometry(**{**answer["nifti"], **listed})
    return GeometrySource(answer["file_format"], tuple(answer["used"]), answer["ignored"], nifti)


def _triple(values: list[float]) -> Triple:
    first, second, third = values
    return float(first), float(second), float(third)
