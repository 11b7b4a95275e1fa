"""The prepared volumes: deformed, opacified and cropped, with labels that stay true."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.geometry import Grid, Volume
from pipeline.networks.di2in import LungConfig
from training.data import lung_dataset
from training.data.lung_batches import OPAQUE, OPAQUE_HU, read_volume
from training.data.lung_dataset import Chest

GRID = Grid((80, 60, 90), (4.0, 4.0, 4.0), (-180.0, -120.0, -160.0))
CONFIG = LungConfig(spacing_mm=4.0)
SEEDS = range(6)


@pytest.fixture
def chest() -> Chest:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[20:40, 15:45, 50:70], labels[40:60, 15:45, 50:70] = 2, 1
    labels[20:40, 15:45, 20:40], labels[40:60, 15:45, 20:40] = 5, 3
    labels[34:46, 15:28, 20:40] = 4
    hu = np.where(labels > 0, -850, 40).astype(np.int16)
    return Chest(Volume(hu, GRID), labels, (0.0, 0.0, 20.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_keeps_left_left_and_labels_on_the_lungs(chest: Chest, seed: int) -> None:
    hu, labels = lung_dataset.deformed_copy(chest, CONFIG, np.random.default_rng(seed))
    x = np.nonzero(np.isin(labels, (1, 2)))[2].mean(), np.nonzero(np.isin(labels, (3, 4, 5)))[2].mean()
    assert x[0] > x[1]
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4, 5}
    assert np.mean(hu[labels > 0] < -400) > 0.9
    assert 0.4 < np.count_nonzero(labels) / np.count_nonzero(chest.labels) < 2.5


def test_copies_differ_and_a_seed_repeats_itself(chest: Chest) -> None:
    first, again, other = (lung_dataset.deformed_copy(chest, CONFIG, np.random.default_rng(s))[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", SEEDS)
def test_opacities_fill_lung_and_nothing_else(chest: Chest, seed: int) -> None:
    hu = chest.volume.hu.astype(np.float32)
    filled, labels = lung_dataset.with_pasted_lesions(hu, chest.labels, np.random.default_rng(seed), GRID.spacing_mm)
    lungs = chest.labels > 0
    np.testing.assert_array_equal(labels & (OPAQUE - 1), chest.labels)
    np.testing.assert_array_equal(filled[~lungs], hu[~lungs])
    assert np.any(filled[lungs] > hu[lungs])
    assert np.all(filled[labels >= OPAQUE] > OPAQUE_HU)
    assert filled.max() < 400


def test_some_opacities_touch_the_pleura(chest: Chest) -> None:
    hu = chest.volume.hu.astype(np.float32)
    back = np.zeros(GRID.shape, dtype=np.bool_)
    back[:, 44] = True
    touched = 0
    for seed in range(12):
        _, labels = lung_dataset.with_pasted_lesions(hu, chest.labels, np.random.default_rng(seed), GRID.spacing_mm)
        touched += bool((labels[back] >= OPAQUE).any())
    assert touched >= 3


@pytest.mark.parametrize("seed", range(20))
def test_a_crop_holds_the_lungs_all_but_their_ends(chest: Chest, seed: int) -> None:
    hu, labels = lung_dataset.crop_to_lungs(
        chest.volume.hu.astype(np.float32), chest.labels, np.random.default_rng(seed)
    )
    assert hu.shape == labels.shape
    assert np.count_nonzero(labels) > 0.3 * np.count_nonzero(chest.labels)
    assert labels.any(axis=(0, 1)).sum() == chest.labels.any(axis=(0, 1)).sum(), "never cut at the sides"


def test_what_is_written_is_what_the_training_reads(chest: Chest, tmp_path: Path) -> None:
    path = tmp_path / "case01-000.npz"
    lung_dataset.write_volume(path, chest.volume.hu.astype(np.float32), chest.labels, CONFIG)
    image, labels = read_volume(path)
    np.testing.assert_array_equal(labels, chest.labels)
    back = image / 255 * 1624 - 1024
    np.testing.assert_allclose(back, chest.volume.hu, atol=4)


def test_a_phantom_has_five_lobes_in_its_region() -> None:
    hu, labels = lung_dataset.phantom_region(7, CONFIG)
    assert set(np.unique(labels & (OPAQUE - 1))) == {0, 1, 2, 3, 4, 5}
    clear = (labels > 0) & (labels < OPAQUE)
    assert np.median(hu[clear]) < -600
