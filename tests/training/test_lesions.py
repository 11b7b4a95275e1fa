"""The loss in closed form, the split, and a run that is stopped and goes on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.lesions import LesionNetwork
from pipeline.networks.dense_unet import DenseUNet, DenseUNetConfig
from pipeline.networks.weights import load_weights
from tests.support.tiny_trainings import ALONE
from tests.support.tiny_trainings import LESIONS as RECIPE
from training.data.lesion_batches import LesionRecipe, read_examples
from training.data.splits import Stage, read_split
from training.lesions import LesionTraining, export, jaccard_loss, with_level
from training.loop import read_log


def train(recipe: LesionRecipe, dataset: Path) -> Path:
    """The folder of a whole run."""
    LesionTraining(dataset, dataset.with_name("run"), recipe, ALONE).run()
    return dataset.with_name("run")


def test_jaccard_loss_is_one_minus_overlap_over_union_inside_the_lungs() -> None:
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0])
    guess = torch.tensor([1.0, 0.0, 1.0, 1.0])
    lungs = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert jaccard_loss(guess, truth, lungs, 0.0).item() == pytest.approx(1 - 1 / 3)
    assert jaccard_loss(truth, truth, lungs, 0.0).item() == pytest.approx(0.0)


def test_jaccard_loss_of_nothing_found_where_nothing_is_is_zero() -> None:
    nothing = torch.zeros(4)
    assert jaccard_loss(nothing, nothing, torch.ones(4), 1.0).item() == 0.0


def test_learning_rate_rises_shortly_and_falls_along_a_cosine_to_a_fiftieth(lesion_dataset: Path) -> None:
    recipe = replace(RECIPE, steps=100, learning_rate=1e-3, warmup_steps=10)
    training = LesionTraining(lesion_dataset, lesion_dataset.with_name("run"), recipe, ALONE)
    rates = {}
    for training.step in (0, 9, 50, 100):
        rates[training.step] = training.learning_rate()
    assert rates == {
        0: pytest.approx(1e-4),
        9: pytest.approx(0.98e-3, rel=0.01),
        50: pytest.approx(0.51e-3),
        100: pytest.approx(2e-5),
    }


def test_no_patient_both_trains_and_validates(lesion_dataset: Path) -> None:
    split = read_split(lesion_dataset, Stage.LESIONS)
    trained = {example.name for example in read_examples(lesion_dataset, split.is_training)}
    assert trained == {"covid-0-0", "grown-case01-0", "phantom-2-0"}
    assert [path.stem for path in split.validation_paths(lesion_dataset)] == [
        "covid-4-0",
        "grown-case04-1",
        "clean-case04-0",
    ]


def test_without_anybody_kept_for_validation_the_last_checkpoint_is_the_best(lesion_dataset: Path) -> None:
    (lesion_dataset / "splits.json").write_text('{"lesions": {"validation": [], "validation_volumes": [], "test": []}}')
    best = torch.load(train(RECIPE, lesion_dataset) / "best.pt", weights_only=True)
    assert best["step"] == RECIPE.steps


def test_exported_weights_load_and_know_their_recipe(lesion_dataset: Path, tmp_path: Path) -> None:
    run = train(RECIPE, lesion_dataset)
    info = export(run, RECIPE, tmp_path / "lesions.safetensors", "9.9.9")
    weights = load_weights("lesions", tmp_path)
    assert weights.info == info
    assert weights.recipe["crop"] == [16, 32, 32]
    LesionNetwork.load(weights, torch.device("cpu"))
    assert [row["step"] for row in read_log(run / "log.csv")] == ["2", "4"]


def test_learns_to_find_bright_balls(lesion_dataset: Path) -> None:
    network = DenseUNetConfig(stem=8, growth=8, layers=2, widths=(8, 8, 8, 8, 8))
    recipe = replace(RECIPE, steps=80, validate_every=80, learning_rate=4e-3, warmup_steps=5, average=0.5)
    recipe = replace(recipe, network=network, kinds={"covid": 1.0}, smoothing=1.0)
    best = torch.load(train(recipe, lesion_dataset) / "best.pt", weights_only=True)
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
