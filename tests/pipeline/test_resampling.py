"""Axis by axis, a volume becomes what ITK makes of it."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.geometry import Grid, to_sitk
from pipeline.resampling import _on_grid, _parallel_axes, _resampled_by_itk, resample, resample_labels

Pair = tuple[Grid, Grid]


@st.composite
def parallel_grids(draw: st.DrawFn) -> Pair:
    """Two grids with the same axes, in any order and in either direction; one may lie beside the other."""
    turn, _ = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 999))).normal(size=(3, 3)))
    order = draw(st.sampled_from(list(itertools.permutations(range(3)))))
    signs = np.array(draw(st.tuples(*[st.sampled_from((1.0, -1.0))] * 3)))
    made = []
    for direction in (turn, turn[:, list(order)] * signs):
        rows = [(float(a), float(b), float(c)) for a, b, c in direction]
        shape = draw(st.tuples(*[st.integers(1, 24)] * 3))
        spacing = draw(st.tuples(*[st.sampled_from((0.5, 0.7, 1.0, 1.3, 2.0, 3.1))] * 3))
        centre = Grid(shape, spacing, (0.0, 0.0, 0.0), (rows[0], rows[1], rows[2])).to_lps((np.array(shape) - 1.0) / 2)
        apart = np.array(draw(st.tuples(*[st.floats(-6, 6)] * 3)))
        x, y, z = (float(v) for v in apart - centre)
        made.append(Grid(shape, spacing, (x, y, z), (rows[0], rows[1], rows[2])))
    return made[0], made[1]


@given(parallel_grids(), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_along_axes_it_is_what_itk_gives(pair: Pair, seed: int) -> None:
    source, target = pair
    hu = np.random.default_rng(seed).integers(-1000, 400, source.shape).astype(np.int16)
    assert _parallel_axes(source, target) is not None
    found, judge = resample(hu, source, target, outside=-1000), _resampled_by_itk(hu, source, target, -1000)
    # On the very edge of the outermost voxels rounding decides what is inside.
    index = source.to_index(target.to_lps(np.indices(target.shape).reshape(3, -1).T.astype(np.float64)))
    margins = np.minimum(index + 0.5, np.asarray(source.shape) - 0.5 - index)
    sure = (np.abs(margins).min(axis=1) > 1e-6).reshape(target.shape)
    assert np.abs(found - judge)[sure].max(initial=0.0) < 0.05


@given(parallel_grids(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_labels_along_axes_are_those_of_itk(pair: Pair, seed: int) -> None:
    source, target = pair
    labels = np.random.default_rng(seed).integers(0, 6, source.shape).astype(np.uint8)
    judge = _on_grid(to_sitk(labels, source), target, sitk.sitkNearestNeighbor, 0)
    index = source.to_index(target.to_lps(np.indices(target.shape).reshape(3, -1).T.astype(np.float64)))
    sure = (np.abs(index + 0.5 - np.round(index + 0.5)).min(axis=1) > 1e-6).reshape(target.shape)
    assert (resample_labels(labels, source, target) == judge)[sure].all()


def test_a_large_scan_is_smoothed_as_itk_smooths_it() -> None:
    source = Grid((40, 150, 170), (2.5, 0.7, 0.7), (-50.0, -60.0, 10.0))
    hu = np.random.default_rng(0).integers(-1000, 400, source.shape).astype(np.int16)
    target = Grid.axis_aligned((-40.0, -40.0, 20.0), (50.0, 30.0, 90.0), (3.0, 2.0, 2.0))
    assert np.abs(resample(hu, source, target) - _resampled_by_itk(hu, source, target, -1000)).max() < 0.01


@pytest.mark.parametrize("degrees", [0.0, 0.0001, 5.0])
def test_oblique_grids_are_left_to_itk(degrees: float) -> None:
    a, b = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = Grid((8, 100, 100), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((a, -b, 0.0), (b, a, 0.0), (0.0, 0.0, 1.0)))
    assert (_parallel_axes(Grid((8, 100, 100), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), turned) is None) == (degrees > 1)
