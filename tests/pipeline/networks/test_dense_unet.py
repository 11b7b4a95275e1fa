"""The shape of the network is the paper's."""

import pytest
import torch

from pipeline.networks.dense_unet import TOTAL_STRIDE, DenseUNet, DenseUNetConfig, aerated_level, network_inputs

SMALL = DenseUNetConfig(stem=4, growth=4, layers=2, widths=(4, 4, 6, 6, 8))


def test_answers_two_channels_on_the_grid_of_its_input() -> None:
    network = DenseUNet(SMALL)
    assert network(torch.zeros(1, 3, 16, 32, 64)).shape == (1, 2, 16, 32, 64)


def test_first_two_levels_keep_the_slices_and_the_last_three_halve_them() -> None:
    network = DenseUNet(SMALL)
    sizes = []
    for encoder in network.encoders:
        encoder.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[2:])))
    network(torch.zeros(1, 3, 16, 64, 64))
    assert sizes == [(16, 32, 32), (16, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2)]
    assert TOTAL_STRIDE == (8, 32, 32)


def test_first_two_levels_see_one_slice_alone() -> None:
    network = DenseUNet(SMALL).eval()
    kernels = [tuple(layer[0].kernel_size) for encoder in network.encoders for layer in encoder.layers]
    assert kernels == [(1, 3, 3)] * 4 + [(3, 3, 3)] * 6


def test_every_parameter_learns() -> None:
    network = DenseUNet(SMALL)
    torch.manual_seed(0)
    network(torch.rand(1, 3, 16, 64, 64)).square().mean().backward()
    silent = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert silent == []


def gradients(network: DenseUNet, image: torch.Tensor, *, bfloat16: bool) -> torch.Tensor:
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = network(image)
    logits.float().square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("slices", [8, 16, 24], ids=["one deep slice", "two", "three"])
def test_bfloat16_makes_the_gradients_that_full_precision_makes(slices: int) -> None:
    """oneDNN's are not numbers where a kernel three deep passes over exactly two slices."""
    torch.manual_seed(0)
    network, image = DenseUNet(DenseUNetConfig()), torch.rand(1, 3, slices, 64, 96)
    exact, quick = (gradients(network, image, bfloat16=bfloat16) for bfloat16 in (False, True))
    assert torch.isfinite(quick).all()
    assert torch.cosine_similarity(exact, quick, dim=0) > 0.98


def test_needs_sizes_that_its_strides_divide() -> None:
    with pytest.raises(RuntimeError):
        DenseUNet(SMALL)(torch.zeros(1, 3, 16, 40, 32))


def test_an_answer_depends_on_its_surroundings_alone() -> None:
    torch.manual_seed(0)
    network = DenseUNet(SMALL).eval()
    here = torch.rand(1, 3, 16, 64, 64)
    beside = torch.cat((here, 5 * torch.rand(1, 3, 16, 64, 640)), dim=-1)
    with torch.inference_mode():
        assert torch.allclose(network(here)[..., :2], network(beside)[..., :2], atol=1e-5)


def test_absolute_density_reaches_the_answer() -> None:
    torch.manual_seed(0)
    network = DenseUNet(SMALL).eval()
    lungs = torch.ones(1, 1, 16, 64, 64)
    sparse, dense = (torch.cat((level * lungs, lungs, 0.3 * lungs), dim=1) for level in (0.3, 0.5))
    with torch.inference_mode():
        difference = (network(sparse) - network(dense))[..., 32, 32].abs().max()
    assert difference > 0.01


def chest(healthy: float, affected_slices: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lungs of one density in a bright wall, the last slices of them much denser; with noise."""
    torch.manual_seed(0)
    lungs = torch.zeros(20, 40, 40)
    lungs[:, 5:35, 5:35] = 1.0
    image = torch.where(lungs > 0, torch.tensor(healthy), torch.tensor(0.9))
    image[20 - affected_slices :] += 0.3 * lungs[20 - affected_slices :]
    return image + 0.03 * torch.randn(20, 40, 40), lungs


@pytest.mark.parametrize("healthy", [0.3, 0.45])
@pytest.mark.parametrize("affected_slices", [0, 8, 14])
def test_the_level_is_that_of_the_aerated_lung_however_much_is_affected(healthy: float, affected_slices: int) -> None:
    image, lungs = chest(healthy, affected_slices)
    assert aerated_level(image, lungs).item() == pytest.approx(healthy, abs=0.01)
    level = network_inputs(image, lungs)[2]
    assert level[0, 20, 20].item() == pytest.approx(healthy, abs=0.01)
    assert level[0, 0, 0].item() == 0.0


def test_lungs_smaller_than_a_block_have_a_level_and_no_lungs_have_none() -> None:
    image, lungs = torch.full((4, 8, 8), 0.4), torch.zeros(4, 8, 8)
    assert aerated_level(image, lungs).item() == 0.0
    lungs[1, 2, 3] = 1.0
    assert aerated_level(image, lungs).item() == pytest.approx(0.4)
