"""What looks like a sheet, and what does not."""

import numpy as np
import pytest
from scipy import ndimage

from pipeline.geometry import IDENTITY, Grid, Matrix, Volume
from pipeline.lungs.fissure_sheets import FINE_MM, eigenvalues, find_faint_sheets, find_sheets, sheetness

SCAN = Grid((60, 80, 70), (1.0, 1.0, 1.0), (-0.5, -0.5, -0.5))
ROI = Grid((30, 40, 35), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
INSIDE = np.ones(SCAN.shape, dtype=np.bool_)


def scan_with(shape: np.ndarray, brightness_hu: float = 250.0) -> Volume:
    return Volume((-850 + brightness_hu * shape).astype(np.int16), SCAN)


Z, Y, X = (axis - 0.5 for axis in np.indices(SCAN.shape))
SHEET = np.abs(Z - 29) < 0.6
VESSEL = (Z - 29) ** 2 + (Y - 39) ** 2 < 4


def test_a_sheet_is_told_from_a_vessel_and_from_nothing() -> None:
    sheet, vessel, flat = (
        sheetness(scan_with(shape).hu, SCAN.spacing_mm, INSIDE, 1.2) for shape in (SHEET, VESSEL, 0 * Z)
    )
    assert sheet[29:31, 40, 35].max() == 1.0
    assert vessel[28:32, 38:42, 35].mean() < 0.5 * sheet[29:31, 40, 35].mean()
    assert flat.max() == 0.0


def test_eigenvalues_are_those_of_a_solver() -> None:
    made = np.random.default_rng(0).normal(size=(500, 3, 3))
    matrices = made + made.transpose(0, 2, 1)
    # With two or three that are the same, the closed form is at its limits.
    matrices[:3] = [np.zeros((3, 3)), 2 * np.eye(3), np.diag([1.0, 1.0, -3.0])]
    zz, yy, xx, zy, zx, yx = (matrices[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)))
    found = np.stack(eigenvalues(zz, yy, xx, zy, zx, yx), axis=1)
    assert np.abs(found - np.linalg.eigvalsh(matrices)).max() < 1e-12


@pytest.mark.parametrize("level_hu", [-950, -850, -700])
def test_even_lung_of_any_density_has_no_sheets_in_thick_slices(level_hu: int) -> None:
    """Kernels that are sampled every 3 mm do not quite sum to 0: of lung they must not make sheets."""
    hu = np.full((20, 40, 40), level_hu, dtype=np.int16)
    inside = np.zeros(hu.shape, dtype=np.bool_)
    inside[4:-4, 6:-6, 6:-6] = True
    assert sheetness(hu, (3.0, 1.0, 1.0), inside, 1.7).max() < 1e-3


def test_no_lungs_have_no_sheets() -> None:
    assert not find_sheets(scan_with(SHEET), ROI, np.zeros(ROI.shape, dtype=np.bool_)).any()


def test_only_large_sheets_are_plain() -> None:
    lungs = np.ones(ROI.shape, dtype=np.bool_)
    small = SHEET & ((Y - 39) ** 2 + (X - 34) ** 2 < 100)
    assert find_sheets(scan_with(SHEET), ROI, lungs)[14:16, 20, 17].max() > 0.8
    assert not find_sheets(scan_with(small), ROI, lungs).any()
    assert find_faint_sheets(scan_with(small), ROI, lungs).sheetness.max() > 0.3


@pytest.mark.parametrize(
    "direction", [IDENTITY, ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))], ids=["supine", "prone"]
)
def test_faint_sheets_are_looked_for_in_the_slices_of_the_scan(direction: Matrix) -> None:
    """3 mm slices stay 3 mm apart, pixels of 0.7 mm are brought to `FINE_MM`; positions stay those of the patient."""
    grid = Grid((30, 90, 80), (3.0, 0.7, 0.7), (5.0, -20.0, 7.0), direction)
    z = np.indices(grid.shape)[0]
    volume = Volume(np.where(z == 15, -650, -850).astype(np.int16), grid)
    lungs = np.zeros(grid.covering((2.0, 2.0, 2.0)).shape, dtype=np.bool_)
    lungs[3:-3, 4:-4, 4:-4] = True
    found = find_faint_sheets(volume, grid.covering((2.0, 2.0, 2.0)), lungs)
    assert found.grid.spacing_mm == (3.0, FINE_MM, FINE_MM)
    assert found.grid.direction == direction
    peak = np.asarray(ndimage.center_of_mass(found.sheetness > 0.5))
    assert found.grid.to_lps(peak)[2] == pytest.approx(grid.to_lps(np.array([15.0, 0, 0]))[2], abs=0.5)
