"""What the trainings of the three networks share: process group, clipped step, checkpoints, log.

Several processes train together, one a GPU: `torchrun --nproc-per-node 4 -m training.lesions …`. Every process draws
volumes of its own, and the gradients are averaged before each step, so that four GPUs make a batch of four. Started
without torchrun, a process is a group of one.
"""

import csv
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import distributed, nn

from pipeline.networks.device import choose_device

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


class ClippedStep:
    """Takes optimiser steps of clipped gradients, and skips those whose gradient is not finite."""

    def __init__(self, network: nn.Module, optimiser: torch.optim.Optimizer, longest: float) -> None:
        """`longest`: gradients are clipped to this norm."""
        self._network, self._optimiser, self._longest = network, optimiser, longest
        self._skipped = 0

    def take(self) -> bool:
        """Take a step; returns whether it was taken.

        Raises:
            NoGradientError: `MOST_SKIPPED` steps in a row had no finite gradient.
        """
        length = nn.utils.clip_grad_norm_(self._network.parameters(), self._longest)
        if bool(torch.isfinite(length)):
            self._optimiser.step()
            self._skipped = 0
            return True
        self._skipped += 1
        if self._skipped >= MOST_SKIPPED:
            raise NoGradientError(f"no finite gradient in {self._skipped} steps; try bfloat16: false in the recipe")
        log.warning("a step is left out: its gradient is not finite")
        return False


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

    def add_picture(self, name: str, picture: Picture, step: int) -> None:
        """Add a sample picture, which TensorBoard alone keeps."""
        if self._board is not None:
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
