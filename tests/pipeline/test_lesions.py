"""The lesion stage around a network that answers by rule."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry import Grid, LungMask, Matrix, Volume
from pipeline.lesions import (
    CERTAIN,
    FAINT,
    HALO,
    LIKELY,
    LOW_MEMORY_TILE,
    TILE,
    WIDE_MM,
    LesionNetwork,
    Tile,
    _pieces,
    believe_wide,
    lesion_grid,
    predict,
    prepare,
    segment_lesions,
    window,
)
from pipeline.networks.dense_unet import TOTAL_STRIDE, DenseUNet, DenseUNetConfig
from pipeline.networks.weights import ModelInfo

GRID = Grid((60, 70, 80), (4.0, 3.0, 3.0), (-120.0, -100.0, 300.0))
FLIPPED: Matrix = ((-1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))


class BrightIsLesion(DenseUNet):
    """Calls a lesion whatever lies above the middle of the window."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((torch.zeros_like(x[:, :1]), 20 * (x[:, :1] - 0.5)), dim=1)


@pytest.fixture
def network() -> LesionNetwork:
    bright = BrightIsLesion(DenseUNetConfig(stem=2, growth=2, layers=1, widths=(2, 2, 2, 2, 2)))
    return LesionNetwork(bright, torch.device("cpu"), ModelInfo("lesions", "0", "0" * 64))


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


@given(size=st.integers(1, 300).map(lambda n: n * 8), edge=st.sampled_from([32, 40, 64, 512]))
def test_pieces_cover_an_axis_once_and_stay_inside(size: int, edge: int) -> None:
    pieces = list(_pieces(size, edge, 8))
    kept = list(itertools.chain.from_iterable(range(keep.start, keep.stop) for _, keep in pieces))
    assert kept == list(range(size))
    for begin, keep in pieces:
        assert 0 <= begin <= keep.start
        assert keep.stop <= min(begin + edge, size)


@pytest.mark.parametrize("tile", [TILE, LOW_MEMORY_TILE])
def test_tiles_are_what_the_network_takes_and_more_than_their_halo(tile: Tile) -> None:
    assert all(edge % stride == 0 for edge, stride in zip(tile, TOTAL_STRIDE, strict=True))
    assert all(edge > 2 * halo for edge, halo in zip(tile, HALO, strict=True))


@pytest.mark.parametrize("tile", [TILE, LOW_MEMORY_TILE])
def test_tiles_give_what_one_piece_would(network: LesionNetwork, tile: Tile) -> None:
    image = np.random.default_rng(0).random((72, 32, 320)).astype(np.float32)
    inputs = np.stack([image, np.ones_like(image), np.zeros_like(image)])
    seen: list[float] = []
    assert np.allclose(predict(inputs, network, seen.append, tile), network.probability(inputs))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


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
