"""Finds the carina and the sternum tip: agents that walk through the scan, coarse to fine (Ghesu et al. 2017).

Each agent starts from several places of the coarsest grid and takes the step its Q-network values most until it comes
back to where it has been. Where most walks end together, the next finer scale takes over. A landmark is
not in the scan where most agents leave it, or where their walks come to no agreement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from pipeline.anatomy import Landmark
from pipeline.geometry import Grid, LandmarkPosition, Volume
from pipeline.networks.q_network import STEPS_ZYX, LandmarkConfig, LandmarkNetwork
from pipeline.resampling import bin_thin_voxels, resample

__all__ = ["LandmarkNetwork", "LandmarkPosition", "find_landmarks"]

Index = tuple[int, int, int]
End = tuple[float, float, float] | None
QFunction = Callable[[UInt8[np.ndarray, "n k k k"]], Float32[np.ndarray, "n 6"]]

#: Where the walks start at the coarsest scale, as fractions of the scan: every combination.
START_FRACTIONS_ZYX: Final = ((0.15, 0.4, 0.6, 0.85), (0.35, 0.6), (0.35, 0.65))
#: Where they start at finer scales, in voxels around the position of the scale before.
RESTARTS_ZYX: Final = ((0, 0, 0), (2, 0, 0), (-2, 0, 0), (0, 2, 0), (0, -2, 0), (0, 0, 2), (0, 0, -2))
#: Walks that end no farther apart agree: at the coarsest scale and at finer ones. In short scans the coarse walks from
#: above and from below stop on either side of the landmark, and their mean is where it is.
TOGETHER_VOXELS: Final = (5.5, 2.5)
#: A finer scale that ends farther than this from the position of the scale before is not trusted.
FARTHEST_CORRECTION_MM: Final = 36.0
#: Share of the walks that must agree on a position for the landmark to be in the scan.
QUORUM: Final = 0.5


@dataclass(frozen=True, eq=False)
class Level:
    """The scan at one scale: windowed to 0-255 on an LPS-aligned isotropic grid, 0 beyond it."""

    grid: Grid
    padded: UInt8[np.ndarray, "z y x"]

    def boxes(self, positions: Int64[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n k k k"]:
        """The states of agents at these voxels."""
        edge = self.padded.shape[0] - self.grid.shape[0] + 1
        return np.stack([self.padded[z : z + edge, y : y + edge, x : x + edge] for z, y, x in positions])

    def holds(self, position: Index) -> bool:
        return all(0 <= i < n for i, n in zip(position, self.grid.shape, strict=True))


@dataclass(frozen=True)
class Consensus:
    """What the walks of one scale came to: a position (fractional voxels z, y, x) or None, and their share."""

    index: tuple[float, float, float] | None
    share: float


def find_landmarks(volume: Volume, network: LandmarkNetwork) -> Mapping[Landmark, LandmarkPosition]:
    """Every landmark that `network` knows, each found or declared absent."""
    levels = build_levels(volume, network.config)
    return {landmark: _find(landmark, levels, network) for landmark in network.landmarks}


def build_levels(volume: Volume, config: LandmarkConfig) -> tuple[Level, ...]:
    """The scan at every scale of `config`, coarse to fine; shared by training and inference.

    The grids nest: all start at the same corner of the LPS box around the scan.
    """
    lower, upper = (bound.tolist() for bound in volume.grid.bounds_mm())
    finest_mm = config.scales_mm[-1]
    grid = Grid.axis_aligned(lower, upper, (finest_mm, finest_mm, finest_mm))
    shrunk = bin_thin_voxels(volume, finest_mm)
    values = to_window(resample(shrunk.hu, shrunk.grid, grid), config)
    arrays = [values]
    for _ in config.scales_mm[1:]:
        arrays.insert(0, halve(arrays[0]))
    levels = []
    for array, mm in zip(arrays, config.scales_mm, strict=True):
        upper_of_level = [low + n * mm for low, n in zip(lower, array.shape[::-1], strict=True)]
        levels.append(Level(Grid.axis_aligned(lower, upper_of_level, (mm, mm, mm)), pad(array, config)))
    return tuple(levels)


def to_window(hu: Float32[np.ndarray, "z y x"], config: LandmarkConfig) -> UInt8[np.ndarray, "z y x"]:
    """HU in the window of `config` as 0-255."""
    low, high = config.window_hu
    return np.asarray(np.rint((np.clip(hu, low, high) - low) * (255.0 / (high - low))), dtype=np.uint8)


def halve(values: UInt8[np.ndarray, "z y x"]) -> UInt8[np.ndarray, "z2 y2 x2"]:
    """Means of 2 x 2 x 2 voxels; what lies beyond an odd edge is 0, as everything outside the scan."""
    even = np.pad(values, [(0, n % 2) for n in values.shape]).astype(np.uint16)
    z, y, x = (n // 2 for n in even.shape)
    return np.asarray((even.reshape(z, 2, y, 2, x, 2).sum(axis=(1, 3, 5)) + 4) // 8).astype(np.uint8)


def pad(values: UInt8[np.ndarray, "z y x"], config: LandmarkConfig) -> UInt8[np.ndarray, "zp yp xp"]:
    """A margin of half a box, so that every voxel has a whole one."""
    return np.pad(values, config.box // 2)


def walk(q_function: QFunction, level: Level, starts: Sequence[Index]) -> list[End]:
    """Follow the greedy policy from each start until it oscillates or leaves.

    Returns:
        For each start the mean voxel of the cycle it ended in, or None if it left the scan. Walks end for certain:
        the policy is fixed, so the first revisited voxel closes a cycle.
    """
    next_of: dict[Index, Index] = {}
    paths = [[start] for start in starts]
    running = [path for path in paths if level.holds(path[0])]
    while running:
        unknown = sorted({path[-1] for path in running} - next_of.keys())
        if unknown:
            # All agents that need a new state ask the network at once: a batch costs little more than one box.
            array = np.array(unknown, dtype=np.int64)
            steps = STEPS_ZYX[q_function(level.boxes(array)).argmax(axis=1)]
            next_of.update(zip(unknown, ((int(z), int(y), int(x)) for z, y, x in array + steps), strict=True))
        going_on = []
        for path in running:
            position = next_of[path[-1]]
            if level.holds(position) and position not in path:
                going_on.append(path)
            path.append(position)
        running = going_on
    ends: list[End] = []
    for path in paths:
        if level.holds(path[-1]):
            cycle = np.array(path[path.index(path[-1]) : -1] or path)
            z, y, x = (float(v) for v in cycle.mean(axis=0))
            ends.append((z, y, x))
        else:
            ends.append(None)
    return ends


def agree(ends: Sequence[End], together_voxels: float) -> Consensus:
    """The position on which most walks agree, if at least `QUORUM` of all do."""
    stayed = np.array([end for end in ends if end is not None], dtype=np.float64).reshape(-1, 3)
    if not len(stayed):
        return Consensus(None, 1.0)
    together = np.linalg.norm(stayed[:, None] - stayed[None], axis=-1) <= together_voxels
    supporters = together[np.argmax(together.sum(axis=1))]
    share = float(supporters.sum() / len(ends))
    if share < QUORUM:
        return Consensus(None, 1.0 - share)
    z, y, x = (float(v) for v in stayed[supporters].mean(axis=0))
    return Consensus((z, y, x), share)


def _find(landmark: Landmark, levels: Sequence[Level], network: LandmarkNetwork) -> LandmarkPosition:
    starts, position_mm, confidence = coarse_starts(levels[0]), np.zeros(3), 1.0
    for number, level in enumerate(levels):
        if number > 0:
            z, y, x = (round(float(i)) for i in level.grid.to_index(position_mm))
            around = [(z + dz, y + dy, x + dx) for dz, dy, dx in RESTARTS_ZYX]
            starts = [position for position in around if level.holds(position)]
        ends = walk(partial(network.q_values, landmark, number), level, starts)
        if number > 0:
            # Ends far from the position of the scale before become None, as if the walk had left.
            index = level.grid.to_index(position_mm)
            farthest = FARTHEST_CORRECTION_MM / level.grid.spacing_mm[0]
            ends = [
                end if end is not None and np.linalg.norm(np.array(end) - index) <= farthest else None for end in ends
            ]
        consensus = agree(ends, TOGETHER_VOXELS[min(number, 1)])
        if consensus.index is None:
            return LandmarkPosition(landmark, None, consensus.share)
        position_mm = level.grid.to_lps(np.array(consensus.index))
        confidence = min(confidence, consensus.share)
    left, back, head = (float(v) for v in position_mm)
    return LandmarkPosition(landmark, (left, back, head), confidence)


def coarse_starts(level: Level) -> list[Index]:
    """Places spread over the scan."""
    return [
        (int(z * level.grid.shape[0]), int(y * level.grid.shape[1]), int(x * level.grid.shape[2]))
        for z, y, x in product(*START_FRACTIONS_ZYX)
    ]
