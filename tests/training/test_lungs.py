"""The training of the lung network: what it learns from, that it learns, and that it goes on where it was ended."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.networks.di2in import CLASSES, LungNetwork
from pipeline.networks.weights import load_weights
from tests.support.tiny_trainings import ALONE, CPU, five_lobes
from tests.support.tiny_trainings import LUNG_CONFIG as CONFIG
from tests.support.tiny_trainings import LUNGS as RECIPE
from training import lungs as training
from training.data.lung_batches import OPAQUE, UNKNOWN_LOBE, LungDataset, LungRecipe
from training.loop import read_log
from training.lungs import LungTraining


def begin(dataset: Path, recipe: LungRecipe = RECIPE, run: str = "run", start: Path | None = None) -> LungTraining:
    return LungTraining(dataset, dataset.with_name(run), recipe, ALONE, CONFIG, start)


def test_the_loss_falls_and_the_log_tells_both_stages(lung_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 10)
    begin(lung_dataset, replace(RECIPE, trunk_steps=40, detail_steps=10)).run()
    rows = read_log(lung_dataset.with_name("run") / "log.csv")
    assert [row["stage"] for row in rows] == ["trunk"] * 4 + ["detail"]
    assert float(rows[3]["loss"]) < 0.8 * float(rows[0]["loss"])
    assert float(rows[3]["lungs_dice"]) > 0.8


def test_a_step_of_several_volumes_has_the_mean_of_their_losses(lung_dataset: Path) -> None:
    run = begin(lung_dataset, replace(RECIPE, volumes_per_step=3))
    rng = np.random.default_rng([RECIPE.seed, 0, 0])
    samples = [training.draw_sample(run.dataset, RECIPE, CONFIG.stride, rng) for _ in range(3)]
    alone = [training.trunk_loss(run.network, sample, RECIPE)[0] for sample in samples]
    assert float(run.loss()[0].detach()) == pytest.approx(float(torch.stack(alone).mean().detach()), abs=1e-4)


def test_a_run_can_begin_with_the_mean_weights_of_another(lung_dataset: Path) -> None:
    earlier = begin(lung_dataset, run="earlier")
    earlier.run()
    run = begin(lung_dataset, start=earlier.plan.checkpoint)
    assert run.step == 0
    for weights in (run.network.state_dict(), run.averaged_weights()):
        torch.testing.assert_close(weights, earlier.averaged_weights())
    run.run()
    again = begin(lung_dataset, start=earlier.plan.checkpoint)
    assert again.step == run.step > 0


def test_the_detail_stage_leaves_the_trunk_alone(lung_dataset: Path) -> None:
    run = begin(lung_dataset)
    for _ in range(RECIPE.trunk_steps):
        run.take_step(run.loss()[0])
    before = {name: value.clone() for name, value in run.network.named_parameters()}
    run.run()
    changed = {name for name, value in run.network.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("detail.") for name in changed)


def test_the_command_trains_logs_and_exports_what_the_stage_loads(lung_dataset: Path) -> None:
    recipe = {**RECIPE.__dict__, "trunk_steps": 1, "detail_steps": 1}
    config = json.dumps({"widths": [4, 6, 8], "detail_width": 4})
    run = lung_dataset.with_name("run")
    training.main([str(lung_dataset), str(run), "--recipe", json.dumps(recipe), "--config", config, "--device", "cpu"])
    network = LungNetwork.load(load_weights("lungs", run), CPU)
    assert network.config == CONFIG
    assert network.probabilities(np.zeros((16, 8, 8), dtype=np.float32)).shape == (CLASSES, 16, 8, 8)
    (row,) = read_log(run / "log.csv")
    assert row["step"] == "2"
    assert 0 <= float(row["judged_lungs_dice"]) <= 1
    stored = load_weights("lungs", run).recipe
    assert stored["steps_done"] == 2
    assert 0 <= stored["background_offset"] <= 4


def test_patients_kept_aside_validate_or_test_and_never_train(lung_dataset: Path) -> None:
    dataset = LungDataset(lung_dataset, RECIPE)
    assert [path.stem for path in dataset.validation_paths()] == ["phantom-0000"]
    for name in ("phantom-0000", "case05-000"):
        (lung_dataset / f"{name}.npz").write_bytes(b"whoever reads this fails")
    for seed in range(30):
        dataset.draw(np.random.default_rng(seed))


def test_the_weights_of_the_best_validation_are_exported_and_each_stage_is_validated_anew(
    lung_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, seen = iter([0.9, 0.8, 0.7, 0.3, 0.5, 0.6, 0.4, 0.1]), {}

    def measure(network: training.Di2in, _paths: list[Path]) -> dict[str, float]:
        seen[len(seen) + 1] = {name: value.clone() for name, value in network.state_dict().items()}
        return {"score": next(scores)}

    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    monkeypatch.setattr(training, "measure", measure)
    run = begin(lung_dataset, replace(RECIPE, trunk_steps=4, detail_steps=4, validate_every=1))
    run.run()
    chosen, step = run.chosen()
    assert step == 6, "0.9 was the trunk's alone"
    assert all(torch.equal(value, seen[6][name]) for name, value in chosen.items())


def test_validation_measures_lobes_only_where_they_are_known(tmp_path: Path) -> None:
    labels = five_lobes()
    unknown = np.where(labels > 0, UNKNOWN_LOBE, 0).astype(np.uint8)
    opaque = labels.copy()
    opaque[14:18, 4:10, 20:26] |= OPAQUE
    for name, values in (("known", opaque), ("unknown", unknown)):
        np.savez(tmp_path / f"{name}.npz", image=labels, labels=values)

    class Swapped(training.Di2in):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            lobes = ((image[0, 0] + 1) * 127.5).round().long()
            return (
                torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 3, 4, 5])[lobes], CLASSES)
                .movedim(-1, 0)[None]
                .float()
            )

    known, unknown_ = (training.measure(Swapped(CONFIG), [tmp_path / f"{n}.npz"]) for n in ("known", "unknown"))
    assert known["judged_lungs_dice"] == unknown_["judged_lungs_dice"] == known["judged_opaque_recall"] == 1.0
    assert known["judged_lobes_dice"] == pytest.approx(0.6)
    assert np.isnan(unknown_["judged_lobes_dice"])
    assert np.isnan(unknown_["judged_opaque_recall"])
    assert unknown_["score"] == 1.0


def logits_of(labels: np.ndarray) -> torch.Tensor:
    return 20.0 * torch.nn.functional.one_hot(torch.from_numpy(labels).long(), CLASSES).movedim(-1, 0)[None].float()


def targets_of(labels: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), CLASSES + 1).movedim(-1, 0)[None].float()


def test_a_perfect_answer_costs_nothing_and_swapped_lobes_much() -> None:
    labels = five_lobes()
    weights = torch.ones(1, 1, *labels.shape)
    assert training.segmentation_loss(logits_of(labels), targets_of(labels), weights) < 0.01
    swapped = np.array([0, 2, 1, 3, 4, 5], dtype=np.uint8)[labels]
    assert training.segmentation_loss(logits_of(swapped), targets_of(labels), weights) > 1.0


def test_where_the_lobe_is_unknown_any_lobe_will_do() -> None:
    labels = five_lobes()
    weights = torch.ones(1, 1, *labels.shape)
    unknown = targets_of(np.where(labels > 0, UNKNOWN_LOBE, 0))
    swapped = np.array([0, 2, 1, 3, 4, 5], dtype=np.uint8)[labels]
    assert training.segmentation_loss(logits_of(swapped), unknown, weights) < 0.01
    assert training.segmentation_loss(logits_of(np.zeros_like(labels)), unknown, weights) > 1.0


def test_missing_opaque_lung_costs_more_than_missing_clear_lung() -> None:
    labels = five_lobes()
    missed = labels.copy()
    missed[14:18, 4:10, 20:26] = 0
    even = torch.ones(1, 1, *labels.shape)
    opaque = even.clone()
    opaque[0, 0, 14:18, 4:10, 20:26] = 4.0
    loss = training.segmentation_loss
    assert loss(logits_of(missed), targets_of(labels), opaque) > 2 * loss(logits_of(missed), targets_of(labels), even)


def test_dice_of_hard_labels_against_averaged_targets() -> None:
    labels = five_lobes()
    assert training.dice_scores(logits_of(labels), targets_of(labels)) == (1.0, 1.0)
    swapped = np.array([0, 2, 1, 3, 4, 5], dtype=np.uint8)[labels]
    assert training.dice_scores(logits_of(swapped), targets_of(labels)) == (1.0, pytest.approx(0.6))


def test_lungs_drawn_too_large_are_taken_back_by_the_background() -> None:
    """The network sees the true lungs, but draws a rim around them at a margin of one logit."""
    labels = five_lobes()
    ring = torch.nn.functional.max_pool3d(torch.from_numpy((labels > 0).astype(np.float32))[None, None], 3, 1, 1)[0, 0]
    margin = torch.where(torch.from_numpy(labels) > 0, 3.0, torch.where(ring > 0, 1.1, -3.0))

    class TooLarge(training.Di2in):
        def forward(self, image: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 (it knows the answer)
            logits = torch.zeros(1, CLASSES, *margin.shape)
            logits[0, 1:] = margin
            return logits

    offset = training.best_background_offset(TooLarge(CONFIG), [(torch.from_numpy(labels),) * 2])
    assert 1.1 <= offset < 3.0


def test_an_empty_dataset_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prepared volumes"):
        LungDataset(tmp_path, RECIPE)
