"""How good the lesion network is on real patients that it never saw.

    python -m training.validation.lesion_folds BANK OUT --start PRE/last.pt

Only seven public patients with marked lesions are at hand, so each is tested once: for every fold a network learns on
from `--start`, which has seen none of them, with the patients of the other folds; the last weights mark the patients of
the fold, true lungs given, as the pipeline does. A network taught by so few ranks the tissue of a patient well, but how
sure it is of him is another matter. Two more tables have what they take chosen, for each fold, on the patients of the
other folds, each marked by the network that had not seen him: the probability from which tissue counts, the same for
all, or the two constants of `own_level`, which finds that probability in the patient, without his truth. Trainings that
were interrupted go on.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32
from scipy.special import expit, logit

from pipeline.lesions import LIKELY, LesionNetwork, believe_wide
from pipeline.networks.weights import load_weights
from training.config import read_recipe
from training.data.covid_slices import CASE_STARTS
from training.data.lesion_batches import LesionRecipe, read_examples
from training.data.splits import Split, patient_of
from training.lesions import export, train
from training.loop import Team, join_team
from training.validation.lesions import LesionResult, compare, probability, table

FOLDS: Final = tuple((case,) for case in range(len(CASE_STARTS)))
"""Cases of the COVID-19 slices: so few that each is a fold, for which all others teach."""
NEVER_TEACHES: Final = ("case05",)
PROBABILITIES: Final = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02)
LEVELS: Final = tuple(product((0.6, 0.65, 0.7, 0.75, 0.8), (0.0, 1.0, 2.0, 3.0)))
"""`share` and `lowering` of `own_level`."""
USUAL_EXTENT: Final = 0.05
"""Of the lung: the median of the seven patients."""
LEAST_LESION_VOXELS: Final = 30
MOST_LOGIT: Final = 9.0
LEVEL_STEPS: Final = 100
LEVEL_TOLERANCE: Final = 1e-3

By = Mapping[tuple[float, ...], LesionResult]


@dataclass(frozen=True)
class Marked:
    """One volume: as the pipeline marks it, where all counts from some probability on, and from its own level on."""

    shipped: LesionResult
    from_probability: By
    from_own_level: By


def run_fold(
    cases: Sequence[int], recipe: LesionRecipe, bank: Path, folder: Path, team: Team, start: Path
) -> Iterator[Marked]:
    """Train without `cases`, then mark them."""
    patients = tuple(f"covid-{case}" for case in cases)
    train(recipe, bank, folder, team, start, Split(test=(*patients, *NEVER_TEACHES)))
    export(folder, recipe, folder / "lesions.safetensors", "0.0.0")
    network = LesionNetwork.load(load_weights("lesions", folder), team.device)
    for example in read_examples(bank, lambda path: patient_of(path) in patients):
        image, lungs = example.image.astype(np.float32) / 255, example.lungs
        truth = example.lesions & lungs
        mark = partial(compare, example.name, truth=truth, image=image, lungs=lungs)
        seen = probability(image, lungs, network)
        levels = {level: own_level(seen, lungs, *level) for level in LEVELS}
        yield Marked(
            mark((believe_wide(seen, lungs) >= LIKELY) & lungs),
            {(p,): mark((seen >= p) & lungs) for p in PROBABILITIES},
            {level: mark((seen >= p) & lungs) for level, p in levels.items()},
        )


def own_level(
    seen: Float32[np.ndarray, "z y x"], lungs: Bool[np.ndarray, "z y x"], share: float, lowering: float
) -> float:
    """The probability from which this patient's tissue is lesion.

    The fixed point of Ridler and Calvard (1978) on the logits: it lies at `share` of the way from the mean of what is
    below it to the mean of what is above it. Much of a disease is fainter than its core, so that where more than
    `USUAL_EXTENT` of the lung is above it, it falls by `lowering` for each e-fold of that. Of no use where there may be
    no lesion at all: it falls until something is above it.
    """
    inside = np.clip(logit(seen[lungs].astype(np.float64)), -MOST_LOGIT, MOST_LOGIT)
    level = float(logit(LIKELY))
    highest = np.sort(inside)[-LEAST_LESION_VOXELS:]
    for _ in range(LEVEL_STEPS):
        is_above = inside >= level
        if is_above.all():
            break
        above = inside[is_above]
        upper = above if len(above) >= LEAST_LESION_VOXELS else highest
        level, before = float(share * upper.mean() + (1 - share) * inside[~is_above].mean()), level
        if abs(level - before) < LEVEL_TOLERANCE:
            break
    extent = max(float(np.mean(inside >= level)), USUAL_EXTENT)
    return float(expit(level - lowering * np.log(extent / USUAL_EXTENT)))


def chosen_by_others(folds: Sequence[Sequence[Marked]], way: Callable[[Marked], By]) -> list[LesionResult]:
    """Each fold by what is best, by the mean Dice over patients, for the other folds."""
    results = []
    for number, fold in enumerate(folds):
        others = [way(marked) for other, fold_ in enumerate(folds) if other != number for marked in fold_]
        best = max(others[0], key=lambda value: _mean_dice([by[value] for by in others]))
        results += [way(marked)[best] for marked in fold]
    return results


def summary(results: Sequence[LesionResult]) -> str:
    """Markdown: one column a patient, the mean over its volumes, and the mean over patients."""
    patients = sorted({_patient(result) for result in results})
    rows = {
        "Dice": ("{:.2f}", [r.dice for r in results]),
        "baseline": ("{:.2f}", [r.baseline_dice for r in results]),
        "percent found": ("{:.1f}", [r.percent for r in results]),
        "percent true": ("{:.1f}", [r.true_percent for r in results]),
    }
    lines = [f"| case | {' | '.join(patients)} | mean |", "|---" * (len(patients) + 2) + "|"]
    for name, (form, values) in rows.items():
        means = [np.mean([v for v, r in zip(values, results, strict=True) if _patient(r) == p]) for p in patients]
        lines.append(f"| {name} | {' | '.join(form.format(m) for m in [*means, np.mean(means)])} |")
    return "\n".join(lines)


def _mean_dice(results: Sequence[LesionResult]) -> float:
    """Over patients, not volumes."""
    by_patient: dict[str, list[float]] = {}
    for result in results:
        by_patient.setdefault(_patient(result), []).append(result.dice)
    return float(np.mean([np.mean(dices) for dices in by_patient.values()]))


def _patient(result: LesionResult) -> str:
    return result.name.split("-")[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and test every fold, and print what they reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path, help="prepared by training.data.lesion_dataset")
    parser.add_argument("out", type=Path, help="folder for one run a fold")
    parser.add_argument("--start", type=Path, required=True, help="last.pt of a run without real lesions")
    parser.add_argument("--recipe", default="{}", help="fields of LesionRecipe: JSON, or a file of it")
    parser.add_argument("--folds", default=json.dumps(FOLDS), help="JSON: the cases of each")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    recipe = read_recipe(LesionRecipe, options.recipe)
    folds: list[list[Marked]] = []
    with join_team(options.device) as team:
        for cases in json.loads(options.folds):
            folder = options.out / ("fold-" + "-".join(str(case) for case in cases))
            folds.append(list(run_fold(cases, recipe, options.bank, folder, team, options.start)))
            shipped = [marked.shipped for fold in folds for marked in fold]
            sys.stdout.write(f"{table(shipped)}\n\n{summary(shipped)}\n\n")
            sys.stdout.flush()
    if len(folds) > 1:
        by_probability = summary(chosen_by_others(folds, lambda marked: marked.from_probability))
        by_own_level = summary(chosen_by_others(folds, lambda marked: marked.from_own_level))
        sys.stdout.write(f"probability chosen on the other folds\n\n{by_probability}\n\n")
        sys.stdout.write(f"each patient's own level, its constants chosen on the other folds\n\n{by_own_level}\n")


if __name__ == "__main__":
    main()
