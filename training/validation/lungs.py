"""Measures the lung stage by itself: `python -m training.validation.lungs --phantoms 10 --data FOLDER`.

Phantoms are of seeds that no training sees; with the folder of public scans also the case of the Lung CT Segmentation
Challenge that is left out of all training, as it is and with consolidation pasted into its lungs, and two scans
without truth, whose lobes must have plausible volumes. Nobody marked lobes in that case: those found are compared with
the lobes that the shape model of the fissures draws into its true lungs, as it does into the training lungs. It is
the same model that draws the borders found, so that only the fissures marked by eye are a truth; training cases
show how far those are, too. Beside each figure of the network stands that of a plain threshold. Landmarks are the
true ones, so that this stage is measured by itself. `--as-drawn` leaves the borders as the network draws them.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import cc3d
import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from evaluation.overlap import dice, recall, surface_distances
from pipeline.anatomy import Landmark, Lobe
from pipeline.geometry import Grid, LandmarkPosition, LobeLabels, Triple, Volume
from pipeline.io.read import read_ct
from pipeline.lungs.fissure_model import SeenSd, read_shapes
from pipeline.lungs.fissure_refinement import follow_fissures
from pipeline.lungs.segment import Borders, segment_lungs
from pipeline.networks.device import choose_device
from pipeline.networks.di2in import LungNetwork
from pipeline.networks.weights import load_weights
from pipeline.phantom import PhantomRecipe, make_phantom
from training.data.covid_slices import PIXEL_MM, SLICE_MM, as_hu, read_covid
from training.data.fissure_atlas import draw_lobes
from training.data.landmark_dataset import read_marks, real_path
from training.data.lung_batches import OPAQUE, OPAQUE_HU
from training.data.lung_dataset import read_lctsc, with_pasted_lesions
from training.data.splits import FIRST_UNSEEN_SEED
from training.validation.fissures import Marks, draw_marks, fissure_distances_mm, read_fissure_marks

#: The one real chest with lungs drawn by hand that no training has seen.
HELD_OUT_CASE: Final = "case05"
#: Training cases that have marks: no measure of the network, but one of where its borders lie.
TRAINING_CASES: Final = ("case01", "case02", "case03")
HELD_OUT_COVID: Final = (2, 4)
SCANS: Final = ("lidc-1011", "lung-dx-a0001")
PASTED_COPIES: Final = 3
THRESHOLD_HU: Final = -400
#: Closes vessels, which the threshold leaves out of the lung.
CLOSING_MM: Final = 8.0
Mask = Bool[np.ndarray, "z y x"]
Labels = UInt8[np.ndarray, "z y x"]
Row = dict[str, object]


@dataclass(frozen=True, eq=False)
class Case:
    """A scan with what is known about it.

    Attributes:
        lungs: the true mask, if there is one.
        lobes: the true labels, or the fissure atlas's, if there are any.
        opaque: lung filled with opacity, if known.
        fissures: marks on them, if there are any.
    """

    name: str
    volume: Volume
    landmarks_mm: Mapping[Landmark, Triple]
    lungs: Mask | None = None
    lobes: UInt8[np.ndarray, "z y x"] | None = None
    opaque: Mask | None = None
    fissures: Marks = field(default_factory=dict)


def as_drawn(_volume: Volume, _roi: Grid, labels: Labels) -> tuple[Labels, SeenSd]:
    """Borders as the network has them."""
    return labels, {}


def lobes_by(case: Case, network: LungNetwork, borders: Borders) -> LobeLabels:
    """The lobes of a scan, true landmarks given."""
    landmarks = {mark: LandmarkPosition(mark, position, 1.0) for mark, position in case.landmarks_mm.items()}
    return segment_lungs(case.volume, landmarks, network, borders=borders)


def evaluate(case: Case, network: LungNetwork, borders: Borders = follow_fissures, pictures: Path | None = None) -> Row:
    """The figures of one scan.

    Args:
        pictures: a folder for those that show marks and borders together.
    """
    found = lobes_by(case, network, borders)
    row: Row = {"case": case.name, "lungs_ml": round(found.lungs().volume_ml())}
    row["lobes_ml"] = {
        lobe.slug: round(float(np.count_nonzero(found.of(lobe)) * found.grid.voxel_volume_ml)) for lobe in Lobe
    }
    row["sides_right"] = sides_are_right(found)
    if case.lungs is not None:
        row |= _compare("", case, found.lungs().mask) | _compare("threshold_", case, threshold_lungs(case.volume))
    if case.lobes is not None:
        scores = {lobe.slug: round(dice(case.lobes == lobe, found.of(lobe)), 3) for lobe in Lobe}
        row |= {"lobe_dice": scores, "lobes_dice": round(float(np.mean(list(scores.values()))), 3)}
    if case.fissures:
        row["fissures_mm"] = _far_from(found, case.fissures)
        row["fissures_sd"] = {name: round(sd, 1) for name, sd in (found.fissures_sd or {}).items()}
        if case.lobes is not None:
            row["atlas_fissures_mm"] = _far_from(LobeLabels(case.lobes, case.volume.grid), case.fissures)
        if pictures is not None:
            draw_marks(pictures / f"{case.name}-fissures.png", case.volume, found, case.fissures)
    return row


def _far_from(lobes: LobeLabels, marks: Marks) -> Row:
    """Mean distance of each fissure's marks, and what 95 % of them keep."""
    return {
        fissure: {"marks": len(mm), "mean": round(float(mm.mean()), 1), "95 %": round(float(np.quantile(mm, 0.95)), 1)}
        for fissure, mm in fissure_distances_mm(lobes, marks).items()
    }


def sides_are_right(lobes: LobeLabels) -> bool:
    """Whether all five lobes are there, the left ones to the patient's left, the upper ones above the lower ones."""
    centres = {}
    for lobe in Lobe:
        where = np.argwhere(lobes.of(lobe))
        if not len(where):
            return False
        centres[lobe] = lobes.grid.to_lps(where.mean(axis=0))
    leftmost_right = max(centres[lobe][0] for lobe in Lobe if not lobe.is_left)
    rightmost_left = min(centres[lobe][0] for lobe in Lobe if lobe.is_left)
    above = centres[Lobe.LEFT_UPPER][2] > centres[Lobe.LEFT_LOWER][2]
    return bool(
        leftmost_right < rightmost_left and above and centres[Lobe.RIGHT_UPPER][2] > centres[Lobe.RIGHT_LOWER][2]
    )


def threshold_lungs(volume: Volume) -> Mask:
    """The baseline: air inside the body, its two largest parts, closed; filled lung is left out."""
    parts = np.asarray(cc3d.connected_components(volume.hu < THRESHOLD_HU, connectivity=6))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    faces = [parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1]]
    sizes[np.unique(np.concatenate([face.ravel() for face in faces]))] = 0
    largest = np.argsort(sizes)[-2:]
    mask = np.isin(parts, largest[sizes[largest] > 0.1 * sizes.max()])
    radius = [max(round(CLOSING_MM / mm), 1) for mm in volume.grid.spacing_mm]
    grid = np.ogrid[tuple(slice(-r, r + 1) for r in radius)]
    ball = np.asarray(sum((along / r) ** 2 for along, r in zip(grid, radius, strict=True)) <= 1.0)
    padded = np.pad(mask, [(r, r) for r in radius])
    closed = ndimage.binary_closing(padded, ball)
    inner = tuple(slice(r, -r) for r in radius)
    return np.asarray(ndimage.binary_fill_holes(closed[inner]))


def phantom_cases(count: int, first_seed: int = FIRST_UNSEEN_SEED) -> Iterator[Case]:
    """Phantoms, by default those that no training has seen."""
    for seed in range(first_seed, first_seed + count):
        phantom = make_phantom(PhantomRecipe(seed=seed))
        labels = phantom.lobes.labels
        opaque = phantom.lesions.mask & (phantom.volume.hu > OPAQUE_HU)
        yield Case(f"phantom {seed}", phantom.volume, phantom.landmarks, labels > 0, labels, opaque)


def real_cases(data: Path) -> Iterator[Case]:
    """The held-out case, its copies with pasted opacities, the COVID-19 slices, and scans without true lungs."""
    marks, fissures = read_marks(), read_fissure_marks()
    scan, lungs = read_lctsc(data, HELD_OUT_CASE)
    volume = scan.volume
    lobes, _ = draw_lobes(volume, lungs, read_shapes())
    known = marks[HELD_OUT_CASE]
    yield Case(HELD_OUT_CASE, volume, known, lungs, lobes, fissures=fissures[HELD_OUT_CASE])
    as_float, as_labels = volume.hu.astype(np.float32), lungs.astype(np.uint8)
    for number in range(PASTED_COPIES):
        rng = np.random.default_rng([FIRST_UNSEEN_SEED, number])
        hu, labels = with_pasted_lesions(as_float, as_labels, rng, volume.grid.spacing_mm)
        pasted = Volume(np.rint(hu).astype(np.int16), volume.grid)
        yield Case(f"{HELD_OUT_CASE} pasted {number}", pasted, known, lungs, None, labels >= OPAQUE)
    yield from covid_cases(data)
    for name in TRAINING_CASES:
        yield Case(f"{name} (trained on)", read_lctsc(data, name)[0].volume, marks[name], fissures=fissures[name])
    for name in SCANS:
        if (path := real_path(data, name)) is not None:
            yield Case(name, read_ct(path).volume, marks[name], fissures=fissures.get(name, {}))


def covid_cases(data: Path) -> Iterator[Case]:
    """The held-out COVID-19 cases as volumes; `opaque` are their denser opacities."""
    for scan in read_covid(data):
        if scan.case in HELD_OUT_COVID:
            hu = as_hu(scan.image)
            volume = Volume(hu, Grid(hu.shape, (SLICE_MM, PIXEL_MM, PIXEL_MM), (0.0, 0.0, 0.0)))
            x, y, z = (float(mm) for mm in volume.grid.to_lps(np.argwhere(scan.lungs).mean(axis=0)))
            opaque = scan.lungs & scan.lesions & (hu > OPAQUE_HU)
            yield Case(f"covid-{scan.case}", volume, {Landmark.CARINA: (x, y, z)}, scan.lungs, None, opaque)


def summarise(rows: Sequence[Row]) -> Row:
    """Mean and worst over phantoms."""
    summary: Row = {"phantoms": len(rows)}
    for key in ("lungs_dice", "lobes_dice", "opaque_recall", "threshold_lungs_dice", "threshold_opaque_recall"):
        values = np.array([row[key] for row in rows if isinstance(row.get(key), float)], dtype=np.float64)
        if len(values):
            summary[key] = {"mean": round(float(np.nanmean(values)), 3), "worst": round(float(np.nanmin(values)), 3)}
    return summary


def _compare(prefix: str, case: Case, found: Mask) -> Row:
    assert case.lungs is not None  # noqa: S101 (asked by the caller)
    row: Row = {
        f"{prefix}lungs_dice": round(dice(case.lungs, found), 4),
        f"{prefix}surface_95_mm": round(surface_distances(case.lungs, found, case.volume.grid).hausdorff_95_mm, 2),
    }
    if case.opaque is not None and case.opaque.any():
        row[f"{prefix}opaque_recall"] = round(recall(found, case.opaque), 3)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON row a case, then the summary of the phantoms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=10)
    parser.add_argument("--data", type=Path, default=None, help="folder of the public scans")
    parser.add_argument("--weights", type=Path, default=None, help="folder of weights; the shipped ones by default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--as-drawn", action="store_true", help="do not move borders to fissures")
    parser.add_argument("--pictures", type=Path, default=None, help="folder for pictures of marks and borders")
    options = parser.parse_args(arguments)
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
    network = LungNetwork.load(load_weights("lungs", options.weights), choose_device(options.device))
    borders = as_drawn if options.as_drawn else follow_fissures
    rows = []
    for case in phantom_cases(options.phantoms):
        rows.append(evaluate(case, network, borders))
        print(json.dumps(rows[-1]), flush=True)
    if rows:
        print(json.dumps(summarise(rows)))
    for case in real_cases(options.data) if options.data else ():
        print(json.dumps(evaluate(case, network, borders, options.pictures)), flush=True)


if __name__ == "__main__":
    main()
