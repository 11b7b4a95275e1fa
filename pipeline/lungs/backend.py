"""Who draws the lungs and lobes: our own network, or another one behind the same type."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, runtime_checkable

import torch

from pipeline.geometry import LobeLabels, Volume
from pipeline.lungs.segment import Landmarks, LungNetwork, Progress, segment_lungs
from pipeline.networks.weights import ModelInfo, load_weights

LungBackendName = Literal["di2in", "lungmask"]
DEFAULT: Final[LungBackendName] = "di2in"


@runtime_checkable
class LungBackend(Protocol):
    """Draws the lobes of a scan; loaded once and used for every scan."""

    @property
    def infos(self) -> tuple[ModelInfo, ...]:
        """The weights that answer, for the report."""

    def segment(self, volume: Volume, landmarks: Landmarks, progress: Progress) -> LobeLabels:
        """The lobes on the scan's own grid; the lungs are their union.

        Raises:
            LungsNotFoundError: what was found is too small to be lungs.
        """


@dataclass(frozen=True)
class Di2inBackend:
    """The network of the paper."""

    network: LungNetwork

    @property
    def infos(self) -> tuple[ModelInfo, ...]:
        return (self.network.info,)

    def segment(self, volume: Volume, landmarks: Landmarks, progress: Progress) -> LobeLabels:
        return segment_lungs(volume, landmarks, self.network, progress)


def load_lung_backend(name: LungBackendName, device: torch.device, weights_dir: Path | None = None) -> LungBackend:
    """The stage of that name with its weights.

    Raises:
        WeightsError: its weights, or the extra that it needs, are missing or are not what they claim to be.
    """
    if name == "lungmask":
        from pipeline.lungs.lungmask import LungmaskBackend  # an extra that few have

        return LungmaskBackend.load(device, weights_dir)
    return Di2inBackend(LungNetwork.load(load_weights("lungs", weights_dir), device))
