"""Gradients of convolutions in bfloat16."""

import pytest
import torch

from pipeline.networks.convolution import Convolution


def gradient(convolution: Convolution, image: torch.Tensor, *, bfloat16: bool) -> torch.Tensor:
    convolution.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        answer = convolution(image)
    (answer.float() * torch.linspace(-1, 1, answer.numel()).view(answer.shape)).sum().backward()
    assert convolution.weight.grad is not None
    return convolution.weight.grad.flatten().clone()


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
def test_they_are_those_of_full_precision_however_few_slices_there_are(slices: int) -> None:
    torch.manual_seed(0)
    convolution, image = Convolution(64, 12, 3, padding=1), torch.randn(1, 64, slices, 6, 7)
    convolution.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing from torch's stub
    exact, quick = (gradient(convolution, image, bfloat16=bfloat16) for bfloat16 in (False, True))
    assert torch.isfinite(quick).all()
    assert torch.cosine_similarity(exact, quick, dim=0) > 0.999


def test_answers_without_gradients_stay_in_bfloat16() -> None:
    convolution, image = Convolution(4, 4, 3, padding=1), torch.randn(1, 4, 2, 6, 7)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert convolution(image).dtype == torch.bfloat16
