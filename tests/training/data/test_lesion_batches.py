"""Crops keep their truth however they are bent, grown and seen again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.lesion_batches import Crop, Example, LesionRecipe, Sampler, _faded, drawn_too_large

CPU = torch.device("cpu")
CROP = (16, 64, 64)


def chest(kind: str = "covid", size: tuple[int, int, int] = (24, 80, 90)) -> Example:
    """Lungs at -850 HU in a wall at 40 HU, a lesion at -500 HU in them unless `clean`."""
    lungs = np.zeros(size, dtype=np.bool_)
    lungs[1:-1, 8:-8, 8:-8] = True
    lesions = np.zeros_like(lungs)
    if kind != "clean":
        lesions[2:-2, 12:30, 12:40] = True
    image = np.where(lesions, 145, np.where(lungs, 85, 236)).astype(np.uint8)
    return Example(f"{kind}-0-0", image, lungs, lesions)


class Drawer:
    """A sampler of one volume, and the generator that it draws with."""

    def __init__(self, example: Example, seed: int) -> None:
        recipe = LesionRecipe(kinds={"covid": 0.5, "clean": 0.5, "phantom": 0.5}, crop=CROP, shift_hu=20.0)
        self._sampler, self._rng = Sampler([example], recipe, CPU), np.random.default_rng(seed)

    def draw(self) -> Crop:
        return self._sampler.draw(self._rng)


def sampler(example: Example, seed: int = 0) -> Drawer:
    return Drawer(example, seed)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["covid", "clean", "phantom"]))
def test_crops_have_the_wanted_size_and_lesions_stay_in_the_lungs(seed: int, kind: str) -> None:
    crop = sampler(chest(kind), seed).draw()
    assert crop.inputs().shape == (3, *CROP)
    assert 0 <= crop.image.min() <= crop.image.max() <= 1
    assert set(crop.lungs.unique().tolist()) <= {0.0, 1.0}
    assert not ((crop.lesions > 0) & (crop.lungs == 0)).any()


def test_the_same_seed_draws_the_same_crop() -> None:
    first, second = (sampler(chest(), seed=3).draw() for _ in range(2))
    assert torch.equal(first.inputs(), second.inputs())
    assert torch.equal(first.lesions, second.lesions)


def test_lesions_stay_brighter_than_the_lung_around_them() -> None:
    drawn = sampler(chest("phantom"))
    for _ in range(10):
        crop = drawn.draw()
        lung, lesion = (crop.lungs > 0) & (crop.lesions == 0), crop.lesions > 0
        if lesion.any() and lung.any():
            assert crop.image[lesion].median() > crop.image[lung].median() + 0.1


def test_volumes_smaller_than_a_crop_are_padded_with_what_is_not_lung() -> None:
    whole = np.ones((4, 20, 20), bool)
    drawn = sampler(Example("covid-0-0", np.full((4, 20, 20), 99, np.uint8), whole, whole))
    crop = next(crop for crop in (drawn.draw() for _ in range(20)) if crop.lungs.sum() == 4 * 20 * 20)
    assert crop.lesions.sum() == 4 * 20 * 20


def test_a_dataset_without_any_wanted_kind_is_refused() -> None:
    with pytest.raises(FileNotFoundError):
        sampler(chest("grown"))


@pytest.mark.parametrize("share", [-0.3, 0.0, 0.6])
def test_faded_lesions_are_nearer_to_the_lung_and_keep_their_texture(share: float) -> None:
    rng = np.random.default_rng(0)
    lungs, lesions = np.zeros((2, 3, 60, 60), dtype=np.float32)
    lungs[:, 4:-4, 4:-4] = 1
    lesions[:, 10:40, 10:40] = 1
    grain = rng.normal(0, 0.02, lungs.shape).astype(np.float32)
    crop = Crop(*map(torch.from_numpy, (0.3 + 0.3 * lesions + grain, lungs, lesions)))
    faded = _faded(crop, share)
    inside = (slice(None), slice(18, 32), slice(18, 32))
    assert float(faded.image[inside].mean()) == pytest.approx(0.3 + 0.3 * (1 - share), abs=0.01)
    assert float(faded.image[inside].std()) == pytest.approx(0.02, rel=0.15)
    assert torch.equal(faded.image[lesions == 0], crop.image[lesions == 0])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_lungs_drawn_too_large_hold_the_true_ones_a_rim_of_tissue_and_no_new_lesion(seed: int) -> None:
    lungs, lesions = np.zeros((2, 16, 90, 90), dtype=np.float32)
    lungs[2:-2, 30:-30, 30:-30] = 1
    lesions[2:-2, 30:40, 40:50] = 1
    crop = Crop(*map(torch.from_numpy, (1 - 0.7 * lungs + 0.4 * lesions, lungs, lesions)))
    drawn = drawn_too_large(crop, np.random.default_rng(seed))
    assert torch.equal(drawn.lungs * crop.lungs, crop.lungs)
    assert set(drawn.lungs.unique().tolist()) <= {0.0, 1.0}
    assert not drawn.lungs[:, :12].any(), "farther than 15 mm from the lungs"
    assert torch.equal(drawn.lesions, crop.lesions)
    assert torch.equal(drawn.image, crop.image)


def test_lungs_are_drawn_too_large_by_some_millimetres() -> None:
    lungs = torch.zeros(16, 90, 90)
    lungs[:, 30:-30, 30:-30] = 1
    crop, rng = Crop(1 - lungs, lungs, torch.zeros_like(lungs)), np.random.default_rng(0)
    added = [float((drawn_too_large(crop, rng).lungs - lungs).sum() / lungs.sum()) for _ in range(20)]
    assert min(added) < 0.2 < 0.4 < max(added)


@pytest.mark.parametrize("seed", range(12))
def test_the_darkest_voxels_of_a_lesion_stay_numbers_however_they_are_shown(seed: int) -> None:
    example = chest()
    example.image[example.lesions] = np.random.default_rng(seed).choice([0, 90, 200], example.lesions.sum())
    assert torch.isfinite(sampler(example, seed).draw().image).all()
