"""What each way to draw the borders between lobes is worth, for decisions 22 and 23.

    python -m training.validation.fissure_borders --phantoms 12 --noise 20 --data FOLDER

The same lungs and network, four borders: as the network draws them, walked to plain sheets alone, laid as people have
them alone, and followed as shipped (laid, then walked). Phantoms by the Dice of their lobes, real scans by the distance
of their borders from the fissures marked by eye. Scans thicker than the pipeline moves borders in are moved in, too:
`--thicken 2` makes thick ones, by the mean of neighbouring slices.

`--noise` fills the lungs of so many phantoms with noise, where there is no fissure at all. How surely one is seen there
is what `SEEN_SD` of `lobe_quality.py` stands above; without a drawn border to stay at, what `DRAWN_NATS` of
`pipeline/lungs/fissure_model.py` outweighs. With `--data` the lobes drawn into the lungs of the training
cases say what share of the lungs is usual (`USUAL_PERCENT` there).
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int16, UInt8
from scipy import ndimage

from evaluation.overlap import dice
from pipeline.anatomy import FISSURES, Lobe
from pipeline.geometry import Grid, LobeLabels, Volume
from pipeline.io.read import read_ct
from pipeline.lungs.fissure_model import SeenSd, lay_fissures, read_shapes
from pipeline.lungs.fissure_refinement import refine_borders
from pipeline.lungs.segment import Borders
from pipeline.networks.device import choose_device
from pipeline.networks.di2in import LungNetwork
from pipeline.networks.weights import load_weights
from pipeline.phantom import PhantomRecipe, make_phantom
from training.data.fissure_atlas import draw_lobes
from training.data.landmark_dataset import read_marks, real_path
from training.data.lung_dataset import read_lctsc
from training.validation.fissures import fissure_distances_mm, read_fissure_marks
from training.validation.lungs import Case, as_drawn, lobes_by, phantom_cases

#: Phantoms of decision 23: its constants were chosen on the first twelve.
FIRST_SEED: Final = 900_000
TRAINING_CASES: Final = ("case01", "case02", "case03", "case04")
NOISE_MEAN_HU: Final = -850.0
NOISE_HU: Final = 40.0
#: In the plane, as a reconstruction kernel makes it.
NOISE_SIGMA_PIXELS: Final = 0.8

Labels = UInt8[np.ndarray, "z y x"]
Row = dict[str, float]


def walked(volume: Volume, roi: Grid, labels: Labels) -> tuple[Labels, SeenSd]:
    """Borders on sheets that are plain, from where the network has them (decision 22)."""
    return refine_borders(volume, roi, labels), {}


def followed(volume: Volume, roi: Grid, labels: Labels) -> tuple[Labels, SeenSd]:
    """As shipped, however thick the slices are."""
    laid, seen_sd = lay_fissures(volume, roi, labels)
    return refine_borders(volume, roi, laid), seen_sd


WAYS: Final[Mapping[str, Borders]] = {
    "the network": as_drawn,
    "walks alone": walked,
    "shapes alone": lay_fissures,
    "shapes, then walks": followed,
}


def lobes_dice(case: Case, found: LobeLabels) -> Row:
    """Mean Dice of the lobes of a phantom."""
    assert case.lobes is not None  # noqa: S101 (a phantom has lobes)
    return {case.name: float(np.mean([dice(case.lobes == lobe, found.of(lobe)) for lobe in Lobe]))}


def marks_mm(case: Case, found: LobeLabels) -> Row:
    """Mean distance (mm) of the marks of each fissure of a scan."""
    distances = fissure_distances_mm(found, case.fissures)
    return {f"{case.name}, {name.replace('_', ' ')}": float(mm.mean()) for name, mm in distances.items()}


def marked_cases(data: Path) -> Iterator[Case]:
    """The real scans with marks on their fissures."""
    places = read_marks()
    for name, fissures in read_fissure_marks().items():
        path = real_path(data, name)
        if path is not None:
            yield Case(name, read_ct(path).volume, places[name], fissures=fissures)


def thickened(case: Case, slices: int) -> Case:
    """The same scan with the mean of so many neighbouring slices for each; of the lobes the middle slice."""
    if slices == 1:
        return case
    hu, grid = case.volume.hu, case.volume.grid
    count = len(hu) // slices
    mean = hu[: count * slices].reshape(count, slices, *hu.shape[1:]).mean(axis=1, dtype=np.float32)
    z_mm, y_mm, x_mm = grid.spacing_mm
    x, y, z = (float(mm) for mm in grid.to_lps(np.array([(slices - 1) / 2, 0.0, 0.0])))
    thick = Grid(mean.shape, (z_mm * slices, y_mm, x_mm), (x, y, z), grid.direction)
    lobes = None if case.lobes is None else case.lobes[slices // 2 :: slices][:count]
    return Case(
        case.name, Volume(np.rint(mean).astype(np.int16), thick), case.landmarks_mm, lobes=lobes, fissures=case.fissures
    )


def seen_in_noise(seed: int) -> tuple[SeenSd, SeenSd]:
    """How surely fissures are seen in the lungs of a phantom that hold nothing but noise.

    As shipped, and without a border that was drawn.
    """
    phantom = make_phantom(PhantomRecipe(seed=seed))
    labels, grid = phantom.lobes.labels, phantom.volume.grid
    hu = np.where(labels > 0, noise(grid.shape, np.random.default_rng([seed, 23])), phantom.volume.hu)
    volume = Volume(hu.astype(np.int16), grid)
    return lay_fissures(volume, grid, labels)[1], draw_lobes(volume, labels > 0, read_shapes())[1]


def noise(shape: tuple[int, ...], rng: np.random.Generator) -> Int16[np.ndarray, "z y x"]:
    """Aerated lung without anything in it."""
    sigma = (0.0, NOISE_SIGMA_PIXELS, NOISE_SIGMA_PIXELS)
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
    return np.asarray(np.rint(NOISE_MEAN_HU + NOISE_HU / grain.std() * grain), dtype=np.int16)


def usual_percent(data: Path) -> dict[Lobe, float]:
    """The mean share of the lungs that each lobe has in the training cases."""
    shares = []
    for name in TRAINING_CASES:
        scan, lungs = read_lctsc(data, name)
        lobes, _ = draw_lobes(scan.volume, lungs, read_shapes())
        shares.append([100 * np.count_nonzero(lobes == lobe) / np.count_nonzero(lobes) for lobe in Lobe])
    return dict(zip(Lobe, np.mean(shares, axis=0).tolist(), strict=True))


def compare(cases: Iterable[Case], network: LungNetwork, measure: Callable[[Case, LobeLabels], Row]) -> list[Row]:
    """One row a way to draw borders, one column what is measured."""
    rows: list[Row] = [{} for _ in WAYS]
    for case in cases:
        for row, borders in zip(rows, WAYS.values(), strict=True):
            row |= measure(case, lobes_by(case, network, borders))
        sys.stderr.write(f"{case.name}\n")
    return rows


def table(rows: Sequence[Row], form: str, first: str) -> str:
    """Markdown: a line for each thing measured, then their mean."""
    lines = [f"| {first} | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(form.format(row[name]) for row in rows)} |" for name in rows[0]]
    means = [float(np.mean(list(row.values()))) for row in rows]
    return "\n".join([*lines, f"| mean | {' | '.join(map(form.format, means))} |"])


def table_of_noise(seen: Sequence[tuple[SeenSd, SeenSd]]) -> str:
    """Markdown: how surely each fissure is seen where there is none, as shipped and without a border that was drawn."""
    lines = ["| seen in noise, sd | lungs | median | 95 % below | most |", "|---" * 5 + "|"]
    for name, (way, of_lungs) in product(FISSURES, zip(("", ", nothing drawn"), zip(*seen, strict=True), strict=True)):
        values = np.array([seen_sd[name] for seen_sd in of_lungs if name in seen_sd])
        figures = f"{np.median(values):.1f} | {np.quantile(values, 0.95):.1f} | {values.max():.1f}"
        lines.append(f"| {name.replace('_', ' ')}{way} | {len(values)} | {figures} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=0)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--noise", type=int, default=0, help="phantoms that are filled with noise")
    parser.add_argument("--data", type=Path, default=None, help="folder of the public scans")
    parser.add_argument("--thicken", type=int, default=1, help="slices that are made one")
    parser.add_argument("--weights", type=Path, default=None, help="folder of weights; the shipped ones by default")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    network = LungNetwork.load(load_weights("lungs", options.weights), choose_device(options.device))
    if options.phantoms:
        phantoms = (thickened(case, options.thicken) for case in phantom_cases(options.phantoms, options.first_seed))
        print(table(compare(phantoms, network, lobes_dice), "{:.3f}", "lobes, mean Dice"), end="\n\n", flush=True)
    if options.data:
        marked = (thickened(case, options.thicken) for case in marked_cases(options.data))
        print(table(compare(marked, network, marks_mm), "{:.1f}", "distance of marks, mm"), end="\n\n", flush=True)
        usual = usual_percent(options.data).items()
        print(" ".join(f"{lobe.slug} {share:.1f} %" for lobe, share in usual), end="\n\n", flush=True)
    if options.noise:
        seeds = range(options.first_seed, options.first_seed + options.noise)
        print(table_of_noise([seen_in_noise(seed) for seed in seeds]), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
