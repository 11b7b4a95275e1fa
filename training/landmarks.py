"""Trains the landmark agents: a supervised start, then deep Q-learning on the agent's own walks (Ghesu et al. 2017).

The reward of a step is how much closer it brings the agent (in voxels of its scale), so the return of the greedy walk
is known in closed form wherever the landmark's place is known. The first phase regresses it at sampled places; the
second is double DQN with experience replay, a target network and an epsilon-greedy policy. A scan is cropped at random,
often so that the landmark lies beyond the border: then the way to it leads out of the scan.

The patients in `splits.json` are kept aside and choose the weights. A run that was ended goes on, to the very same
weights, when the same command is given again. With torchrun, each process trains some of the agents' networks.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import nn

from pipeline.anatomy import Landmark
from pipeline.networks.q_network import STEPS_ZYX, QNetwork, agents_module
from pipeline.networks.weights import ModelInfo, save_weights
from training.config import keep_recipe, read_recipe
from training.data.landmark_batches import (
    LandmarkDataset,
    LandmarkRecipe,
    Replay,
    Scenes,
    SceneSampler,
    join,
    vary_intensity,
)
from training.loop import (
    Picture,
    Plan,
    ProcessGroup,
    TrainingLoop,
    Validation,
    join_process_group,
    training_parser,
    write_checkpoint,
)

#: Of the walks that are watched during training.
CHECK_STEPS: Final = 60
#: How far returns are followed; what comes later counts less than 0.9 ** 80 = 0.0002 of a step.
RETURN_STEPS: Final = 80


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


@torch.inference_mode()
def q_values(network: nn.Module, boxes: UInt8[np.ndarray, "n k k k"]) -> Float32[np.ndarray, "n 6"]:
    device = next(network.parameters()).device
    values: np.ndarray = network(torch.from_numpy(boxes).to(device)).cpu().numpy()
    return values


def td_targets(
    scenes: Scenes,
    actions: Int64[np.ndarray, " n"],
    sampler: SceneSampler,
    network: nn.Module,
    target: nn.Module,
    gamma: float,
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
        chosen = q_values(network, boxes).argmax(axis=1)
        later[inside] = q_values(target, boxes)[np.arange(len(inside)), chosen]
    return np.asarray(rewards(scenes.offsets(), STEPS_ZYX[actions]) + gamma * later)


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


def greedy_walks(network: nn.Module, sampler: SceneSampler) -> Validation:
    """Let 128 agents walk, and see how many end right and how near.

    Right is an end within 3 voxels of the landmark, or out of a crop that does not hold it. The error is the mean
    distance at the end, in voxels, of the walks that stayed where the landmark is in the crop. The picture shows what
    the first agents see at the end, one beside the other: the landmark should be in the middle.
    """
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
    right_share = float(np.where(present, stayed & (distances < 3), ~stayed).mean())
    reached = distances[present & stayed]
    error = float(reached.mean()) if len(reached) else math.nan
    ends: Picture = np.zeros((1, 1, 3), dtype=np.uint8)
    if stayed.any():
        boxes = sampler.boxes(scenes.take(np.flatnonzero(stayed)[:8]))
        ends = np.repeat(np.concatenate(list(boxes[:, boxes.shape[1] // 2]), axis=1)[..., None], 3, axis=2)
    # Right ends first, then how near.
    score = right_share - (0.01 * error if len(reached) else 1.0)
    return Validation(score, {"walk_error_voxels": error, "right_share": right_share}, [("ends", ends)])


class AgentTraining(TrainingLoop[QNetwork]):
    """Trains the network of one landmark at one scale."""

    columns = ("step", "seconds", "loss", "walk_error_voxels", "right_share")

    def __init__(
        self,
        dataset: LandmarkDataset,
        out: Path,
        recipe: LandmarkRecipe,
        landmark: Landmark,
        level: int,
        device: torch.device,
    ) -> None:
        """A new training, or the one that was ended in `out`."""
        number = list(Landmark).index(landmark) * len(recipe.config.scales_mm) + level
        self.recipe, self.level, self.rng = recipe, level, np.random.default_rng((recipe.seed, number))
        torch.manual_seed(recipe.seed + number)
        self.sampler = SceneSampler(dataset.training_scans, landmark, level, recipe)
        known = [scan for scan in dataset.validation_scans if landmark in scan.landmarks_mm]
        self.check = SceneSampler(known, landmark, level, recipe) if known else None
        network, self.target = QNetwork(recipe.config).to(device), QNetwork(recipe.config).to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rates[0])
        self.replay, self.walkers = Replay(recipe.replay), Walkers(self.sampler, recipe, level, self.rng)
        self.chosen: dict[str, torch.Tensor] = {}
        self.warm_steps, self.dqn_steps = recipe.warm_steps[level], recipe.dqn_steps[level]
        files = (out / f"{landmark.value}-{level}{ending}" for ending in (".pt", ".checkpoint", ".csv"))
        self.path, checkpoint, log = files
        plan = Plan(self.warm_steps + self.dqn_steps, recipe.save_every, checkpoint, log)
        super().__init__(network, optimiser, ProcessGroup(device), plan)
        self.resume()

    def run(self) -> None:
        """Take the steps that are left, and write the weights that were best on the patients kept aside."""
        super().run()
        write_checkpoint(self.chosen or self.network.state_dict(), self.path)
        self.plan.checkpoint.unlink(missing_ok=True)

    def learning_rate(self) -> float:
        """From the rate of the phase to a tenth of it, along a cosine."""
        warm, recipe = self.step < self.warm_steps, self.recipe
        share = self.step / self.warm_steps if warm else (self.step - self.warm_steps) / self.dqn_steps
        return recipe.learning_rates[0 if warm else 1] * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))

    def loss(self) -> tuple[torch.Tensor, Mapping[str, float]]:
        """Of the phase that the next step is in."""
        recipe, rng, sampler = self.recipe, self.rng, self.sampler
        actions: Int64[np.ndarray, " n"] | None = None
        # A supervised start on the closed form converged from every start within two minutes.
        if self.step < self.warm_steps:
            scenes = sampler.draw(recipe.batch, rng)
            targets = closed_form_q(scenes.offsets(), recipe.gamma)
        else:
            done = self.step - self.warm_steps
            # The copy lags behind: a network that values its own next steps chases its own errors.
            if done % recipe.target_every == 0:
                self.target.load_state_dict(self.network.state_dict())
            # One step of all walkers, at first as many as the replay needs to begin.
            epsilon = recipe.epsilons[0] + done / self.dqn_steps * (recipe.epsilons[1] - recipe.epsilons[0])
            self.replay.add(*self.walkers.step(self.network, epsilon, rng))
            while len(self.replay) < recipe.replay_first:
                self.replay.add(*self.walkers.step(self.network, epsilon, rng))
            scenes, actions = self.replay.sample(recipe.batch, rng)
            targets = td_targets(scenes, actions, sampler, self.network, self.target, recipe.gamma)
        device = self.group.device
        values = self.network(torch.from_numpy(vary_intensity(sampler.boxes(scenes), rng)).to(device))
        if actions is not None:
            values = values.gather(1, torch.from_numpy(actions[:, None]).to(device))[:, 0]
        return nn.functional.smooth_l1_loss(values, torch.from_numpy(targets).float().to(device)), {}

    def validate(self) -> Validation | None:
        return None if self.check is None else greedy_walks(self.network, self.check)

    def keep_best(self, row: Mapping[str, float]) -> None:  # noqa: ARG002 (the log has it)
        """Keep the weights in the checkpoint."""
        self.chosen = {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> Mapping[str, Any]:
        return {
            "chosen": self.chosen,
            "target": self.target.state_dict(),
            # Replay, walkers and generator too: without them a resumed run would reach other weights.
            "replay": {"slots": torch.from_numpy(self.replay.slots), "count": self.replay.count},
            "scenes": {name: torch.from_numpy(values) for name, values in vars(self.walkers.scenes).items()},
            "ages": torch.from_numpy(self.walkers.ages),
            "rng": json.dumps(self.rng.bit_generator.state),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.chosen = dict(state["chosen"])
        self.target.load_state_dict(state["target"])
        self.replay.slots, self.replay.count = state["replay"]["slots"].cpu().numpy(), state["replay"]["count"]
        self.walkers.scenes = Scenes(**{key: values.cpu().numpy() for key, values in state["scenes"].items()})
        self.walkers.ages = state["ages"].cpu().numpy()
        self.rng.bit_generator.state = json.loads(state["rng"])


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
    for number, (landmark, level) in enumerate(product(Landmark, range(len(recipe.config.scales_mm)))):
        # The six networks are small: sharing them out needs no messages, averaging their gradients would.
        if number % group.size == group.rank and not (out / f"{landmark.value}-{level}.pt").exists():
            AgentTraining(dataset, out, recipe, landmark, level, group.device).run()
    group.wait()


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


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m training.landmarks DATASET RUN`."""
    parser = training_parser(__doc__, LandmarkRecipe)
    parser.add_argument("--longer", type=int, default=1, help="this many times the steps of the recipe")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 lets torch decide")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = read_recipe(LandmarkRecipe, options.recipe).longer(options.longer)
    with join_process_group(options.device) as group:
        train(recipe, LandmarkDataset.read(options.dataset, recipe.config), options.run, group)
        if group.is_first:
            info = export(recipe, options.run, options.run / "landmarks.safetensors", options.version)
            sys.stdout.write(f"{info.name} {info.version} {info.sha256}\n")


if __name__ == "__main__":
    main()
