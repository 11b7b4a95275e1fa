"""How good the lesion network is on real patients that it never saw.

    python -m lobewise.pipeline.evaluation.lesion_folds BANK OUT --start PRE/last.pt

Only seven public patients with marked lesions are at hand, so each is tested once: for every fold a network learns on
from `--start`, which has seen none of them, with the patients of the other folds; the last weights mark the patients of
the fold, true lungs given. Trainings that were interrupted go on.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from lobewise.pipeline.evaluation.lesions import LesionResult, evaluate_patients, table
from lobewise.pipeline.lesions import LesionNetwork
from lobewise.pipeline.networks.weights import load_weights
from lobewise.pipeline.training.lesions import LesionRecipe, export, train
from lobewise.pipeline.training.parallel import Team, join_team
from lobewise.pipeline.training.recipes import read_recipe
from lobewise.pipeline.training.splits import Split

FOLDS: Final = ((0, 4), (1, 5), (2, 3, 6))
"""Cases of the COVID-19 slices. 0 and 2, the two with much ground glass, teach each other's fold."""
NEVER_TEACHES: Final = ("case05",)


def run_fold(
    cases: Sequence[int], recipe: LesionRecipe, bank: Path, folder: Path, team: Team, start: Path
) -> Iterator[LesionResult]:
    """Train without `cases`, then mark them."""
    patients = tuple(f"covid-{case}" for case in cases)
    train(recipe, bank, folder, team, start, Split(test=(*patients, *NEVER_TEACHES)))
    export(folder, recipe, folder / "lesions.safetensors", "0.0.0")
    network = LesionNetwork.load(load_weights("lesions", folder), team.device)
    yield from evaluate_patients(bank, network, patients)


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
    results: list[LesionResult] = []
    with join_team(options.device) as team:
        for cases in json.loads(options.folds):
            folder = options.out / ("fold-" + "-".join(str(case) for case in cases))
            results += run_fold(cases, recipe, options.bank, folder, team, options.start)
            sys.stdout.write(f"{table(results)}\n\n{summary(results)}\n\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
