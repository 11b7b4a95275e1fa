"""True and predicted masks of cases with their CTs, as files that a manifest lists: read, scored and compared."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int16
from pydantic import BaseModel

from evaluation.errors import ImageError, MismatchedGridError
from evaluation.overlap import Mask, dice, surface_distances
from evaluation.scores import CaseScores, PairedScores, match, read_table, scores_of
from pipeline.anatomy import Lobe
from pipeline.errors import PipelineError
from pipeline.geometry import Grid, LesionMask, LobeLabels, LungMask, Scan, Volume
from pipeline.io.read import read_ct, read_volume
from pipeline.severity import high_opacity_of, score_severity

NEEDED_COLUMNS: Final = ("case", "ct", "true_lobes", "true_lesions", "predicted_lobes", "predicted_lesions")
OPTIONAL_COLUMNS: Final = ("group", "true_lungs", "predicted_lungs")

#: How far the corners of the grids of a mask and its CT may lie apart: NIfTI and NRRD headers round differently.
GRID_TOLERANCE_MM: Final = 0.05
#: What is compared, in the order of the report.
STRUCTURES: Final = ("lungs", *(lobe.slug for lobe in Lobe), "lesions", "high_opacity")


class ManifestRow(BaseModel):
    """Files of one case; relative paths are from the manifest's folder. Without lungs, they are the lobes together."""

    case: str
    group: str | None = None
    ct: Path
    true_lungs: Path | None = None
    true_lobes: Path
    true_lesions: Path
    predicted_lungs: Path | None = None
    predicted_lobes: Path
    predicted_lesions: Path


@dataclass(frozen=True, eq=False)
class Masks:
    """One side of a case, on the grid of its CT."""

    lungs: LungMask
    lobes: LobeLabels
    lesions: LesionMask

    def structures(self, volume: Volume) -> Mapping[str, Mask]:
        """The mask of each of `STRUCTURES`."""
        # Lesions count within the lungs alone, as they do in the scores.
        lesions = self.lesions.mask & self.lungs.mask
        lobes = {lobe.slug: self.lobes.of(lobe) & self.lungs.mask for lobe in Lobe}
        return {"lungs": self.lungs.mask, **lobes, "lesions": lesions, "high_opacity": high_opacity_of(volume, lesions)}

    def scores(self, case: str, volume: Volume, group: str | None) -> CaseScores:
        return scores_of(case, score_severity(volume, self.lungs, self.lobes, self.lesions), group)


@dataclass(frozen=True, eq=False)
class MaskedCase:
    """A case with everything in memory."""

    case: str
    group: str | None
    volume: Volume
    truth: Masks
    predicted: Masks


@dataclass(frozen=True)
class Overlap:
    """How well a structure of a case was found.

    Attributes:
        dice: None where neither side has the structure, 0 where one side lacks it.
        hausdorff_95_mm: None where a side lacks it.
        mean_surface_mm: None where a side lacks it.
    """

    case: str
    structure: str
    is_true: bool
    is_predicted: bool
    dice: float | None
    hausdorff_95_mm: float | None
    mean_surface_mm: float | None


@dataclass(frozen=True)
class Compared:
    """All cases of a manifest: their scores, their overlaps, and where to find their masks again."""

    scores: PairedScores
    overlaps: tuple[Overlap, ...]
    load: Callable[[str], MaskedCase]


@dataclass(frozen=True)
class Manifest:
    """The cases of a manifest by name, in its order."""

    folder: Path
    rows: Mapping[str, ManifestRow]
    unused_columns: tuple[str, ...]

    def load(self, case: str) -> MaskedCase:
        """Read the files of a case.

        Raises:
            ImageError: one of them is missing, unreadable, not a mask, or not on the grid of the CT.
        """
        row = self.rows[case]
        volume = _read(case, self.folder / row.ct, read_ct)
        truth = self._masks(volume.grid, case, row.true_lungs, row.true_lobes, row.true_lesions)
        # Predicted lungs may be empty, which is a result; true ones cannot.
        if not truth.lungs.mask.any():
            raise ImageError(f"Case {case!r}: the true lungs are empty. Nothing can be a percentage of them.")
        predicted = self._masks(volume.grid, case, row.predicted_lungs, row.predicted_lobes, row.predicted_lesions)
        return MaskedCase(case, row.group, volume, truth, predicted)

    def _masks(self, grid: Grid, case: str, lungs: Path | None, lobes: Path, lesions: Path) -> Masks:
        labels = LobeLabels(_read_labels(case, self.folder / lobes, grid, highest=len(Lobe)).astype(np.uint8), grid)
        whole = LungMask(_read_labels(case, self.folder / lungs, grid) > 0, grid) if lungs else labels.lungs()
        return Masks(whole, labels, LesionMask(_read_labels(case, self.folder / lesions, grid) > 0, grid))


def read_manifest(path: Path) -> Manifest:
    """Read the list; the images are read case by case.

    Raises:
        TableError: it is no such list; the text says where.
    """
    table = read_table(path)
    table.require_cases(NEEDED_COLUMNS)
    rows = [row.parse(ManifestRow) for row in table.rows]
    table.require_groups()
    unused = tuple(c for c in table.columns if c not in (*NEEDED_COLUMNS, *OPTIONAL_COLUMNS))
    return Manifest(path.parent, {row.case: row for row in rows}, unused)


def compare_all(manifest: Manifest, progress: Callable[[str, float], None]) -> Compared:
    """Score and compare every case, one at a time in memory: a CT and its masks take hundreds of megabytes.

    Args:
        progress: called before each case with its name and the share of cases that are done.

    Raises:
        ImageError: as `Manifest.load`.
    """
    truth: list[CaseScores] = []
    predicted: list[CaseScores] = []
    overlaps: list[Overlap] = []
    for number, name in enumerate(manifest.rows):
        progress(name, number / len(manifest.rows))
        case = manifest.load(name)
        truth.append(case.truth.scores(name, case.volume, case.group))
        predicted.append(case.predicted.scores(name, case.volume, case.group))
        overlaps += compare(case)
    return Compared(match(truth, predicted, manifest.unused_columns), tuple(overlaps), manifest.load)


def compare(case: MaskedCase) -> Iterator[Overlap]:
    """The overlap of each of `STRUCTURES`."""
    truth, predicted = case.truth.structures(case.volume), case.predicted.structures(case.volume)
    for structure in STRUCTURES:
        true, found = truth[structure], predicted[structure]
        is_true, is_predicted = bool(true.any()), bool(found.any())
        if is_true and is_predicted:
            far = surface_distances(true, found, case.volume.grid)
            agreement, distances = dice(true, found), (far.hausdorff_95_mm, far.mean_mm)
            yield Overlap(case.case, structure, True, True, agreement, *distances)
        else:
            agreement_of_one = 0.0 if is_true or is_predicted else None
            yield Overlap(case.case, structure, is_true, is_predicted, agreement_of_one, None, None)


def _read(case: str, path: Path, read: Callable[[Path], Scan]) -> Volume:
    try:
        scan = read(path)
    except FileNotFoundError as error:
        raise ImageError(f"Case {case!r}: there is no file {path}. Paths are from the manifest's folder.") from error
    except PipelineError as error:
        raise ImageError(f"Case {case!r}: {path.name}: {error.detail}") from error
    # A scan with such voxels is scored, with a finding; in a mask or an evaluation they would pass for background.
    if any(finding.code == "not-finite-voxels" for finding in scan.findings):
        raise ImageError(f"Case {case!r}: {path.name} holds voxels that are no numbers (NaN). Replace them.")
    return scan.volume


def _read_labels(case: str, path: Path, grid: Grid, highest: int | None = None) -> Int16[np.ndarray, "z y x"]:
    found = _read(case, path, read_volume)
    # The origin and the far end of each axis: grids that agree there agree everywhere.
    corners = np.array([[0, 0, 0], *np.diag(grid.shape)], dtype=np.float64)
    apart_mm = np.abs(found.grid.to_lps(corners) - grid.to_lps(corners)).max()
    if found.grid.shape != grid.shape or apart_mm > GRID_TOLERANCE_MM:
        raise MismatchedGridError(
            f"Case {case!r}: {path.name} does not lie on the grid of its CT: {_described(found.grid)}, the CT has "
            f"{_described(grid)}. Resample the mask to the CT (nearest neighbour)."
        )
    low, high = int(found.hu.min()), int(found.hu.max())
    if low < 0 or (highest is not None and high > highest):
        wanted = f"0 to {highest} (docs/evaluation.md lists them)" if highest else "0 outside and above 0 inside"
        raise ImageError(f"Case {case!r}: {path.name} holds values {low} to {high}; a mask holds {wanted}.")
    return found.hu


def _described(grid: Grid) -> str:
    size = " x ".join(str(n) for n in grid.shape[::-1])
    spacing = " x ".join(f"{mm:.4g}" for mm in grid.spacing_mm[::-1])
    origin = ", ".join(f"{mm:.1f}" for mm in grid.origin_mm)
    return f"{size} voxels of {spacing} mm from ({origin})"
