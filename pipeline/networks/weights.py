"""Weights on disk: safetensors with their configuration inside, known by their sha256.

A weights file is `<name>.safetensors`; its header holds `name`, `version`, and `config` and `recipe` as JSON. Nothing
in it is executed on loading. A model card `<name>.md` lies beside it.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file

MODEL_NAMES: Final = ("landmarks", "lungs", "lesions")


class WeightsError(Exception):
    """The weights are missing or are not what they claim to be: a fault of the installation, not of the scan."""


@dataclass(frozen=True)
class ModelInfo:
    """What a report says about a network: enough to find the very weights again."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Weights:
    """A weights file, read whole.

    Attributes:
        config: builds the network (the fields of its config dataclass) and its preparation.
        recipe: how it was trained, for provenance.
        tensors: the state dict, on the CPU.
    """

    info: ModelInfo
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def shipped_weights_dir() -> Path:
    """The folder of the weights that come with the package."""
    return Path(str(files("pipeline.networks") / "weights"))


def load_weights(name: str, folder: Path | None = None) -> Weights:
    """Read `<folder>/<name>.safetensors`; the shipped folder by default.

    Raises:
        WeightsError: there is no such file, or it holds another network.
    """
    path = (folder or shipped_weights_dir()) / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(f"no weights for {name!r} in {path.parent}: train them or install the full package")
    with safe_open(path, framework="pt", device="cpu") as file:
        header = file.metadata() or {}
        if header.get("name") != name:
            raise WeightsError(f"{path.name} holds weights of {header.get('name')!r}, not of {name!r}")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    info = ModelInfo(name, header["version"], sha256_of(path))
    return Weights(info, json.loads(header["config"]), json.loads(header["recipe"]), tensors)


def read_start(path: Path, name: str, kept: str, device: torch.device) -> Mapping[str, torch.Tensor]:
    """The weights that a training begins with: a weights file `<name>.safetensors`, or a checkpoint of another run.

    Args:
        kept: under which key a checkpoint has the mean weights.

    Raises:
        WeightsError: there is no such file, or it holds something else.
    """
    if path.suffix == ".safetensors":
        if path.stem != name:
            raise WeightsError(f"{path.name}: a training of {name} begins with {name}.safetensors or a checkpoint")
        return {key: value.to(device) for key, value in load_weights(name, path.parent).tensors.items()}
    try:
        found: Mapping[str, torch.Tensor] = torch.load(path, weights_only=True, map_location=device)[kept]
    except (FileNotFoundError, KeyError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} is no checkpoint of a training of {name}") from error
    return found


def load_into(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Give the network called `name` its weights. Raises WeightsError where they are of a network built otherwise."""
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise WeightsError(f"the weights of {name!r} do not fit their configuration") from error


def save_weights(
    path: Path,
    *,
    version: str,
    config: Mapping[str, Any],
    recipe: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> ModelInfo:
    """Write `path` (`<name>.safetensors`), whole or not at all, and return what it became."""
    header = {
        "name": path.stem,
        "version": version,
        "config": json.dumps(config, sort_keys=True),
        "recipe": json.dumps(recipe, sort_keys=True),
    }
    partial = path.with_suffix(".partial")
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial, header)
    partial.replace(path)
    return ModelInfo(path.stem, version, sha256_of(path))


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
