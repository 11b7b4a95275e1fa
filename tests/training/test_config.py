"""Recipes in JSON, and runs that keep to theirs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from training.config import RecipeError, keep_recipe, read_recipe
from training.data.landmark_batches import LandmarkRecipe
from training.data.lesion_batches import LesionRecipe
from training.data.lung_batches import LungRecipe


@pytest.mark.parametrize("kind", [LandmarkRecipe, LungRecipe, LesionRecipe])
def test_a_kept_recipe_reads_back_as_it_was(kind: type, tmp_path: Path) -> None:
    recipe = replace(kind(), seed=7)
    keep_recipe(tmp_path, recipe)
    assert read_recipe(kind, str(tmp_path / "recipe.json")) == recipe


def test_fields_can_be_given_inline_and_the_others_stay() -> None:
    recipe = read_recipe(LesionRecipe, '{"steps": 5, "crop": [16, 32, 32], "network": {"stem": 4}}')
    assert (recipe.steps, recipe.crop, recipe.network.stem) == (5, (16, 32, 32), 4)
    assert recipe.network.growth == LesionRecipe().network.growth


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"step": 5}', "has no step; it has"),
        ('{"network": {"depth": 5}}', "DenseUNetConfig has no depth"),
        ("{steps: 5}", "neither JSON nor a file"),
        ("nowhere.json", "neither JSON nor a file"),
    ],
)
def test_a_recipe_that_cannot_be_followed_says_why(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        read_recipe(LesionRecipe, text)


def test_a_list_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(RecipeError, match="one JSON object"):
        read_recipe(LesionRecipe, str(tmp_path / "list.json"))


def test_a_run_is_not_gone_on_with_by_another_recipe(tmp_path: Path) -> None:
    keep_recipe(tmp_path, LesionRecipe(steps=100))
    keep_recipe(tmp_path, LesionRecipe(steps=100))
    with pytest.raises(RecipeError, match="steps 100 instead of 200"):
        keep_recipe(tmp_path, LesionRecipe(steps=200))
    assert json.loads((tmp_path / "recipe.json").read_text())["steps"] == 100
