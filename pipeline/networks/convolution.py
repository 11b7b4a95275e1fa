"""Convolutions that both networks are made of."""

import torch
from torch import Tensor, nn


class Convolution(nn.Conv3d):
    """`nn.Conv3d` whose gradients are right in bfloat16 on any CPU.

    Where a kernel three deep passes over exactly two slices, those of oneDNN 3 are not numbers, unless the CPU has
    matrix units: such a convolution, which is a small one, is computed in full precision.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and weight.shape[2] == 3 and x.shape[2] == 2:
            with torch.autocast("cpu", enabled=False):
                exact: Tensor = super()._conv_forward(x.float(), weight, bias)
            return exact
        convolved: Tensor = super()._conv_forward(x, weight, bias)
        return convolved
