"""The anisotropic DenseUNet that segments lesions (paper, appendix E1).

Slices are three times as far apart as pixels, so the first two levels see and halve the plane alone and the last three
all axes. Two deviations from the paper: the weights are standardised instead of the activations normalised
(`docs/decisions/0006-density-is-the-sign.md`), and beside the scan the network gets the lung mask and the density of
this patient's aerated lung (decisions 5 and 13). The paper gives no widths; ours fit two CPU cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.networks.convolution import Convolution

Size = tuple[int, int, int]

PLANE: Final[Size] = (1, 3, 3)
CUBE: Final[Size] = (3, 3, 3)
KERNELS: Final[tuple[Size, ...]] = (PLANE, PLANE, CUBE, CUBE, CUBE)
STRIDES: Final[tuple[Size, ...]] = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
#: Input sizes must be multiples of these, z-y-x.
TOTAL_STRIDE: Final[Size] = (8, 32, 32)
INPUTS: Final = 3
#: Makes up for the half that the rectifier cuts off.
RECTIFIER_GAIN: Final = 1.4
#: Of the rectifier, below 0.
SLOPE: Final = 0.01
#: So much of any lung is taken to be aerated: its density is this quantile of the lung's. So low a quantile stays with
#: aerated lung until four fifths of it are affected.
AERATED_SHARE: Final = 0.2
#: Voxels, z-y-x, over which the density is averaged first, so that noise does not lower the quantile.
BLOCK: Final[Size] = (1, 5, 5)


def network_inputs(image: Float[Tensor, "z y x"], lungs: Float[Tensor, "z y x"]) -> Float[Tensor, "3 z y x"]:
    """What the network sees: the windowed scan, the lungs, and in them the level of the aerated lung.

    A lung at the end of expiration is as dense as ground glass at the end of inspiration; what tells them apart is how
    dense the rest of the lung is, and that may lie beyond what the network sees at once.

    Args:
        image: the scan in the lung window, [0, 1]; the whole scan, or a part that holds much of both lungs.
        lungs: 1 inside, 0 outside.
    """
    return torch.stack((image, lungs, aerated_level(image, lungs) * lungs))


def aerated_level(image: Float[Tensor, "z y x"], lungs: Float[Tensor, "z y x"]) -> Float[Tensor, ""]:
    """How bright the aerated part of the lungs is in `image`: a low quantile of block means; 0 without any lung."""
    block = tuple(min(n, size) for n, size in zip(BLOCK, image.shape, strict=True))
    means, shares = (nn.functional.avg_pool3d(field[None], block)[0] for field in (image * lungs, lungs))
    whole = means[shares > 0.99] if bool((shares > 0.99).any()) else image[lungs > 0]
    if whole.numel() == 0:
        return image.new_zeros(())
    return whole.kthvalue(1 + round(AERATED_SHARE * (whole.numel() - 1))).values


@dataclass(frozen=True)
class DenseUNetConfig:
    """Widths of the network.

    Attributes:
        stem: channels at full resolution.
        growth: channels that each layer of a dense block adds.
        layers: layers a dense block has.
        widths: channels behind each of the five encoder blocks.
    """

    stem: int = 12
    growth: int = 12
    layers: int = 2
    widths: Sequence[int] = (24, 40, 64, 96, 128)


class DenseUNet(nn.Module):
    """`network_inputs` in, logits of background and lesion out."""

    def __init__(self, config: DenseUNetConfig) -> None:
        super().__init__()
        channels = (config.stem, *config.widths)
        self.stem = _convolution(INPUTS, config.stem, PLANE)
        self.down = nn.ModuleList()
        self.encoders = nn.ModuleList()
        self.up = nn.ModuleList()
        self.decoders = nn.ModuleList()
        for level, (kernel, stride) in enumerate(zip(KERNELS, STRIDES, strict=True)):
            above, below = channels[level], channels[level + 1]
            self.down.append(_convolution(above, above, stride, stride))
            self.encoders.append(DenseBlock(above, below, kernel, config))
            self.up.append(nn.ConvTranspose3d(below, above, stride, stride))
            self.decoders.append(DenseBlock(2 * above, above, kernel, config))
        self.head = nn.Conv3d(config.stem, 2, kernel_size=1)

    def forward(self, x: Float[Tensor, "batch 3 z y x"]) -> Float[Tensor, "batch 2 z y x"]:
        features = [self.stem(x)]
        for down, encoder in zip(self.down, self.encoders, strict=True):
            features.append(encoder(down(features[-1])))
        deep = features.pop()
        for up, decoder in zip(reversed(self.up), reversed(self.decoders), strict=True):
            deep = decoder(torch.cat((up(deep), features.pop()), dim=1))
        logits: Tensor = self.head(deep)
        return logits


class DenseBlock(nn.Module):
    """Each layer sees all that came before it (Huang et al. 2016); a 1 x 1 x 1 convolution mixes them at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: Size, config: DenseUNetConfig) -> None:
        super().__init__()
        widths = [inputs + n * config.growth for n in range(config.layers + 1)]
        self.layers = nn.ModuleList(_convolution(width, config.growth, kernel) for width in widths[:-1])
        self.mix = _convolution(widths[-1], outputs, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, layer(x)), dim=1)
        mixed: Tensor = self.mix(x)
        return mixed


class StandardisedConvolution(Convolution):
    """A convolution whose kernels have zero mean and a variance that keeps that of what passes through.

    Nothing depends on how a volume is cut or on what else it holds (Qiao et al. 2019; Brock et al. 2021).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Size, stride: Size) -> None:
        z, y, x = kernel
        padding = (z // 2, y // 2, x // 2) if stride == (1, 1, 1) else (0, 0, 0)
        super().__init__(inputs, outputs, kernel, stride, padding)
        self.gain = nn.Parameter(torch.full((outputs, 1, 1, 1, 1), RECTIFIER_GAIN))

    def kernels(self) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3, 4), keepdim=True)
        variance = self.weight.var(dim=(1, 2, 3, 4), keepdim=True)
        fan_in = self.weight[0].numel()
        return (self.weight - mean) / torch.sqrt(variance * fan_in + 1e-4) * self.gain

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.kernels(), self.bias)


def _convolution(inputs: int, outputs: int, kernel: Size, stride: Size = (1, 1, 1)) -> nn.Sequential:
    return nn.Sequential(StandardisedConvolution(inputs, outputs, kernel, stride), nn.LeakyReLU(SLOPE, inplace=True))
