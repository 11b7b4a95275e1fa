"""Masks and CTs as gzipped NIfTI on their own grid."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from isal import igzip
from jaxtyping import Shaped

from pipeline.geometry import GeometrySource, Grid, Volume, to_sitk
from pipeline.io.formats.nifti import nifti_1_fields


def write_mask(path: Path, mask: Shaped[np.ndarray, "z y x"], grid: Grid, source: GeometrySource | None = None) -> None:
    """Write a mask or labels (0-255) to `path` (`.nii.gz`) as uint8, whole or not at all.

    Size, spacing, origin and direction are the grid's, left-handed ones too (sform and qform). The same mask gives
    the same bytes.

    Args:
        source: of the scan. The fields of its own NIfTI header are repeated: wherever a viewer shows the scan, the mask
            lies on it.
    """
    _write(path, mask.astype(np.uint8, copy=False), grid, source)


def write_ct(path: Path, volume: Volume) -> None:
    """Write a CT to `path` (`.nii.gz`) as int16 Hounsfield units, in the same way."""
    _write(path, volume.hu, volume.grid, None)


def _write(path: Path, array: Shaped[np.ndarray, "z y x"], grid: Grid, source: GeometrySource | None) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        plain, packed = Path(folder, "array.nii"), Path(folder, "array.nii.gz")
        sitk.WriteImage(to_sitk(array, grid), str(plain), imageIO="NiftiImageIO")
        if source is not None and source.nifti is not None:
            with plain.open("r+b") as header:
                for offset, field in nifti_1_fields(source.nifti):
                    header.seek(offset)
                    header.write(field)
        # isal's level 1 is several times faster than zlib's, at about its size; no time or name in the header.
        with (
            plain.open("rb") as unpacked,
            packed.open("wb") as target,
            igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=target, mtime=0) as stream,
        ):
            shutil.copyfileobj(unpacked, stream, 1 << 20)
        os.replace(packed, path)
