"""What the lung network sees keeps its truth, however it is cut, bent, filled and shown."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import lung_batches as samples
from training.data.lung_batches import OPAQUE, LungDataset, LungRecipe
from training.data.splits import Split

RECIPE = LungRecipe(crop=(24, 24, 32), detail_crop=(16, 16, 16))


def five_lobes() -> torch.Tensor:
    labels = torch.zeros((24, 24, 32), dtype=torch.uint8)
    labels[2:12, 2:22, 18:30], labels[12:22, 2:22, 18:30] = 2, 1
    labels[2:12, 2:22, 2:14], labels[12:22, 2:22, 2:14], labels[8:14, 2:10, 2:14] = 5, 3, 4
    return labels


def test_a_sample_weighs_opaque_lung_and_fits_the_network() -> None:
    labels = five_lobes()
    labels[14:18, 4:10, 20:26] |= OPAQUE
    image = torch.full_like(labels, 100)
    sample = samples.make_sample(image, labels, RECIPE, 16, np.random.default_rng(0))
    assert sample.image.shape[2:] == (32, 32, 32)
    assert sample.image.abs().max() <= 1
    assert sample.weights.max() == RECIPE.opaque_weight
    assert int((sample.weights > 1).sum()) == 4 * 6 * 6
    assert int(sample.targets[:, 1].sum()) == int(torch.count_nonzero(labels & 7 == 1))
    assert torch.all(sample.targets.sum(dim=1) == 1)
    assert torch.all(sample.image[0, 0, 24:] == -1), "what is added is air"


def test_crops_stay_within_the_volume() -> None:
    labels = five_lobes()
    for seed in range(20):
        image, part = samples.random_crop(labels, labels, (16, 40, 16), np.random.default_rng(seed))
        assert part.shape == (16, 24, 16)
        assert torch.equal(image, part)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_bent_chest_keeps_image_and_labels_together_and_left_on_the_left(seed: int) -> None:
    labels = five_lobes().repeat_interleave(3, 0).repeat_interleave(3, 1).repeat_interleave(3, 2)
    image, bent = samples.bent_crop(20 * labels, labels, labels.shape, np.random.default_rng(seed))
    assert image.shape == bent.shape == labels.shape
    shown = bent.float()[None]
    highest, lowest = (sign * torch.nn.functional.max_pool3d(sign * shown, 5, 1)[0] for sign in (1, -1))
    of_one_lobe, inner = highest == lowest, (slice(2, -2),) * 3
    assert of_one_lobe.any()
    assert torch.equal(image[inner][of_one_lobe], 20 * bent[inner][of_one_lobe])
    left, right = (torch.isin(bent, torch.tensor(side)).nonzero()[:, 2].float().mean() for side in ([1, 2], [3, 4, 5]))
    assert left > right


def test_nothing_is_bent_where_nothing_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_TURNED", np.zeros(3))
    monkeypatch.setattr(samples, "MOST_STRETCHED", (0.0, 0.0))
    monkeypatch.setattr(samples, "MOST_BENT_MM", 0.0)
    labels = five_lobes()
    for seed in range(5):
        straight = samples.random_crop(labels, labels, (16, 20, 16), np.random.default_rng(seed))
        bent = samples.bent_crop(labels, labels, (16, 20, 16), np.random.default_rng(seed))
        assert torch.equal(straight[1], bent[1])
        assert torch.equal(straight[0], bent[0])


def test_the_window_of_the_detail_stage_holds_a_boundary_and_fits_the_coarse_grid() -> None:
    labels = five_lobes()
    for seed in range(20):
        window = samples.boundary_window(labels, (16, 16, 16), np.random.default_rng(seed))
        assert labels[window].shape == (16, 16, 16)
        assert len(labels[window].unique()) > 1
        assert all(part.start % 2 == part.stop % 2 == 0 for part in window)


def test_a_volume_is_read_from_disk_once_while_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("case01-000", "case02-000"):
        np.savez(tmp_path / f"{name}.npz", image=np.zeros((4, 4, 4), np.uint8), labels=np.zeros((4, 4, 4), np.uint8))
    monkeypatch.setattr(samples, "MOST_KEPT_BYTES", 2 * 4**3)
    read = []
    real = samples.read_volume
    monkeypatch.setattr(samples, "read_volume", lambda path: read.append(path) or real(path))
    dataset = LungDataset(tmp_path, RECIPE, Split())
    for seed in range(30):
        dataset.draw(np.random.default_rng(seed))
    kept, unkept = sorted(read.count(tmp_path / f"{name}.npz") for name in ("case01-000", "case02-000"))
    assert kept == 1
    assert unkept > 5
