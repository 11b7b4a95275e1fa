"""Prepares a cohort of one's own for training, from a manifest that names its scans and masks.

The manifest is a CSV with the columns `patient`, `ct` and any of `lungs`, `lobes` and `lesions`; paths are relative to
it. Lobes are labelled as in reports: 1 left upper, 2 left lower, 3 right upper, 4 right middle, 5 right lower.
Where lesions are learned, a scan whose `lesions` are not named is left out; an empty mask says that there are none.
"""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, UInt8

from lobewise.pipeline.anatomy import LEFT_LOBES, RIGHT_LOBES
from lobewise.pipeline.lesions import SPACING_MM
from lobewise.pipeline.networks.di2in import LungConfig
from lobewise.pipeline.reading import read_ct
from lobewise.pipeline.training.lesion_bank import save_volume, to_8_bit
from lobewise.pipeline.training.lesion_crops import SPLIT_FILE
from lobewise.pipeline.training.lung_bank import crop_to_lungs, write_volume
from lobewise.pipeline.training.lungs import UNKNOWN_LOBE
from lobewise.pipeline.volume import Grid, Volume, resample, resample_labels

VALIDATION_SHARE: Final = 0.1
"""Of the patients, to choose the model (paper: 10 %)."""
DENSEST_LUNG_HU: Final = -250.0
"""Half of what is called lung must be emptier than that, or the mask lies elsewhere."""

Labels = UInt8[np.ndarray, "z y x"]


class CohortError(ValueError):
    """A manifest, scan or mask that cannot be learned from; the sentence says which and what to do."""


class Stage(StrEnum):
    """What the prepared volumes are for."""

    LUNGS = "lungs"
    LESIONS = "lesions"


@dataclass(frozen=True)
class Row:
    """One scan of the manifest; `number` counts the scans of a patient."""

    patient: str
    number: int
    ct: Path
    lungs: Path | None
    lobes: Path | None
    lesions: Path | None

    @property
    def slug(self) -> str:
        """The patient as file names may have it, and no two patients alike."""
        plain = re.sub(r"[^A-Za-z0-9]", "", self.patient)
        return plain if plain == self.patient else f"{plain}{hashlib.sha256(self.patient.encode()).hexdigest()[:6]}"


def read_manifest(path: Path) -> list[Row]:
    """The rows of a manifest.

    Raises:
        CohortError: a column or a file is missing, or a scan has neither lungs nor lobes.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"patient", "ct"} - set(reader.fieldnames or [])
        if missing:
            raise CohortError(f"{path.name} lacks the column {' and '.join(sorted(missing))}")
        rows: list[Row] = []
        for line, values in enumerate(reader, start=2):
            masks = {name: _existing(path, line, values.get(name)) for name in ("lungs", "lobes", "lesions")}
            ct, patient = _existing(path, line, values["ct"]), (values["patient"] or "").strip()
            if ct is None or not patient:
                raise CohortError(f"{path.name}, line {line}: name a patient and a ct")
            if masks["lungs"] is None and masks["lobes"] is None:
                raise CohortError(f"{path.name}, line {line}: name lungs or lobes")
            rows.append(Row(patient, sum(row.patient == patient for row in rows), ct, **masks))
    if not rows:
        raise CohortError(f"{path.name} names no scan")
    return rows


def prepare_cohort(
    rows: Sequence[Row], stage: Stage, bank: Path, processes: int = 1, progress: Callable[[float], None] | None = None
) -> list[Path]:
    """Write the prepared volumes, and who judges the lesion network, to `bank`; volumes that are there already stay.

    Raises:
        CohortError: a scan or mask cannot be learned from, or none is left. The volumes before it stay prepared.
    """
    rows = [row for row in rows if stage is Stage.LUNGS or row.lesions]
    if not rows:
        raise CohortError("no scan of the manifest has lesions")
    bank.mkdir(parents=True, exist_ok=True)
    if stage is Stage.LESIONS:
        (bank / SPLIT_FILE).write_text(json.dumps(split_of(rows), indent=2) + "\n", encoding="utf-8")
    written = []
    with ProcessPoolExecutor(processes) as pool:
        waiting = [pool.submit(prepare_scan, row, stage, bank) for row in rows]
        for done, future in enumerate(as_completed(waiting), start=1):
            try:
                written.append(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            if progress is not None:
                progress(done / len(rows))
    return sorted(written)


def prepare_scan(row: Row, stage: Stage, bank: Path) -> Path:
    """Bring one scan to the grid of the stage.

    Raises:
        CohortError: a mask does not fit its scan.
        PipelineError: a file cannot be read.
    """
    path = bank / file_name(row, stage)
    if path.exists():
        return path
    volume = read_ct(row.ct).volume
    lobes = _read_mask(row.lobes, volume)
    lungs = _read_mask(row.lungs, volume) if row.lungs else lobes
    if lobes is not None:
        _check_lobes(lobes, volume.grid, row)
    if lungs is None:
        raise CohortError(f"{row.ct.name}: name lungs or lobes")
    _check_lungs(lungs > 0, volume, row)
    if stage is Stage.LUNGS:
        labels = np.where(lungs > 0, UNKNOWN_LOBE, 0).astype(np.uint8) if lobes is None else lobes
        _write_for_lungs(path, volume, labels)
    else:
        lesions = _read_mask(row.lesions, volume)
        if lesions is None:
            raise CohortError(f"{row.ct.name}: name its lesions")
        _write_for_lesions(path, volume, lungs > 0, lesions)
    return path


def file_name(row: Row, stage: Stage) -> str:
    """Where a scan's volume lies: its first part is the kind that the recipes weight."""
    return f"{'case' if stage is Stage.LUNGS else 'cohort'}-{row.slug}-{row.number}.npz"


def split_of(rows: Sequence[Row]) -> dict[str, dict[str, list[str]]]:
    """A tenth of the patients, at least one of several, chosen by their names alone, to judge the training."""
    by_hash = sorted({row.slug for row in rows}, key=lambda slug: hashlib.sha256(slug.encode()).hexdigest())
    count = max(1, round(VALIDATION_SHARE * len(by_hash))) if len(by_hash) > 1 else 0
    aside = set(by_hash[:count])
    volumes = [file_name(row, Stage.LESIONS).removesuffix(".npz") for row in rows if row.slug in aside]
    return {"lesions": {"validation": sorted(aside), "validation_volumes": sorted(volumes), "test": []}}


def _existing(manifest: Path, line: int, name: str | None) -> Path | None:
    if not (name or "").strip():
        return None
    path = manifest.parent / str(name).strip()
    if not path.exists():
        raise CohortError(f"{manifest.name}, line {line}: there is no {path}")
    return path


def _read_mask(path: Path | None, volume: Volume) -> Labels | None:
    """A mask or labels on the grid of the scan; it may be stored on another."""
    if path is None:
        return None
    stored = read_ct(path).volume
    if stored.hu.min() < 0 or stored.hu.max() > 255:
        raise CohortError(f"{path.name} is no mask: it holds values from {stored.hu.min()} to {stored.hu.max()}")
    labels = stored.hu.astype(np.uint8)
    return labels if stored.grid == volume.grid else resample_labels(labels, stored.grid, volume.grid)


def _check_lungs(lungs: Bool[np.ndarray, "z y x"], volume: Volume, row: Row) -> None:
    if not lungs.any():
        raise CohortError(f"{row.ct.name}: its lung mask is empty there; do mask and scan belong together?")
    median_hu = float(np.median(volume.hu[lungs]))
    if median_hu > DENSEST_LUNG_HU:
        raise CohortError(f"{row.ct.name}: what is marked as lung has {median_hu:.0f} HU; is the mask flipped?")


def _check_lobes(lobes: Labels, grid: Grid, row: Row) -> None:
    """Left is where LPS has it, and no other labels are used."""
    if lobes.max() > max(RIGHT_LOBES):
        raise CohortError(f"{row.ct.name}: lobes are 1 to 5, not {lobes.max()}")
    left_mm, right_mm = (_middle_x_mm(np.isin(lobes, side), grid) for side in (LEFT_LOBES, RIGHT_LOBES))
    if left_mm is not None and right_mm is not None and left_mm < right_mm:
        raise CohortError(f"{row.ct.name}: its left lobes lie on the right; is the mask flipped?")


def _middle_x_mm(mask: Bool[np.ndarray, "z y x"], grid: Grid) -> float | None:
    where = np.argwhere(mask)
    return float(grid.to_lps(where.mean(axis=0)[None])[0, 0]) if len(where) else None


def _write_for_lungs(path: Path, volume: Volume, labels: Labels) -> None:
    config = LungConfig()
    box = volume.grid.covering((config.spacing_mm,) * 3)
    hu = resample(volume.hu, volume.grid, box)
    rng = np.random.default_rng(int(hashlib.sha256(path.name.encode()).hexdigest()[:8], 16))
    write_volume(path, *crop_to_lungs(hu, resample_labels(labels, volume.grid, box), rng), config)


def _write_for_lesions(path: Path, volume: Volume, lungs: Bool[np.ndarray, "z y x"], lesions: Labels) -> None:
    box = volume.grid.covering(SPACING_MM)
    image = to_8_bit(resample(volume.hu, volume.grid, box))
    on_box = (resample_labels(mask, volume.grid, box) > 0 for mask in (lungs, lesions > 0))
    save_volume(path, image, *on_box)
