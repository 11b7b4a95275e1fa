"""The prepared volumes of a dataset: how one is written, whose it is, and which patients train, validate and test.

Patients are kept aside, never single scans. A dataset of one's own says which in its `splits.json`.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Shaped

SPLIT_FILE: Final = "splits.json"
#: Trainings draw their phantoms from seeds below 10 000, validations from here on.
FIRST_UNSEEN_SEED: Final = 1_000_000


class Stage(StrEnum):
    """The network that a dataset is for."""

    LANDMARKS = "landmarks"
    LUNGS = "lungs"
    LESIONS = "lesions"


@dataclass(frozen=True)
class Split:
    """Patients who are kept aside from training.

    Attributes:
        validation: patients on whom the checkpoint is chosen.
        validation_volumes: names of those of their volumes that are measured.
        test: patients for evaluation alone.
    """

    validation: tuple[str, ...] = ()
    validation_volumes: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def is_training(self, path: Path) -> bool:
        """Whether the network may learn from a volume."""
        return patient_of(path) not in self.validation + self.test

    def validation_paths(self, dataset: Path) -> list[Path]:
        """Those of the validation volumes that the dataset has."""
        # Part of a dataset may have been carried to another machine, so that some are missing.
        wanted = (dataset / f"{name}.npz" for name in self.validation_volumes)
        return [path for path in wanted if path.exists()]


def read_split(dataset: Path, stage: Stage) -> Split:
    """The split of a dataset: its own `splits.json`, or without one that of the public data, in the package."""
    own, public = dataset / SPLIT_FILE, files("training.data") / SPLIT_FILE
    stages = json.loads((own if own.exists() else public).read_text(encoding="utf-8"))
    part: dict[str, Any] = stages.get(stage.value, {})
    return Split(**{name: tuple(part.get(name, ())) for name in ("validation", "validation_volumes", "test")})


def patient_of(path: Path) -> str:
    """The patient of a volume, by its file name: whatever was made from a scan belongs to its patient.

    `case05` of `grown-case05-3.npz`, `real-case05-07.npz` and `case05-012.npz`; `phantom-7` of `phantom-7-0.npz`;
    `covid-2` of `covid-2-1.npz`.
    """
    kind, *rest = path.stem.split("-")
    if kind in ("phantom", "covid"):
        return f"{kind}-{rest[0]}"
    return rest[0] if kind in ("grown", "clean", "cohort", "real", "case") else kind


def write_arrays(path: Path, arrays: dict[str, Shaped[np.ndarray, "..."]], *, compressed: bool = True) -> None:
    """Write a prepared volume, whole or not at all."""
    # What exists is never prepared again: a file that a kill cut short would stay so for good.
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        save = np.savez_compressed if compressed else np.savez
        save(file, **arrays)  # type: ignore[arg-type]  # numpy's stub mixes in allow_pickle
    partial.replace(path)
