"""The carina of drawn airways: a tube of air that divides between two boxes of lung."""

import numpy as np
import pytest

from pipeline.geometry import Grid, Volume
from training.data.airways import trace_carina

GRID = Grid((80, 90, 120), (2.0, 1.5, 1.5), (-40.0, 10.0, -300.0))
DIVIDES_AT = 40
MIDDLE_YX = (45.0, 60.0)


def drawn(*, divides: bool = True, lungs: bool = True, rejoins: bool = False, trachea_slices: int = 38) -> Volume:
    """Soft tissue with a tube along z from `DIVIDES_AT` towards the head, and two tubes that part below."""
    hu = np.full(GRID.shape, 40, dtype=np.int16)
    if lungs:
        hu[:, 10:80, 6:30] = -850
        hu[:, 10:80, 90:114] = -850
    for z in range(6, DIVIDES_AT + trachea_slices):
        below = DIVIDES_AT - z if divides else 0
        apart = 0.0 if below <= 0 else min(4.4 + 0.8 * below, 18.0)
        if rejoins and below > 3:
            apart = 0.0
        for side in (-1, 1):
            _tube(hu[z], MIDDLE_YX[1] + side * apart, 5.5 if below <= 0 else 4.0)
    return Volume(hu, GRID)


def _tube(plane, x, radius):
    y, xs = np.ogrid[: plane.shape[0], : plane.shape[1]]
    plane[(y - MIDDLE_YX[0]) ** 2 + (xs - x) ** 2 <= radius**2] = -1000


def test_the_carina_is_where_the_tube_divides():
    expected = GRID.to_lps(np.array([DIVIDES_AT - 0.5, *MIDDLE_YX]))
    found = trace_carina(drawn())
    assert found is not None
    assert np.linalg.norm(np.subtract(found, expected)) <= 3.0


@pytest.mark.parametrize(
    "what",
    [{"divides": False}, {"lungs": False}, {"rejoins": True}, {"trachea_slices": 8}],
    ids=["never divides", "no lungs beside it", "parts meet again", "too short a trachea"],
)
def test_other_air_has_no_carina(what):
    assert trace_carina(drawn(**what)) is None
