"""A step whose gradient is not finite changes nothing, and is no reason to stop unless it stays so."""

import pytest
import torch
from torch import nn

from training.loop import MOST_SKIPPED, ClippedStep, NoGradientError


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def clipped_step(of: nn.Module) -> ClippedStep:
    return ClippedStep(of, torch.optim.SGD(of.parameters(), lr=1.0), longest=0.5)


def with_gradient(of: nn.Module, value: float) -> None:
    for parameter in of.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_a_step_is_as_long_as_is_allowed() -> None:
    net = network()
    before = nn.utils.parameters_to_vector(net.parameters())
    with_gradient(net, 3.0)
    assert clipped_step(net).take()
    moved = nn.utils.parameters_to_vector(net.parameters()) - before
    assert float(moved.detach().norm()) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(value: float) -> None:
    net = network()
    before = nn.utils.parameters_to_vector(net.parameters())
    with_gradient(net, value)
    assert not clipped_step(net).take()
    assert torch.equal(nn.utils.parameters_to_vector(net.parameters()), before)


def test_a_training_that_has_no_gradient_any_more_ends_and_says_what_to_do() -> None:
    net = network()
    steps = clipped_step(net)
    with_gradient(net, float("nan"))
    for _ in range(MOST_SKIPPED - 1):
        steps.take()
    with pytest.raises(NoGradientError, match="bfloat16"):
        steps.take()
