"""What a scan shows whole, and what goes on beyond it."""

import numpy as np
import pytest

from pipeline.geometry import Grid, area_on_faces_cm2, is_truncated

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
