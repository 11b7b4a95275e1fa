"""Ordinal scores side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from evaluation.statistics.estimates import CONFIDENCE, Estimate, Interval, NotDefined, too_few


@dataclass(frozen=True)
class Confusion:
    """How often each true score was predicted as each score.

    Attributes:
        counts: a row for each true score from 0 on, a column for each predicted one.
        exact: share of cases with the true score.
        within_one: share of cases at most one off.
        kappa: Cohen's kappa with quadratic weights: 1 is perfect, 0 is what chance gives.
    """

    counts: tuple[tuple[int, ...], ...]
    exact: float
    within_one: float
    kappa: Estimate | NotDefined


def confuse(truth: Sequence[int], predicted: Sequence[int], highest: int) -> Confusion | NotDefined:
    """The matrix of scores 0 to `highest`."""
    if (why := too_few(len(truth), 1)) is not None:
        return why
    counts = np.zeros((highest + 1, highest + 1), dtype=np.int64)
    np.add.at(counts, (list(truth), list(predicted)), 1)
    off = np.abs(np.subtract(truth, predicted))
    rows = tuple(tuple(int(count) for count in row) for row in counts)
    return Confusion(rows, float(np.mean(off == 0)), float(np.mean(off <= 1)), _kappa(counts))


def _kappa(counts: np.ndarray) -> Estimate | NotDefined:
    if (why := too_few(int(counts.sum()))) is not None:
        return why
    for name, margin in (("truth", counts.sum(axis=1)), ("prediction", counts.sum(axis=0))):
        if np.count_nonzero(margin) < 2:
            return NotDefined(f"the {name} is {int(np.argmax(margin))} in every case")
    with np.errstate(
        invalid="ignore", divide="ignore"
    ):  # at perfect agreement the variance is zero, or less by rounding
        result = cohens_kappa(counts, wt="quadratic")
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(max(float(result.var_kappa), 0.0))
    kappa = float(result.kappa)
    return Estimate(kappa, Interval(float(kappa - half), float(min(kappa + half, 1.0))))
