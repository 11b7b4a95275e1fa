"""Dice, recall and surface distance of shapes whose figures are known."""

import math

import numpy as np
import pytest

from evaluation.overlap import dice, recall, surface_distances
from pipeline.geometry import Grid

GRID = Grid((20, 20, 20), (3.0, 1.0, 2.0), (0.0, 0.0, 0.0))
EMPTY = np.zeros(GRID.shape, dtype=np.bool_)


def box(z: slice, y: slice, x: slice) -> np.ndarray:
    mask = EMPTY.copy()
    mask[z, y, x] = True
    return mask


CUBE = box(slice(5, 15), slice(5, 15), slice(5, 15))


def test_dice_of_a_half() -> None:
    assert dice(CUBE, box(slice(5, 10), slice(5, 15), slice(5, 15))) == pytest.approx(2 / 3)


def test_dice_of_empty_masks() -> None:
    assert dice(EMPTY, EMPTY) == 1.0
    assert dice(CUBE, EMPTY) == 0.0


def test_recall_counts_the_wanted_alone() -> None:
    assert recall(CUBE, box(slice(10, 20), slice(5, 15), slice(5, 15))) == 0.5
    assert recall(~EMPTY, CUBE) == 1.0
    assert math.isnan(recall(CUBE, EMPTY))


@pytest.mark.parametrize(("shift", "axis", "distance_mm"), [(2, 0, 6.0), (4, 1, 4.0), (3, 2, 6.0)])
def test_a_shifted_plane_is_as_far_as_it_was_shifted(shift: int, axis: int, distance_mm: float) -> None:
    plane = np.moveaxis(EMPTY.copy(), axis, 0)
    plane[6] = True
    plane = np.moveaxis(plane, 0, axis)
    assert surface_distances(plane, np.roll(plane, shift, axis), GRID).hausdorff_95_mm == pytest.approx(distance_mm)


def test_the_same_mask_is_at_no_distance() -> None:
    assert surface_distances(CUBE, CUBE, GRID).hausdorff_95_mm == 0.0
    assert surface_distances(EMPTY, EMPTY, GRID).hausdorff_95_mm == 0.0


def test_a_missing_mask_is_infinitely_far() -> None:
    assert surface_distances(CUBE, EMPTY, GRID).hausdorff_95_mm == math.inf
    assert surface_distances(EMPTY, CUBE, GRID).hausdorff_95_mm == math.inf


def test_five_percent_may_stray() -> None:
    strayed = CUBE.copy()
    strayed[0, 0, 0] = True
    assert surface_distances(CUBE, strayed, GRID).hausdorff_95_mm == 0.0


def test_the_mean_distance_of_surfaces_in_closed_form() -> None:
    """Two planes 6 mm apart; then one of them with half of it in place."""
    plane, half = EMPTY.copy(), EMPTY.copy()
    plane[6] = True
    far = np.roll(plane, 2, axis=0)
    assert surface_distances(plane, far, GRID).mean_mm == pytest.approx(6.0)
    half[6, :10], half[8, 10:] = True, True
    distances = surface_distances(plane, half, GRID)
    assert 0 < distances.mean_mm < 3.0
    assert distances.hausdorff_95_mm == pytest.approx(6.0)


def test_both_distances_of_a_missing_mask_are_infinite() -> None:
    assert surface_distances(CUBE, EMPTY, GRID).mean_mm == math.inf
    assert surface_distances(EMPTY, EMPTY, GRID).mean_mm == 0.0
