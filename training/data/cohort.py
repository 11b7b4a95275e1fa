"""The scans of a cohort with their masks and landmarks, found by a manifest or by the names of its files.

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

#: A folder that has one is read by it, whatever its files are named.
MANIFEST: Final = "manifest.csv"
PARTS: Final = ("ct", "lungs", "lobes", "lesions")
ENDINGS: Final = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".zip")


class CohortError(ValueError):
    """A cohort, scan or mask that cannot be trained on; the sentence says which and what to do."""


@dataclass(frozen=True)
class Row:
    """One scan of a cohort; `number` counts the scans of a patient, `landmarks_mm` are LPS."""

    patient: str
    number: int
    ct: Path
    lungs: Path | None = None
    lobes: Path | None = None
    lesions: Path | None = None
    landmarks_mm: Mapping[Landmark, Triple] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The patient in letters and digits, as file names need it; different for any two patients."""
        plain = re.sub(r"[^A-Za-z0-9]", "", self.patient)
        # "a-1" and "a_1" are two patients, and a hyphen would end the patient's part of a prepared volume's name.
        return plain if plain == self.patient else f"{plain}{hashlib.sha256(self.patient.encode()).hexdigest()[:6]}"

    def has_labels_for(self, stage: Stage) -> bool:
        """Whether the masks or landmarks are named that a network is trained on."""
        has_lungs = bool(self.lungs or self.lobes)
        wanted = {Stage.LANDMARKS: self.landmarks_mm, Stage.LUNGS: has_lungs, Stage.LESIONS: has_lungs and self.lesions}
        return bool(wanted[stage])


def read_cohort(path: Path) -> list[Row]:
    """The scans of a manifest, or of a folder.

    A folder holds `manifest.csv`, or names its files by what they are: `NAME_ct.nii.gz`, `NAME_lungs.nii.gz` and so
    on, or the same in a folder each, `NAME/ct.nii.gz`. Every name is a patient. A CT may be a DICOM folder, too.

    Raises:
        CohortError: something is missing or there twice, or a scan has no labels to train on.
    """
    if not path.is_dir():
        return read_manifest(path)
    manifest = path / MANIFEST
    return read_manifest(manifest) if manifest.exists() else read_folder(path)


def read_folder(folder: Path) -> list[Row]:
    """The scans of a folder without a manifest; see `read_cohort`.

    Raises:
        CohortError: a CT or its lungs are missing, a part is there twice, or there is no scan at all.
    """

    def parts_of_scans() -> Iterator[tuple[str, str, Path]]:
        for path in folder.iterdir():
            name, _, part = _without_ending(path).rpartition("_")
            if name and part in PARTS:
                yield name, part, path
            elif path.is_dir():
                files = ((_without_ending(file), file) for file in path.iterdir())
                yield from ((path.name, part, file) for part, file in files if part in PARTS)

    found: dict[str, dict[str, Path]] = {}
    for name, part, path in sorted(parts_of_scans()):
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


def _without_ending(path: Path) -> str:
    """The name of a folder, scan or mask without its ending; empty for a file of another kind."""
    if path.is_dir():
        return path.name
    return next((path.name.removesuffix(ending) for ending in ENDINGS if path.name.endswith(ending)), "")


def read_manifest(path: Path) -> list[Row]:
    """The scans of a manifest.

    Raises:
        CohortError: a column or a file is missing, or a scan has no labels to train on.
    """

    def existing(line: int, name: str | None) -> Path | None:
        if not (name or "").strip():
            return None
        found = path.parent / str(name).strip()
        if not found.exists():
            raise CohortError(f"{path.name}, line {line}: there is no {found}")
        return found

    # Spreadsheet programs write a byte order mark, which would become part of the first column's name.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"patient", "ct"} - set(reader.fieldnames or [])
        if missing:
            raise CohortError(f"{path.name} lacks the column {' and '.join(sorted(missing))}")
        rows: list[Row] = []
        for line, values in enumerate(reader, start=2):
            masks = {name: existing(line, values.get(name)) for name in ("lungs", "lobes", "lesions")}
            ct, patient = existing(line, values["ct"]), (values["patient"] or "").strip()
            if ct is None or not patient:
                raise CohortError(f"{path.name}, line {line}: name a patient and a ct")
            landmarks_mm: dict[Landmark, Triple] = {}
            for mark in Landmark:
                texts = [(values.get(f"{mark.value}_{axis}_mm") or "").strip() for axis in "xyz"]
                if not any(texts):
                    continue
                try:
                    x, y, z = (float(text) for text in texts)
                except ValueError as error:
                    raise CohortError(f"{path.name}, line {line}: {mark.value} needs three numbers of mm") from error
                landmarks_mm[mark] = (x, y, z)
            number = sum(row.patient == patient for row in rows)
            row = Row(patient, number, ct, **masks, landmarks_mm=landmarks_mm)
            if not row.has_labels_for(Stage.LUNGS) and not row.has_labels_for(Stage.LANDMARKS):
                raise CohortError(f"{path.name}, line {line}: name lungs or lobes, or the place of a landmark")
            rows.append(row)
    if not rows:
        raise CohortError(f"{path.name} names no scan")
    return rows
