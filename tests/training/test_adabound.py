"""AdaBound against its published rule, worked out by hand."""

import math

import pytest
import torch

from training.adabound import AdaBound


def published_step(gradients: list[float], lr: float, final_lr: float, gamma: float) -> float:
    """Algorithm 3 of Luo et al. 2019 for one number, starting at 1; Adam's bias correction as in the authors' text."""
    value, mean, square = 1.0, 0.0, 0.0
    for count, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        rate = lr * math.sqrt(1 - 0.999**count) / (1 - 0.9**count) / (math.sqrt(square) + 1e-8)
        low, high = final_lr * (1 - 1 / (gamma * count + 1)), final_lr * (1 + 1 / (gamma * count))
        value -= min(max(rate, low), high) * mean
    return value


@pytest.mark.parametrize("gradients", [[0.5], [0.5, -0.2, 0.1], [1e-6] * 4, [100.0, 50.0]])
@pytest.mark.parametrize("gamma", [1e-3, 0.5])
def test_moves_as_published(gradients: list[float], gamma: float) -> None:
    parameter = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimiser = AdaBound([parameter], lr=1e-3, final_lr=0.1, gamma=gamma)
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
    assert parameter.item() == pytest.approx(published_step(gradients, 1e-3, 0.1, gamma), rel=1e-9)


def test_becomes_plain_momentum_in_the_end() -> None:
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = AdaBound([parameter], lr=1e-3, final_lr=0.1, gamma=1e9)
    parameter.grad = torch.ones(1, dtype=torch.float64)
    optimiser.step()
    assert parameter.item() == pytest.approx(-0.1 * 0.1, rel=1e-6)


def test_finds_the_bottom_of_a_bowl() -> None:
    parameter = torch.tensor([3.0, -2.0], requires_grad=True)
    optimiser = AdaBound([parameter], lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        parameter.square().sum().backward()
        optimiser.step()
    assert parameter.detach().abs().max() < 0.05


def test_goes_on_from_its_saved_state() -> None:
    def run(steps: int, saved: dict[str, object] | None, start: torch.Tensor) -> tuple[torch.Tensor, dict[str, object]]:
        parameter = start.clone().requires_grad_()
        optimiser = AdaBound([parameter])
        if saved:
            optimiser.load_state_dict(saved)
        for _ in range(steps):
            optimiser.zero_grad()
            parameter.square().sum().backward()
            optimiser.step()
        return parameter.detach(), optimiser.state_dict()

    whole, _ = run(6, None, torch.ones(2))
    half, state = run(3, None, torch.ones(2))
    resumed, _ = run(3, state, half)
    assert torch.equal(whole, resumed)
