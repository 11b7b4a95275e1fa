"""The order in which the axes of a scan are stored changes nothing."""

import numpy as np
import pytest

from pipeline.anatomy import Landmark
from pipeline.canonical import CanonicalScan
from pipeline.geometry import Grid, LandmarkPosition, Matrix, Volume
from training.validation.consistency import other_orders, reordered

#: An origin and spacings that no binary fraction holds, and an axis that runs the other way.
GRID = Grid((4, 5, 6), (2.3, 0.7, 0.9), (-101.1, 37.7, -612.3))
VALUES = np.arange(120, dtype=np.int16).reshape(GRID.shape)
TILTED: Matrix = ((0.96, -0.28, 0.0), (0.28, 0.96, 0.0), (0.0, 0.0, 1.0))


@pytest.mark.parametrize("direction", [GRID.direction, TILTED])
def test_all_other_orders_are_one_scan_to_the_bit(direction: Matrix) -> None:
    volume = Volume(VALUES, Grid(GRID.shape, GRID.spacing_mm, GRID.origin_mm, direction))
    assert len(set(other_orders())) == 47
    for order, signs in other_orders():
        other = reordered(volume, order, signs)
        found = CanonicalScan.of(other)
        assert found.volume.grid == Grid(GRID.shape, GRID.spacing_mm, (0.0, 0.0, 0.0), direction)
        np.testing.assert_array_equal(found.volume.hu, VALUES)
        np.testing.assert_array_equal(found.to_scan(found.volume.hu), other.hu)
        np.testing.assert_allclose(found.corner_mm, GRID.origin_mm)


def test_a_scan_in_this_order_is_not_copied() -> None:
    assert np.shares_memory(CanonicalScan.of(Volume(VALUES, GRID)).volume.hu, VALUES)


def test_landmarks_come_back_where_they_lie_in_the_patient() -> None:
    scan = CanonicalScan.of(reordered(Volume(VALUES, GRID), (2, 0, 1), (-1, 1, -1)))
    found = {
        Landmark.STERNUM_TIP: LandmarkPosition(Landmark.STERNUM_TIP, None, 0.7),
        Landmark.CARINA: LandmarkPosition(Landmark.CARINA, (1.0, 2.0, 3.0), 0.9),
    }
    carina, sternum_tip = scan.in_patient(found)
    assert sternum_tip == found[Landmark.STERNUM_TIP]
    assert carina.position_mm == pytest.approx((-100.1, 39.7, -609.3))
