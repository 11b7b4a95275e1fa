"""What is grown for training lies in the lung, brightens it and leaves the rest alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.augment.random_fields import smooth_noise
from training.augment.synthetic_lesions import add_synthetic_lesions, near_pleura

CPU = torch.device("cpu")
SIZE = (16, 64, 64)
SPACING_MM = (3.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def lungs() -> torch.Tensor:
    inside = torch.zeros(SIZE)
    inside[1:-1, 8:-8, 8:-8] = 1
    return inside


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_grown_lesions_brighten_the_lung_and_nothing_outside_it(lungs: torch.Tensor, seed: int) -> None:
    before = torch.where(lungs > 0, -850.0, 40.0)
    hu, mask = add_synthetic_lesions(before, lungs, SPACING_MM, np.random.default_rng(seed))
    lesion = mask > 0
    assert 0.005 < lesion.sum() / lungs.sum() < 0.99
    assert not (lesion & (lungs == 0)).any()
    assert torch.equal(hu[lungs == 0], before[lungs == 0])
    # The faintest glass with the widest gaps adds little: 46 HU with seed 307.
    assert hu[lesion].mean() > -850 + 20


def test_vessels_show_through_ground_glass(lungs: torch.Tensor) -> None:
    before = torch.where(lungs > 0, -850.0, 40.0)
    before[:, 30:33, 30:33] = 40.0
    hu, _ = add_synthetic_lesions(before, lungs, SPACING_MM, np.random.default_rng(1))
    assert hu[:, 30:33, 30:33].min() > -50


def test_nothing_grows_where_there_is_no_lung() -> None:
    nothing = torch.zeros(SIZE)
    hu, lesions = add_synthetic_lesions(nothing, nothing, SPACING_MM, np.random.default_rng(0))
    assert not lesions.any()
    assert torch.equal(hu, nothing)


@pytest.mark.parametrize("spacing_mm", [(3.0, 1.0, 1.0), (2.0, 2.0, 2.0)])
def test_the_pleura_is_near_at_the_edge_and_far_in_the_middle(spacing_mm: tuple[float, float, float]) -> None:
    lungs = torch.zeros(40, 100, 100)
    lungs[2:-2, 10:-10, 10:-10] = 1
    near = near_pleura(lungs, spacing_mm)
    assert near[20, 50, 11] > 0.65
    assert near[20, 50, 50] < 0.1


def test_noise_has_unit_variance_and_the_wanted_length() -> None:
    rng = np.random.default_rng(0)
    fine, coarse = (smooth_noise((16, 128, 128), SPACING_MM, length, rng, CPU) for length in (5.0, 40.0))
    assert fine.std().item() == pytest.approx(1, abs=0.01)
    steps = [(field[:, :, 1:] - field[:, :, :-1]).abs().mean() for field in (fine, coarse)]
    assert steps[0] > 4 * steps[1]
