"""Bootstrap intervals: cases are drawn anew with replacement, truth and prediction staying together."""

import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from scipy import stats

from evaluation.statistics.estimates import CONFIDENCE, Interval, NotDefined, too_few

RESAMPLES: Final = 2000

LEAST_SHARE: Final = 0.95
"""Of the resamples must define the statistic, or there is no interval."""


def bootstrap(statistic: Callable[..., float], *columns: np.ndarray, seed: int) -> Interval | NotDefined:
    """The interval of `statistic(*columns)`: bias-corrected and accelerated, else of percentiles (Efron 1987).

    The percentiles serve where the correction is not defined: where nearly all resamples give one value, as at perfect
    agreement, or where a few resamples happen to hold a single case and define no correlation.

    Args:
        statistic: of arrays of one length; may return NaN for resamples that do not define it.
        seed: the same seed gives the same interval.
    """
    if (why := too_few(len(columns[0]))) is not None:
        return why
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of constant resamples, which are counted below
        result: Any = stats.bootstrap(
            columns,
            statistic,
            n_resamples=RESAMPLES,
            paired=True,
            vectorized=False,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = (float(end) for end in result.confidence_interval)
    if np.isfinite(low) and np.isfinite(high):
        return Interval(low, high)
    return _percentiles(result.bootstrap_distribution)


def _percentiles(distribution: np.ndarray) -> Interval | NotDefined:
    finite = distribution[np.isfinite(distribution)]
    if len(finite) < LEAST_SHARE * len(distribution):
        share = 100 * (1 - len(finite) / len(distribution))
        return NotDefined(f"{share:.0f} % of the resamples do not define it")
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
