"""One step of a training: down the gradient, if there is one."""

import logging
from typing import Final

import torch
from torch import nn

log = logging.getLogger(__name__)

MOST_SKIPPED: Final = 20
"""Steps in a row without a gradient: then something is wrong, and goes on to be."""


class NoGradientError(Exception):
    """The loss has no finite gradient, step after step."""


class Descent:
    """Takes steps, and leaves out those whose gradient is not finite, as one bad product in half precision makes it."""

    def __init__(self, network: nn.Module, optimiser: torch.optim.Optimizer, longest: float) -> None:
        """`longest`: gradients are cut to this length."""
        self._network, self._optimiser, self._longest = network, optimiser, longest
        self._skipped = 0

    def take(self) -> bool:
        """Whether the step was taken. Raises NoGradientError where none has been for a while."""
        length = nn.utils.clip_grad_norm_(self._network.parameters(), self._longest)
        if bool(torch.isfinite(length)):
            self._optimiser.step()
            self._skipped = 0
            return True
        self._skipped += 1
        if self._skipped >= MOST_SKIPPED:
            raise NoGradientError(f"no finite gradient in {self._skipped} steps; try bfloat16: false in the recipe")
        log.warning("a step is left out: its gradient is not finite")
        return False
