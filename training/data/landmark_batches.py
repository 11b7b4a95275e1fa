"""What the landmark agents learn from: scenes of a dataset, each a scan cut to a box with an agent in it.

Only torch and numpy are needed: a GPU machine has nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from pipeline.anatomy import Landmark
from pipeline.networks.q_network import LandmarkConfig
from training.data.splits import Stage, read_split

#: Voxels that a cut leaves at least, where the scan has as many.
MIN_CROP: Final = 3


@dataclass(frozen=True)
class LandmarkRecipe:
    """Everything that decides what is learned, besides the dataset.

    Attributes:
        gamma: discount of later rewards.
        warm_steps: of the supervised phase, by scale.
        dqn_steps: of the Q-learning phase, by scale; every walker takes one step in each.
        learning_rates: at the start of both phases; they fall to a tenth (cosine).
        walkers: agents that explore side by side.
        walk_steps: after which they go to another scene, by scale.
        epsilons: share of random steps, first and last.
        replay: transitions that are remembered; learning starts at `replay_first`.
        target_every: steps between two copies of the network to the target network.
        real_share: of the scenes, from real scans; the others are phantoms.
        cut_shares: of the scenes, cut at random at either end of z, y and x.
        far_share: of the places of the supervised phase, anywhere in the crop, by scale; the others near the landmark.
        near_voxels: reach of the places near the landmark, by scale.
    """

    seed: int = 0
    config: LandmarkConfig = field(default_factory=LandmarkConfig)
    gamma: float = 0.9
    batch: int = 64
    warm_steps: tuple[int, ...] = (1200, 700, 700)
    dqn_steps: tuple[int, ...] = (1300, 800, 800)
    learning_rates: tuple[float, float] = (1e-3, 2e-4)
    walkers: int = 32
    walk_steps: tuple[int, ...] = (60, 20, 20)
    epsilons: tuple[float, float] = (0.5, 0.1)
    replay: int = 20_000
    replay_first: int = 2_000
    target_every: int = 250
    real_share: float = 0.5
    cut_shares: tuple[float, float, float] = (0.25, 0.04, 0.04)
    far_share: tuple[float, ...] = (0.7, 0.2, 0.1)
    near_voxels: tuple[float, ...] = (6.0, 6.0, 6.0)
    save_every: int = 500

    def longer(self, times: int) -> "LandmarkRecipe":
        """The same with `times` as many steps of both phases."""
        warm_steps, dqn_steps = (tuple(n * times for n in steps) for steps in (self.warm_steps, self.dqn_steps))
        return replace(self, warm_steps=warm_steps, dqn_steps=dqn_steps)


@dataclass(frozen=True, eq=False)
class LandmarkScan:
    """A prepared scan.

    Attributes:
        name: starts with `real` or `phantom`.
        levels: coarse to fine, 0-255, each with a margin of half a box.
        shapes: sizes of the levels without the margin.
        landmarks_mm: places from the scan's lower corner, z-y-x, maybe beyond its border; what is missing is unknown.
    """

    name: str
    levels: tuple[UInt8[np.ndarray, "_ _ _"], ...]
    shapes: tuple[tuple[int, ...], ...]
    landmarks_mm: Mapping[Landmark, Float64[np.ndarray, "3"]]

    @classmethod
    def read(cls, path: Path, config: LandmarkConfig) -> "LandmarkScan":
        with np.load(path) as file:
            arrays = [file[f"level{number}"] for number in range(len(config.scales_mm))]
            places = {mark: file[mark.value] for mark in Landmark if mark.value in file}
        # A box around an agent at the border then never leaves the array.
        levels = tuple(np.pad(array, config.box // 2) for array in arrays)
        return cls(path.stem, levels, tuple(array.shape for array in arrays), places)


@dataclass(frozen=True)
class LandmarkDataset:
    """The scans to train on, and those that choose the weights: never two of one patient."""

    training_scans: Sequence[LandmarkScan]
    validation_scans: Sequence[LandmarkScan]

    @classmethod
    def read(cls, folder: Path, config: LandmarkConfig) -> "LandmarkDataset":
        """What was prepared in `folder`, in the order of the names.

        Raises:
            FileNotFoundError: that is nothing.
        """
        split = read_split(folder, Stage.LANDMARKS)
        training_scans = [
            LandmarkScan.read(path, config) for path in sorted(folder.glob("*.npz")) if split.is_training(path)
        ]
        if not training_scans:
            raise FileNotFoundError(f"no prepared scans in {folder}")
        return cls(training_scans, [LandmarkScan.read(path, config) for path in split.validation_paths(folder)])


@dataclass(frozen=True, eq=False)
class Scenes:
    """A batch of situations at one scale: scans cut to a box, where the landmark is and the agent, in voxels z-y-x."""

    scan: Int64[np.ndarray, " n"]
    low: Int64[np.ndarray, "n 3"]
    high: Int64[np.ndarray, "n 3"]
    landmark: Float64[np.ndarray, "n 3"]
    position: Int64[np.ndarray, "n 3"]

    def __len__(self) -> int:
        return len(self.scan)

    def take(self, which: np.ndarray) -> "Scenes":
        return Scenes(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def moved(self, position: Int64[np.ndarray, "n 3"]) -> "Scenes":
        return Scenes(self.scan, self.low, self.high, self.landmark, position)

    def inside(self) -> Bool[np.ndarray, " n"]:
        """Whether the agent is still within its box."""
        return np.asarray(((self.position >= self.low) & (self.position < self.high)).all(axis=1))

    def offsets(self) -> Float64[np.ndarray, "n 3"]:
        return np.asarray(self.landmark - self.position)


def join(parts: Sequence[Scenes]) -> Scenes:
    names = Scenes.__dataclass_fields__
    return Scenes(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class SceneSampler:
    """Draws scenes of one landmark at one scale from a dataset, and shows agents what they see there."""

    def __init__(self, dataset: Sequence[LandmarkScan], landmark: Landmark, level: int, recipe: LandmarkRecipe) -> None:
        known = [scan for scan in dataset if landmark in scan.landmarks_mm]
        self._recipe, self._level = recipe, level
        mm = recipe.config.scales_mm[level]
        self._scans = [scan.levels[level] for scan in known]
        self._shapes = np.array([scan.shapes[level] for scan in known])
        self._landmarks = np.array([scan.landmarks_mm[landmark] / mm - 0.5 for scan in known])
        is_real = np.array([scan.name.startswith("real") for scan in known])
        self._kinds = [np.flatnonzero(is_real), np.flatnonzero(~is_real)]

    def draw(self, count: int, rng: np.random.Generator) -> Scenes:
        """Scenes with the agent at a random place of each."""
        scenes = []
        for _ in range(count):
            kind = self._kinds[int(rng.random() >= self._recipe.real_share)]
            scan = int(rng.choice(kind if len(kind) else np.arange(len(self._scans))))
            landmark, shape = self._landmarks[scan], self._shapes[scan]
            low, high = self._crop(landmark, shape, rng)
            position = rng.integers(low, high)
            if rng.random() >= self._recipe.far_share[self._level]:
                reach = self._recipe.near_voxels[self._level]
                position = np.clip(np.rint(landmark + rng.uniform(-reach, reach, 3)).astype(np.int64), low, high - 1)
            scenes.append(Scenes(np.array([scan]), low[None], high[None], landmark[None], position[None]))
        return join(scenes)

    def boxes(self, scenes: Scenes) -> UInt8[np.ndarray, "n k k k"]:
        """What the agents see; beyond their crop nothing."""
        edge, half = self._recipe.config.box, self._recipe.config.box // 2
        cut = [
            self._scans[scan][z : z + edge, y : y + edge, x : x + edge]
            for scan, (z, y, x) in zip(scenes.scan, scenes.position, strict=True)
        ]
        around = scenes.position[:, :, None] + np.arange(-half, half + 1)
        seen = ((around >= scenes.low[:, :, None]) & (around < scenes.high[:, :, None])).astype(np.uint8)
        boxes: np.ndarray = np.stack(cut)
        boxes *= seen[:, 0, :, None, None]
        boxes *= seen[:, 1, None, :, None]
        boxes *= seen[:, 2, None, None, :]
        return boxes

    def _crop(
        self, landmark: Float64[np.ndarray, "3"], shape: Int64[np.ndarray, "3"], rng: np.random.Generator
    ) -> tuple[Int64[np.ndarray, "3"], Int64[np.ndarray, "3"]]:
        """The box of the scan that is kept: half of the cuts pass anywhere, half near the landmark."""
        low, high = np.zeros(3, dtype=np.int64), shape.astype(np.int64)
        for axis, side in product(range(3), (0, 1)):
            if rng.random() < self._recipe.cut_shares[axis]:
                near = landmark[axis] + rng.uniform(-1, 1) * self._recipe.near_voxels[self._level]
                cut = round(near if rng.random() < 0.5 else rng.uniform(0, shape[axis]))
                # At least `MIN_CROP` voxels are kept, or an agent would have no place to start at.
                if side == 0:
                    low[axis] = np.clip(cut, 0, max(high[axis] - MIN_CROP, 0))
                else:
                    high[axis] = np.clip(cut, min(low[axis] + MIN_CROP, shape[axis]), shape[axis])
        return low, high


class Replay:
    """The last transitions of all walkers, overwritten in a ring."""

    def __init__(self, size: int) -> None:
        self.slots, self.count = np.zeros((size, 14)), 0

    def __len__(self) -> int:
        return min(self.count, len(self.slots))

    def add(self, scenes: Scenes, actions: Int64[np.ndarray, " n"]) -> None:
        where = (self.count + np.arange(len(scenes))) % len(self.slots)
        columns = (scenes.scan[:, None], scenes.low, scenes.high, scenes.landmark, scenes.position, actions[:, None])
        self.slots[where] = np.concatenate(columns, axis=1)
        self.count += len(scenes)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Scenes, Int64[np.ndarray, " n"]]:
        rows = self.slots[rng.integers(0, len(self), count)]
        whole = rows.astype(np.int64)
        scenes = Scenes(whole[:, 0], whole[:, 1:4], whole[:, 4:7], rows[:, 7:10], whole[:, 10:13])
        return scenes, whole[:, 13]


def vary_intensity(boxes: UInt8[np.ndarray, "n k k k"], rng: np.random.Generator) -> UInt8[np.ndarray, "n k k k"]:
    """Gain, shift and noise, for each box its own; air stays air, as the window clips it."""
    one = (len(boxes), 1, 1, 1)
    noise = rng.standard_normal(boxes.shape, dtype=np.float32) * rng.uniform(0, 6, one).astype(np.float32)
    varied = (
        boxes * rng.uniform(0.92, 1.08, one).astype(np.float32) + rng.uniform(-8, 8, one).astype(np.float32) + noise
    )
    return np.where(boxes > 0, np.clip(varied, 0, 255), 0).astype(np.uint8)
