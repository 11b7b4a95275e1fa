"""The whole pipeline against truth: phantoms it never saw, real clear chests, and scans for a look at them.

    python -m training.validation.end_to_end --phantoms 10 --clear DATA --scan lidc.zip

Prints one row a case and, for phantoms, the summary that the model cards quote. Phantom figures are synthetic.
"""

import argparse
import json
import resource
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import Bool

from evaluation.overlap import dice
from pipeline.anatomy import Landmark, Lobe
from pipeline.geometry import Scan
from pipeline.io.read import read_ct
from pipeline.lungs.backend import DEFAULT as DEFAULT_LUNG_BACKEND
from pipeline.lungs.backend import LungBackendName
from pipeline.phantom import Phantom, PhantomRecipe, make_phantom
from pipeline.quantify import Models, Quantification, load_models, quantify
from pipeline.severity import PercentRange
from training.data.lung_dataset import read_lctsc
from training.data.splits import FIRST_UNSEEN_SEED

#: A range of a percentage may miss the truth by this much: a few stray voxels should not count.
RANGE_SLACK_POINTS = 0.5


@dataclass(frozen=True)
class PhantomResult:
    """One phantom: overlap with the truth, distance of the carina, error of the scores, and what their ranges hold.

    Attributes:
        lobes_in_range: of the five lobes, those whose true percentage lies in the range that was given for it, give or
            take `RANGE_SLACK_POINTS`.
        lobe_scores_right, lobe_scores_in_range: those whose true score is the one given, is one of the range's.
    """

    seed: int
    lungs_dice: float
    lobes_dice: float
    lesions_dice: float | None
    carina_error_mm: float | None
    true_percent_opacity: float
    percent_opacity: float
    true_lung_severity_score: int
    lung_severity_score: int
    percent_opacity_low: float
    percent_opacity_high: float
    lobes_in_range: int
    lobe_scores_right: int
    lobe_scores_in_range: int


@dataclass(frozen=True)
class ClearResult:
    """One real chest without opacities: what is called opacity all the same, in its lungs and beside them.

    Attributes:
        inside_percent: of the true lungs, what is called opacity.
        invented_percent: what is called lung beside the true lungs, relative to them ...
        invented_opacity_share: ... and how much of it is called opacity.
    """

    name: str
    lungs_dice: float
    percent_opacity: float
    percent_opacity_low: float
    percent_opacity_high: float
    lung_severity_score: int
    inside_percent: float
    invented_percent: float
    invented_opacity_share: float


@dataclass(frozen=True)
class ScanResult:
    """One scan without truth: what was found and how long it took."""

    name: str
    lung_volume_ml: float
    lobe_volumes_ml: dict[str, float]
    percent_opacity: float
    percent_high_opacity: float
    carina_mm: tuple[float, float, float] | None
    seconds: dict[str, float]
    peak_memory_mib: int


def compare(seed: int, phantom: Phantom, found: Quantification) -> PhantomResult:
    """Compare what was found in a phantom with its truth."""
    truth, between, true_carina = phantom.severity, found.opacity_range, phantom.landmarks[Landmark.CARINA]
    carina = next((mark.position_mm for mark in found.landmarks if mark.landmark is Landmark.CARINA), None)
    lobes = [
        (lobe, given, between.lobes[lobe.lobe]) for lobe, given in zip(truth.lobes, found.severity.lobes, strict=True)
    ]
    return PhantomResult(
        seed=seed,
        lungs_dice=dice(phantom.lobes.labels > 0, found.lungs.mask),
        lobes_dice=float(np.mean([dice(phantom.lobes.of(lobe), found.lobes.of(lobe)) for lobe in Lobe])),
        lesions_dice=dice(phantom.lesions.mask, found.lesions.mask) if truth.opacity_ml > 0 else None,
        carina_error_mm=None if carina is None else float(np.linalg.norm(np.subtract(carina, true_carina))),
        true_percent_opacity=truth.percent_opacity,
        percent_opacity=found.severity.percent_opacity,
        true_lung_severity_score=truth.lung_severity_score,
        lung_severity_score=found.severity.lung_severity_score,
        percent_opacity_low=between.overall.low,
        percent_opacity_high=between.overall.high,
        lobes_in_range=sum(_holds(part, lobe.percent_opacity) for lobe, _, part in lobes),
        lobe_scores_right=sum(lobe.severity_score == given.severity_score for lobe, given, _ in lobes),
        lobe_scores_in_range=sum(part.scores[0] <= lobe.severity_score <= part.scores[1] for lobe, _, part in lobes),
    )


def _holds(part: PercentRange, percent: float) -> bool:
    return part.low - RANGE_SLACK_POINTS <= percent <= part.high + RANGE_SLACK_POINTS


def evaluate_phantoms(models: Models, count: int) -> Iterator[PhantomResult]:
    """Quantify `count` phantoms that no training saw."""
    for seed in range(FIRST_UNSEEN_SEED, FIRST_UNSEEN_SEED + count):
        phantom = make_phantom(PhantomRecipe(seed=seed))
        yield compare(seed, phantom, quantify(Scan(phantom.volume), models))


def summarise(results: Sequence[PhantomResult]) -> dict[str, float]:
    """The figures that the bars are about; a carina that was not found counts as missed."""
    lesions = [r.lesions_dice for r in results if r.lesions_dice is not None]
    opacity_errors = [abs(r.percent_opacity - r.true_percent_opacity) for r in results]
    ranges = [PercentRange(r.percent_opacity_low, r.percent_opacity_high) for r in results]
    in_range = [_holds(part, r.true_percent_opacity) for part, r in zip(ranges, results, strict=True)]
    near = [r.carina_error_mm is not None and r.carina_error_mm <= 10.0 for r in results]
    return {
        "lungs_dice_mean": float(np.mean([r.lungs_dice for r in results])),
        "lungs_dice_worst": float(np.min([r.lungs_dice for r in results])),
        "lobes_dice_mean": float(np.mean([r.lobes_dice for r in results])),
        "lobes_dice_worst": float(np.min([r.lobes_dice for r in results])),
        "lesions_dice_mean": float(np.mean(lesions)) if lesions else float("nan"),
        "lesions_dice_worst": float(np.min(lesions)) if lesions else float("nan"),
        "carina_within_10_mm": float(np.mean(near)),
        "percent_opacity_error_mean": float(np.mean(opacity_errors)),
        "percent_opacity_error_worst": float(np.max(opacity_errors)),
        "percent_opacity_in_range": float(np.mean(in_range)),
        "percent_opacity_range_width_mean": float(np.mean([part.high - part.low for part in ranges])),
        "lobes_in_range": float(np.mean([r.lobes_in_range / len(Lobe) for r in results])),
        "lobe_scores_right": float(np.mean([r.lobe_scores_right / len(Lobe) for r in results])),
        "lobe_scores_in_range": float(np.mean([r.lobe_scores_in_range / len(Lobe) for r in results])),
    }


def evaluate_clear(models: Models, data: Path) -> Iterator[ClearResult]:
    """Quantify the scans of the Lung CT Segmentation Challenge, which show no pneumonia and come with their lungs."""
    for path in sorted((data / "lctsc").glob("*_lungs.nii.gz")):
        case = path.name.removesuffix("_lungs.nii.gz")
        scan, lungs = read_lctsc(data, case)
        yield compare_clear(case, lungs, quantify(scan, models))


def compare_clear(name: str, true_lungs: Bool[np.ndarray, "z y x"], found: Quantification) -> ClearResult:
    """Compare what was found in a chest without opacities with its true lungs."""
    lungs, opacities, whole = found.lungs.mask, found.lesions.mask, np.count_nonzero(true_lungs)
    invented = lungs & ~true_lungs
    return ClearResult(
        name=name,
        lungs_dice=dice(true_lungs, lungs),
        percent_opacity=found.severity.percent_opacity,
        percent_opacity_low=found.opacity_range.overall.low,
        percent_opacity_high=found.opacity_range.overall.high,
        lung_severity_score=found.severity.lung_severity_score,
        inside_percent=100 * np.count_nonzero(opacities & true_lungs) / whole,
        invented_percent=100 * np.count_nonzero(invented) / whole,
        invented_opacity_share=np.count_nonzero(opacities & invented) / max(int(np.count_nonzero(invented)), 1),
    )


def evaluate_scan(models: Models, path: Path) -> ScanResult:
    """Quantify one file."""
    found = quantify(read_ct(path), models)
    carina = next((mark.position_mm for mark in found.landmarks if mark.landmark is Landmark.CARINA), None)
    return ScanResult(
        name=path.name,
        lung_volume_ml=found.severity.volume_ml,
        lobe_volumes_ml={lobe.lobe.slug: round(lobe.volume_ml, 1) for lobe in found.severity.lobes},
        percent_opacity=found.severity.percent_opacity,
        percent_high_opacity=found.severity.percent_high_opacity,
        carina_mm=carina,
        seconds=dict(found.seconds),
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON row a case, then the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=10, help="how many phantoms, from seed 1 000 000 on")
    parser.add_argument("--clear", type=Path, default=None, help="folder of the public scans, of which lctsc/ is clear")
    parser.add_argument("--scan", type=Path, action="append", default=[], help="a scan without truth; may be repeated")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights", type=Path, default=None, help="folder of weights; the shipped ones by default")
    parser.add_argument("--lung-stage", choices=get_args(LungBackendName), default=DEFAULT_LUNG_BACKEND)
    options = parser.parse_args(arguments)
    models = load_models(options.device, options.weights, options.lung_stage)
    results = []
    for result in evaluate_phantoms(models, options.phantoms):
        results.append(result)
        _print_row(asdict(result))
    if results:
        _print_row({"phantoms": len(results), **summarise(results)})
    if options.clear is not None:
        for clear in evaluate_clear(models, options.clear):
            _print_row(asdict(clear))
    for path in options.scan:
        _print_row(asdict(evaluate_scan(models, path)))


def _print_row(row: dict[str, object]) -> None:
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
    print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
    main()
