"""AdaBound (Luo et al. 2019): Adam whose step sizes are squeezed between bounds that close on those of SGD."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class AdaBound(Optimizer):
    """The paper's optimiser for lesions, with an initial learning rate of 1e-3.

    Args:
        lr: initial learning rate.
        final_lr: the learning rate of SGD that the bounds converge to.
        gamma: how fast they do.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "final_lr": final_lr, "gamma": gamma, "eps": eps})
        self.base_lrs = [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (no training has a closure)
        """One update of every parameter that has a gradient."""
        for group, base_lr in zip(self.param_groups, self.base_lrs, strict=True):
            # A schedule that changes lr moves the final rate with it.
            final_lr = group["final_lr"] * group["lr"] / base_lr
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad
                    lr, gamma, eps = group["lr"], group["gamma"], group["eps"]
                    beta1, beta2 = group["betas"]
                    state = self.state[parameter]
                    if not state:
                        state["step"] = 0
                        state["mean"] = torch.zeros_like(parameter)
                        state["square"] = torch.zeros_like(parameter)
                    state["step"] += 1
                    count = state["step"]
                    state["mean"].mul_(beta1).add_(gradient, alpha=1 - beta1)
                    state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                    rate = lr * (1 - beta2**count) ** 0.5 / (1 - beta1**count)
                    lower = final_lr * (1 - 1 / (gamma * count + 1))
                    upper = final_lr * (1 + 1 / (gamma * count))
                    steps = (rate / (state["square"].sqrt() + eps)).clamp_(lower, upper)
                    parameter.sub_(steps * state["mean"])
