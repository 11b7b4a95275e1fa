"""The Q-networks of the landmark agents: one small network per landmark and scale (Ghesu et al. 2017).

The state is a box of voxels around the agent, the actions are the six unit steps along the axes of an LPS-aligned
grid, and the output is the expected discounted gain in closeness, in voxels of that scale, of each step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from pipeline.anatomy import Landmark
from pipeline.networks.weights import ModelInfo, Weights, load_into

#: The actions: one voxel towards head, feet, back, front, left, right.
STEPS_ZYX: Final[Int64[np.ndarray, "6 3"]] = np.array(
    [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], dtype=np.int64
)


@dataclass(frozen=True)
class LandmarkConfig:
    """What the agents see and how wide their networks are.

    Attributes:
        scales_mm: voxel size of each level, coarse to fine, each twice the next.
        box: edge of the state, in voxels of its level; odd.
        window_hu: clipped and mapped to 0-255; air and what lies outside the scan are both 0.
        widths: channels of the three convolutions.
        hidden: units of the fully connected layer.
    """

    scales_mm: tuple[float, ...] = (12.0, 6.0, 3.0)
    box: int = 17
    window_hu: tuple[int, int] = (-1000, 400)
    widths: tuple[int, int, int] = (16, 24, 48)
    hidden: int = 128

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "LandmarkConfig":
        """The config stored beside the weights (JSON turns tuples into lists)."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)


class QNetwork(nn.Module):
    """Q-values of the six steps at one scale: three convolutions, each halving the box.

    The head is a duelling one: the worth of the place plus the advantage of each step, which matters for the choice
    and is small beside the worth.
    """

    def __init__(self, config: LandmarkConfig) -> None:
        super().__init__()
        first, second, third = config.widths
        self.features = nn.Sequential(
            nn.Conv3d(1, first, kernel_size=3, stride=2, padding=1),
            nn.LeakyReLU(0.01),
            nn.Conv3d(first, second, kernel_size=3, stride=2, padding=1),
            nn.LeakyReLU(0.01),
            nn.Conv3d(second, third, kernel_size=3, stride=2, padding=1),
            nn.LeakyReLU(0.01),
            nn.Flatten(),
        )
        edge = (config.box + 7) // 8
        self.head = nn.Sequential(
            nn.Linear(third * edge**3, config.hidden), nn.LeakyReLU(0.01), nn.Linear(config.hidden, len(STEPS_ZYX) + 1)
        )

    def forward(self, boxes: UInt8[Tensor, "n k k k"]) -> Float32[Tensor, "n 6"]:
        """Args: boxes: windowed intensities 0-255 centred on the agent."""
        centred = boxes.unsqueeze(1).float() / 127.5 - 1.0
        worth, advantages = self.head(self.features(centred)).split((1, len(STEPS_ZYX)), dim=1)
        q_values: Tensor = worth + advantages - advantages.mean(dim=1, keepdim=True)
        return q_values


class LandmarkNetwork:
    """The trained agents: for each landmark one Q-network per scale, coarse to fine."""

    def __init__(
        self,
        info: ModelInfo,
        config: LandmarkConfig,
        agents: Mapping[Landmark, Sequence[nn.Module]],
        device: torch.device,
    ) -> None:
        self.info = info
        self.config = config
        self.device = device
        self.agents = {mark: [net.to(device).eval() for net in nets] for mark, nets in agents.items()}

    @classmethod
    def load(cls, weights: Weights, device: torch.device) -> "LandmarkNetwork":
        """Build the agents that `weights` holds.

        Raises:
            WeightsError: the tensors do not fit the configuration.
        """
        config = LandmarkConfig.from_mapping(weights.config)
        agents = {mark: [QNetwork(config) for _ in config.scales_mm] for mark in Landmark}
        load_into(agents_module(agents), weights.tensors, weights.info.name)
        return cls(weights.info, config, agents, device)

    @property
    def landmarks(self) -> tuple[Landmark, ...]:
        return tuple(self.agents)

    @torch.inference_mode()
    def q_values(
        self, landmark: Landmark, level: int, boxes: UInt8[np.ndarray, "n k k k"]
    ) -> Float32[np.ndarray, "n 6"]:
        """What each of `STEPS_ZYX` is worth to the agent of `landmark` at scale `level`."""
        network = self.agents[landmark][level]
        q_values: np.ndarray = network(torch.from_numpy(boxes).to(self.device)).cpu().numpy()
        return q_values


def agents_module(agents: Mapping[Landmark, Sequence[nn.Module]]) -> nn.ModuleDict:
    """All networks as one module; its state dict is what the weights file holds (`carina.0.features...`)."""
    return nn.ModuleDict({mark.value: nn.ModuleList(nets) for mark, nets in agents.items()})
