"""The DI2IN: shapes, scales and weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.anatomy import Landmark
from pipeline.networks.di2in import CLASSES, Di2in, LungConfig, LungNetwork
from pipeline.networks.weights import WeightsError, load_weights, save_weights

TINY = LungConfig(widths=(4, 6, 8), detail_width=4)
CPU = torch.device("cpu")


@pytest.fixture
def network() -> Di2in:
    torch.manual_seed(0)
    return Di2in(TINY).eval()


def saved(path: Path, network: Di2in, config: LungConfig = TINY) -> Path:
    save_weights(path, version="0", config=config.to_mapping(), recipe={}, tensors=network.state_dict())
    return path.parent


def test_logits_are_as_fine_as_the_image(network: Di2in) -> None:
    image = torch.randn(1, 1, 16, 24, 32)
    assert network(image).shape == (1, CLASSES, 16, 24, 32)


def test_the_trunk_supervises_each_scale_but_the_coarsest(network: Di2in) -> None:
    _, logits = network.backbone(torch.randn(1, 1, 16, 24, 32))
    assert [tuple(level.shape[2:]) for level in logits] == [(8, 12, 16), (4, 6, 8)]


def test_every_edge_must_be_a_multiple_of_the_stride() -> None:
    assert TINY.stride == 8
    assert LungConfig().stride == 16


def test_an_untrained_detail_stage_changes_nothing(network: Di2in) -> None:
    image = torch.randn(1, 1, 16, 16, 16)
    features, logits = network.backbone(image)
    interpolated = torch.nn.functional.interpolate(logits[0], scale_factor=2, mode="trilinear")
    torch.testing.assert_close(network.draw(image, features, logits[0]), interpolated)


def test_a_trained_detail_stage_sees_the_fine_image(network: Di2in) -> None:
    assert network.detail is not None
    torch.nn.init.normal_(network.detail.head.weight)
    image = torch.randn(1, 1, 16, 16, 16)
    features, logits = network.backbone(image)
    other = image.clone()
    other[..., ::2] *= -1
    assert not torch.allclose(network.draw(image, features, logits[0]), network.draw(other, features, logits[0]))


def test_without_a_detail_stage_the_coarse_lobes_are_interpolated() -> None:
    network = Di2in(LungConfig(widths=(4, 6), detail_width=0))
    assert network(torch.randn(1, 1, 8, 8, 8)).shape == (1, CLASSES, 8, 8, 8)


def test_brightness_of_a_whole_volume_hardly_matters(network: Di2in) -> None:
    """Instance normalisation takes the mean of a volume away, except at its edges."""
    image = torch.randn(1, 1, 64, 64, 64)
    _, plain = network.backbone(image)
    _, brighter = network.backbone(image + 0.2)
    inner = (slice(None), slice(None), *(slice(8, 24),) * 3)
    assert (plain[0][inner] - brighter[0][inner]).abs().mean() < 0.1 * plain[0][inner].std()


def test_a_config_survives_json() -> None:
    assert LungConfig.from_mapping(json.loads(json.dumps(TINY.to_mapping()))) == TINY


def test_each_landmark_has_its_own_box() -> None:
    carina, tip = (LungConfig().box_mm(mark) for mark in (Landmark.CARINA, Landmark.STERNUM_TIP))
    assert carina[0][2] < tip[0][2] < 0 < carina[1][2] < tip[1][2], "the tip lies lower, so its box reaches higher"


def test_weights_come_back_as_they_were_saved(tmp_path: Path, network: Di2in) -> None:
    folder = saved(tmp_path / "lungs.safetensors", network)
    loaded = LungNetwork.load(load_weights("lungs", folder), CPU)
    image = np.random.default_rng(0).normal(size=(16, 16, 24)).astype(np.float32)
    probabilities = loaded.probabilities(image)
    expected = network(torch.from_numpy(image)[None, None])[0].softmax(dim=0).detach().numpy()
    np.testing.assert_allclose(probabilities, expected, atol=5e-3)  # bfloat16, where the CPU has it
    np.testing.assert_allclose(probabilities.sum(axis=0), 1.0, atol=1e-5)
    assert loaded.config == TINY
    assert len(loaded.info.sha256) == 64


def test_weights_of_another_width_are_refused(tmp_path: Path, network: Di2in) -> None:
    folder = saved(tmp_path / "lungs.safetensors", network, LungConfig(widths=(4, 6, 10), detail_width=4))
    with pytest.raises(WeightsError, match="do not fit"):
        LungNetwork.load(load_weights("lungs", folder), CPU)
