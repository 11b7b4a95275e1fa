"""Where no landmark is found: what speaks for lungs in a coarse look at the whole scan, and what does not."""

import numpy as np
import pytest
import torch

from pipeline.anatomy import Lobe
from pipeline.errors import NotChestCTError
from pipeline.geometry import Volume
from pipeline.landmarks import LandmarkNetwork, find_landmarks
from pipeline.lungs.placement import aerated_tissue, require_lung_tissue
from pipeline.lungs.segment import LungNetwork, place_lungs
from pipeline.networks.weights import load_weights
from pipeline.phantom import PhantomRecipe, make_phantom

EDGE_MM = 4.0
VOXEL_ML = EDGE_MM**3 / 1000
LEFT, RIGHT = (slice(8, 32), slice(20, 44), slice(46, 64)), (slice(8, 32), slice(20, 44), slice(16, 34))


def body(*, wide: float = 1.0) -> np.ndarray:
    """Soft tissue on a mattress of foam, at 4 mm."""
    hu = np.full((40, 70, 80), -1000, dtype=np.float32)
    y, x = np.indices(hu.shape[1:])
    hu[:, ((y - 32) / 22) ** 2 + ((x - 40) / 34) ** 2 < wide**2] = 40
    hu[:, 60:66, 4:76] = -880
    return hu


def labels() -> np.ndarray:
    """Two lungs as a network might draw them."""
    drawn = np.zeros((40, 70, 80), dtype=np.uint8)
    drawn[LEFT], drawn[RIGHT] = Lobe.LEFT_UPPER, Lobe.RIGHT_UPPER
    return drawn


def test_lung_is_tissue_with_air_in_it_and_a_mattress_is_not() -> None:
    hu = body()
    hu[LEFT] = -850
    found = aerated_tissue(hu, VOXEL_ML)
    assert not found[labels() != Lobe.LEFT_UPPER].any()
    assert found[LEFT].mean() > 0.9


@pytest.mark.parametrize("gas_hu", [-1000.0, -100.0])
def test_bowel_gas_and_fat_are_no_lung(gas_hu: float) -> None:
    hu = body()
    hu[RIGHT] = gas_hu
    assert not aerated_tissue(hu, VOXEL_ML).any()


def test_lung_at_the_end_of_a_small_field_of_view_is_lung() -> None:
    hu = body()
    hu[LEFT] = -850
    cut = hu[10:30, 22:42, 48:62]
    assert aerated_tissue(np.ascontiguousarray(cut), VOXEL_ML).mean() > 0.9


@pytest.mark.parametrize(("left_hu", "right_hu"), [(-850, -850), (-850, 30), (30, -700), (-300, -300), (30, 30)])
def test_lungs_are_seen_with_air_in_one_of_them_or_both_solid(left_hu: float, right_hu: float) -> None:
    hu = body()
    hu[LEFT], hu[RIGHT] = left_hu, right_hu
    require_lung_tissue(hu, labels(), EDGE_MM)


def test_what_is_drawn_into_a_head_is_no_lung() -> None:
    with pytest.raises(NotChestCTError, match="Neither the carina") as caught:
        require_lung_tissue(body(wide=0.6), labels(), EDGE_MM)
    assert caught.value.evidence["aerated_ml"] == 0.0
    assert caught.value.evidence["section_cm2"] < caught.value.evidence["least_section_cm2"]  # type: ignore[operator]


def test_what_is_drawn_into_the_air_of_the_room_is_no_lung() -> None:
    beside = np.zeros((40, 70, 80), dtype=np.uint8)
    beside[:, 62:, :40], beside[:, 62:, 40:] = Lobe.RIGHT_LOWER, Lobe.LEFT_LOWER
    with pytest.raises(NotChestCTError):
        require_lung_tissue(body(), beside, EDGE_MM)


def test_a_chest_with_a_filled_lung_is_placed_without_a_landmark() -> None:
    phantom = make_phantom(PhantomRecipe(seed=1_000_500, spacing_mm=(4.0, 3.0, 3.0), percent_opacity=0))
    lungs = phantom.lobes.labels > 0
    right = lungs & ~phantom.lobes.left()
    filled = Volume(np.where(right, np.int16(30), phantom.volume.hu), phantom.volume.grid)
    device = torch.device("cpu")
    found = find_landmarks(filled, LandmarkNetwork.load(load_weights("landmarks"), device))
    assert not any(landmark.found for landmark in found.values())
    look = place_lungs(filled, found, LungNetwork.load(load_weights("lungs"), device))
    lower, upper = look.region.bounds_mm()
    points = filled.grid.to_lps(np.argwhere(lungs).astype(np.float64))
    assert np.all((points >= lower) & (points <= upper))
    drawn = np.argwhere(look.labels > 0)
    assert np.prod(np.ptp(drawn, axis=0)) > 0
