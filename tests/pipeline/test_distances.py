"""Distances on grids whose voxels are no cubes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry import distance_to_mm

Index = st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6))
Edge = st.floats(0.3, 8.0)


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
