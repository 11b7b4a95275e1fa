"""The answer of the DenseUNet for a whole scan, with nothing computed twice and no tiles.

The first two levels see the plane alone: they go through the scan a few slices at a time, on the way up only in boxes
around the lungs. The three deeper levels have a sixteenth of the voxels and see the scan as a whole. So the answer is
the plain network's wherever there is lung, and only the smaller levels' features are ever in memory as a whole.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.dense_unet import INPUTS, KERNELS, PLANE, SLOPE, DenseBlock, DenseUNet

#: How many levels see the plane alone.
PLANE_LEVELS: Final = KERNELS.count(PLANE)
#: Around the lungs in a slice, so that the zeros beyond a box change nothing in the lungs: the convolutions of the last
#: level see 2 pixels, those of the one before 2 of twice the size.
MARGIN: Final = 8
#: Edges of a box lie between pixels of the levels below.
BOX_STEP: Final = 2**PLANE_LEVELS

Box = tuple[slice, slice]
Slices = Float[Tensor, "n c y x"]


class DenseUNetBySlice:
    """A trained DenseUNet, ready for whole scans."""

    def __init__(self, network: DenseUNet, dtype: torch.dtype) -> None:
        """Args: dtype: of activations and weights; the weights are those that `network` has now."""
        self._dtype = dtype
        self._device = network.head.weight.device
        planes = [kernel == PLANE for kernel in KERNELS]
        self._stem = _Convolution.of(network.stem, [INPUTS], dtype, in_plane=True)
        self._downs = [
            _Convolution.of(layer, [layer[0].in_channels], dtype, in_plane=in_plane)
            for layer, in_plane in zip(_modules(network.down), planes, strict=True)
        ]
        self._ups = [
            _Upsampling(layer, dtype, in_plane) for layer, in_plane in zip(_modules(network.up), planes, strict=True)
        ]
        self._encoders, self._decoders = (
            [_Block(block, inputs, dtype, in_plane) for block, in_plane in zip(_modules(blocks), planes, strict=True)]
            for blocks, inputs in ((network.encoders, 1), (network.decoders, 2))
        )
        # The softmax of two logits is the sigmoid of their difference.
        weight, bias = (parameter.detach()[1:] - parameter.detach()[:1] for parameter in network.head.parameters())
        self._head = _Convolution(weight, bias, [weight.shape[1]], (1, 1, 1), dtype, in_plane=True, is_rectified=False)

    @torch.inference_mode()
    def probability(
        self, inputs: Float32[np.ndarray, "3 z y x"], slices: int, progress: Callable[[float], None]
    ) -> Float32[np.ndarray, "z y x"]:
        """How likely each voxel is a lesion, in the lungs (`inputs[1] > 0`) and next to them; 0 elsewhere.

        Args:
            inputs: sizes are multiples of the network's stride.
            slices: how many are in work at a time.
            progress: called with the share of the work that is done.
        """
        count = inputs.shape[1]
        parts = [slice(begin, min(begin + slices, count)) for begin in range(0, count, slices)]
        # The way down. The features of full size are made anew on the way up: that costs less than to keep them.
        halves, quarters = [], []
        for part in parts:
            whole = self._stem(self._of(inputs[:, part]))
            halves.append(self._encoders[0](self._downs[0](whole)))
            quarters.append(self._encoders[1](self._downs[1](halves[-1])))
            progress(0.25 * part.stop / count)
        deep = self._below(torch.cat(quarters))
        quarters.clear()
        progress(0.5)
        probability = np.zeros(inputs.shape[1:], dtype=np.float32)
        for part in parts:
            # A slice more on either side: an interpolation at the ends of the lungs reads it.
            near = np.asarray(inputs[1, max(part.start - 1, 0) : part.stop + 1].any(axis=0))
            half = halves.pop(0)
            for box in lung_boxes(near):
                y, x = (slice(edge.start // 2, edge.stop // 2) for edge in box)
                skip = half[:, :, y, x].contiguous(memory_format=torch.channels_last)
                y, x = (slice(edge.start // 4, edge.stop // 4) for edge in box)
                above = deep[part, :, y, x].contiguous(memory_format=torch.channels_last)
                above = self._decoders[1](self._ups[1](above), skip)
                skip = self._stem(self._of(inputs[:, part, *box]))
                above = self._decoders[0](self._ups[0](above), skip)
                answer = self._head(above).float().sigmoid_()[:, 0]
                probability[part, *box] = np.maximum(probability[part, *box], answer.cpu().numpy())
            progress(0.5 + 0.5 * part.stop / count)
        return probability

    def _of(self, inputs: Float32[np.ndarray, "3 n y x"]) -> Slices:
        channels_last = np.ascontiguousarray(np.moveaxis(inputs, 0, -1))
        return torch.from_numpy(channels_last).to(self._device, self._dtype).permute(0, 3, 1, 2)

    def _below(self, slices: Slices) -> Slices:
        """The levels that see all axes, of the whole scan."""
        volume = slices.transpose(0, 1)[None].contiguous(memory_format=torch.channels_last_3d)
        features = [volume]
        for down, encoder in zip(self._downs[PLANE_LEVELS:], self._encoders[PLANE_LEVELS:], strict=True):
            features.append(encoder(down(features[-1])))
        above = features.pop()
        for up, decoder in zip(
            reversed(self._ups[PLANE_LEVELS:]), reversed(self._decoders[PLANE_LEVELS:]), strict=True
        ):
            above = decoder(up(above), features.pop())
        return above[0].transpose(0, 1)


def lung_boxes(lungs: Bool[np.ndarray, "y x"]) -> list[Box]:
    """Boxes that hold all lung in a slice with a margin; one lung each where they do not meet."""
    labels, _ = ndimage.label(lungs)
    edges = [
        [
            (
                max(own.start - MARGIN, 0) // BOX_STEP * BOX_STEP,
                min(-(-(own.stop + MARGIN) // BOX_STEP) * BOX_STEP, size),
            )
            for own, size in zip(found, lungs.shape, strict=True)
        ]
        for found in ndimage.find_objects(labels)
    ]
    apart: list[list[tuple[int, int]]] = []
    for box in edges:
        while met := [
            other for other in apart if all(a[0] < b[1] and b[0] < a[1] for a, b in zip(box, other, strict=True))
        ]:
            apart = [other for other in apart if other not in met]
            box = [(min(a[0] for a in axis), max(a[1] for a in axis)) for axis in zip(box, *met, strict=True)]
        apart.append(box)
    return [(slice(*y), slice(*x)) for y, x in apart]


class _Convolution:
    """A convolution of several inputs, as if they were one with all their channels, and the rectifier behind it.

    To put them together would take as long as to convolve them.
    """

    def __init__(
        self,
        weight: Float[Tensor, "c_out c_in kz ky kx"],
        bias: Float[Tensor, " c_out"],
        inputs: Sequence[int],
        stride: Sequence[int],
        dtype: torch.dtype,
        *,
        in_plane: bool,
        is_rectified: bool = True,
    ) -> None:
        """Args: inputs: channels of each; in_plane: it is given slices, not a volume; it sees no neighbours then."""
        kernel = weight.detach().to(dtype)
        first = 1 if in_plane else 0
        if in_plane:
            kernel = kernel[:, :, 0]
        layout = torch.channels_last if in_plane else torch.channels_last_3d
        self._weights = [part.contiguous(memory_format=layout) for part in torch.split(kernel, list(inputs), dim=1)]
        self._bias = bias.detach().to(dtype)
        self._stride = list(stride)[first:]
        self._padding = [
            size // 2 if step == 1 else 0 for size, step in zip(kernel.shape[2:], self._stride, strict=True)
        ]
        self._is_rectified = is_rectified

    @classmethod
    def of(cls, layer: nn.Sequential, inputs: Sequence[int], dtype: torch.dtype, *, in_plane: bool) -> "_Convolution":
        """The trained layer, its kernels standardised once for all."""
        convolution: Any = layer[0]
        return cls(convolution.kernels(), convolution.bias, inputs, convolution.stride, dtype, in_plane=in_plane)

    def __call__(self, *inputs: Tensor) -> Tensor:
        is_fused = inputs[0].device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return self._by_onednn(*inputs) if is_fused else self._plainly(*inputs)

    def _plainly(self, *inputs: Tensor) -> Tensor:
        convolve = functional.conv2d if self._weights[0].ndim == 4 else functional.conv3d
        x, weight = torch.cat(inputs, dim=1), torch.cat(self._weights, dim=1)
        summed: Tensor = convolve(x, weight, self._bias, self._stride, self._padding)
        return functional.leaky_relu_(summed, SLOPE) if self._is_rectified else summed

    def _by_onednn(self, *inputs: Tensor) -> Tensor:
        """The same; what is added up and rectified does not go through the memory again."""
        where = (self._padding, self._stride, [1] * len(self._stride), 1)
        is_last = len(inputs) == 1 and self._is_rectified
        rectifier = ("leaky_relu", [SLOPE], "") if is_last else ("none", [], "")
        summed = torch.ops.mkldnn._convolution_pointwise(inputs[0], self._weights[0], self._bias, *where, *rectifier)
        for x, weight in zip(inputs[1:], self._weights[1:], strict=True):
            add = torch.ops.mkldnn._convolution_pointwise_.binary
            summed = add(summed, x, weight, None, *where, "add", 1.0, None, [], None)
        return functional.leaky_relu_(summed, SLOPE) if self._is_rectified and not is_last else summed


class _Block:
    """A dense block, whose layers see all that came before them."""

    def __init__(self, block: DenseBlock, inputs: int, dtype: torch.dtype, in_plane: bool) -> None:
        """Args: inputs: that many, each with the same share of the channels."""
        layers = [*_modules(block.layers), block.mix]
        widths = [layers[0][0].in_channels // inputs] * inputs
        self._layers = []
        for layer in layers:
            self._layers.append(_Convolution.of(layer, widths, dtype, in_plane=in_plane))
            widths = [*widths, layer[0].out_channels]

    def __call__(self, *inputs: Tensor) -> Tensor:
        *layers, mix = self._layers
        for layer in layers:
            inputs = (*inputs, layer(*inputs))
        return mix(*inputs)


class _Upsampling:
    """A transposed convolution whose kernel is its stride."""

    def __init__(self, layer: Any, dtype: torch.dtype, in_plane: bool) -> None:
        weight = layer.weight.detach().to(dtype)
        self._weight = weight[:, :, 0] if in_plane else weight
        self._bias = layer.bias.detach().to(dtype)
        self._stride = layer.stride[1:] if in_plane else layer.stride

    def __call__(self, x: Tensor) -> Tensor:
        convolve = functional.conv_transpose2d if x.ndim == 4 else functional.conv_transpose3d
        return convolve(x, self._weight, self._bias, self._stride)


def _modules(modules: nn.ModuleList) -> list[Any]:
    """As what they are: torch types them as `Module`, which has none of their attributes."""
    return list(modules)
