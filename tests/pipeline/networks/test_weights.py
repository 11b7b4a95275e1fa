"""What a training begins with."""

from pathlib import Path

import pytest
import torch

from pipeline.networks.weights import WeightsError, load_into, read_start, save_weights

CPU = torch.device("cpu")
TENSORS = {"weight": torch.arange(4.0)}


def test_a_training_begins_with_a_weights_file_or_a_checkpoint(tmp_path: Path) -> None:
    weights, checkpoint = tmp_path / "lungs.safetensors", tmp_path / "last.pt"
    save_weights(weights, version="1", config={}, recipe={}, tensors=TENSORS)
    torch.save({"smooth": TENSORS, "step": 3}, checkpoint)
    for path in (weights, checkpoint):
        assert torch.equal(read_start(path, "lungs", "smooth", CPU)["weight"], TENSORS["weight"])


def test_what_is_of_another_network_or_no_checkpoint_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "lesions.safetensors", version="1", config={}, recipe={}, tensors=TENSORS)
    torch.save({"averaged": TENSORS}, tmp_path / "best.pt")
    (tmp_path / "notes.pt").write_text("not weights")
    for name in ("lesions.safetensors", "best.pt", "notes.pt", "missing.pt", "missing/lungs.safetensors"):
        with pytest.raises(WeightsError):
            read_start(tmp_path / name, "lungs", "smooth", CPU)


def test_weights_of_a_network_built_otherwise_do_not_fit() -> None:
    with pytest.raises(WeightsError, match="'lungs' do not fit"):
        load_into(torch.nn.Linear(2, 2), TENSORS, "lungs")
