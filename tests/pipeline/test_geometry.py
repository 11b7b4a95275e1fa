"""Grids against ITK, and resampling against closed forms."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.anatomy import AIR_HU, Lobe
from pipeline.geometry import Grid, LobeLabels, LungMask, area_on_faces_cm2, distance_to_mm, grid_of, to_sitk
from pipeline.resampling import is_truncated, resample, resample_labels


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any orthogonal direction, left-handed too."""
    matrix = np.array(draw(st.lists(st.floats(-1, 1), min_size=9, max_size=9))).reshape(3, 3) + 2.5 * np.eye(3)
    turn, _ = np.linalg.qr(matrix)
    turn[:, 0] *= draw(st.sampled_from((1, -1)))
    rows = [(float(a), float(b), float(c)) for a, b, c in turn]
    z, y, x = (draw(st.integers(1, 9)) for _ in range(3))
    spacing = (draw(st.floats(0.3, 6)), draw(st.floats(0.3, 6)), draw(st.floats(0.3, 6)))
    origin = (draw(st.floats(-500, 500)), draw(st.floats(-500, 500)), draw(st.floats(-500, 500)))
    return Grid((z, y, x), spacing, origin, (rows[0], rows[1], rows[2]))


@given(grids())
@settings(max_examples=60, deadline=None)
def test_a_grid_places_voxels_where_itk_does(grid: Grid) -> None:
    image = to_sitk(np.zeros(grid.shape, dtype=np.int16), grid)
    last = [float(n - 1) for n in grid.shape]
    expected = image.TransformContinuousIndexToPhysicalPoint(last[::-1])
    np.testing.assert_allclose(grid.to_lps(np.array(last)), expected, atol=1e-6)
    np.testing.assert_allclose(grid.to_index(np.array(expected)), last, atol=1e-6)
    assert grid.contains(expected)


@given(grids())
@settings(max_examples=30, deadline=None)
def test_a_grid_survives_itk(grid: Grid) -> None:
    assert grid_of(to_sitk(np.zeros(grid.shape, dtype=np.int16), grid)) == grid


@given(grids())
@settings(max_examples=60, deadline=None)
def test_bounds_hold_every_corner_and_no_more(grid: Grid) -> None:
    lower, upper = grid.bounds_mm()
    corners = grid.to_lps((np.indices((2, 2, 2)).reshape(3, -1).T * np.array(grid.shape)) - 0.5)
    np.testing.assert_allclose(lower, corners.min(axis=0), atol=1e-9)
    np.testing.assert_allclose(upper, corners.max(axis=0), atol=1e-9)


def test_contains_ends_at_the_voxels_faces() -> None:
    grid = Grid((2, 2, 2), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert grid.contains((0.0, 0.0, 4.49))
    assert not grid.contains((0.0, 0.0, 4.51))
    assert grid.contains((-0.49, 0.0, 0.0))
    assert not grid.contains((-0.51, 0.0, 0.0))


def test_axis_aligned_covers_the_box_and_starts_at_its_corner() -> None:
    grid = Grid.axis_aligned((-10.0, 5.0, 0.0), (11.0, 8.0, 7.0), (3.0, 1.0, 2.0))
    assert grid.shape == (3, 3, 11)
    lower, upper = grid.bounds_mm()
    np.testing.assert_allclose(lower, (-10, 5, 0))
    np.testing.assert_allclose(upper, (12, 8, 9))


def test_volumes_are_of_voxels_times_their_size() -> None:
    grid = Grid((2, 3, 4), (5.0, 0.5, 0.8), (0.0, 0.0, 0.0))
    assert grid.voxel_volume_ml == pytest.approx(0.002)
    assert LungMask(np.ones(grid.shape, dtype=bool), grid).volume_ml() == pytest.approx(24 * 0.002)
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[0] = Lobe.RIGHT_MIDDLE
    lobes = LobeLabels(labels, grid)
    assert np.count_nonzero(lobes.of(Lobe.RIGHT_MIDDLE)) == 12
    assert np.count_nonzero(lobes.of(Lobe.LEFT_UPPER)) == 0
    assert np.count_nonzero(lobes.lungs().mask) == 12


def ramp(grid: Grid) -> np.ndarray:
    """A plane through LPS space: linear interpolation returns it exactly."""
    points = grid.to_lps(np.indices(grid.shape).reshape(3, -1).T.astype(np.float64))
    return (points @ np.array([1.0, -2.0, 0.5]) + 7).reshape(grid.shape).astype(np.float32)


def test_resampling_onto_its_own_grid_changes_nothing() -> None:
    grid = Grid((6, 7, 8), (2.0, 1.5, 1.0), (4.0, 5.0, 6.0))
    np.testing.assert_array_equal(resample(ramp(grid), grid, grid), ramp(grid))


@pytest.mark.parametrize("target_mm", [(1.0, 1.0, 1.0), (3.0, 0.6, 0.6)])
def test_a_ramp_keeps_its_value_at_every_place(target_mm: tuple[float, float, float]) -> None:
    turned = ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
    source = Grid((30, 28, 26), (2.0, 1.5, 1.0), (4.0, 5.0, 6.0), turned)
    lower, upper = source.bounds_mm()
    target = Grid.axis_aligned(lower + 8, upper - 8, target_mm)
    np.testing.assert_allclose(resample(ramp(source), source, target), ramp(target), atol=0.35)


def test_outside_of_the_source_is_air() -> None:
    source = Grid((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    far = Grid((2, 2, 2), (1.0, 1.0, 1.0), (100.0, 0.0, 0.0))
    assert np.all(resample(np.zeros(source.shape, np.int16), source, far) == AIR_HU)
    assert np.all(resample_labels(np.ones(source.shape, np.uint8), source, far) == 0)


def test_coarser_targets_do_not_alias() -> None:
    """A pattern that alternates from voxel to voxel averages out; without smoothing it would stay at full contrast."""
    source = Grid((40, 40, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    pattern = np.where(np.indices(source.shape)[0] % 2 == 0, 100, -100).astype(np.int16)
    target = Grid((10, 10, 10), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
    inner = resample(pattern, source, target)[2:-2, 2:-2, 2:-2]
    assert np.abs(inner).max() < 5


def test_labels_never_mix() -> None:
    source = Grid((8, 8, 8), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    labels = np.where(np.indices(source.shape)[2] < 4, 1, 5).astype(np.uint8)
    target = Grid.axis_aligned(*source.bounds_mm(), (0.7, 0.7, 0.7))
    assert set(np.unique(resample_labels(labels, source, target))) == {1, 5}


def test_labels_keep_their_volume() -> None:
    source = Grid((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    labels = np.zeros(source.shape, dtype=np.uint8)
    labels[5:15, 5:15, 5:15] = 3
    target = Grid.axis_aligned(*source.bounds_mm(), (0.5, 0.5, 0.5))
    assert np.count_nonzero(resample_labels(labels, source, target)) == 20**3


def test_masks_become_bytes_for_itk() -> None:
    grid = Grid((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert to_sitk(np.ones(grid.shape, dtype=bool), grid).GetPixelID() == sitk.sitkUInt8


SCAN = Grid((40, 60, 50), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0))
ROI = Grid((80, 40, 35), (2.0, 2.0, 2.0), (-5.0, -5.0, -10.0))


def block_mm(grid: Grid, low: tuple[float, float, float], high: tuple[float, float, float]) -> np.ndarray:
    """Voxels whose centres (x, y, z in mm) lie in a box."""
    at = grid.to_lps(np.argwhere(np.ones(grid.shape)).astype(np.float64))
    return ((at >= low) & (at <= high)).all(axis=1).reshape(grid.shape)


def test_the_area_on_a_face_is_that_of_its_voxels() -> None:
    mask = np.zeros(SCAN.shape, dtype=np.bool_)
    mask[0, 10:30, 10:20] = True
    assert area_on_faces_cm2(mask, SCAN) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("low", "high", "cut"),
    [
        ((10, 10, 20), (40, 50, 90), False),
        ((10, 10, -20), (40, 50, 90), True),
        ((10, 10, 20), (40, 50, 150), True),
        ((10, -20, 20), (40, 50, 90), True),
        ((10, 10, 20), (90, 50, 90), True),
        ((20, 20, -20), (30, 30, 90), False),
    ],
    ids=["whole", "below", "above", "in front", "left", "little more than a tip"],
)
def test_a_lung_is_cut_off_where_it_lies_on_a_face(
    low: tuple[float, float, float], high: tuple[float, float, float], *, cut: bool
) -> None:
    assert is_truncated(block_mm(ROI, low, high), ROI, SCAN) is cut


Index = st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6))
Edge = st.floats(0.3, 8.0)


@settings(deadline=None)
@given(first=Index, second=Index, spacing_mm=st.tuples(Edge, Edge, Edge), seen=Index)
def test_a_voxel_is_as_far_away_as_the_nearest_of_the_mask(
    first: tuple[int, int, int],
    second: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    seen: tuple[int, int, int],
) -> None:
    mask = np.zeros((5, 6, 7), dtype=np.bool_)
    mask[first] = mask[second] = True
    apart = [np.linalg.norm((np.array(seen) - place) * spacing_mm) for place in (first, second)]
    assert distance_to_mm(mask, spacing_mm)[seen] == pytest.approx(min(apart), rel=1e-4, abs=1e-4)


def test_nothing_is_infinitely_far() -> None:
    assert np.isinf(distance_to_mm(np.zeros((2, 3, 4), dtype=np.bool_), (1.0, 1.0, 1.0))).all()
