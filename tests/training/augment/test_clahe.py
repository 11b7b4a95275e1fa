"""Equalised slices keep the order of grey values within a tile and gain contrast where there was little."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.augment.clahe import BINS, equalise, equalised


def noise(seed: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(low, high, (3, 80, 112)).astype(np.float32))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_values_stay_between_zero_and_one(seed: int) -> None:
    seen = equalise(noise(seed), (-1350.0, 150.0), np.random.default_rng(seed))
    assert seen.shape == (3, 80, 112)
    assert 0 <= seen.min() <= seen.max() <= 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), clip=st.floats(1.0, 20.0))
def test_one_tile_keeps_the_order_of_grey_values(seed: int, clip: float) -> None:
    image = noise(seed)
    seen = equalised(image, 1, clip)
    for before, after in zip(image, seen, strict=True):
        order = before.flatten().argsort()
        assert (after.flatten()[order].diff() >= -1e-6).all()


def test_grey_values_that_are_even_already_stay_as_they_are() -> None:
    even = torch.linspace(0, 1, 80 * 112).reshape(1, 80, 112)
    assert torch.allclose(equalised(even, 1, 3.0), even, atol=1.5 / BINS)


@pytest.mark.parametrize("clip", [1.5, 3.0, 5.0])
def test_little_contrast_grows_by_the_limit_and_what_was_spread_evenly(clip: float) -> None:
    image = noise(7, 0.30, 0.40)
    before, after = (
        float(values.quantile(0.9) - values.quantile(0.1)) for values in (image, equalised(image, 1, clip))
    )
    assert clip * 0.9 < after / before < (clip + 1) * 1.1


def test_neighbouring_tiles_pass_smoothly_into_each_other() -> None:
    ramp = torch.linspace(0.2, 0.8, 120).expand(2, 120, 120).contiguous()
    assert float(equalised(ramp, 4, 3.0).diff(dim=2).abs().max()) < 0.06
