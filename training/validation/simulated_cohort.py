"""A simulated cohort, end to end: phantoms whose scores are known, through the shipped pipeline, into two CSV files.

    python -m training.validation.simulated_cohort out/cohort --covid 100 --controls 100 --processes 2
    lobewise evaluate --truth out/cohort/truth.csv --predicted out/cohort/predicted.csv --label "simulated cohort"

Each case is appended to `cases.jsonl` when it is done; called again, the command goes on where it was. COVID-like cases
have 1 to 60 % opacity, low ones more often than high ones; controls have none. Every second seed is a control, so that
a cohort that was stopped early is a balanced one. Figures measured on it are simulated, and are to be labelled so.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from evaluation.errors import OtherCohortError
from evaluation.overlap import dice
from evaluation.scores import CaseScores, LobeScores, scores_of, write_scores
from pipeline.anatomy import Lobe
from pipeline.errors import PipelineError
from pipeline.geometry import Scan, Triple
from pipeline.io.write import write_ct, write_mask
from pipeline.phantom import Phantom, PhantomRecipe, make_phantom
from pipeline.quantify import Quantification, load_models, quantify
from training.config import differing

#: Far from the seeds of training (below 10 000) and of the other evaluations (from 1 000 000).
FIRST_SEED: Final = 2_000_000

#: Drawn evenly on a logarithmic scale. The paper, too, left out patients with next to no opacity.
COVID_PERCENT: Final = (1.0, 60.0)

LABEL: Final = "simulated cohort"
GROUPS: Final = {True: "control", False: "covid-like"}

Quantifier = Callable[[Scan], Quantification]
Line = Mapping[str, Any]


@dataclass(frozen=True)
class CohortRecipe:
    """Everything that decides the cases of a cohort; kept in `cohort.json`, so that two are never mixed.

    Attributes:
        weights_sha256: of the networks, by name; empty where a test predicts otherwise.
    """

    first_seed: int
    spacing_mm: Triple
    weights_sha256: Mapping[str, str]
    software: str = version("lobewise")
    label: str = LABEL


@dataclass(frozen=True)
class Case:
    """One patient to simulate."""

    seed: int
    is_control: bool
    spacing_mm: Triple

    @property
    def name(self) -> str:
        return f"simulated-{self.seed}"

    @property
    def recipe(self) -> PhantomRecipe:
        low, high = np.log(COVID_PERCENT)
        drawn = float(np.exp(np.random.default_rng([self.seed, 4711]).uniform(low, high)))
        return PhantomRecipe(
            seed=self.seed, spacing_mm=self.spacing_mm, percent_opacity=0.0 if self.is_control else drawn
        )


Run = Callable[[Sequence[Case]], Iterable[Line]]


def plan(covid: int, controls: int, recipe: CohortRecipe) -> tuple[Case, ...]:
    """COVID-like cases at even, controls at odd distances from the first seed: more of one never move the other."""
    diseased = [Case(recipe.first_seed + 2 * number, False, recipe.spacing_mm) for number in range(covid)]
    healthy = [Case(recipe.first_seed + 2 * number + 1, True, recipe.spacing_mm) for number in range(controls)]
    return tuple(sorted((*diseased, *healthy), key=lambda case: case.seed))


def simulate(case: Case, quantifier: Quantifier, masks: Path | None = None) -> Line:
    """Make the patient, quantify them, and say what was true and what was found.

    A scan that the pipeline refuses is a result too: its line holds the reason instead of a prediction.

    Args:
        masks: folder for the case's CT and masks.
    """
    phantom, group = make_phantom(case.recipe), GROUPS[case.is_control]
    line: dict[str, Any] = {"case": case.name, "seed": case.seed, "label": LABEL}
    line["truth"] = asdict(scores_of(case.name, phantom.severity, group))
    try:
        found = quantifier(Scan(phantom.volume))
    except PipelineError as error:
        return line | {"refused": {"code": error.code, "detail": error.detail}}
    if masks is not None:
        folder = masks / case.name
        folder.mkdir(parents=True, exist_ok=True)
        write_ct(folder / "ct.nii.gz", phantom.volume)
        sides: dict[str, Phantom | Quantification] = {"true": phantom, "predicted": found}
        for side, made in sides.items():
            write_mask(folder / f"{side}-lobes.nii.gz", made.lobes.labels, made.lobes.grid)
            write_mask(folder / f"{side}-lesions.nii.gz", made.lesions.mask, made.lobes.grid)
    has_lesions = phantom.lesions.mask.any() or found.lesions.mask.any()
    overlaps = {
        "lungs": dice(phantom.lobes.labels > 0, found.lungs.mask),
        **{lobe.slug: dice(phantom.lobes.of(lobe), found.lobes.of(lobe)) for lobe in Lobe},
        "lesions": dice(phantom.lesions.mask, found.lesions.mask) if has_lesions else None,
    }
    predicted = asdict(scores_of(case.name, found.severity, group))
    return line | {"predicted": predicted, "dice": overlaps, "seconds": dict(found.seconds)}


def run_cohort(folder: Path, recipe: CohortRecipe, cases: Iterable[Case], run: Run) -> list[Line]:
    """Simulate the cases that `folder` lacks, and write `truth.csv` and `predicted.csv` of those asked for.

    Args:
        run: yields the line of each case that it is given, in any order.

    Raises:
        OtherCohortError: the folder holds cases of another recipe.
    """
    if different := differing(folder / "cohort.json", recipe):
        raise OtherCohortError(
            f"{folder} holds a cohort with other {', '.join(different)}. Give another folder, or delete this one."
        )
    wanted = tuple(cases)
    done = {line["case"]: line for line in _lines(folder / "cases.jsonl")}
    with (folder / "cases.jsonl").open("a", encoding="utf-8") as file:
        for line in run([case for case in wanted if case.name not in done]):
            file.write(json.dumps(line) + "\n")
            # Each case at once: a call that is ended loses one case, not all since the last buffer.
            file.flush()
            done[line["case"]] = json.loads(json.dumps(line))
    lines = [done[case.name] for case in wanted if case.name in done]
    # Cases that were refused have no prediction to compare; they are counted in `refused.csv` instead.
    scored = [line for line in lines if "predicted" in line]
    for side in ("truth", "predicted"):
        write_scores(folder / f"{side}.csv", [_scores(line[side]) for line in scored])
    refused = [f"{n['case']},{n['truth']['group']},{n['refused']['code']}" for n in lines if "refused" in n]
    (folder / "refused.csv").write_text("\n".join(["case,group,code", *refused]) + "\n", encoding="utf-8")
    return lines


def in_this_process(quantifier: Quantifier, masks: Path | None = None) -> Run:
    """One case after the other."""
    return lambda cases: (simulate(case, quantifier, masks) for case in cases)


def in_processes(count: int, device: str, weights: Path | None, masks: Path | None) -> Run:
    """`count` cases at a time, each process with networks of its own and its share of the cores."""

    def run(cases: Sequence[Case]) -> Iterator[Line]:
        threads = max(torch.get_num_threads() // count, 1)
        spawn = multiprocessing.get_context("spawn")  # forked processes cannot use CUDA
        with ProcessPoolExecutor(count, spawn, _load, (device, weights, threads)) as pool:
            futures = [pool.submit(_simulate_loaded, case, masks) for case in cases]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    return run


#: The quantifier of a process of the pool; loading takes longer than it should for each case.
_loaded: list[Quantifier] = []


def _load(device: str, weights: Path | None, threads: int) -> None:
    torch.set_num_threads(threads)
    models = load_models(device, weights)
    _loaded[:] = [lambda scan: quantify(scan, models)]


def _simulate_loaded(case: Case, masks: Path | None) -> Line:
    return simulate(case, _loaded[0], masks)


def _lines(path: Path) -> Iterator[Line]:
    """Of an earlier call; what a kill cut short is cut off, and its case is done again."""
    if not path.is_file():
        return
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        path.write_bytes(whole)
    for line in whole.decode("utf-8").splitlines():
        yield json.loads(line)


def _scores(data: Line) -> CaseScores:
    lobes = tuple(LobeScores(**{**lobe, "lobe": Lobe(lobe["lobe"])}) for lobe in data["lobes"])
    return CaseScores(**{**data, "lobes": lobes})


def _write_manifest(folder: Path, lines: Sequence[Line]) -> Path:
    """Of the cases whose masks were kept."""
    files = ("ct", "true-lobes", "true-lesions", "predicted-lobes", "predicted-lesions")
    rows = [",".join(("case", "group", *(name.replace("-", "_") for name in files)))]
    for line in lines:
        if (folder / "masks" / line["case"] / "ct.nii.gz").is_file() and "predicted" in line:
            paths = [f"masks/{line['case']}/{name}.nii.gz" for name in files]
            rows.append(",".join((line["case"], line["truth"]["group"], *paths)))
    path = folder / "manifest.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m training.validation.simulated_cohort`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, help="for cases.jsonl, truth.csv and predicted.csv; may hold earlier cases"
    )
    parser.add_argument("--covid", type=int, default=100, help="how many COVID-like cases")
    parser.add_argument("--controls", type=int, default=100, help="how many controls")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument(
        "--spacing", type=float, nargs=3, default=(2.0, 1.5, 1.5), metavar=("Z", "Y", "X"), help="of the phantoms, mm"
    )
    parser.add_argument("--processes", type=int, default=1, help="cases at a time")
    parser.add_argument("--masks", action="store_true", help="keep CTs and masks (10 MB a case) and write manifest.csv")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights", type=Path, default=None, help="folder of weights; the shipped ones by default")
    options = parser.parse_args(arguments)
    models = load_models(options.device, options.weights)
    sums = {info.name: info.sha256 for info in models.infos}
    spacing_mm: Triple = (options.spacing[0], options.spacing[1], options.spacing[2])
    recipe = CohortRecipe(options.first_seed, spacing_mm, sums)
    masks = options.folder / "masks" if options.masks else None
    if options.processes == 1:
        run = in_this_process(lambda scan: quantify(scan, models), masks)
    else:
        run = in_processes(options.processes, options.device, options.weights, masks)
    try:
        cases = plan(options.covid, options.controls, recipe)
        lines = run_cohort(options.folder, recipe, cases, lambda todo: _reported(run(todo), len(todo)))
    except OtherCohortError as error:
        sys.exit(str(error))
    manifest = _write_manifest(options.folder, lines) if options.masks else None
    folder = options.folder
    refused = sum("refused" in line for line in lines)
    inputs = f"--manifest {manifest}" if manifest else f"--truth {folder}/truth.csv --predicted {folder}/predicted.csv"
    note = f"phantoms, not patients; {len(lines)} cases, of which {refused} were refused and are not compared"
    sys.stdout.write(f'lobewise evaluate {inputs} --label "{LABEL}" --note "{note}" --out {folder}/report\n')


def _reported(lines: Iterable[Line], count: int) -> Iterator[Line]:
    """One line a case on the error stream."""
    for number, line in enumerate(lines, 1):
        truth = line["truth"]["percent_opacity"]
        found = f"{line['predicted']['percent_opacity']:.2f}" if "predicted" in line else line["refused"]["code"]
        sys.stderr.write(f"{number}/{count} {line['case']} {line['truth']['group']}: PO {truth:.2f} -> {found}\n")
        yield line


if __name__ == "__main__":
    main()
