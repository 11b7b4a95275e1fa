"""What a cohort of one's own holds: scans with their masks and marks, by a manifest or by the names of its files.

A manifest is a CSV with the columns `patient`, `ct` and any of `lungs`, `lobes` and `lesions`; its paths are relative.
Landmarks are columns too: `carina_x_mm`, `carina_y_mm`, `carina_z_mm` and `sternum_tip_x_mm` and so on, LPS.
"""

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.anatomy import Landmark
from pipeline.geometry import Triple
from training.data.splits import Stage

MANIFEST: Final = "manifest.csv"
"""Read where a folder holds one."""
PARTS: Final = ("ct", "lungs", "lobes", "lesions")
ENDINGS: Final = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".zip")


class CohortError(ValueError):
    """A dataset, scan or mask that cannot be learned from; the sentence says which and what to do."""


@dataclass(frozen=True)
class Row:
    """One scan of a dataset; `number` counts the scans of a patient."""

    patient: str
    number: int
    ct: Path
    lungs: Path | None = None
    lobes: Path | None = None
    lesions: Path | None = None
    landmarks_mm: Mapping[Landmark, Triple] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The patient as file names may have it, and no two patients alike."""
        plain = re.sub(r"[^A-Za-z0-9]", "", self.patient)
        return plain if plain == self.patient else f"{plain}{hashlib.sha256(self.patient.encode()).hexdigest()[:6]}"

    def teaches(self, stage: Stage) -> bool:
        """Whether it has what the stage learns from."""
        has_lungs = bool(self.lungs or self.lobes)
        wanted = {Stage.LANDMARKS: self.landmarks_mm, Stage.LUNGS: has_lungs, Stage.LESIONS: has_lungs and self.lesions}
        return bool(wanted[stage])


def read_dataset(path: Path) -> list[Row]:
    """The scans of a manifest, or of a folder.

    A folder holds `manifest.csv`, or names its files by what they are: `NAME_ct.nii.gz`, `NAME_lungs.nii.gz` and so
    on, or the same in a folder each, `NAME/ct.nii.gz`. Every name is a patient. A CT may be a DICOM folder, too.

    Raises:
        CohortError: something is missing, twice there, or nothing to learn from.
    """
    if not path.is_dir():
        return read_manifest(path)
    manifest = path / MANIFEST
    return read_manifest(manifest) if manifest.exists() else read_folder(path)


def read_folder(folder: Path) -> list[Row]:
    """The scans of a folder without a manifest; see `read_dataset`.

    Raises:
        CohortError: a CT or its lungs are missing, a part is there twice, or there is no scan at all.
    """
    found: dict[str, dict[str, Path]] = {}
    for name, part, path in sorted(_parts_of(folder)):
        parts = found.setdefault(name, {})
        if part in parts:
            raise CohortError(f"{name}: both {parts[part].name} and {path.name}; leave one")
        parts[part] = path
    if not found:
        raise CohortError(f"{folder} holds neither {MANIFEST} nor files like NAME_ct.nii.gz or NAME/ct.nii.gz")
    for name, parts in found.items():
        if "ct" not in parts:
            raise CohortError(f"{name}: no ct beside its {' and '.join(parts)}")
        if not {"lungs", "lobes"} & set(parts):
            raise CohortError(f"{name}: no lungs or lobes beside its ct; landmarks need a {MANIFEST}")
    return [
        Row(name, 0, parts["ct"], parts.get("lungs"), parts.get("lobes"), parts.get("lesions"))
        for name, parts in found.items()
    ]


def _parts_of(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Of every file that is named so: the scan, the part of it, where it lies."""
    for path in folder.iterdir():
        name, _, part = _without_ending(path).rpartition("_")
        if name and part in PARTS:
            yield name, part, path
        elif path.is_dir():
            files = ((_without_ending(file), file) for file in path.iterdir())
            yield from ((path.name, part, file) for part, file in files if part in PARTS)


def _without_ending(path: Path) -> str:
    """The name of a scan or mask as such; of a file of another kind none."""
    if path.is_dir():
        return path.name
    return next((path.name.removesuffix(ending) for ending in ENDINGS if path.name.endswith(ending)), "")


def read_manifest(path: Path) -> list[Row]:
    """The rows of a manifest.

    Raises:
        CohortError: a column or a file is missing, or a scan has nothing to learn from.
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
            number = sum(row.patient == patient for row in rows)
            row = Row(patient, number, ct, **masks, landmarks_mm=_landmarks(path, line, values))
            if not row.teaches(Stage.LUNGS) and not row.teaches(Stage.LANDMARKS):
                raise CohortError(f"{path.name}, line {line}: name lungs or lobes, or the place of a landmark")
            rows.append(row)
    if not rows:
        raise CohortError(f"{path.name} names no scan")
    return rows


def _existing(manifest: Path, line: int, name: str | None) -> Path | None:
    if not (name or "").strip():
        return None
    path = manifest.parent / str(name).strip()
    if not path.exists():
        raise CohortError(f"{manifest.name}, line {line}: there is no {path}")
    return path


def _landmarks(manifest: Path, line: int, values: Mapping[str, str]) -> dict[Landmark, Triple]:
    """The landmarks whose three columns are filled."""
    found: dict[Landmark, Triple] = {}
    for mark in Landmark:
        texts = [(values.get(f"{mark.value}_{axis}_mm") or "").strip() for axis in "xyz"]
        if not any(texts):
            continue
        try:
            x, y, z = (float(text) for text in texts)
        except ValueError as error:
            raise CohortError(f"{manifest.name}, line {line}: {mark.value} needs three numbers of mm") from error
        found[mark] = (x, y, z)
    return found
