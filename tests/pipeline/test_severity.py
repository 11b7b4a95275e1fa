"""PO, PHO, LSS and LHOS against closed forms, bin edges, and what must hold for every scan."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.anatomy import Lobe
from pipeline.geometry import Grid, LesionMask, LobeLabels, LungMask, Volume
from pipeline.severity import (
    LobeSeverity,
    Severity,
    high_opacity_of,
    lobe_score,
    opacity_range,
    percent,
    score_severity,
)

VOXELS_PER_LOBE = 1000


def one_row_per_lobe(affected: dict[Lobe, int], dense: dict[Lobe, int], grid: Grid | None = None) -> Severity:
    """Five rows of 1000 voxels; the first of each are affected, the first of these dense."""
    grid = grid or Grid((5, 1, VOXELS_PER_LOBE), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    labels = np.repeat(np.arange(1, 6, dtype=np.uint8), VOXELS_PER_LOBE).reshape(grid.shape)
    lesion, hu = np.zeros(grid.shape, dtype=bool), np.full(grid.shape, -850, dtype=np.int16)
    for lobe in Lobe:
        lesion[lobe - 1, 0, : affected.get(lobe, 0)] = True
        hu[lobe - 1, 0, : affected.get(lobe, 0)] = -600
        hu[lobe - 1, 0, : dense.get(lobe, 0)] = 30
    return scored(hu, labels, lesion, grid)


def scored(hu: np.ndarray, labels: np.ndarray, lesion: np.ndarray, grid: Grid) -> Severity:
    lobes = LobeLabels(labels, grid)
    return score_severity(Volume(hu, grid), lobes.lungs(), lobes, LesionMask(lesion, grid))


def of(severity: Severity, lobe: Lobe) -> LobeSeverity:
    return next(score for score in severity.lobes if score.lobe is lobe)


@pytest.mark.parametrize(
    ("affected_voxels", "score"),
    [(0, 0), (1, 0), (9, 0), (10, 1), (11, 1), (250, 1), (251, 2), (500, 2), (501, 3), (750, 3), (751, 4), (1000, 4)],
)
@pytest.mark.parametrize("lobe", Lobe)
def test_each_bin_holds_its_upper_edge_and_not_the_next_voxel(lobe: Lobe, affected_voxels: int, score: int) -> None:
    severity = one_row_per_lobe({lobe: affected_voxels}, {lobe: affected_voxels})
    assert of(severity, lobe).severity_score == score
    assert of(severity, lobe).high_opacity_score == score
    assert severity.lung_severity_score == score
    assert severity.lung_high_opacity_score == score


@pytest.mark.parametrize(
    ("affected_percent", "score"),
    [
        (0.0, 0),
        (np.nextafter(1.0, 0.0), 0),
        (1.0, 1),
        (25.0, 1),
        (np.nextafter(25.0, 26.0), 2),
        (50.0, 2),
        (np.nextafter(50.0, 51.0), 3),
        (75.0, 3),
        (np.nextafter(75.0, 76.0), 4),
        (100.0, 4),
    ],
)
def test_bin_edges_to_the_last_bit(affected_percent: float, score: int) -> None:
    assert lobe_score(float(affected_percent)) == score


def test_percentages_volumes_and_sums_in_closed_form() -> None:
    affected = {Lobe.LEFT_UPPER: 100, Lobe.LEFT_LOWER: 300, Lobe.RIGHT_UPPER: 600, Lobe.RIGHT_LOWER: 900}
    dense = {Lobe.LEFT_LOWER: 5, Lobe.RIGHT_UPPER: 300, Lobe.RIGHT_LOWER: 760}
    severity = one_row_per_lobe(affected, dense)
    assert severity.percent_opacity == pytest.approx(100 * 1900 / 5000)
    assert severity.percent_high_opacity == pytest.approx(100 * 1065 / 5000)
    assert [lobe.severity_score for lobe in severity.lobes] == [1, 2, 3, 0, 4]
    assert [lobe.high_opacity_score for lobe in severity.lobes] == [0, 0, 2, 0, 4]
    assert (severity.lung_severity_score, severity.lung_high_opacity_score) == (10, 6)
    assert (severity.volume_ml, severity.opacity_ml, severity.high_opacity_ml) == pytest.approx((5.0, 1.9, 1.065))


def test_all_of_every_lobe_dense_is_twenty_of_twenty() -> None:
    everything = dict.fromkeys(Lobe, VOXELS_PER_LOBE)
    severity = one_row_per_lobe(everything, everything)
    assert (severity.percent_opacity, severity.percent_high_opacity) == (100.0, 100.0)
    assert (severity.lung_severity_score, severity.lung_high_opacity_score) == (20, 20)


def test_no_lesion_is_zero_throughout() -> None:
    severity = one_row_per_lobe({}, {})
    assert (severity.percent_opacity, severity.percent_high_opacity) == (0.0, 0.0)
    assert (severity.lung_severity_score, severity.lung_high_opacity_score) == (0, 0)
    assert severity.volume_ml == pytest.approx(5.0)


@pytest.mark.parametrize("missing", Lobe)
def test_a_missing_lobe_scores_zero_and_is_still_listed(missing: Lobe) -> None:
    grid = Grid((5, 1, 10), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    labels = np.repeat(np.arange(1, 6, dtype=np.uint8), 10).reshape(grid.shape)
    labels[labels == missing] = 0
    severity = scored(np.full(grid.shape, 0, np.int16), labels, np.ones(grid.shape, dtype=bool), grid)
    assert tuple(lobe.lobe for lobe in severity.lobes) == tuple(Lobe)
    absent = of(severity, missing)
    assert (absent.volume_ml, absent.percent_opacity, absent.percent_high_opacity) == (0.0, 0.0, 0.0)
    assert (absent.severity_score, absent.high_opacity_score) == (0, 0)
    assert severity.percent_opacity == 100.0
    assert severity.lung_severity_score == 16


def test_empty_lungs_divide_by_nothing() -> None:
    grid = Grid((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    severity = scored(np.zeros(grid.shape, np.int16), np.zeros(grid.shape, np.uint8), np.ones(grid.shape, bool), grid)
    assert (severity.percent_opacity, severity.volume_ml, severity.lung_severity_score) == (0.0, 0.0, 0)


def test_opacity_outside_the_lungs_does_not_count() -> None:
    grid = Grid((1, 1, 10), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    labels = np.array([1] * 5 + [0] * 5, dtype=np.uint8).reshape(grid.shape)
    lesion = np.array([False] * 4 + [True] * 6).reshape(grid.shape)
    severity = scored(np.full(grid.shape, 50, np.int16), labels, lesion, grid)
    assert severity.percent_opacity == 20.0
    assert severity.opacity_ml == pytest.approx(0.001)


def test_lobe_voxels_outside_the_lungs_do_not_count() -> None:
    grid = Grid((1, 1, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    lobes = LobeLabels(np.array([[[1, 1, 1, 1]]], dtype=np.uint8), grid)
    lungs = LungMask(np.array([[[True, True, False, False]]]), grid)
    lesion = LesionMask(np.array([[[True, False, True, True]]]), grid)
    severity = score_severity(Volume(np.zeros(grid.shape, np.int16), grid), lungs, lobes, lesion)
    assert of(severity, Lobe.LEFT_UPPER).percent_opacity == 50.0
    assert of(severity, Lobe.LEFT_UPPER).volume_ml == pytest.approx(0.002)


def test_lung_without_a_lobe_counts_for_the_percentages_only() -> None:
    grid = Grid((1, 1, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    lobes = LobeLabels(np.array([[[1, 1, 0, 0]]], dtype=np.uint8), grid)
    everything = np.ones(grid.shape, dtype=bool)
    severity = score_severity(
        Volume(np.full(grid.shape, -600, np.int16), grid),
        LungMask(everything, grid),
        lobes,
        LesionMask(everything, grid),
    )
    assert (severity.percent_opacity, severity.volume_ml) == (100.0, pytest.approx(0.004))
    assert severity.lung_severity_score == 4


@pytest.mark.parametrize(("hu", "dense"), [(-201, False), (-200, True), (-199, True), (3071, True), (-1024, False)])
def test_high_opacity_begins_at_minus_200(hu: int, dense: bool) -> None:
    grid = Grid((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    opacity = np.ones(grid.shape, dtype=bool)
    assert high_opacity_of(Volume(np.full(grid.shape, hu, np.int16), grid), opacity).item() is dense


def test_anisotropic_voxels_scale_volumes_and_nothing_else() -> None:
    affected, dense = {Lobe.RIGHT_LOWER: 510}, {Lobe.RIGHT_LOWER: 260}
    plain = one_row_per_lobe(affected, dense)
    grid = Grid((5, 1, VOXELS_PER_LOBE), (5.0, 0.7, 0.9), (10.0, -20.0, 30.0))
    stretched = one_row_per_lobe(affected, dense, grid)
    factor = 5.0 * 0.7 * 0.9
    assert stretched.volume_ml == pytest.approx(plain.volume_ml * factor)
    assert stretched.opacity_ml == pytest.approx(plain.opacity_ml * factor)
    assert of(stretched, Lobe.RIGHT_LOWER).high_opacity_ml == pytest.approx(0.26 * factor)
    assert percentages_and_scores(stretched) == percentages_and_scores(plain)


def test_masks_of_another_grid_are_refused() -> None:
    here, there = (Grid((1, 1, 2), (1.0, 1.0, 1.0), (x, 0.0, 0.0)) for x in (0.0, 1.0))
    mask, labels = np.ones(here.shape, bool), np.ones(here.shape, np.uint8)
    volume = Volume(np.zeros(here.shape, np.int16), here)
    with pytest.raises(ValueError, match="share one grid"):
        score_severity(volume, LungMask(mask, here), LobeLabels(labels, here), LesionMask(mask, there))


def test_percent_of_nothing_is_nothing() -> None:
    assert percent(0, 0) == 0.0
    assert percent(1, 3) == pytest.approx(33.3333333)


# What must hold whatever the masks are.

SHAPE = (4, 5, 6)
GRID = Grid(SHAPE, (2.5, 0.8, 0.7), (0.0, 0.0, 0.0))
LABELS = arrays(np.uint8, SHAPE, elements=st.integers(0, 5))
MASKS = arrays(np.bool_, SHAPE)
HU = arrays(np.int16, SHAPE, elements=st.integers(-1024, 500))


def percentages_and_scores(severity: Severity) -> tuple[object, ...]:
    per_lobe = tuple(
        (s.percent_opacity, s.percent_high_opacity, s.severity_score, s.high_opacity_score) for s in severity.lobes
    )
    whole = (severity.percent_opacity, severity.percent_high_opacity)
    return (*whole, severity.lung_severity_score, severity.lung_high_opacity_score, *per_lobe)


@given(HU, LABELS, MASKS)
@settings(max_examples=60, deadline=None)
def test_high_opacity_never_exceeds_opacity_and_sums_agree(
    hu: np.ndarray, labels: np.ndarray, lesion: np.ndarray
) -> None:
    severity = scored(hu, labels, lesion, GRID)
    assert 0 <= severity.percent_high_opacity <= severity.percent_opacity <= 100
    for lobe in severity.lobes:
        assert 0 <= lobe.percent_high_opacity <= lobe.percent_opacity <= 100
        assert 0 <= lobe.high_opacity_score <= lobe.severity_score <= 4
    assert severity.lung_severity_score == sum(lobe.severity_score for lobe in severity.lobes)
    assert severity.lung_high_opacity_score == sum(lobe.high_opacity_score for lobe in severity.lobes)
    for name in ("volume_ml", "opacity_ml", "high_opacity_ml"):
        assert getattr(severity, name) == pytest.approx(sum(getattr(lobe, name) for lobe in severity.lobes))


@given(HU, LABELS, MASKS, MASKS)
@settings(max_examples=60, deadline=None)
def test_scores_never_fall_when_the_lesion_grows(
    hu: np.ndarray, labels: np.ndarray, lesion: np.ndarray, growth: np.ndarray
) -> None:
    before, after = scored(hu, labels, lesion, GRID), scored(hu, labels, lesion | growth, GRID)
    assert after.percent_opacity >= before.percent_opacity
    assert after.percent_high_opacity >= before.percent_high_opacity
    for small, large in zip(before.lobes, after.lobes, strict=True):
        assert large.severity_score >= small.severity_score
        assert large.high_opacity_score >= small.high_opacity_score


@given(HU, LABELS, MASKS, st.sampled_from(list(product(permutations(range(3)), product((1, -1), repeat=3)))))
@settings(max_examples=60, deadline=None)
def test_scores_do_not_depend_on_the_orientation(
    hu: np.ndarray, labels: np.ndarray, lesion: np.ndarray, orientation: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    axes, signs = orientation
    turned_hu, turned_labels, turned_lesion = (
        np.ascontiguousarray(a.transpose(axes)[tuple(slice(None, None, s) for s in signs)])
        for a in (hu, labels, lesion)
    )
    spacing = (GRID.spacing_mm[axes[0]], GRID.spacing_mm[axes[1]], GRID.spacing_mm[axes[2]])
    shape = (SHAPE[axes[0]], SHAPE[axes[1]], SHAPE[axes[2]])
    turned = scored(turned_hu, turned_labels, turned_lesion, Grid(shape, spacing, (0.0, 0.0, 0.0)))
    upright = scored(hu, labels, lesion, GRID)
    assert percentages_and_scores(turned) == percentages_and_scores(upright)
    assert turned.volume_ml == pytest.approx(upright.volume_ml)


def test_the_range_counts_what_is_certain_and_what_is_possible_in_each_lobe() -> None:
    grid = Grid((5, 1, VOXELS_PER_LOBE), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    labels = np.repeat(np.arange(1, 6, dtype=np.uint8), VOXELS_PER_LOBE).reshape(grid.shape)
    certain, possible = np.zeros(grid.shape, dtype=bool), np.zeros(grid.shape, dtype=bool)
    certain[0, 0, :100], possible[0, 0, :300], possible[4, 0, :50] = True, True, True
    found = opacity_range(LobeLabels(labels, grid), LesionMask(certain, grid), LesionMask(possible, grid))
    assert (found.overall.low, found.overall.high) == (2.0, 7.0)
    assert {lobe: (part.low, part.high) for lobe, part in found.lobes.items() if part.high} == {
        Lobe.LEFT_UPPER: (10.0, 30.0),
        Lobe.RIGHT_LOWER: (0.0, 5.0),
    }
    assert found.lobes[Lobe.LEFT_UPPER].scores == (1, 2)
