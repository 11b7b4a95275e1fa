"""Two real processes under torchrun, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from training.loop import ProcessGroup, read_log

TINY = {
    "steps": 3,
    "crop": [16, 32, 32],
    "validate_every": 2,
    "bfloat16": False,
    "network": {"stem": 4, "growth": 4, "layers": 1, "widths": [4, 4, 4, 4, 4]},
}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name in ("covid-0-0", "covid-4-0", "phantom-2-0"):
        lungs = np.zeros((16, 40, 40), dtype=np.bool_)
        lungs[2:14, 4:36, 4:36] = True
        lesions = np.zeros_like(lungs)
        lesions[4:12, 10:30, 10:30] = True
        image = (60 + 90 * lesions + rng.integers(0, 20, lungs.shape)).astype(np.uint8)
        np.savez(folder / f"{name}.npz", image=image, lungs=lungs, lesions=lesions)
    return folder


def torchrun(*command: object) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *map(str, command)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_two_processes_train_one_network_with_the_mean_of_their_gradients(dataset: Path, tmp_path: Path) -> None:
    """Against the same steps taken here in one process, whose loss is the mean over both processes' crops."""
    module = "training.lesions"
    torchrun(module, dataset, tmp_path / "run", "--recipe", json.dumps(TINY), "--device", "cpu")
    assert [row["step"] for row in read_log(tmp_path / "run" / "log.csv")] == ["2", "3"], "one of them logs"
    assert (tmp_path / "run" / "lesions.safetensors").exists()
    expected = both_at_once(dataset, tmp_path / "alone")
    found = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["network"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)


def both_at_once(dataset: Path, folder: Path) -> dict[str, torch.Tensor]:
    from training.config import recipe_from
    from training.data.lesion_batches import LesionRecipe, Sampler, read_examples
    from training.data.splits import Stage, read_split
    from training.lesions import Run, learning_rate_at, lesion_loss

    recipe, alone = recipe_from(LesionRecipe, TINY), ProcessGroup(torch.device("cpu"))
    folder.mkdir()
    run = Run.begin(folder, recipe, alone)
    examples = read_examples(dataset, read_split(dataset, Stage.LESIONS).is_training)
    sampler = Sampler(examples, recipe, alone.device)
    for step in range(recipe.steps):
        run.optimiser.param_groups[0]["lr"] = learning_rate_at(step, recipe)
        run.optimiser.zero_grad()
        for rank in (0, 1):
            crop = sampler.draw(np.random.default_rng([recipe.seed, step, rank]))
            (lesion_loss(run.network(crop.inputs()[None]), crop, recipe) / 2).backward()
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), recipe.gradient_norm)
        run.optimiser.step()
    return run.network.state_dict()


def test_a_process_group_of_one_leaves_its_gradients_alone() -> None:
    network = torch.nn.Linear(2, 1)
    network(torch.ones(1, 2)).sum().backward()
    ProcessGroup(torch.device("cpu")).average_gradients(network)
    assert torch.equal(network.weight.grad, torch.ones(1, 2))
