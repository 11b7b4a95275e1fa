"""The deep image-to-image network (DI2IN) that draws the lungs and their lobes (paper, "Lung and Lobe Segmentation").

A 3D encoder-decoder with skip connections and deep supervision, as in the liver paper that the method cites (Yang et
al. 2017). It reads the region of interest at 2 mm, works at 4, 8, 16 and 32 mm, and draws at 2 mm: the `backbone` gives
lobes at 4 mm, and the `detail` stage adds what only the 2 mm image shows, the fissures and the pleura.

Instance normalisation takes the place of batch normalisation: volumes this large are trained one at a time, and the
running statistics of such batches are worthless.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional

from pipeline.anatomy import AIR_HU, Landmark, Lobe
from pipeline.networks.convolution import Convolution
from pipeline.networks.device import mixed_precision, on_device
from pipeline.networks.weights import ModelInfo, Weights, load_into

#: Background, then the lobes in the order of their labels.
CLASSES: Final = 1 + len(Lobe)

#: Lower and upper corner, LPS mm (x, y, z).
Box = tuple[tuple[float, float, float], tuple[float, float, float]]

# The reach of the training lungs from each landmark (156 mm to the side, 119 forward, 108 back, 152 down, 98 up from
# the carina), stretched as much as the widest of their deformed copies, and some 20 mm for an inexact landmark.
CARINA_BOX_MM: Final[Box] = ((-215.0, -170.0, -290.0), (215.0, 170.0, 180.0))
STERNUM_TIP_BOX_MM: Final[Box] = ((-215.0, -70.0, -170.0), (215.0, 300.0, 400.0))


@dataclass(frozen=True)
class LungConfig:
    """Where the network looks and how wide it is.

    Attributes:
        spacing_mm: voxel edge of the region of interest.
        window_hu: clipped and mapped to [-1, 1].
        carina_box_mm: the region of interest relative to the carina: lower and upper corner, LPS (x, y, z).
        sternum_tip_box_mm: the same relative to the sternum tip.
        margin_mm: around the lungs that the coarse pass finds in the region, for the fine pass.
        widths: channels at 4, 8, 16 and 32 mm.
        detail_width: channels of the 2 mm stage; 0 leaves it out, and the 4 mm lobes are interpolated.
    """

    spacing_mm: float = 2.0
    window_hu: tuple[int, int] = (AIR_HU, 600)
    carina_box_mm: Box = CARINA_BOX_MM
    sternum_tip_box_mm: Box = STERNUM_TIP_BOX_MM
    margin_mm: float = 24.0
    widths: tuple[int, ...] = (16, 32, 64, 96)
    detail_width: int = 8

    @property
    def stride(self) -> int:
        """Every edge of the input must be a multiple of this many voxels."""
        return int(2 ** len(self.widths))

    def box_mm(self, landmark: Landmark) -> Box:
        """The region of interest relative to `landmark`."""
        return {Landmark.CARINA: self.carina_box_mm, Landmark.STERNUM_TIP: self.sternum_tip_box_mm}[landmark]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "LungConfig":
        """The config stored beside the weights (JSON turns tuples into lists)."""
        return cls(**{key: _tuples(value) for key, value in values.items()})

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)


class Di2in(nn.Module):
    """Logits of background and five lobes.

    `forward` returns them at 2 mm; `backbone` gives what deep supervision needs: logits at 4 mm and coarser.
    """

    def __init__(self, config: LungConfig) -> None:
        super().__init__()
        self.stride = config.stride
        widths = config.widths
        pairs = list(pairwise(widths))
        self.stem = nn.Conv3d(1, widths[0], kernel_size=2, stride=2)
        self.encoders = nn.ModuleList(
            [_Block(width, width, convolutions=1 + (i > 0)) for i, width in enumerate(widths)]
        )
        self.downs = nn.ModuleList([nn.Conv3d(fine, coarse, 2, stride=2) for fine, coarse in pairs])
        self.ups = nn.ModuleList([nn.ConvTranspose3d(coarse, fine, 2, stride=2) for fine, coarse in pairs])
        self.decoders = nn.ModuleList([_Block(2 * fine, fine, convolutions=1) for fine in widths[:-1]])
        self.heads = nn.ModuleList([nn.Conv3d(width, CLASSES, 1) for width in widths[:-1]])
        self.detail = _Detail(widths[0], config.detail_width) if config.detail_width else None

    def forward(self, image: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b 6 z y x"]:
        """Args: image: intensities in [-1, 1]; every edge a multiple of the config's stride."""
        features, logits = self.backbone(image)
        return self.draw(image, features, logits[0])

    def backbone(
        self, image: Float[Tensor, "b 1 z y x"]
    ) -> tuple[Float[Tensor, "b c z2 y2 x2"], list[Float[Tensor, "b 6 _ _ _"]]]:
        """Features at 4 mm, and the logits at 4, 8, 16 mm."""
        features = self.encoders[0](self.stem(image))
        skips = [features]
        for down, encoder in zip(self.downs, self.encoders[1:], strict=True):
            features = encoder(down(features))
            skips.append(features)
        logits: list[Tensor] = []
        for level in reversed(range(len(self.ups))):
            features = self.decoders[level](torch.cat([self.ups[level](features), skips[level]], dim=1))
            logits.insert(0, self.heads[level](features))
        return features, logits

    def draw(
        self,
        image: Float[Tensor, "b 1 z y x"],
        features: Float[Tensor, "b c z2 y2 x2"],
        logits: Float[Tensor, "b 6 z2 y2 x2"],
    ) -> Float[Tensor, "b 6 z y x"]:
        """Logits at 2 mm: the backbone's, interpolated, and the correction of the detail stage."""
        smooth = functional.interpolate(logits, scale_factor=2, mode="trilinear", align_corners=False)
        return smooth if self.detail is None else smooth + self.detail(image, features)


class LungNetwork:
    """The trained network with the configuration it was trained for."""

    def __init__(self, info: ModelInfo, config: LungConfig, network: Di2in, device: torch.device) -> None:
        self.info = info
        self.config = config
        self.device = device
        self._network = on_device(network, device).eval()

    @classmethod
    def load(cls, weights: Weights, device: torch.device) -> "LungNetwork":
        """Build the network that `weights` holds.

        Raises:
            WeightsError: the tensors do not fit the configuration.
        """
        config = LungConfig.from_mapping(weights.config)
        network = Di2in(config)
        load_into(network, weights.tensors, weights.info.name)
        return cls(weights.info, config, network, device)

    @torch.inference_mode()
    def coarse_labels(self, image: Float32[np.ndarray, "z y x"]) -> UInt8[np.ndarray, "z2 y2 x2"]:
        """The likeliest labels at twice the spacing, from the backbone alone: where the lungs are, roughly."""
        with mixed_precision(self.device):
            _, logits = self._network.backbone(self._batch(image))
        labels: np.ndarray = logits[0][0].argmax(dim=0).to(torch.uint8).cpu().numpy()
        return labels

    @torch.inference_mode()
    def probabilities(self, image: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, "6 z y x"]:
        """Of background and each lobe, at every voxel of the prepared region of interest."""
        with mixed_precision(self.device):
            logits = self._network(self._batch(image))
        probabilities: np.ndarray = logits[0].float().softmax(dim=0).cpu().numpy()
        return probabilities

    def _batch(self, image: Float32[np.ndarray, "z y x"]) -> Float[Tensor, "1 1 z y x"]:
        return torch.from_numpy(image)[None, None].to(self.device, memory_format=torch.channels_last_3d)


class _Block(nn.Sequential):
    """Convolutions 3 x 3 x 3, each normalised per volume and channel."""

    def __init__(self, width_in: int, width: int, *, convolutions: int) -> None:
        layers: list[nn.Module] = []
        for number in range(convolutions):
            layers += [
                Convolution(width if number else width_in, width, 3, padding=1, bias=False),
                nn.InstanceNorm3d(width, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        super().__init__(*layers)


class _Detail(nn.Module):
    """What the 2 mm image adds to the interpolated logits; nothing at all before it is trained."""

    def __init__(self, backbone_width: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(backbone_width, width, 2, stride=2)
        self.look = nn.Conv3d(1, width, 3, padding=1)
        self.merge = nn.Conv3d(2 * width, width, 3, padding=1)
        self.head = nn.Conv3d(width, CLASSES, 1)
        # From zero, so that training the detail stage starts at the interpolated logits of the backbone.
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, image: Float[Tensor, "b 1 z y x"], features: Float[Tensor, "b c z2 y2 x2"]
    ) -> Float[Tensor, "b 6 z y x"]:
        both = torch.cat([self.up(features), self.look(image)], dim=1)
        merged = functional.leaky_relu(self.merge(functional.leaky_relu(both, 0.01)), 0.01)
        correction: Tensor = self.head(merged)
        return correction


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
