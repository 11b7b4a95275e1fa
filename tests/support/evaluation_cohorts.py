"""Paired scores with known properties, for tests of the evaluation."""

from pathlib import Path

import numpy as np

from evaluation.scores import CaseScores, LobeScores, PairedScores, write_scores
from pipeline.anatomy import Lobe
from pipeline.severity import lobe_score


def case(name: str, lobe_percents: list[float], group: str | None = None, dense: float = 0.3) -> CaseScores:
    """Scores of five lobes of one size, `dense` of whose opacity is high."""
    high = [percent * dense for percent in lobe_percents]
    lobes = tuple(
        LobeScores(lobe, percent, dense_percent, lobe_score(percent), lobe_score(dense_percent))
        for lobe, percent, dense_percent in zip(Lobe, lobe_percents, high, strict=True)
    )
    return CaseScores(
        case=name,
        percent_opacity=float(np.mean(lobe_percents)),
        percent_high_opacity=float(np.mean(high)),
        lung_severity_score=sum(lobe.severity_score for lobe in lobes),
        lung_high_opacity_score=sum(lobe.high_opacity_score for lobe in lobes),
        lobes=lobes,
        group=group,
    )


def noisy_cohort(covid: int = 24, controls: int = 12, seed: int = 0) -> PairedScores:
    """Predictions a fifth too high, with noise; controls with next to nothing."""
    rng = np.random.default_rng(seed)
    truth, predicted = [], []
    for number in range(covid + controls):
        is_control = number >= covid
        percents = np.zeros(5) if is_control else rng.uniform(0, 1, 5) * rng.uniform(2, 75)
        found = rng.uniform(0, 0.4, 5) if is_control else np.clip(1.2 * percents + rng.normal(0, 4, 5), 0, 100)
        group = "control" if is_control else "covid"
        truth.append(case(f"case-{number:03d}", [float(p) for p in percents], group))
        predicted.append(case(f"case-{number:03d}", [float(p) for p in found], group, dense=0.32))
    return PairedScores(tuple(truth), tuple(predicted))


def write_pairs(folder: Path, scores: PairedScores) -> tuple[Path, Path]:
    """`truth.csv` and `predicted.csv`."""
    paths = folder / "truth.csv", folder / "predicted.csv"
    for path, rows in zip(paths, (scores.truth, scores.predicted), strict=True):
        write_scores(path, rows)
    return paths
