"""The shape of the network is the paper's."""

import pytest
import torch

from lobewise.pipeline.networks.dense_unet import TOTAL_STRIDE, DenseUNet, DenseUNetConfig

SMALL = DenseUNetConfig(stem=4, growth=4, layers=2, widths=(4, 4, 6, 6, 8))


def test_answers_two_channels_on_the_grid_of_its_input() -> None:
    network = DenseUNet(SMALL)
    assert network(torch.zeros(1, 2, 16, 32, 64)).shape == (1, 2, 16, 32, 64)


def test_first_two_levels_keep_the_slices_and_the_last_three_halve_them() -> None:
    network = DenseUNet(SMALL)
    sizes = []
    for encoder in network.encoders:
        encoder.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[2:])))
    network(torch.zeros(1, 2, 16, 64, 64))
    assert sizes == [(16, 32, 32), (16, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2)]
    assert TOTAL_STRIDE == (8, 32, 32)


def test_first_two_levels_see_one_slice_alone() -> None:
    network = DenseUNet(SMALL).eval()
    kernels = [tuple(layer[0].kernel_size) for encoder in network.encoders for layer in encoder.layers]
    assert kernels == [(1, 3, 3)] * 4 + [(3, 3, 3)] * 6


def test_every_parameter_learns() -> None:
    network = DenseUNet(SMALL)
    torch.manual_seed(0)
    network(torch.rand(1, 2, 16, 64, 64)).square().mean().backward()
    silent = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert silent == []


def test_needs_sizes_that_its_strides_divide() -> None:
    with pytest.raises(RuntimeError):
        DenseUNet(SMALL)(torch.zeros(1, 2, 16, 40, 32))


def test_an_answer_depends_on_its_surroundings_alone() -> None:
    torch.manual_seed(0)
    network = DenseUNet(SMALL).eval()
    here = torch.rand(1, 2, 16, 64, 64)
    beside = torch.cat((here, 5 * torch.rand(1, 2, 16, 64, 640)), dim=-1)
    with torch.inference_mode():
        assert torch.allclose(network(here)[..., :2], network(beside)[..., :2], atol=1e-5)


def test_absolute_density_reaches_the_answer() -> None:
    torch.manual_seed(0)
    network = DenseUNet(SMALL).eval()
    lungs = torch.ones(1, 1, 16, 64, 64)
    sparse, dense = (torch.cat((level * lungs, lungs), dim=1) for level in (0.3, 0.5))
    with torch.inference_mode():
        difference = (network(sparse) - network(dense))[..., 32, 32].abs().max()
    assert difference > 0.01
