"""Trains the landmark agents: a supervised start, then deep Q-learning on the agent's own walks (Ghesu et al. 2017).

The reward of a step is how much closer it brings the agent (in voxels of its scale), so the return of the greedy walk
is known in closed form wherever the landmark's place is known. The first phase regresses it at sampled places; the
second is double DQN with experience replay, a target network and an epsilon-greedy policy. A scan is cropped at random,
often so that the landmark lies beyond the border: then the way to it leads out of the scan.

The patients in `splits.json` are kept aside and choose the weights. A run that was ended goes on, to the very same
weights, when the same command is given again. With torchrun, each process trains some of the agents' networks.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from torch import nn

from pipeline.anatomy import Landmark
from pipeline.networks.q_network import STEPS_ZYX, LandmarkConfig, QNetwork, agents_module
from pipeline.networks.weights import ModelInfo, save_weights
from training.config import keep_recipe, read_recipe
from training.data.splits import Stage, read_split
from training.loop import Picture, ProcessGroup, TrainingLogger, join_process_group, write_checkpoint

#: Voxels that a cut leaves at least, where the scan has as many.
MIN_CROP: Final = 3
COLUMNS: Final = ("step", "seconds", "loss", "walk_error_voxels", "right_share")
#: Of the walks that are watched during training.
CHECK_STEPS: Final = 60
#: How far returns are followed; what comes later counts less than 0.9 ** 80 = 0.0002 of a step.
RETURN_STEPS: Final = 80


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


def rewards(offsets: Float64[np.ndarray, "*b 3"], moves: Int64[np.ndarray, "*b 3"]) -> Float64[np.ndarray, "*b"]:
    """How much closer to the landmark, `offsets` away, the moves bring the agent: Euclidean, in voxels."""
    return np.asarray(np.linalg.norm(offsets, axis=-1) - np.linalg.norm(offsets - moves, axis=-1))


def greedy_return(offsets: Float64[np.ndarray, "n 3"], gamma: float) -> Float64[np.ndarray, " n"]:
    """Discounted rewards of the walk that always shortens the longest coordinate, which gains most.

    At the landmark it steps to and fro, as every policy must that cannot stand still.
    """
    offsets, returns, rows = offsets.copy(), np.zeros(len(offsets)), np.arange(len(offsets))
    distance = np.linalg.norm(offsets, axis=1)
    for step in range(RETURN_STEPS):
        axis = np.abs(offsets).argmax(axis=1)
        offsets[rows, axis] -= np.where(offsets[rows, axis] >= 0, 1.0, -1.0)
        closer = np.linalg.norm(offsets, axis=1)
        returns += gamma**step * (distance - closer)
        distance = closer
    return returns


def closed_form_q(offsets: Float64[np.ndarray, "n 3"], gamma: float) -> Float64[np.ndarray, "n 6"]:
    """What each of `STEPS_ZYX` is worth to an agent whose landmark is `offsets` away: reward, then the greedy walk."""
    after = offsets[:, None] - STEPS_ZYX
    later = greedy_return(after.reshape(-1, 3), gamma).reshape(len(offsets), len(STEPS_ZYX))
    before, moves = (np.broadcast_to(values, after.shape) for values in (offsets[:, None], STEPS_ZYX))
    return np.asarray(rewards(before, moves) + gamma * later)


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


@torch.inference_mode()
def q_values(network: nn.Module, boxes: UInt8[np.ndarray, "n k k k"]) -> Float32[np.ndarray, "n 6"]:
    device = next(network.parameters()).device
    values: np.ndarray = network(torch.from_numpy(boxes).to(device)).cpu().numpy()
    return values


def td_targets(
    scenes: Scenes, actions: Int64[np.ndarray, " n"], sampler: SceneSampler, nets: "Nets", gamma: float
) -> Float64[np.ndarray, " n"]:
    """Double DQN: the network chooses the next step, the target network values it.

    Beyond the border there is nothing to see and the walk ends; the rest of its return is taken in closed form, so that
    the way to a landmark outside is worth as much as it would be in a larger scan.
    """
    after = scenes.moved(scenes.position + STEPS_ZYX[actions])
    later = greedy_return(after.offsets(), gamma)
    inside = np.flatnonzero(after.inside())
    if len(inside):
        boxes = sampler.boxes(after.take(inside))
        chosen = q_values(nets.network, boxes).argmax(axis=1)
        later[inside] = q_values(nets.target, boxes)[np.arange(len(inside)), chosen]
    return np.asarray(rewards(scenes.offsets(), STEPS_ZYX[actions]) + gamma * later)


def vary_intensity(boxes: UInt8[np.ndarray, "n k k k"], rng: np.random.Generator) -> UInt8[np.ndarray, "n k k k"]:
    """Gain, shift and noise, for each box its own; air stays air, as the window clips it."""
    one = (len(boxes), 1, 1, 1)
    noise = rng.standard_normal(boxes.shape, dtype=np.float32) * rng.uniform(0, 6, one).astype(np.float32)
    varied = (
        boxes * rng.uniform(0.92, 1.08, one).astype(np.float32) + rng.uniform(-8, 8, one).astype(np.float32) + noise
    )
    return np.where(boxes > 0, np.clip(varied, 0, 255), 0).astype(np.uint8)


class Walkers:
    """Agents that explore side by side, each in a scene of its own until it leaves it or has walked long enough."""

    def __init__(self, sampler: SceneSampler, recipe: LandmarkRecipe, level: int, rng: np.random.Generator) -> None:
        self._sampler, self._walk_steps = sampler, recipe.walk_steps[level]
        self.scenes = sampler.draw(recipe.walkers, rng)
        self.ages = rng.integers(0, self._walk_steps, recipe.walkers)

    def step(
        self, network: nn.Module, epsilon: float, rng: np.random.Generator
    ) -> tuple[Scenes, Int64[np.ndarray, " n"]]:
        """One epsilon-greedy step of all; returns where they were and what they did."""
        before = self.scenes
        actions = q_values(network, self._sampler.boxes(before)).argmax(axis=1)
        explore = rng.random(len(before)) < epsilon
        actions = np.where(explore, rng.integers(0, len(STEPS_ZYX), len(before)), actions)
        after = before.moved(before.position + STEPS_ZYX[actions])
        self.ages = self.ages + 1
        done = np.flatnonzero(~after.inside() | (self.ages >= self._walk_steps))
        self.ages[done] = 0
        order = np.arange(len(after))
        order[done] = len(after) + np.arange(len(done))
        self.scenes = join([after, self._sampler.draw(len(done), rng)]).take(order) if len(done) else after
        return before, actions


@dataclass(eq=False)
class Nets:
    """A network in training, the frozen copy that values its next steps, and its optimiser."""

    network: QNetwork
    target: QNetwork
    optimiser: torch.optim.Adam

    @classmethod
    def new(cls, recipe: LandmarkRecipe, device: torch.device) -> "Nets":
        network, target = QNetwork(recipe.config).to(device), QNetwork(recipe.config).to(device)
        return cls(network, target, torch.optim.Adam(network.parameters(), lr=recipe.learning_rates[0]))

    def update(self, boxes: np.ndarray, targets: np.ndarray, actions: np.ndarray | None, rate: float) -> float:
        """One optimiser step towards the values of all steps, or only of the `actions` taken."""
        device = next(self.network.parameters()).device
        values = self.network(torch.from_numpy(boxes).to(device))
        if actions is not None:
            values = values.gather(1, torch.from_numpy(actions[:, None]).to(device))[:, 0]
        loss = nn.functional.smooth_l1_loss(values, torch.from_numpy(targets).float().to(device))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return float(loss.detach())


@dataclass(frozen=True, eq=False)
class Validation:
    """How greedy walks end in scenes that are always the same.

    Attributes:
        error_voxels: mean distance at the end, of walks that stayed where the landmark is in the crop.
        right_share: of the walks that end within 3 voxels of the landmark, or out of a crop that does not hold it.
        ends: what the first agents see at the end, one beside the other: the landmark should be in the middle.
    """

    error_voxels: float
    right_share: float
    ends: Picture

    @property
    def score(self) -> float:
        """What the weights are chosen by: right ends first, then how near."""
        return self.right_share - (0.01 * self.error_voxels if math.isfinite(self.error_voxels) else 1.0)


def validate(network: nn.Module, sampler: SceneSampler) -> Validation:
    """Let 128 agents walk."""
    # Always the same scenes, so that the scores of two checkpoints can be compared.
    scenes = sampler.draw(128, np.random.default_rng(0))
    present = ((scenes.landmark >= scenes.low - 0.5) & (scenes.landmark <= scenes.high - 0.5)).all(axis=1)
    stayed = np.ones(len(scenes), dtype=bool)
    for _ in range(CHECK_STEPS):
        going = np.flatnonzero(stayed)
        actions = q_values(network, sampler.boxes(scenes.take(going))).argmax(axis=1)
        scenes.position[going] += STEPS_ZYX[actions]
        stayed = scenes.inside()
        if not stayed.any():
            break
    distances = np.linalg.norm(scenes.offsets(), axis=1)
    right = np.where(present, stayed & (distances < 3), ~stayed)
    reached = distances[present & stayed]
    error = float(reached.mean()) if len(reached) else float("nan")
    ends: Picture = np.zeros((1, 1, 3), dtype=np.uint8)
    if stayed.any():
        boxes = sampler.boxes(scenes.take(np.flatnonzero(stayed)[:8]))
        row = np.concatenate(list(boxes[:, boxes.shape[1] // 2]), axis=1)
        ends = np.repeat(row[..., None], 3, axis=2)
    return Validation(error, float(right.mean()), ends)


def train(recipe: LandmarkRecipe, dataset: LandmarkDataset, out: Path, group: ProcessGroup) -> None:
    """Train the networks of all agents into `out`; goes on where a stopped run was.

    Writes `<landmark>-<level>.pt` for each network that is finished, `<landmark>-<level>.checkpoint` for one that is
    not, and `<landmark>-<level>.csv`. Each member of a group takes its share of the networks.

    Raises:
        RecipeError: the run was begun with another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    if group.is_first:
        keep_recipe(out, recipe)
    for number, (landmark, level) in enumerate((m, n) for m in Landmark for n in range(len(recipe.config.scales_mm))):
        # The six networks are small: sharing them out needs no messages, averaging their gradients would.
        if number % group.size == group.rank and not (out / f"{landmark.value}-{level}.pt").exists():
            AgentRun.begin(recipe, dataset, out, landmark, level, number, group.device).finish()
    group.wait()


@dataclass(eq=False)
class AgentRun:
    """The training of the network of one landmark at one scale, and where it stands."""

    recipe: LandmarkRecipe
    level: int
    path: Path
    sampler: SceneSampler
    check: SceneSampler | None
    rng: np.random.Generator
    nets: Nets
    replay: Replay
    walkers: Walkers
    step: int = 0
    best: float = -math.inf
    chosen: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def begin(
        cls,
        recipe: LandmarkRecipe,
        dataset: LandmarkDataset,
        out: Path,
        landmark: Landmark,
        level: int,
        number: int,
        device: torch.device,
    ) -> "AgentRun":
        """A new run, or where one was stopped."""
        rng = np.random.default_rng((recipe.seed, number))
        torch.manual_seed(recipe.seed + number)
        sampler = SceneSampler(dataset.training_scans, landmark, level, recipe)
        known = [scan for scan in dataset.validation_scans if landmark in scan.landmarks_mm]
        check = SceneSampler(known, landmark, level, recipe) if known else None
        nets, replay = Nets.new(recipe, device), Replay(recipe.replay)
        walkers = Walkers(sampler, recipe, level, rng)
        path = out / f"{landmark.value}-{level}.pt"
        run = cls(recipe, level, path, sampler, check, rng, nets, replay, walkers)
        with suppress(FileNotFoundError):
            run.restore(torch.load(run.checkpoint, map_location=device, weights_only=True))
        return run

    @property
    def checkpoint(self) -> Path:
        return self.path.with_suffix(".checkpoint")

    @property
    def steps(self) -> int:
        return self.recipe.warm_steps[self.level] + self.recipe.dqn_steps[self.level]

    def finish(self) -> None:
        """Take the steps that are left, and write the weights that were best on the patients kept aside."""
        logger = TrainingLogger(self.path.with_suffix(".csv"), COLUMNS, self.step)
        began, losses = time.monotonic(), []
        while self.step < self.steps:
            losses.append(self.learn())
            self.step += 1
            if self.step % self.recipe.save_every == 0 or self.step == self.steps:
                row = {"step": self.step, "seconds": time.monotonic() - began, "loss": float(np.mean(losses))}
                logger.add_row(row | self._validate(logger))
                self.save()
                losses = []
        write_checkpoint(self.chosen or self.nets.network.state_dict(), self.path)
        self.checkpoint.unlink(missing_ok=True)

    def learn(self) -> float:
        """One step of the phase that the run is in; returns its loss."""
        recipe, nets, rng, sampler = self.recipe, self.nets, self.rng, self.sampler
        warm_steps, dqn_steps = recipe.warm_steps[self.level], recipe.dqn_steps[self.level]
        # A supervised start on the closed form converged from every start within two minutes.
        if self.step < warm_steps:
            scenes = sampler.draw(recipe.batch, rng)
            targets, actions = closed_form_q(scenes.offsets(), recipe.gamma), None
            rate = _cosine(recipe.learning_rates[0], self.step / warm_steps)
        else:
            share = (self.step - warm_steps) / dqn_steps
            # The copy lags behind: a network that values its own next steps chases its own errors.
            if (self.step - warm_steps) % recipe.target_every == 0:
                nets.target.load_state_dict(nets.network.state_dict())
            # One step of all walkers, at first as many as the replay needs to begin.
            epsilon = recipe.epsilons[0] + share * (recipe.epsilons[1] - recipe.epsilons[0])
            self.replay.add(*self.walkers.step(self.nets.network, epsilon, self.rng))
            while len(self.replay) < self.recipe.replay_first:
                self.replay.add(*self.walkers.step(self.nets.network, epsilon, self.rng))
            scenes, actions = self.replay.sample(recipe.batch, rng)
            targets = td_targets(scenes, actions, sampler, nets, recipe.gamma)
            rate = _cosine(recipe.learning_rates[1], share)
        return nets.update(vary_intensity(sampler.boxes(scenes), rng), targets, actions, rate)

    def _validate(self, logger: TrainingLogger) -> dict[str, float]:
        """Look at the patients kept aside, if there are any, and keep the weights if they are the best so far."""
        if self.check is None:
            return {}
        validation = validate(self.nets.network, self.check)
        logger.add_picture("ends", validation.ends, self.step)
        if validation.score >= self.best:
            self.best = validation.score
            self.chosen = {name: value.detach().clone() for name, value in self.nets.network.state_dict().items()}
        return {"walk_error_voxels": validation.error_voxels, "right_share": validation.right_share}

    def save(self) -> None:
        """Everything that the next step depends on, whole or not at all."""
        state = {
            "step": self.step,
            "best": self.best,
            "chosen": self.chosen,
            "network": self.nets.network.state_dict(),
            "target": self.nets.target.state_dict(),
            "optimiser": self.nets.optimiser.state_dict(),
            # Replay, walkers and generator too: without them a resumed run would reach other weights.
            "replay": {"slots": torch.from_numpy(self.replay.slots), "count": self.replay.count},
            "scenes": {name: torch.from_numpy(values) for name, values in vars(self.walkers.scenes).items()},
            "ages": torch.from_numpy(self.walkers.ages),
            "rng": json.dumps(self.rng.bit_generator.state),
        }
        write_checkpoint(state, self.checkpoint)

    def restore(self, state: Mapping[str, Any]) -> None:
        self.step, self.best, self.chosen = state["step"], state["best"], dict(state["chosen"])
        self.nets.network.load_state_dict(state["network"])
        self.nets.target.load_state_dict(state["target"])
        self.nets.optimiser.load_state_dict(state["optimiser"])
        self.replay.slots, self.replay.count = state["replay"]["slots"].cpu().numpy(), state["replay"]["count"]
        self.walkers.scenes = Scenes(**{key: values.cpu().numpy() for key, values in state["scenes"].items()})
        self.walkers.ages = state["ages"].cpu().numpy()
        self.rng.bit_generator.state = json.loads(state["rng"])


def export(recipe: LandmarkRecipe, out: Path, weights: Path, version: str) -> ModelInfo:
    """Gather the finished networks of `out` in one weights file (`landmarks.safetensors`)."""
    agents = {mark: [QNetwork(recipe.config) for _ in recipe.config.scales_mm] for mark in Landmark}
    for mark, nets in agents.items():
        for level, net in enumerate(nets):
            net.load_state_dict(torch.load(out / f"{mark.value}-{level}.pt", map_location="cpu", weights_only=True))
    state = agents_module(agents).state_dict()
    return save_weights(
        weights, version=version, config=recipe.config.to_mapping(), recipe=asdict(recipe), tensors=state
    )


def _cosine(rate: float, share: float) -> float:
    """From `rate` to a tenth of it as `share` goes from 0 to 1."""
    return rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m training.landmarks DATASET OUT`."""
    parser = argparse.ArgumentParser(description="Train the landmark agents on a prepared dataset.")
    parser.add_argument("dataset", type=Path, help="folder that training.data.landmark_dataset made")
    parser.add_argument("out", type=Path, help="folder of the run; an unfinished run goes on")
    parser.add_argument("--recipe", default="{}", help="fields of LandmarkRecipe: JSON, or a file of it")
    parser.add_argument("--longer", type=int, default=1, help="this many times the steps of the recipe")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 lets torch decide")
    parser.add_argument("--version", default="0.0.0", help="written into the weights file")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = read_recipe(LandmarkRecipe, options.recipe).longer(options.longer)
    with join_process_group(options.device) as group:
        train(recipe, LandmarkDataset.read(options.dataset, recipe.config), options.out, group)
        if group.is_first:
            info = export(recipe, options.out, options.out / "landmarks.safetensors", options.version)
            sys.stdout.write(f"{info.name} {info.version} {info.sha256}\n")


if __name__ == "__main__":
    main()
