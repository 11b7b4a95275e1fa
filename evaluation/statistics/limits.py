"""Limits of agreement (Bland and Altman, Lancet 1986; 1: 307-310)."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from evaluation.statistics.estimates import (
    CONFIDENCE,
    FEWEST_CASES,
    Estimate,
    Interval,
    NotDefined,
    Values,
    not_varying,
    too_few,
)
from evaluation.statistics.regression import fit_line

DEVIATIONS: Final = 1.96
"""So many standard deviations on either side of the bias hold 95 % of normally distributed differences."""


@dataclass(frozen=True)
class LimitsOfAgreement:
    """Of the differences, prediction less truth.

    Attributes:
        bias: their mean.
        lower: bias less 1.96 standard deviations.
        upper: bias and 1.96 standard deviations.
        share_inside: of the cases, between the limits.
        trend: slope of the difference on the mean of both; away from 0, the error grows or shrinks with the metric.
    """

    bias: Estimate
    lower: Estimate
    upper: Estimate
    standard_deviation: float
    share_inside: float
    trend: Estimate | NotDefined


def limits_of_agreement(truth: Values, predicted: Values) -> LimitsOfAgreement | NotDefined:
    """Bias and limits, with the intervals of the 1986 paper (t distribution; variance of a limit 3 s^2 / n)."""
    if (why := too_few(len(truth), FEWEST_CASES)) is not None:
        return why
    difference = predicted - truth
    count, bias, deviation = len(difference), float(np.mean(difference)), float(np.std(difference, ddof=1))
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    lower, upper = bias - DEVIATIONS * deviation, bias + DEVIATIONS * deviation
    of_bias, of_limit = t * deviation / np.sqrt(count), t * deviation * np.sqrt(3 / count)
    fit = fit_line(difference, (truth + predicted) / 2)
    return LimitsOfAgreement(
        bias=_around(bias, of_bias),
        lower=_around(lower, of_limit),
        upper=_around(upper, of_limit),
        standard_deviation=deviation,
        share_inside=float(np.mean((difference >= lower) & (difference <= upper))),
        trend=fit.slope if not isinstance(fit, NotDefined) else _no_trend(difference, fit),
    )


def _around(value: float, half_width: float) -> Estimate:
    return Estimate(value, Interval(float(value - half_width), float(value + half_width)))


def _no_trend(difference: Values, fit: NotDefined) -> NotDefined:
    """In the words of this page: what the line calls truth is the difference here."""
    return not_varying("difference", difference) or NotDefined(
        fit.why.replace("prediction", "mean of truth and prediction")
    )
