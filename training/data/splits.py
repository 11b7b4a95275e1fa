"""Who teaches and who judges: patients, never single scans, are kept aside. A bank says who in `splits.json`."""

import json
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

SPLIT_FILE: Final = "splits.json"


class Stage(StrEnum):
    """The network that a bank is for."""

    LANDMARKS = "landmarks"
    LUNGS = "lungs"
    LESIONS = "lesions"


@dataclass(frozen=True)
class Split:
    """Patients who do not teach.

    Attributes:
        validation: choose the model.
        validation_volumes: of their volumes, the ones that are looked at.
        test: are kept for evaluation alone.
    """

    validation: tuple[str, ...] = ()
    validation_volumes: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def teaches(self, path: Path) -> bool:
        """Whether a volume may be learned from."""
        return patient_of(path) not in self.validation + self.test

    def judges(self, bank: Path) -> list[Path]:
        """The volumes that choose the model, of those that the bank holds."""
        wanted = (bank / f"{name}.npz" for name in self.validation_volumes)
        return [path for path in wanted if path.exists()]


def read_split(bank: Path, stage: Stage) -> Split:
    """Who is kept aside in a bank; a bank of one's own cohort brings its split, the public data's is in the package."""
    own, ours = bank / SPLIT_FILE, files("training.data") / SPLIT_FILE
    stages = json.loads((own if own.exists() else ours).read_text(encoding="utf-8"))
    part: dict[str, Any] = stages.get(stage.value, {})
    return Split(**{name: tuple(part.get(name, ())) for name in ("validation", "validation_volumes", "test")})


def patient_of(path: Path) -> str:
    """The patient of a volume, by its file name.

    `case05` of `grown-case05-3.npz`, `real-case05-07.npz` and `case05-012.npz`: what was made from a scan belongs to
    its patient. `phantom-7` of `phantom-7-0.npz`, `covid-2` of `covid-2-1.npz`.
    """
    kind, *rest = path.stem.split("-")
    if kind in ("phantom", "covid"):
        return f"{kind}-{rest[0]}"
    return rest[0] if kind in ("grown", "clean", "cohort", "real", "case") else kind
