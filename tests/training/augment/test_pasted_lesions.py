"""Lesions grown in a given lung stay in it, and lift its density."""

import numpy as np
import pytest

from pipeline.geometry import Grid, LungMask, Volume
from training.augment.pasted_lesions import with_pasted_lesions

GRID = Grid((40, 50, 60), (6.0, 4.0, 4.0), (900.0, -70.0, 1500.0))


@pytest.fixture
def lungs() -> LungMask:
    mask = np.zeros(GRID.shape, dtype=np.bool_)
    mask[5:35, 10:40, 5:25] = True
    mask[5:35, 10:40, 35:55] = True
    return LungMask(mask, GRID)


@pytest.fixture
def chest(lungs: LungMask) -> Volume:
    return Volume(np.where(lungs.mask, -850, 40).astype(np.int16), GRID)


@pytest.mark.parametrize("percent", [1.0, 10.0, 40.0])
def test_affects_the_wanted_share(chest: Volume, lungs: LungMask, percent: float) -> None:
    _, lesions = with_pasted_lesions(chest, lungs, seed=1, percent_opacity=percent)
    assert 100 * lesions.sum() / lungs.mask.sum() == pytest.approx(percent, abs=0.5)


def test_leaves_all_outside_the_lungs_as_it_was(chest: Volume, lungs: LungMask) -> None:
    hu, lesions = with_pasted_lesions(chest, lungs, seed=2, percent_opacity=20)
    assert not (lesions & ~lungs.mask).any()
    assert np.array_equal(hu[~lungs.mask], chest.hu[~lungs.mask])
    assert np.median(hu[lesions]) > -750


def test_vessels_show_through(chest: Volume, lungs: LungMask) -> None:
    chest.hu[20, 25, 10:20] = 40
    hu, _ = with_pasted_lesions(chest, lungs, seed=3, percent_opacity=60)
    assert hu[20, 25, 10:20].min() > -40


def test_same_seed_grows_the_same_lesions(chest: Volume, lungs: LungMask) -> None:
    first, second = (with_pasted_lesions(chest, lungs, seed=4, percent_opacity=15)[0] for _ in range(2))
    assert np.array_equal(first, second)
