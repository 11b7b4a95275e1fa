"""A DICOM series lies where dcm2niix and ITK show it, and so do its masks."""

import subprocess
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from pipeline.geometry import Grid, Scan, Volume
from pipeline.io.read import read_ct
from pipeline.io.write import write_mask
from tests.support.scans import WriteSeries

RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


def turned(chest: Volume, degrees: tuple[float, float, float]) -> Volume:
    """The same array, placed otherwise in the patient; thin and flat enough for a scanner."""
    axes = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    rows = [(float(a), float(b), float(c)) for a, b, c in axes]
    return Volume(chest.hu, Grid(chest.hu.shape, (2.5, 0.9, 0.7), (-103.5, 44.25, -310.0), (rows[0], rows[1], rows[2])))


def values_at(image: Path, points_lps: np.ndarray) -> np.ndarray:
    """What nibabel shows at LPS positions."""
    shown = nibabel.load(image)
    index = nibabel.affines.apply_affine(np.linalg.inv(shown.affine), points_lps * RAS_TO_LPS)
    assert_allclose(index, np.rint(index), atol=0.02)
    return np.asarray(shown.dataobj)[tuple(np.rint(index).astype(int).T)]


def by_dcm2niix(folder: Path) -> Path:
    out = folder.parent / "judged"
    out.mkdir()
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "scan", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.nii")
    return path


def by_itk(folder: Path) -> np.ndarray:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    return np.concatenate([image.GetDirection(), image.GetSpacing(), image.GetOrigin()])


def points_of(scan: Scan) -> np.ndarray:
    return scan.volume.grid.to_lps(np.argwhere(np.ones(scan.volume.hu.shape, dtype=bool)).astype(np.float64))


@pytest.mark.parametrize(
    "degrees", [(0, 0, 0), (90, 0, 0), (0, 90, 0), (10, 0, 0), (12, -7, 30), (180, 0, 0), (0, 180, 0)]
)
def test_a_series_lies_where_the_judges_show_it(
    degrees: tuple[float, float, float], chest: Volume, write_series: WriteSeries, tmp_path: Path
) -> None:
    paths = write_series(turned(chest, degrees), tmp_path / "series")
    scan = read_ct(paths[0].parent)

    write_mask(tmp_path / "mask.nii.gz", scan.volume.hu > 0, scan.volume.grid, scan.source)

    points = points_of(scan)
    np.testing.assert_array_equal(values_at(by_dcm2niix(paths[0].parent), points), scan.volume.hu.ravel())
    np.testing.assert_array_equal(values_at(tmp_path / "mask.nii.gz", points), scan.volume.hu.ravel() > 0)
    grid = scan.volume.grid
    itk = by_itk(paths[0].parent)
    assert_allclose([*np.ravel(grid.direction), *grid.spacing_mm[::-1], *grid.origin_mm], itk, atol=1e-4)


@pytest.mark.parametrize("missing", [(5,), (5, 12), (5, 6)])
def test_a_series_that_lacks_slices_keeps_the_others_where_dcm2niix_shows_them(
    missing: tuple[int, ...], chest: Volume, write_series: WriteSeries, tmp_path: Path
) -> None:
    paths = write_series(turned(chest, (0, 0, 0)), tmp_path / "series")
    for index in missing:
        paths[index].unlink()
    scan = read_ct(paths[0].parent)
    assert scan.volume.hu.shape == chest.hu.shape
    kept = [index for index in range(len(paths)) if index not in missing]
    np.testing.assert_array_equal(scan.volume.hu[kept], chest.hu[kept])
    assert scan.volume.grid.spacing_mm[0] == pytest.approx(2.5)
