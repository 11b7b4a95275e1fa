"""The loop that all three trainings run in: its steps, what it keeps, that it goes on, and two processes of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.tiny_trainings import (
    ALONE,
    LANDMARKS,
    LESIONS,
    LUNG_CONFIG,
    LUNGS,
    write_landmark_dataset,
    write_lesion_dataset,
    write_lung_dataset,
)
from training import landmarks, lungs
from training.data.landmark_batches import LandmarkDataset
from training.data.lesion_batches import Sampler, read_examples
from training.data.splits import Stage, read_split
from training.lesions import LesionTraining, lesion_loss
from training.loop import MOST_SKIPPED, NoGradientError, Plan, ProcessGroup, TrainingLoop, Validation, read_log


class Line(TrainingLoop[nn.Linear]):
    """Two weights and a bias, whose gradient is what the test says."""

    columns = ("step", "seconds", "loss", "score")
    averaged_key = "averaged"

    def __init__(self, folder: Path, gradient: float = 1.0, scores: tuple[float, ...] = (0.0,) * 99) -> None:
        torch.manual_seed(0)
        network = nn.Linear(2, 1)
        plan = Plan(4, 1, folder / "last.pt", folder / "log.csv", gradient_norm=0.5)
        super().__init__(network, torch.optim.SGD(network.parameters(), lr=1.0), ALONE, plan)
        self.gradient, self.scores = gradient, scores
        self.resume()

    def loss(self) -> tuple[Tensor, Mapping[str, float]]:
        return self.gradient * nn.utils.parameters_to_vector(self.network.parameters()).sum(), {}

    def learning_rate(self) -> float:
        return 1.0

    def decay(self) -> float:
        return 0.75

    def validate(self) -> Validation:
        return Validation(self.scores[self.step], {"score": self.scores[self.step]})

    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.network.parameters()).detach()


def test_a_step_is_as_long_as_is_allowed_and_the_averaged_weights_follow_from_the_first_on(tmp_path: Path) -> None:
    line = Line(tmp_path, gradient=3.0)
    before = line.weights()
    assert line.take_step(line.loss()[0])
    moved = line.weights() - before
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)
    averaged = nn.utils.parameters_to_vector(line.averaged_weights().values())
    assert torch.allclose(averaged - before, 0.25 * moved, atol=1e-6)


@pytest.mark.parametrize("gradient", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing_and_ends_a_training_that_has_no_other(
    tmp_path: Path, gradient: float
) -> None:
    line = Line(tmp_path, gradient)
    before = line.weights()
    for _ in range(MOST_SKIPPED - 1):
        assert not line.take_step(line.loss()[0])
    assert torch.equal(line.weights(), before)
    with pytest.raises(NoGradientError, match="bfloat16"):
        line.take_step(line.loss()[0])


def test_equal_scores_go_to_the_later_weights(tmp_path: Path) -> None:
    Line(tmp_path, scores=(0.0, 0.5, 0.7, 0.7, 0.6)).run()
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 3


class EndedError(Exception):
    pass


def test_a_run_that_was_ended_between_its_log_and_its_checkpoint_logs_every_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = count(1), TrainingLoop.save

    def save_or_end(line: Line) -> None:
        if next(saved) == 2:
            raise EndedError
        save(line)

    monkeypatch.setattr(TrainingLoop, "save", save_or_end)
    with pytest.raises(EndedError):
        Line(tmp_path).run()
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == ["1", "2"]
    Line(tmp_path).run()
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == ["1", "2", "3", "4"]


def train_landmarks(dataset: Path, run: Path) -> None:
    landmarks.train(LANDMARKS, LandmarkDataset.read(dataset, LANDMARKS.config), run, ALONE)


def train_lungs(dataset: Path, run: Path) -> None:
    lungs.LungTraining(dataset, run, LUNGS, ALONE, LUNG_CONFIG).run()


def train_lesions(dataset: Path, run: Path) -> None:
    LesionTraining(dataset, run, LESIONS, ALONE).run()


def train_lesions_with_adabound(dataset: Path, run: Path) -> None:
    LesionTraining(dataset, run, replace(LESIONS, optimiser="adabound"), ALONE).run()


#: Of each checkpoint, which older and newer versions of the software must be able to read.
KEYS = {
    "carina-1.checkpoint": "step best network optimiser chosen target replay scenes ages rng",
    "checkpoint.pt": "step best network optimizer smooth best_in_detail",
    "last.pt": "step best network optimiser averaged loss",
}


@pytest.mark.parametrize(
    ("train", "write", "saves", "checkpoint"),
    [
        (train_landmarks, write_landmark_dataset, 6, "carina-1.checkpoint"),
        (train_lungs, write_lung_dataset, 1, "checkpoint.pt"),
        (train_lungs, write_lung_dataset, 3, "checkpoint.pt"),
        (train_lesions, write_lesion_dataset, 1, "last.pt"),
        (train_lesions_with_adabound, write_lesion_dataset, 1, "last.pt"),
    ],
)
def test_a_run_that_was_ended_goes_on_to_the_very_same_weights(
    train: Callable[[Path, Path], None],
    write: Callable[[Path], Path],
    saves: int,
    checkpoint: str,
    dataset_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, whole, ended = write(dataset_folder), dataset_folder / "whole", dataset_folder / "ended"
    monkeypatch.setattr(lungs, "SAVE_EVERY", 2)
    train(dataset, whole)
    # Ended once, after some checkpoints: the call after it goes on.
    saved, save = count(1), TrainingLoop.save

    def save_and_end(training: TrainingLoop[nn.Module]) -> None:
        save(training)
        if next(saved) == saves:
            raise EndedError

    monkeypatch.setattr(TrainingLoop, "save", save_and_end)
    with pytest.raises(EndedError):
        train(dataset, ended)
    assert set(torch.load(ended / checkpoint, weights_only=True)) == set(KEYS[checkpoint].split())
    train(dataset, ended)
    files = sorted(path.name for path in whole.iterdir())
    assert files == sorted(path.name for path in ended.iterdir())
    for name in files:
        if name.endswith(".pt"):
            ours, theirs = (dict(leaves(torch.load(run / name, weights_only=True))) for run in (whole, ended))
            assert ours.keys() == theirs.keys()
            assert [key for key, value in ours.items() if not torch.equal(value, theirs[key])] == [], name
        if name.endswith(".csv"):
            ours, theirs = ([{**row, "seconds": ""} for row in read_log(run / name)] for run in (whole, ended))
            assert ours == theirs


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The numbers of a checkpoint by where they lie; NaN as a number of its own."""
    if isinstance(value, Mapping | list | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(part, f"{path}/{key}")
    elif isinstance(value, Tensor | float | int):
        yield path, torch.nan_to_num(torch.as_tensor(value), nan=-12345.0)


def test_two_processes_train_one_network_with_the_mean_of_their_gradients(lesion_dataset: Path, tmp_path: Path) -> None:
    """Under torchrun, against the same steps taken here in one process, whose loss is the mean over both crops."""
    network = {"stem": 4, "growth": 4, "layers": 1, "widths": [4, 4, 4, 4, 4]}
    recipe = {"steps": 3, "crop": [16, 32, 32], "validate_every": 2, "bfloat16": False, "network": network}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = ["training.lesions", lesion_dataset, tmp_path / "run", "--recipe", json.dumps(recipe), "--device", "cpu"]
    done = subprocess.run(
        [*launcher, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_log(tmp_path / "run" / "log.csv")] == ["2", "3"], "one of them logs"
    assert (tmp_path / "run" / "lesions.safetensors").exists()
    alone = LesionTraining(lesion_dataset, tmp_path / "alone", replace(LESIONS, steps=3), ALONE)
    examples = read_examples(lesion_dataset, read_split(lesion_dataset, Stage.LESIONS).is_training)
    sampler = Sampler(examples, alone.recipe, ALONE.device)
    for step in range(3):
        crops = [sampler.draw(np.random.default_rng([alone.recipe.seed, step, rank])) for rank in (0, 1)]
        losses = [lesion_loss(alone.network(crop.inputs()[None]), crop, alone.recipe) for crop in crops]
        alone.take_step(torch.stack(losses).mean())
    found = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["network"]
    for name, value in alone.network.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_a_process_group_of_one_leaves_its_gradients_alone() -> None:
    network = torch.nn.Linear(2, 1)
    network(torch.ones(1, 2)).sum().backward()
    ProcessGroup(torch.device("cpu")).average_gradients(network)
    assert torch.equal(network.weight.grad, torch.ones(1, 2))
