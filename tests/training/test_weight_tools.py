"""Two sets of weights of one network, blended."""

from pathlib import Path

import pytest
import torch

from pipeline.networks.weights import ModelInfo, WeightsError, load_weights, save_weights
from training.weight_tools import main


def saved(folder: Path, value: float, width: int = 3) -> ModelInfo:
    folder.mkdir()
    tensors = {"layer.weight": torch.full((width,), value), "layer.bias": torch.tensor([2 * value])}
    config, recipe = {"width": width}, {"steps": int(value)}
    return save_weights(
        folder / "lungs.safetensors", version=f"0.{value:.0f}.0", config=config, recipe=recipe, tensors=tensors
    )


def blended(folder: Path, share: float) -> None:
    first, second, out = (str(folder / name / "lungs.safetensors") for name in ("first", "second", "out"))
    (folder / "out").mkdir(exist_ok=True)
    main([first, second, out, "--share", str(share), "--version", "0.9.0"])


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 1.0), (0.25, 2.0), (0.5, 3.0), (1.0, 5.0)])
def test_each_weight_lies_between_those_of_both(share: float, wanted: float, tmp_path: Path) -> None:
    saved(tmp_path / "first", 1.0)
    saved(tmp_path / "second", 5.0)
    blended(tmp_path, share)
    found = load_weights("lungs", tmp_path / "out")
    assert found.tensors["layer.weight"].tolist() == [wanted] * 3
    assert found.tensors["layer.bias"].tolist() == [2 * wanted]


def test_the_weights_say_what_they_come_from(tmp_path: Path) -> None:
    first = saved(tmp_path / "first", 1.0)
    saved(tmp_path / "second", 5.0)
    blended(tmp_path, 0.25)
    found = load_weights("lungs", tmp_path / "out")
    assert found.info.version == "0.9.0"
    assert found.recipe == {
        "steps": 5,
        "blended_with": {"version": first.version, "sha256": first.sha256, "share": 0.75},
    }


def test_networks_that_are_built_otherwise_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "first", 1.0)
    saved(tmp_path / "second", 5.0, width=4)
    with pytest.raises(WeightsError, match="built alike"):
        blended(tmp_path, 0.5)
