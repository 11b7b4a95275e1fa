"""How good the lesion network is on real patients that it never saw.

    python -m lobewise.pipeline.evaluation.lesion_folds BANK OUT --start PRE/last.pt

Only seven public patients with marked lesions are at hand, so each is tested once: for every fold a network learns on
from `--start`, which has seen none of them, with the patients of the other folds; the last weights mark the patients of
the fold, true lungs given, as the pipeline does. A network taught by so few is less sure of a patient than it is right:
a second table has the probability from which tissue counts chosen, for each fold, on the patients of the other folds,
each marked by the network that had not seen him. Trainings that were interrupted go on.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from lobewise.pipeline.evaluation.lesions import LesionResult, compare, probability, table
from lobewise.pipeline.lesions import LIKELY, LesionNetwork, believe_wide
from lobewise.pipeline.networks.weights import load_weights
from lobewise.pipeline.training.lesion_crops import read_examples
from lobewise.pipeline.training.lesions import LesionRecipe, export, train
from lobewise.pipeline.training.parallel import Team, join_team
from lobewise.pipeline.training.recipes import read_recipe
from lobewise.pipeline.training.splits import Split, patient_of

FOLDS: Final = ((0, 4), (1, 5), (2, 3, 6))
"""Cases of the COVID-19 slices. 0 and 2, the two with much ground glass, teach each other's fold."""
NEVER_TEACHES: Final = ("case05",)
PROBABILITIES: Final = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02)


@dataclass(frozen=True)
class Marked:
    """One volume: as the pipeline marks it, and where all counts from some probability on."""

    shipped: LesionResult
    from_probability: Mapping[float, LesionResult]


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
        seen = probability(image, lungs, network)
        believed = (believe_wide(seen, lungs) >= LIKELY) & lungs
        yield Marked(
            compare(example.name, believed, truth, image, lungs),
            {p: compare(example.name, (seen >= p) & lungs, truth, image, lungs) for p in PROBABILITIES},
        )


def chosen_by_others(folds: Sequence[Sequence[Marked]]) -> list[LesionResult]:
    """Each fold by the probability that is best, by the mean Dice over patients, for the other folds."""
    results = []
    for number, fold in enumerate(folds):
        others = [marked for other, fold_ in enumerate(folds) if other != number for marked in fold_]
        best = max(PROBABILITIES, key=lambda p: _mean_dice([marked.from_probability[p] for marked in others]))
        results += [marked.from_probability[best] for marked in fold]
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
    parser.add_argument("bank", type=Path, help="prepared by lobewise.pipeline.training.lesion_bank")
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
        sys.stdout.write(f"probability chosen on the other folds\n\n{summary(chosen_by_others(folds))}\n")


if __name__ == "__main__":
    main()
