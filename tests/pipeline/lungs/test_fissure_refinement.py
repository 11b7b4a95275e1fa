"""Borders go to the sheets that a scan shows, and nowhere without one."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.anatomy import FISSURES, Lobe
from pipeline.geometry import Grid, Volume
from pipeline.lungs.fissure_refinement import REACH_MM, THICKEST_SLICES_MM, follow_fissures, refine_borders
from pipeline.phantom import PhantomRecipe, make_phantom
from pipeline.resampling import resample, resample_labels

ROI = Grid((50, 50, 44), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
SCAN = Grid((100, 100, 88), (1.0, 1.0, 1.0), (-0.5, -0.5, -0.5))
MIDDLE_MM = 49.0
"""Where the border of `two_lobes` is, between two layers of voxels."""

Mm = np.ndarray
Shape = Callable[[Mm, Mm, Mm], np.ndarray]


def lung_in(grid: Grid) -> np.ndarray:
    z, y, x = np.indices(grid.shape) * grid.spacing_mm[0] + grid.origin_mm[0]
    return ((z - 49) / 45) ** 2 + ((y - 49) / 45) ** 2 + ((x - 43) / 38) ** 2 < 1


def scan_with(shape: Shape, brightness_hu: float = 150.0, noise_hu: float = 0.0) -> Volume:
    """A lung of -850 HU in water, brighter where `shape` of z, y and x (mm) is true."""
    z, y, x = (axis.astype(np.float64) - 0.5 for axis in np.indices(SCAN.shape))
    hu = np.where(lung_in(SCAN), -850.0, 0.0) + brightness_hu * (shape(z, y, x) & lung_in(SCAN))
    hu += np.random.default_rng(5).normal(scale=noise_hu, size=hu.shape) if noise_hu else 0.0
    return Volume(np.rint(hu).astype(np.int16), SCAN)


def sheet_at(height_mm: float, slope: float = 0.0) -> Shape:
    return lambda z, y, _: np.abs(z - height_mm - slope * (y - 49)) < 0.6


def nothing(z: Mm, y: Mm, x: Mm) -> np.ndarray:
    return np.zeros_like(z, dtype=np.bool_)


def two_lobes(height_mm: float = MIDDLE_MM) -> np.ndarray:
    z = np.indices(ROI.shape)[0] * 2.0
    return np.where(lung_in(ROI), np.where(z > height_mm, Lobe.LEFT_UPPER, Lobe.LEFT_LOWER), 0).astype(np.uint8)


def border_mm(labels: np.ndarray) -> np.ndarray:
    """The height of the border in the columns of the middle of the lung, voxels across it averaged."""
    columns = labels[:, 15:35, 15:29]
    lowers = (columns == Lobe.LEFT_LOWER).sum(axis=0)
    return 2.0 * (np.argmax(columns > 0, axis=0) + lowers) - 1.0


@pytest.mark.parametrize("offset_mm", [-10.0, -6.0, 4.0, 10.0])
def test_a_border_moves_to_a_sheet_within_reach(offset_mm: float) -> None:
    moved = refine_borders(scan_with(sheet_at(MIDDLE_MM + offset_mm), noise_hu=20.0), ROI, two_lobes())
    assert np.abs(border_mm(moved) - MIDDLE_MM - offset_mm).mean() < 1.5


def test_a_border_follows_a_sheet_that_slants() -> None:
    moved = refine_borders(scan_with(sheet_at(MIDDLE_MM, slope=0.3)), ROI, two_lobes())
    y = 2.0 * np.arange(15, 35)[:, None]
    assert np.abs(border_mm(moved) - MIDDLE_MM - 0.3 * (y - 49)).mean() < 1.5


def test_a_border_stays_that_lies_on_its_sheet() -> None:
    moved = refine_borders(scan_with(sheet_at(MIDDLE_MM)), ROI, two_lobes())
    assert np.abs(border_mm(moved) - MIDDLE_MM).mean() < 1.0


@pytest.mark.parametrize(
    "scan",
    [
        pytest.param(scan_with(nothing, noise_hu=40.0), id="noise"),
        pytest.param(scan_with(sheet_at(MIDDLE_MM + 1.8 * REACH_MM)), id="beyond reach"),
        pytest.param(scan_with(lambda z, y, _: (z - 55) ** 2 + (y - 49) ** 2 < 4, 700.0), id="a vessel"),
        pytest.param(
            scan_with(lambda z, y, x: sheet_at(55)(z, y, x) & ((y - 49) ** 2 + (x - 43) ** 2 < 100)), id="a small sheet"
        ),
    ],
)
def test_what_is_no_fissure_moves_nothing(scan: Volume) -> None:
    np.testing.assert_array_equal(refine_borders(scan, ROI, two_lobes()), two_lobes())


@pytest.mark.parametrize("height_mm", [MIDDLE_MM, 55.0])
@pytest.mark.parametrize("brightness_hu", [150.0, 500.0])
def test_an_opacity_moves_nothing(height_mm: float, brightness_hu: float) -> None:
    """A ball of 24 ml across the border, or beside it, as blurred as CT shows it."""
    z, y, x = np.indices(SCAN.shape) - 0.5
    ball = ndimage.gaussian_filter(((z - height_mm) ** 2 + (y - 49) ** 2 + (x - 43) ** 2 < 18**2).astype(float), 2.0)
    hu = scan_with(nothing, noise_hu=20.0).hu + brightness_hu * ball
    moved = refine_borders(Volume(np.rint(hu).astype(np.int16), SCAN), ROI, two_lobes())
    np.testing.assert_array_equal(moved, two_lobes())


def test_the_scan_may_lie_turned() -> None:
    scan = scan_with(sheet_at(MIDDLE_MM + 6))
    z, y, x = scan.hu.shape
    turned = Grid(
        (z, x, y), SCAN.spacing_mm, (-0.5, -0.5 + y - 1, -0.5), ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    )
    hu = np.ascontiguousarray(np.transpose(scan.hu[:, ::-1], (0, 2, 1)))
    np.testing.assert_allclose(resample(hu, turned, SCAN)[40, 40], scan.hu[40, 40], atol=1)
    straight = refine_borders(scan, ROI, two_lobes())
    assert (refine_borders(Volume(hu, turned), ROI, two_lobes()) != straight).mean() < 1e-3


@settings(max_examples=15, deadline=None)
@given(
    labels=st.integers(0, 2**32 - 1).map(
        lambda seed: np.where(
            lung_in(ROI),
            np.random.default_rng(seed).integers(0, 4, (5, 5, 4)).repeat(10, 0).repeat(10, 1).repeat(11, 2)
            + np.uint8(np.random.default_rng(seed + 1).integers(1, 3)),
            0,
        ).astype(np.uint8)
    ),
    height_mm=st.floats(20.0, 80.0),
)
def test_lungs_and_sides_stay_whatever_the_labels(labels: np.ndarray, height_mm: float) -> None:
    moved = refine_borders(scan_with(sheet_at(height_mm)), ROI, labels)
    np.testing.assert_array_equal(moved > 0, labels > 0)
    np.testing.assert_array_equal(moved > Lobe.LEFT_LOWER, labels > Lobe.LEFT_LOWER)
    assert set(np.unique(moved)) == set(np.unique(labels))


def test_thick_slices_move_nothing() -> None:
    phantom = make_phantom(PhantomRecipe(seed=900_101, spacing_mm=(THICKEST_SLICES_MM + 0.5, 2.0, 2.0)))
    roi = phantom.volume.grid.covering((2.0, 2.0, 2.0))
    labels = np.roll(resample_labels(phantom.lobes.labels, phantom.volume.grid, roi), 4, axis=0)
    found, seen_sd = follow_fissures(phantom.volume, roi, labels)
    np.testing.assert_array_equal(found, labels)
    assert seen_sd == {}


def test_no_lungs_are_no_fault() -> None:
    grid = Grid((10, 10, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    nothing = np.zeros(grid.shape, dtype=np.uint8)
    found, seen_sd = follow_fissures(Volume(np.full(grid.shape, -850, np.int16), grid), grid, nothing)
    assert not found.any()
    assert seen_sd == {}


def test_a_phantoms_lobes_get_nearer_to_the_truth() -> None:
    phantom = make_phantom(PhantomRecipe(seed=900_100, spacing_mm=(2.0, 2.0, 2.0)))
    roi = phantom.volume.grid.covering((2.0, 2.0, 2.0))
    truth = resample_labels(phantom.lobes.labels, phantom.volume.grid, roi)
    shifted = np.roll(truth, 3, axis=0)
    wrong = np.where((shifted > 0) & (truth > 0) & ((shifted > 2) == (truth > 2)), shifted, truth)
    found, seen_sd = follow_fissures(phantom.volume, roi, wrong)
    assert set(seen_sd) == set(FISSURES)
    assert (found != truth).sum() < 0.6 * (wrong != truth).sum()
