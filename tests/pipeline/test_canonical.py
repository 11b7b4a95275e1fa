"""The order in which the axes of a scan are stored changes nothing."""

from itertools import permutations, product

import numpy as np
import pytest

from pipeline.anatomy import Landmark
from pipeline.canonical import CanonicalScan
from pipeline.geometry import Grid, LandmarkPosition, Matrix, Volume

#: An origin and spacings that no binary fraction holds, and an axis that runs the other way.
GRID = Grid((4, 5, 6), (2.3, 0.7, 0.9), (-101.1, 37.7, -612.3))
VALUES = np.arange(120, dtype=np.int16).reshape(GRID.shape)
TILTED: Matrix = ((0.96, -0.28, 0.0), (0.28, 0.96, 0.0), (0.0, 0.0, 1.0))
ORDERS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def stored(volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same voxels in the same places, in another order."""
    grid = volume.grid
    ways = tuple(slice(None, None, sign) for sign in signs)
    columns = np.asarray(grid.direction)[:, ::-1][:, list(order)] * np.asarray(signs)
    first = np.zeros(3)
    first[list(order)] = [grid.shape[axis] - 1 if sign < 0 else 0 for axis, sign in zip(order, signs, strict=True)]
    x, y, z = grid.to_lps(first).tolist()
    rows = columns[:, ::-1].tolist()
    shape, spacing = (tuple(of[axis] for axis in order) for of in (grid.shape, grid.spacing_mm))
    placed = Grid(shape, spacing, (x, y, z), tuple(tuple(row) for row in rows))  # type: ignore[arg-type]
    return Volume(np.ascontiguousarray(np.transpose(volume.hu, order)[ways]), placed)


@pytest.mark.parametrize("direction", [GRID.direction, TILTED])
def test_all_48_orders_are_one_scan_to_the_bit(direction: Matrix) -> None:
    volume = Volume(VALUES, Grid(GRID.shape, GRID.spacing_mm, GRID.origin_mm, direction))
    for order, signs in ORDERS:
        other = stored(volume, order, signs)
        found = CanonicalScan.of(other)
        assert found.volume.grid == Grid(GRID.shape, GRID.spacing_mm, (0.0, 0.0, 0.0), direction)
        np.testing.assert_array_equal(found.volume.hu, VALUES)
        np.testing.assert_array_equal(found.to_scan(found.volume.hu), other.hu)
        np.testing.assert_allclose(found.corner_mm, GRID.origin_mm)


def test_a_scan_in_this_order_is_not_copied() -> None:
    assert np.shares_memory(CanonicalScan.of(Volume(VALUES, GRID)).volume.hu, VALUES)


def test_landmarks_come_back_where_they_lie_in_the_patient() -> None:
    scan = CanonicalScan.of(stored(Volume(VALUES, GRID), (2, 0, 1), (-1, 1, -1)))
    found = {
        Landmark.STERNUM_TIP: LandmarkPosition(Landmark.STERNUM_TIP, None, 0.7),
        Landmark.CARINA: LandmarkPosition(Landmark.CARINA, (1.0, 2.0, 3.0), 0.9),
    }
    carina, sternum_tip = scan.in_patient(found)
    assert sternum_tip == found[Landmark.STERNUM_TIP]
    assert carina.position_mm == pytest.approx((-100.1, 39.7, -609.3))
