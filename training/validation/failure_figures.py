"""Where each network is weakest, for the model cards: `python -m training.validation.failure_figures docs/images`.

The whole pipeline marks phantoms that no training saw; of each stage the worst are drawn through where they are wrong.
Phantoms, not patients: pictures of real scans belong to those who published them.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from evaluation.figures import BLUE, ORANGE, STYLE
from evaluation.overlap import Mask
from evaluation.overlays import Pair, around, draw_legend, picture
from pipeline.anatomy import Landmark
from pipeline.geometry import Scan
from pipeline.io.overview import centre_mm, planes_through
from pipeline.phantom import Phantom, PhantomRecipe, make_phantom
from pipeline.quantify import Models, Quantification, load_models, quantify
from training.validation.end_to_end import PhantomResult, compare, evaluate_phantoms

#: Cases a picture.
SHOWN: Final = 2
DOTS_PER_INCH: Final = 80

Worse = Callable[[PhantomResult], float]


@dataclass(frozen=True, eq=False)
class Answer:
    """A phantom and what the pipeline made of it."""

    phantom: Phantom
    found: Quantification
    result: PhantomResult


def answer(models: Models, seed: int) -> Answer:
    """One phantom, marked."""
    phantom = make_phantom(PhantomRecipe(seed=seed))
    found = quantify(Scan(phantom.volume), models)
    return Answer(phantom, found, compare(seed, phantom, found))


def worst(results: Sequence[PhantomResult], worse: Worse) -> list[int]:
    """Seeds, the worst first."""
    return [result.seed for result in sorted(results, key=worse, reverse=True)[:SHOWN]]


def lungs_of(answer: Answer) -> tuple[Pair, str]:
    pair = Pair(answer.phantom.lobes.labels > 0, answer.found.lungs.mask)
    return pair, f"lungs, Dice {answer.result.lungs_dice:.3f}"


def lobes_of(answer: Answer) -> tuple[Pair, str]:
    """Lung in its right lobe is found, lung in a wrong one is missed."""
    truth, found = answer.phantom.lobes.labels, answer.found.lobes.labels
    pair = Pair(truth > 0, (found > 0) & ((found == truth) | (truth == 0)))
    return pair, f"lobes, mean Dice {answer.result.lobes_dice:.3f} (missed: or in the wrong lobe)"


def lesions_of(answer: Answer) -> tuple[Pair, str]:
    result = answer.result
    dice = "no true lesion" if result.lesions_dice is None else f"Dice {result.lesions_dice:.3f}"
    scores = f"PO {result.percent_opacity:.1f} % for a true {result.true_percent_opacity:.1f} %"
    return Pair(answer.phantom.lesions.mask, answer.found.lesions.mask), f"lesions, {dice}, {scores}"


def draw_masks(path: Path, shown: Sequence[tuple[Answer, Pair, str]]) -> None:
    """One row a case: the axial and the coronal plane through the middle of what is wrong."""
    with _rows(path, len(shown)) as (figure, rows):
        for row, (case, pair, title) in zip(rows, shown, strict=True):
            volume = case.phantom.volume
            lungs = (case.phantom.lobes.labels > 0) | case.found.lungs.mask
            wrong: Mask = pair.truth ^ pair.predicted
            middle_mm = centre_mm(wrong if wrong.any() else pair.truth, volume.grid)
            coronal, axial, _ = planes_through(middle_mm, around(lungs, volume.grid))
            row[0].imshow(picture(volume, pair, axial)[0], interpolation="nearest")
            row[1].imshow(picture(volume, pair, coronal)[::-1, 0], interpolation="nearest")
            row[0].set_title(f"Phantom {case.result.seed}\n{title}", loc="left", fontsize=9, parse_math=False)
        draw_legend(figure)


def draw_carinas(path: Path, shown: Sequence[Answer]) -> None:
    """One row a case: the planes through the true carina, and where it was found."""
    with _rows(path, len(shown)) as (_, rows):
        for row, case in zip(rows, shown, strict=True):
            volume, nothing = case.phantom.volume, np.zeros(case.phantom.volume.grid.shape, dtype=np.bool_)
            true_mm = case.phantom.landmarks[Landmark.CARINA]
            found_mm = next(mark.position_mm for mark in case.found.landmarks if mark.landmark is Landmark.CARINA)
            coronal, axial, _ = planes_through(true_mm, around(case.phantom.lobes.labels > 0, volume.grid))
            row[0].imshow(picture(volume, Pair(nothing, nothing), axial)[0])
            row[1].imshow(picture(volume, Pair(nothing, nothing), coronal)[:, 0], origin="lower")
            for position, colour, name in ((true_mm, ORANGE, "truth"), (found_mm, BLUE, "found")):
                if position is not None:
                    z, y, x = axial.to_index(np.asarray(position))
                    row[0].plot(x, y, "+", color=colour, markersize=16, label=name)
                    z, y, x = coronal.to_index(np.asarray(position))
                    row[1].plot(x, z, "+", color=colour, markersize=16)
            error_mm = case.result.carina_error_mm
            title = "carina not found" if error_mm is None else f"carina, {error_mm:.1f} mm off"
            row[0].set_title(f"Phantom {case.result.seed}\n{title}", loc="left", fontsize=9, parse_math=False)
            row[0].legend(loc="upper right")


@contextmanager
def _rows(path: Path, count: int) -> Iterator[tuple[Figure, np.ndarray]]:
    """A picture of two planes a row, written when they are drawn."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.3 * count + 0.4), layout="constrained")
        panels = figure.subplots(count, 2, squeeze=False)
        yield figure, panels
        for panel in panels.flat:
            panel.set_axis_off()
        figure.savefig(path, dpi=DOTS_PER_INCH)


def draw_failures(models: Models, count: int, folder: Path) -> None:
    """One picture a network, of the worst of `count` phantoms."""
    results = list(evaluate_phantoms(models, count))  # what is shown is made anew: all of them are too much to keep
    again = cache(partial(answer, models))
    carinas = worst(results, lambda r: np.inf if r.carina_error_mm is None else r.carina_error_mm)
    draw_carinas(folder / "failures-landmarks.png", [again(seed) for seed in carinas])
    by_lungs, by_lobes = worst(results, lambda r: -r.lungs_dice)[:1], worst(results, lambda r: -r.lobes_dice)[:1]
    rows = [(again(seed), *lungs_of(again(seed))) for seed in by_lungs]
    rows += [(again(seed), *lobes_of(again(seed))) for seed in by_lobes]
    draw_masks(folder / "failures-lungs.png", rows)
    by_dice = worst(results, lambda r: -np.inf if r.lesions_dice is None else -r.lesions_dice)[:1]
    by_error = worst(results, lambda r: abs(r.percent_opacity - r.true_percent_opacity))
    seeds = [*by_dice, *(seed for seed in by_error if seed not in by_dice)][:SHOWN]
    draw_masks(folder / "failures-lesions.png", [(again(seed), *lesions_of(again(seed))) for seed in seeds])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write three pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--phantoms", type=int, default=10, help="how many, from seed 1 000 000 on")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    draw_failures(load_models(options.device), options.phantoms, options.folder)
    sys.stdout.write(f"{options.folder}\n")


if __name__ == "__main__":
    main()
