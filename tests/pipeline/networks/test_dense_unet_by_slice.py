"""The way through a whole scan gives what the plain network gives."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.networks.dense_unet import DenseUNet, DenseUNetConfig, network_inputs
from pipeline.networks.dense_unet_by_slice import BOX_STEP, MARGIN, DenseUNetBySlice, lung_boxes

SHAPE = (24, 96, 160)


def network() -> DenseUNet:
    """With weights that let every layer have its say, biases too."""
    torch.manual_seed(1)
    made = DenseUNet(DenseUNetConfig(stem=4, growth=4, layers=2, widths=(6, 8, 10, 12, 14)))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        made.head.weight.mul_(3)
    return made.eval()


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    """Noise, and two lungs of which one goes out through the edge of the box."""
    torch.manual_seed(0)
    lungs = torch.zeros(SHAPE)
    lungs[3:20, 20:70, 12:60] = 1
    lungs[5:24, 30:96, 100:150] = 1
    return network_inputs(torch.rand(SHAPE), lungs).numpy()


def plain(net: DenseUNet, inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return net(torch.from_numpy(inputs)[None]).softmax(dim=1)[0, 1].numpy()


@pytest.mark.parametrize(("slices", "has_onednn"), [(1, True), (7, True), (24, True), (8, False)])
def test_the_answer_in_the_lungs_is_the_plain_networks(
    inputs: np.ndarray, slices: int, has_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    net = network()
    expected = plain(net, inputs)
    seen: list[float] = []
    found = DenseUNetBySlice(net, torch.float32).probability(inputs, slices, seen.append)
    lungs = inputs[1] > 0
    assert expected[lungs].std() > 0.05
    assert np.abs(found - expected)[lungs].max() < 1e-5
    # Whoever interpolates reads the voxels next to the lungs, too.
    assert np.abs(found - expected)[4:20, 19:71, 11:61].max() < 1e-5
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_where_there_is_no_lung_there_is_no_lesion(inputs: np.ndarray) -> None:
    empty = inputs.copy()
    empty[1:] = 0
    assert not DenseUNetBySlice(network(), torch.float32).probability(empty, 8, lambda _done: None).any()


def test_in_bfloat16_it_stays_near(inputs: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of oneDNN it is only where the CPU has units for it, which is where it is used.
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    net = network()
    found = DenseUNetBySlice(net, torch.bfloat16).probability(inputs, 8, lambda _done: None)
    assert np.abs(found - plain(net, inputs))[inputs[1] > 0].mean() < 0.02


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_boxes_hold_every_lung_with_its_margin_once(seed: int, blobs: int) -> None:
    rng = np.random.default_rng(seed)
    lungs = np.zeros((96, 128), dtype=np.bool_)
    for _ in range(blobs):
        y, x = rng.integers(0, 90), rng.integers(0, 120)
        lungs[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = True
    times = np.zeros(lungs.shape, dtype=int)
    for y, x in lung_boxes(lungs):
        times[y, x] += 1
        assert all(edge % BOX_STEP == 0 for part in (y, x) for edge in (part.start, part.stop))
    assert times.max() == 1
    assert times[ndimage.maximum_filter(lungs, 2 * MARGIN + 1)].all()


def test_without_lung_there_is_no_box() -> None:
    assert lung_boxes(np.zeros((32, 32), dtype=np.bool_)) == []
