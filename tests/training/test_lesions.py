"""The loss in closed form, the split, and a run that is stopped and goes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.lesions import LesionNetwork
from pipeline.networks.dense_unet import DenseUNet, DenseUNetConfig
from pipeline.networks.weights import load_weights
from training import lesions as training
from training.data.lesion_batches import LesionRecipe, read_examples
from training.data.splits import Stage, read_split
from training.lesions import export, jaccard_loss, learning_rate_at, train, with_level
from training.loop import ProcessGroup, read_log

ALONE = ProcessGroup(torch.device("cpu"))
RECIPE = LesionRecipe(
    steps=4,
    crop=(16, 32, 32),
    validate_every=2,
    bfloat16=False,
    network=DenseUNetConfig(stem=4, growth=4, layers=1, widths=(4, 4, 4, 4, 4)),
)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Bright balls in dark lungs, for every kind and for the patients kept aside."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = ["covid-0-0", "covid-4-0", "covid-2-0", "grown-case01-0", "grown-case04-1", "clean-case04-0", "phantom-2-0"]
    for name in names:
        lungs = np.zeros((16, 48, 48), dtype=np.bool_)
        lungs[2:14, 4:44, 4:44] = True
        lesions = np.zeros_like(lungs)
        if not name.startswith("clean"):
            lesions[4:12, 10:30, 10:30] = True
        image = (60 + 90 * lesions + rng.integers(0, 20, lungs.shape)).astype(np.uint8)
        np.savez(folder / f"{name}.npz", image=image, lungs=lungs, lesions=lesions)
    return folder


def test_jaccard_loss_is_one_minus_overlap_over_union_inside_the_lungs() -> None:
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0])
    guess = torch.tensor([1.0, 0.0, 1.0, 1.0])
    lungs = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert jaccard_loss(guess, truth, lungs, 0.0).item() == pytest.approx(1 - 1 / 3)
    assert jaccard_loss(truth, truth, lungs, 0.0).item() == pytest.approx(0.0)


def test_jaccard_loss_of_nothing_found_where_nothing_is_is_zero() -> None:
    nothing = torch.zeros(4)
    assert jaccard_loss(nothing, nothing, torch.ones(4), 1.0).item() == 0.0


def test_learning_rate_rises_shortly_and_falls_along_a_cosine_to_a_fiftieth() -> None:
    recipe = LesionRecipe(steps=100, learning_rate=1e-3, warmup_steps=10)
    assert learning_rate_at(0, recipe) == pytest.approx(1e-4)
    assert learning_rate_at(9, recipe) == pytest.approx(0.98e-3, rel=0.01)
    assert learning_rate_at(50, recipe) == pytest.approx(0.51e-3)
    assert learning_rate_at(100, recipe) == pytest.approx(2e-5)


def test_no_patient_both_trains_and_validates(dataset: Path) -> None:
    split = read_split(dataset, Stage.LESIONS)
    trained = {example.name for example in read_examples(dataset, split.is_training)}
    assert trained == {"covid-0-0", "grown-case01-0", "phantom-2-0"}
    assert [path.stem for path in split.validation_paths(dataset)] == ["covid-4-0", "grown-case04-1", "clean-case04-0"]


def test_an_ended_run_goes_on_to_the_same_weights(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.load(train(RECIPE, dataset, tmp_path / "whole", ALONE).with_name("last.pt"), weights_only=True)

    class EndedError(Exception):
        pass

    measure = training.measure

    def end_after_first(*arguments: object) -> dict[str, float]:
        if (tmp_path / "ended" / "last.pt").exists():
            raise EndedError
        return measure(*arguments)

    monkeypatch.setattr(training, "measure", end_after_first)
    with pytest.raises(EndedError):
        train(RECIPE, dataset, tmp_path / "ended", ALONE)
    monkeypatch.setattr(training, "measure", measure)
    train(RECIPE, dataset, tmp_path / "ended", ALONE)
    resumed = torch.load(tmp_path / "ended" / "last.pt", weights_only=True)
    assert resumed["step"] == whole["step"] == 4
    for part in ("network", "averaged"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, resumed[part][name]), name
    assert [row["step"] for row in read_log(tmp_path / "ended" / "log.csv")] == ["2", "4"]


def test_without_anybody_kept_for_validation_the_last_checkpoint_is_the_best(dataset: Path, tmp_path: Path) -> None:
    (dataset / "splits.json").write_text('{"lesions": {"validation": [], "validation_volumes": [], "test": []}}')
    best = torch.load(train(RECIPE, dataset, tmp_path / "run", ALONE), weights_only=True)
    assert best["step"] == RECIPE.steps


def test_exported_weights_load_and_know_their_recipe(dataset: Path, tmp_path: Path) -> None:
    run = train(RECIPE, dataset, tmp_path / "run", ALONE).parent
    info = export(run, RECIPE, tmp_path / "lesions.safetensors", "9.9.9")
    weights = load_weights("lesions", tmp_path)
    assert weights.info == info
    assert weights.recipe["crop"] == [16, 32, 32]
    LesionNetwork.load(weights, torch.device("cpu"))
    assert [row["step"] for row in read_log(run / "log.csv")] == ["2", "4"]


def test_learns_to_find_bright_balls(dataset: Path, tmp_path: Path) -> None:
    network = DenseUNetConfig(stem=8, growth=8, layers=2, widths=(8, 8, 8, 8, 8))
    recipe = replace(RECIPE, steps=80, validate_every=80, learning_rate=4e-3, warmup_steps=5, average=0.5)
    recipe = replace(recipe, network=network, kinds={"covid": 1.0}, smoothing=1.0)
    best = torch.load(train(recipe, dataset, tmp_path / "run", ALONE), weights_only=True)
    assert best["covid_dice"] > 0.8


def test_weights_from_before_the_level_was_an_input_answer_as_they_did() -> None:
    torch.manual_seed(0)
    network = DenseUNet(RECIPE.network).eval()
    tensors = network.state_dict()
    older = {**tensors, "stem.0.weight": tensors["stem.0.weight"][:, :2]}
    network.load_state_dict(with_level(older))
    image, lungs = torch.rand(1, 1, 8, 32, 32), torch.ones(1, 1, 8, 32, 32)
    with torch.inference_mode():
        answers = [network(torch.cat((image, lungs, level * lungs), dim=1)) for level in (0.0, 0.7)]
    assert torch.allclose(*answers, atol=1e-5)


def test_weights_with_all_inputs_are_taken_as_they_are() -> None:
    tensors = DenseUNet(RECIPE.network).state_dict()
    assert with_level(tensors) is tensors
