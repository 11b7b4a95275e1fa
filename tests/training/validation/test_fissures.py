"""Distances of marks from borders, closed-form."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.anatomy import Lobe
from pipeline.geometry import Grid, LobeLabels, Volume
from training.validation.fissures import SIDES_OF, draw_marks, fissure_distances_mm, read_fissure_marks

GRID = Grid((40, 30, 20), (2.0, 1.0, 1.0), (10.0, 20.0, 30.0))


def left_lung() -> LobeLabels:
    """The upper lobe begins with slice 20, at 70 mm."""
    labels = np.full(GRID.shape, Lobe.LEFT_LOWER, dtype=np.uint8)
    labels[20:] = Lobe.LEFT_UPPER
    return LobeLabels(labels, GRID)


@pytest.mark.parametrize(("z_mm", "away_mm"), [(70.0, 0.0), (68.0, 0.0), (80.0, 10.0), (58.0, 10.0), (75.0, 5.0)])
def test_marks_know_how_far_the_border_is(z_mm: float, away_mm: float) -> None:
    marks = {"left_oblique": np.array([[15.0, 30.0, z_mm], [20.0, 40.0, z_mm]])}
    np.testing.assert_allclose(fissure_distances_mm(left_lung(), marks)["left_oblique"], away_mm, atol=1e-4)


def test_lobes_that_do_not_touch_are_infinitely_far() -> None:
    marks = {"right_horizontal": np.array([[15.0, 30.0, 70.0]])}
    assert np.isinf(fissure_distances_mm(left_lung(), marks)["right_horizontal"]).all()


def test_each_fissure_parts_all_lobes_of_its_side() -> None:
    for name, (above, below) in SIDES_OF.items():
        assert not set(above) & set(below)
        assert all(lobe.is_left == name.startswith("left") for lobe in above + below)


def test_the_marks_are_of_known_fissures_and_lie_in_a_chest() -> None:
    for fissures in read_fissure_marks().values():
        assert set(fissures) <= set(SIDES_OF)
        for points in fissures.values():
            assert points.shape[1] == 3
            assert np.all(np.ptp(points, axis=0) < 250.0)


def test_a_picture_shows_every_slab_that_has_marks(tmp_path: Path) -> None:
    volume = Volume(np.full(GRID.shape, -850, dtype=np.int16), GRID)
    marks = {"left_oblique": np.array([[15.0, 30.0, 70.0], [25.0, 40.0, 70.0]])}
    draw_marks(tmp_path / "marks.png", volume, left_lung(), marks)
    assert (tmp_path / "marks.png").read_bytes().startswith(b"\x89PNG")
