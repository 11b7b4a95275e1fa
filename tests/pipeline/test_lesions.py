"""The lesion stage around a network that answers by rule."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry import Grid, LungMask, Matrix, Volume
from pipeline.lesions import (
    CERTAIN,
    FAINT,
    LIKELY,
    WIDE_MM,
    LesionNetwork,
    believe_wide,
    lesion_grid,
    prepare,
    segment_lesions,
    window,
)
from pipeline.networks.dense_unet import TOTAL_STRIDE
from pipeline.networks.weights import ModelInfo

GRID = Grid((60, 70, 80), (4.0, 3.0, 3.0), (-120.0, -100.0, 300.0))
FLIPPED: Matrix = ((-1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))


class BrightIsLesion:
    """Calls a lesion whatever lies above the middle of the window."""

    def probability(self, inputs: np.ndarray, slices: int, progress: Callable[[float], None]) -> np.ndarray:
        progress(slices / inputs.shape[1])
        return (1 / (1 + np.exp(-20 * (inputs[0] - 0.5)))).astype(np.float32)


@pytest.fixture
def network() -> LesionNetwork:
    return LesionNetwork(BrightIsLesion(), ModelInfo("lesions", "0", "0" * 64))


def chest(grid: Grid) -> tuple[Volume, LungMask, np.ndarray]:
    """Lungs with one dense block; the chest wall is dense too."""
    points = grid.to_lps(np.indices(grid.shape).reshape(3, -1).T.astype(np.float64)).reshape(*grid.shape, 3)
    relative = points - np.array([0.0, 5.0, 420.0])
    lungs = (np.abs(relative) < (75, 60, 80)).all(axis=-1)
    block = (np.abs(relative - (30, 10, -20)) < (24, 20, 30)).all(axis=-1)
    hu = np.where(block, 0, np.where(lungs, -850, 40)).astype(np.int16)
    return Volume(hu, grid), LungMask(lungs, grid), block


def test_window_maps_the_lung_window_to_zero_and_one() -> None:
    assert window(np.array([-2000.0, -1350.0, -600.0, 150.0, 900.0])).tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("direction", [GRID.direction, FLIPPED])
def test_finds_the_lesion_inside_the_lungs_on_the_grid_of_the_scan(network: LesionNetwork, direction: Matrix) -> None:
    origin = (-120.0, -100.0, 300.0) if direction == GRID.direction else (120.0, -100.0, 540.0)
    volume, lungs, block = chest(Grid((80, 80, 80), (3.0, 3.0, 3.0), origin, direction))
    found = segment_lesions(volume, lungs, network).likely
    assert found.grid == volume.grid
    assert not (found.mask & ~lungs.mask).any()
    assert 2 * (found.mask & block).sum() / (found.mask.sum() + block.sum()) > 0.9


def test_no_lungs_no_lesions(network: LesionNetwork) -> None:
    volume, lungs, _ = chest(GRID)
    empty = LungMask(np.zeros_like(lungs.mask), GRID)
    found = segment_lesions(volume, empty, network)
    assert not any(part.mask.any() for part in (found.certain, found.likely, found.possible))


def test_what_is_certain_is_likely_and_what_is_likely_is_possible(network: LesionNetwork) -> None:
    volume, lungs, _ = chest(GRID)
    found = segment_lesions(volume, lungs, network)
    certain, likely, possible = (part.mask for part in (found.certain, found.likely, found.possible))
    assert not (certain & ~likely).any()
    assert not (likely & ~possible).any()
    assert certain.sum() < likely.sum() < possible.sum()


def test_box_holds_the_lungs_in_sizes_the_network_takes() -> None:
    volume, lungs, _ = chest(GRID)
    box = lesion_grid(lungs)
    assert box.spacing_mm == (3.0, 1.0, 1.0)
    assert all(n % stride == 0 for n, stride in zip(box.shape, TOTAL_STRIDE, strict=True))
    inputs = prepare(volume, lungs, box)
    voxel_ml = box.voxel_volume_ml
    assert inputs[1].sum() * voxel_ml == pytest.approx(lungs.volume_ml(), rel=0.03)
    assert not inputs[1][:, 0].any()


def slab(thickness_mm: float, faint: float = 0.1, likely: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Faint tissue of this thickness through the whole lung, with a few sure voxels in it."""
    probability = np.zeros((20, 60, 60), dtype=np.float32)
    probability[:, 10 : 10 + round(thickness_mm)] = faint
    probability[10, 12, 30:33] = likely
    return probability, np.ones(probability.shape, dtype=np.bool_)


def test_what_is_faint_but_wide_is_believed() -> None:
    probability, lungs = slab(2 * WIDE_MM + 2)
    believed = believe_wide(probability, lungs)
    assert ((believed >= LIKELY) == (probability > 0)).all()
    assert believed[10, 12, 31] == np.float32(0.9)
    assert not (believed >= CERTAIN)[probability < CERTAIN].any()


def test_what_is_faint_and_thin_stays_as_it_is() -> None:
    probability, lungs = slab(2 * WIDE_MM - 2)
    assert (believe_wide(probability, lungs) == probability).all()


def test_what_is_wide_but_touches_no_lesion_stays_as_it_is() -> None:
    probability, lungs = slab(2 * WIDE_MM + 2, likely=0.1)
    assert (believe_wide(probability, lungs) == probability).all()


def test_what_is_fainter_than_faint_stays_as_it_is() -> None:
    probability, lungs = slab(2 * WIDE_MM + 2, faint=FAINT * 0.9)
    assert (believe_wide(probability, lungs) == probability).all()


def test_nothing_outside_the_lungs_is_believed_or_makes_anything_wide() -> None:
    probability, lungs = slab(2 * WIDE_MM + 2)
    lungs[:, 10 + round(WIDE_MM) :] = False
    assert (believe_wide(probability, lungs) == probability).all()


@given(st.integers(0, 2**32 - 1))
def test_belief_never_lowers_a_probability_and_never_goes_up_to_certain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rough = rng.random((4, 6, 6), dtype=np.float32) ** 2
    probability = np.kron(rough, np.ones((4, 12, 12), dtype=np.float32))
    lungs = np.kron(rng.random(rough.shape) > 0.02, np.ones((4, 12, 12), dtype=np.bool_))
    believed = believe_wide(probability, lungs)
    raised = believed != probability
    assert (believed >= probability).all()
    assert not raised[probability < FAINT].any()
    assert not (believed[raised] >= CERTAIN).any()
