"""The one training loop; landmarks, lungs and lesions bring their data, their loss and their validation to it.

Several processes train together, one a GPU: `torchrun --nproc-per-node 4 -m training.lesions …`. Every process draws
volumes of its own, and the gradients are averaged before each step, so that four GPUs make a batch of four. Started
without torchrun, a process is a group of one.
"""

import argparse
import csv
import logging
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Generic

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.networks.device import Network, choose_device
from pipeline.networks.weights import load_into

log = logging.getLogger(__name__)

#: One product that overflows in half precision costs a step; so many in a row mean that the training has diverged.
MOST_SKIPPED: Final = 20
Picture = UInt8[np.ndarray, "rows columns 3"]


class NoGradientError(Exception):
    """The loss has no finite gradient, step after step."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as one of them sees them."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that validates, logs and writes."""
        return self.rank == 0

    def average_gradients(self, network: nn.Module) -> None:
        """Give the gradients of all processes' losses their mean, in all of them."""
        if self.size == 1:
            return
        # One message for all parameters in place of one each.
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        message = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(message)
        parts = torch.split(message, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape) / self.size)

    def wait(self) -> None:
        """Until all processes have come so far."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def join_process_group(device_name: str = "auto") -> Iterator[ProcessGroup]:
    """The process group that torchrun started this process in, or a group of one.

    Raises:
        ValueError: this machine has no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ProcessGroup(choose_device(device_name))
        return
    device = choose_device(device_name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(device, int(os.environ["RANK"]), size)
    finally:
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Plan:
    """How long a network is trained, and where its run lies.

    Attributes:
        steps: in all.
        save_every: steps between two rows of the log; with each a checkpoint is written.
        checkpoint: the file that an ended run goes on from.
        log: a CSV.
        gradient_norm: gradients are clipped to it; infinite, they are taken as they are.
    """

    steps: int
    save_every: int
    checkpoint: Path
    log: Path
    gradient_norm: float = math.inf


@dataclass(frozen=True, eq=False)
class Validation:
    """How good the present weights are on the patients kept aside.

    Attributes:
        score: what the weights are chosen by, the highest.
        row: columns of the log.
        pictures: samples by name; they are made only where TensorBoard shows them.
    """

    score: float
    row: Mapping[str, float]
    pictures: Iterable[tuple[str, Picture]] = ()


class TrainingLoop(ABC, Generic[Network]):
    """Trains a network step by step; a run that was ended goes on to the very same weights.

    A subclass is the training of one network: it brings the loss of a step, the learning rate, the validation, and
    whatever else the next step depends on.

    Attributes:
        network: what is trained.
        averaged: the running mean of its weights, which is validated and exported; None where there is none.
        step: how many steps were taken.
        best: the highest score of a validation so far.
    """

    #: Of the log: `step`, `seconds`, `loss` and what `loss`, `row` and `validate` give.
    columns: ClassVar[tuple[str, ...]]
    #: Key of the averaged weights in a checkpoint; None where weights are not averaged.
    averaged_key: ClassVar[str | None] = None
    #: Key of the optimiser in a checkpoint. The keys differ by network, since earlier checkpoints must be read.
    optimiser_key: ClassVar[str] = "optimiser"

    def __init__(self, network: Network, optimiser: torch.optim.Optimizer, group: ProcessGroup, plan: Plan) -> None:
        self.network, self.optimiser, self.group, self.plan = network, optimiser, group, plan
        self.step, self.best, self._skipped = 0, -math.inf, 0
        self.averaged: AveragedModel | None = None
        if self.averaged_key is not None:
            self.averaged = AveragedModel(network, multi_avg_fn=self._average)
            # The weights of the start count as the first: with none counted the model would copy in place of averaging.
            self.averaged.n_averaged.fill_(1)

    @abstractmethod
    def loss(self) -> tuple[Float[Tensor, ""], Mapping[str, float]]:
        """The loss of the next step, and figures of it whose means over the known ones are logged."""

    @abstractmethod
    def learning_rate(self) -> float:
        """Of the next step."""

    def decay(self) -> float:
        """Of the averaged weights, in the next step."""
        return 0.0

    @abstractmethod
    def validate(self) -> Validation | None:
        """Measure the weights on the patients kept aside, if there are any and if it is time for it."""

    def row(self) -> Mapping[str, float | str]:
        """Further columns of the log."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint has to hold besides."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""

    def is_better(self, score: float) -> bool:
        """Whether weights of this score take the place of the best; equal ones do, since they have learned longer."""
        return score >= self.best

    def keep_best(self, row: Mapping[str, float]) -> None:
        """Keep the present weights, with what their validation measured."""
        best = {self.averaged_key or "network": self.averaged_weights(), "step": self.step, **row}
        write_checkpoint(best, self.plan.checkpoint.with_name("best.pt"))

    def run(self) -> None:
        """Take the steps that are left; the first process of the group validates, logs and writes checkpoints."""
        logger = TrainingLogger(self.plan.log, self.columns, self.step) if self.group.is_first else None
        began, figures = time.monotonic(), defaultdict[str, list[float]](list)
        while self.step < self.plan.steps:
            loss, of_step = self.loss()
            self.take_step(loss)
            for name, value in {"loss": float(loss.detach()), **of_step}.items():
                figures[name].append(value)
            if self.step % self.plan.save_every and self.step < self.plan.steps:
                continue
            if logger is not None:
                means = {name: mean_of_known(values) for name, values in figures.items()}
                row = {"step": self.step, "seconds": round(time.monotonic() - began, 1), **means, **self.row()}
                validation = self.validate()
                # The log first: a run that is killed between the two writes the row again and does not lack it.
                logger.add_row(row if validation is None else {**row, **validation.row})
                if validation is not None:
                    logger.add_pictures(validation.pictures, self.step)
                    if self.is_better(validation.score):
                        self.best = validation.score
                        self.keep_best(validation.row)
                self.save()
            figures.clear()
        self.group.wait()

    def take_step(self, loss: Float[Tensor, ""]) -> bool:
        """One step down the clipped gradient, left out where that is not finite; returns whether it was taken.

        Raises:
            NoGradientError: `MOST_SKIPPED` steps in a row had no finite gradient.
        """
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = self.learning_rate()
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        self.group.average_gradients(self.network)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.gradient_norm)
        is_finite = bool(torch.isfinite(norm))
        self._skipped = 0 if is_finite else self._skipped + 1
        if is_finite:
            self.optimiser.step()
        elif self._skipped < MOST_SKIPPED:
            log.warning("a step is left out: its gradient is not finite")
        else:
            raise NoGradientError(f"no finite gradient in {self._skipped} steps; try bfloat16: false in the recipe")
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        self.step += 1
        return is_finite

    def save(self) -> None:
        """Write everything that the next step depends on."""
        state = {"step": self.step, "best": self.best, "network": self.network.state_dict(), **self.state()}
        state[self.optimiser_key] = self.optimiser.state_dict()
        if self.averaged_key is not None:
            state[self.averaged_key] = self.averaged_weights()
        write_checkpoint(state, self.plan.checkpoint)

    def resume(self) -> bool:
        """Go on where the checkpoint was written; returns whether there is one."""
        if not self.plan.checkpoint.exists():
            return False
        state = torch.load(self.plan.checkpoint, map_location=self.group.device, weights_only=True)
        self.step, self.best = state["step"], state["best"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state[self.optimiser_key])
        if self.averaged is not None:
            self.averaged.module.load_state_dict(state[self.averaged_key])
        self.restore(state)
        return True

    def begin_with(self, weights: Mapping[str, Tensor], name: str) -> None:
        """Begin with given weights of the network called `name`. Raises WeightsError where they do not fit it."""
        load_into(self.network, weights, name)
        if self.averaged is not None:
            self.averaged.module.load_state_dict(self.network.state_dict())

    def averaged_weights(self) -> dict[str, Tensor]:
        """The running mean of the weights, or where there is none the weights."""
        return dict((self.network if self.averaged is None else self.averaged.module).state_dict())

    def step_rng(self, seed: int) -> np.random.Generator:
        """The generator of the next step, of this process."""
        # What is drawn depends on seed, step and process alone, so that a resumed run reaches the very same weights.
        return np.random.default_rng([seed, self.step, self.group.rank])

    def _average(self, kept: Iterable[Tensor], new: Iterable[Tensor], _count: Tensor | int) -> None:
        decay = self.decay()
        for mean, weights in zip(kept, new, strict=True):
            mean.lerp_(weights, 1.0 - decay)


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    # A run that is killed while it writes must find its last checkpoint, and not half of a new one.
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    partial.replace(path)


class TrainingLogger:
    """The log of one network's training: a CSV, and TensorBoard with sample pictures where that is installed.

    Args:
        path: of the CSV; TensorBoard's events go to `tensorboard/` beside it.
        columns: of the CSV; one of them is `step`.
        resumed_at: the step that a run goes on from; rows after it are removed, since they will be written again.
    """

    def __init__(self, path: Path, columns: Sequence[str], resumed_at: int = 0) -> None:
        self._path, self._columns = path, columns
        kept = [row for row in read_log(path) if int(row["step"]) <= resumed_at]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(kept)
        self._board: Any = None
        try:
            # Of the extra `training`: on a bare GPU machine there are torch and numpy alone.
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        purge_step = resumed_at + 1 if resumed_at else None
        self._board = SummaryWriter(str(path.parent / "tensorboard" / path.stem), purge_step=purge_step)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Write one row; its numbers go to TensorBoard too."""
        shown = {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(shown)
        sys.stderr.write(" ".join(f"{name}={value}" for name, value in shown.items()) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step" and np.isfinite(value):
                    self._board.add_scalar(name, value, row["step"])
            self._board.flush()

    def add_pictures(self, pictures: Iterable[tuple[str, Picture]], step: int) -> None:
        """Add sample pictures by name, which TensorBoard alone keeps."""
        if self._board is not None:
            for name, picture in pictures:
                self._board.add_image(name, picture, step, dataformats="HWC")


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log that was written so far; none if there is none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def side_by_side(
    image: UInt8[np.ndarray, "y x"], truth: Bool[np.ndarray, "y x"], found: Bool[np.ndarray, "y x"]
) -> Picture:
    """A slice as it is, with the truth in green, and with what was found in red."""
    grey = np.repeat(image[..., None], 3, axis=2)
    tinted = [grey]
    for mask, channel in ((truth, 1), (found, 0)):
        picture = grey.copy()
        picture[mask, channel] = np.maximum(picture[mask, channel], 200)
        tinted.append(picture)
    return np.concatenate(tinted, axis=1)


def mean_of_known(values: Iterable[float]) -> float:
    """The mean of those values that are numbers; NaN where none is."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def training_parser(description: str | None, recipe: type) -> argparse.ArgumentParser:
    """What the commands of all trainings take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="folder of prepared volumes")
    parser.add_argument("run", type=Path, help="folder of checkpoints, log and weights; a run that was ended goes on")
    parser.add_argument("--recipe", default="{}", help=f"fields of {recipe.__name__}: JSON, or a file of it")
    parser.add_argument("--version", default="0.0.0", help="of the exported weights")
    parser.add_argument("--device", default="auto")
    return parser
