"""Whole fissures laid through what a scan shows faintly of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from evaluation.overlap import dice
from pipeline.anatomy import FISSURES, LEFT_LOBES, RIGHT_LOBES, Lobe
from pipeline.findings import SEEN_SD
from pipeline.geometry import Grid, Volume
from pipeline.lungs.fissure_model import (
    CLEAR_MM,
    LEAST_COUNTED,
    SIDES_OF,
    STANDARD_MM,
    LungBox,
    Surface,
    _Chance,
    _Search,
    draw_side,
    lay_fissures,
    quadratic_terms,
    read_shapes,
)
from pipeline.lungs.fissure_sheets import Sheets
from pipeline.resampling import resample, resample_labels

ROI = Grid((134, 90, 130), (2.0, 2.0, 2.0), (-130.0, -90.0, -135.0))
SCAN = Grid((100, 150, 215), (3.0, 1.25, 1.25), (-134.0, -94.0, -150.0))
SHIFT_SD = 1.5
"""How far from the mean person, along the first of the six coefficients."""


def both_lungs() -> np.ndarray:
    """Two half ellipsoids with some soft tissue between them; the right one has the smaller x."""
    x, y, z = np.moveaxis(ROI.to_lps(np.argwhere(np.ones(ROI.shape)).astype(np.float64)), 1, 0)
    inside = ((np.abs(x) - 20) / 105) ** 2 + (y / 85) ** 2 + (z / 130) ** 2 < 1
    return np.asarray((inside & (np.abs(x) > 22)).reshape(ROI.shape))


LUNGS = both_lungs()
LEFT = LUNGS & (np.indices(ROI.shape)[2] > 65)


def no_sheets() -> Sheets:
    return Sheets(np.zeros(ROI.shape, dtype=np.float32), ROI)


def lobes_of(shift_sd: float) -> np.ndarray:
    """Lobes of a person who is so far from the mean, by the surfaces alone."""
    labels = np.zeros(ROI.shape, dtype=np.uint8)
    for side, lung in ((LEFT_LOBES, LEFT), (RIGHT_LOBES, LUNGS & ~LEFT)):
        points = LungBox.of(lung, ROI).to_standard(ROI.to_lps(np.argwhere(lung).astype(np.float64)))
        above = {}
        for name in FISSURES:
            fissure = read_shapes()[name]
            shift = np.array([shift_sd * np.sqrt(fissure.covariance[0, 0]), 0, 0, 0, 0, 0])
            above[name] = fissure.heights(points, fissure.mean + shift) > 0
        if side == LEFT_LOBES:
            labels[lung] = np.where(above["left_oblique"], Lobe.LEFT_UPPER, Lobe.LEFT_LOWER)
        else:
            front = np.where(above["right_horizontal"], Lobe.RIGHT_UPPER, Lobe.RIGHT_MIDDLE)
            labels[lung] = np.where(above["right_oblique"], front, Lobe.RIGHT_LOWER)
    return labels


def scan_of(labels: np.ndarray, fissure_hu: float, noise_hu: float = 25.0) -> Volume:
    """A scan in slices of 3 mm that shows the borders between the lobes of each lung, faintly."""
    fine = Grid((268, 180, 260), (1.0, 1.0, 1.0), (-130.5, -90.5, -135.5))
    large = resample_labels(labels, ROI, fine)
    hu = np.where(large > 0, -850.0, 40.0)
    for side in (LEFT_LOBES, RIGHT_LOBES):
        for lobe in side[:-1]:
            own = large == lobe
            others = np.isin(large, side) & ~own
            hu[ndimage.binary_dilation(own) & others] += fissure_hu
    thick = resample(hu, fine, SCAN, outside=40)
    noise = np.random.default_rng(3).normal(0, noise_hu, SCAN.shape)
    return Volume(np.rint(thick + noise).astype(np.int16), SCAN)


def mean_dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([dice(found == lobe, truth == lobe) for lobe in Lobe]))


def test_the_model_that_is_shipped_is_one_of_people() -> None:
    labels = lobes_of(0.0)
    shares = np.bincount(labels.ravel(), minlength=6)[1:] / np.count_nonzero(LUNGS)
    for lobe, (least, most) in zip(Lobe, [(0.15, 0.35)] * 2 + [(0.12, 0.3), (0.03, 0.2), (0.15, 0.35)], strict=True):
        assert least < shares[lobe - 1] < most, lobe
    for fissure in read_shapes().values():
        np.testing.assert_allclose(fissure.axes @ fissure.axes.T, np.eye(3), atol=1e-4)
        assert np.linalg.eigvalsh(fissure.covariance).min() > -1e-6
        assert fissure.axes[2, 2] > 0


@pytest.mark.parametrize("shift_sd", [-SHIFT_SD, SHIFT_SD])
def test_faint_fissures_far_from_the_mean_are_found(shift_sd: float) -> None:
    truth, mean = lobes_of(shift_sd), lobes_of(0.0)
    found, seen_sd = lay_fissures(scan_of(truth, 120.0), ROI, mean)
    assert min(seen_sd.values()) > SEEN_SD
    assert mean_dice(found, truth) > max(0.95, mean_dice(mean, truth))


def test_where_nothing_is_seen_a_border_stays_near_where_it_was_drawn() -> None:
    drawn = lobes_of(-0.7)
    for side, lung in ((LEFT_LOBES, LEFT), (RIGHT_LOBES, LUNGS & ~LEFT)):
        found, seen_sd = draw_side(lung, ROI, no_sheets(), read_shapes(), side, drawn=drawn)
        assert all(sd == 0 for sd in seen_sd.values())
        assert np.mean([dice(found == lobe, drawn == lobe) for lobe in side]) > 0.95


def test_without_a_drawn_border_it_is_that_of_the_mean_person() -> None:
    found, _ = draw_side(LEFT, ROI, no_sheets(), read_shapes(), LEFT_LOBES)
    assert dice(found == Lobe.LEFT_UPPER, lobes_of(0.0) == Lobe.LEFT_UPPER) > 0.995


def test_the_oblique_fissure_is_not_taken_for_the_horizontal_one() -> None:
    """Where only the oblique one is seen, both would meet the most sheet on it, and the middle lobe would be gone."""
    right = LUNGS & ~LEFT
    mean = lobes_of(0.0)
    lower = mean == Lobe.RIGHT_LOWER
    sheets = np.float32(ndimage.binary_dilation(lower) & right & ~lower)
    found, seen_sd = draw_side(right, ROI, Sheets(sheets, ROI), read_shapes(), RIGHT_LOBES)
    assert dice(found == Lobe.RIGHT_LOWER, lower) > 0.97
    assert dice(found == Lobe.RIGHT_MIDDLE, mean == Lobe.RIGHT_MIDDLE) > 0.9
    assert seen_sd["right_horizontal"] < 0.2 * seen_sd["right_oblique"]


def test_a_lung_that_the_scan_cuts_off_stays_as_it_was_drawn() -> None:
    truth, mean = lobes_of(SHIFT_SD), lobes_of(0.0)
    scan = scan_of(truth, 120.0)
    lower = Volume(scan.hu[:60], Grid((60, *SCAN.shape[1:]), SCAN.spacing_mm, SCAN.origin_mm))
    below = ROI.to_lps(np.argwhere(mean > 0).astype(np.float64))[:, 2] < lower.grid.bounds_mm()[1][2]
    seen = mean.copy()
    seen[mean > 0] = np.where(below, mean[mean > 0], 0)
    found, seen_sd = lay_fissures(lower, ROI, seen)
    np.testing.assert_array_equal(found, seen)
    assert seen_sd == {}


def test_a_lung_without_one_of_its_lobes_stays_as_it_was_drawn() -> None:
    """After a lobectomy what is left fills the box, and the model knows no such person."""
    truth = lobes_of(SHIFT_SD)
    drawn = np.where(lobes_of(0.0) == Lobe.RIGHT_MIDDLE, Lobe.RIGHT_UPPER, lobes_of(0.0)).astype(np.uint8)
    found, seen_sd = lay_fissures(scan_of(truth, 120.0), ROI, drawn)
    assert set(seen_sd) == {"left_oblique"}
    np.testing.assert_array_equal(found[~LEFT], drawn[~LEFT])
    assert (found[LEFT] != drawn[LEFT]).any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_points_of_a_surface_lie_on_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fissure = read_shapes()[FISSURES[seed % 3]]
    coefficients = rng.multivariate_normal(fissure.mean, fissure.covariance)
    flat = fissure.plane()
    local = np.column_stack([flat, quadratic_terms(flat) @ coefficients])
    points = local @ fissure.axes + fissure.origin
    np.testing.assert_allclose(fissure.heights(points, coefficients), 0.0, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_lungs_box_brings_points_to_the_standard_lung_and_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    box = LungBox.of(LEFT, ROI)
    points = rng.uniform(box.lower_mm, box.upper_mm, (20, 3))
    standard = box.to_standard(points)
    assert ((standard >= 0) & (standard <= STANDARD_MM)).all()
    np.testing.assert_allclose(box.to_lps(standard), points, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_search_knows_which_way_is_down(seed: int) -> None:
    """Where sheetness rises evenly to the head, the slope is known exactly."""
    rng = np.random.default_rng(seed)
    wide = Grid((80, 80, 80), (6.0, 6.0, 6.0), (-240.0, -240.0, -240.0))
    rising = np.broadcast_to(np.linspace(0, 1, 80, dtype=np.float32)[:, None, None], wide.shape)
    fissure = read_shapes()[FISSURES[seed % 3]]
    drawn = rng.multivariate_normal(fissure.mean, 0.2 * fissure.covariance)
    search = _Search.of(fissure, LungBox.of(LEFT, ROI), Sheets(rising.copy(), wide), drawn, 5.0, None)
    at, step = 0.3 * rng.normal(size=6), 1e-4 * rng.normal(size=6)
    chance = _Chance(median=0.4, spread=0.05)
    change = search.nats_and_slope(at + step, chance)[0] - search.nats_and_slope(at - step, chance)[0]
    assert search.nats_and_slope(at, chance)[1] @ (2 * step) == pytest.approx(change, rel=0.05, abs=1e-5)


def test_of_the_horizontal_fissure_counts_what_is_above_the_oblique_one() -> None:
    """With sheets everywhere a surface of which half is cut off meets as much as a whole one, a small piece less."""
    shapes = read_shapes()
    wide = Grid((80, 80, 80), (6.0, 6.0, 6.0), (-240.0, -240.0, -240.0))
    sheets = Sheets(np.ones(wide.shape, dtype=np.float32), wide)
    oblique = Surface(shapes["right_oblique"], shapes["right_oblique"].mean)
    horizontal = shapes["right_horizontal"]
    search = _Search.of(horizontal, LungBox.of(LUNGS & ~LEFT, ROI), sheets, None, 5.0, oblique)

    def met_where_counts(share: float) -> float:
        lowered_mm = np.arange(0.0, 300.0, 0.5)
        points = [horizontal.plane_points() - mm * horizontal.axes[2] for mm in lowered_mm]
        counted = np.array([(oblique.heights(at) > CLEAR_MM).mean() for at in points])
        flat = np.array([-lowered_mm[np.abs(counted - share).argmin()], 0, 0, 0, 0, 0])
        return float(search.met(np.linalg.solve(search.root, flat - horizontal.mean)[None])[0])

    assert met_where_counts(1.0) == pytest.approx(1.0)
    assert met_where_counts(0.5) == pytest.approx(1.0)
    assert met_where_counts(LEAST_COUNTED / 2) == pytest.approx(0.5, abs=0.1)
    assert met_where_counts(0.0) == 0.0


def test_each_fissure_parts_lobes_of_one_side() -> None:
    for name, (upper, lower) in SIDES_OF.items():
        assert set(upper + lower) <= set(LEFT_LOBES if name.startswith("left") else RIGHT_LOBES)
