"""Finds the carina and the sternum tip: agents that walk through the scan, coarse to fine (Ghesu et al. 2017).

Each agent starts from several places of the coarsest grid and takes the step its Q-network values most until it comes
back to where it has been. An agent that walks out of the scan says that its landmark is not in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lobewise.pipeline.anatomy import Landmark
from lobewise.pipeline.networks.q_network import LandmarkNetwork
from lobewise.pipeline.volume import Triple, Volume

__all__ = ["LandmarkNetwork", "LandmarkPosition", "find_landmarks"]


@dataclass(frozen=True)
class LandmarkPosition:
    """Where a landmark is, or that it is not in this scan.

    Attributes:
        position_mm: LPS (x, y, z); None when the landmark is not in this scan.
        confidence: share of the walks that support this answer, 0 to 1.
    """

    landmark: Landmark
    position_mm: Triple | None
    confidence: float

    @property
    def found(self) -> bool:
        return self.position_mm is not None


def find_landmarks(volume: Volume, network: LandmarkNetwork) -> Mapping[Landmark, LandmarkPosition]:
    """Every landmark that `network` knows, each found or declared absent."""
    raise NotImplementedError
