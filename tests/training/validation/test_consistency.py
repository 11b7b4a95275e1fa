"""What the scores of one scan are compared with."""

import numpy as np
import pytest

from pipeline.geometry import Grid, Volume
from training.validation.consistency import Row, summarise, variants


def row(percent: float, *, is_same: bool | None = None) -> Row:
    return Row("a", "b", percent, 0.0, 0, 4000.0, is_same)


@pytest.mark.parametrize(
    ("percents", "within"), [((1.0, 1.29), True), ((1.0, 1.31), False), ((20.0, 20.9, 20.1), True)]
)
def test_the_spread_may_be_some_points_or_a_share(percents: tuple[float, ...], within: bool) -> None:
    found = summarise([row(percent) for percent in percents])
    assert found["within_bar"] is within
    assert found["spread_points"] == pytest.approx(max(percents) - min(percents))


def test_orders_are_counted_that_differ() -> None:
    found = summarise([row(1.0), row(1.0, is_same=True), row(1.2, is_same=False)])
    assert (found["orders"], found["orders_same_to_the_bit"]) == (2, 1)


def test_the_variants_show_the_same_patient() -> None:
    grid = Grid((24, 40, 40), (2.0, 1.0, 1.0), (5.0, 6.0, 7.0))
    noise = np.random.default_rng(1).normal(0, 20, grid.shape)
    hu = np.rint(40 + np.arange(24)[:, None, None] + noise).astype(np.int16)
    found = dict(variants(Volume(hu, grid)))
    assert list(found) == ["half a voxel", "slices of 1 mm", "slices of 3 mm", "slices of 5 mm", "half the dose"]
    assert all(volume.hu.shape == volume.grid.shape for volume in found.values())
    np.testing.assert_allclose(found["half a voxel"].grid.origin_mm, (5.5, 6.5, 8.0))
    # A slice at a height has the value of that height, whatever the slices.
    for name in ("half a voxel", "slices of 1 mm", "slices of 3 mm", "slices of 5 mm"):
        heights = found[name].grid.to_lps(np.argwhere(found[name].hu > -2000).astype(float))[:, 2]
        expected = 40 + (heights.reshape(found[name].hu.shape).mean(axis=(1, 2)) - 7) / 2
        np.testing.assert_allclose(found[name].hu.mean(axis=(1, 2))[1:-1], expected[1:-1], atol=2.5)
    assert found["half the dose"].hu.std() == pytest.approx(float(np.hypot(hu.std(), 20)), rel=0.1)
