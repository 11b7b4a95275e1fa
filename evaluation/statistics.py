"""Agreement of predicted with true scores: pure functions of two arrays, one number a case, from scipy and statsmodels.

In this order: what a statistic can be; bootstrap intervals; chi-squared test of the frequencies (paper, "Statistical
Analysis"); Pearson and Kendall (paper, Table 3); mean errors; regression (paper, Table 4); limits of agreement (Bland
and Altman, Lancet 1986; 1: 307-310); confusion of the ordinal scores; recalibration.

What the data do not define comes back as `NotDefined`, with why; no function returns a NaN.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import statsmodels.api as sm
from jaxtyping import Float64
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from pipeline.severity import lobe_score

#: One number a case; truth and prediction of the same call have the same cases in the same order.
Values = Float64[np.ndarray, "n"]
#: Where on the prediction's axis the line is wanted.
Positions = Float64[np.ndarray, "m"]
#: Of every interval in the report.
CONFIDENCE: Final = 0.95
#: Values that differ by no more than this differ by rounding: percentages come from divisions.
SAME: Final = 1e-9
#: With two cases every correlation is 1 or -1, and every line fits.
FEWEST_CASES: Final = 3

RESAMPLES: Final = 2000
#: Of the resamples must define the statistic, or there is no interval: the rest would be a choice of convenient ones.
LEAST_SHARE: Final = 0.95
#: Bins of PO and PHO; as in the grades of lobes, 1 % belongs to the second bin, and 25, 50 and 75 % to the lower one.
PERCENT_BINS: Final = ("0-1 %", "1-25 %", "25-50 %", "50-75 %", "75-100 %")
#: Bins of LSS and LHOS: each value from 0 to 20.
SCORE_BINS: Final = tuple(str(score) for score in range(21))
#: Below this expected count the chi-squared distribution is a rough guide to the p value (Cochran's rule).
SMALL_EXPECTED: Final = 5.0
#: So many standard deviations on either side of the bias hold 95 % of normally distributed differences.
DEVIATIONS: Final = 1.96
#: A recalibrating line through fewer cases says more about them than about the next one.
FEWEST_FOR_CALIBRATION: Final = 10


@dataclass(frozen=True)
class NotDefined:
    """A statistic that these data do not have, and why."""

    why: str


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is."""

    value: float
    interval: Interval | NotDefined

    @classmethod
    def within(cls, value: float, half_width: float) -> "Estimate":
        """With an interval of `half_width` on either side."""
        return cls(value, Interval(float(value - half_width), float(value + half_width)))


def too_few(count: int, fewest: int = FEWEST_CASES) -> NotDefined | None:
    """Why nothing can be said about so few cases; None if they are enough."""
    if count >= fewest:
        return None
    return NotDefined(f"{count} case{'' if count == 1 else 's'}; at least {fewest} are needed")


def not_varying(name: str, values: Values) -> NotDefined | None:
    """Why nothing can be said about values that are all the same; None if they vary."""
    if np.ptp(values) > SAME:
        return None
    return NotDefined(f"the {name} is {round(float(values[0]), 6):g} in every case")


def unfit_for_association(truth: Values, predicted: Values) -> NotDefined | None:
    """Why no association can be measured: too few cases, or one side does not vary."""
    return too_few(len(truth)) or not_varying("truth", truth) or not_varying("prediction", predicted)


def bootstrap(statistic: Callable[..., float], *columns: np.ndarray, seed: int) -> Interval | NotDefined:
    """The interval of `statistic(*columns)`: bias-corrected and accelerated, else of percentiles (Efron 1987).

    Cases are drawn anew with replacement, truth and prediction staying together.

    Args:
        statistic: of arrays of one length; may return NaN for resamples that do not define it.
        seed: the same seed gives the same interval.
    """
    if (why := too_few(len(columns[0]))) is not None:
        return why
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # scipy warns of constant resamples, which are counted below.
        warnings.simplefilter("ignore")
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
    # The correction is not defined where nearly all resamples give one value, as at perfect agreement, or where a few
    # resamples happen to hold a single case and define no correlation: there the percentiles serve.
    low, high = (float(end) for end in result.confidence_interval)
    if np.isfinite(low) and np.isfinite(high):
        return Interval(low, high)
    finite = result.bootstrap_distribution[np.isfinite(result.bootstrap_distribution)]
    if len(finite) < LEAST_SHARE * RESAMPLES:
        return NotDefined(f"{100 * (1 - len(finite) / RESAMPLES):.0f} % of the resamples do not define it")
    low, high = (float(end) for end in np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    return Interval(low, high)


@dataclass(frozen=True)
class Contingency:
    """The test, with the table that it is about: a row for the truth, one for the prediction, and a column a bin.

    Attributes:
        bins: those that hold a case.
        least_expected: the smallest expected count of a cell.
    """

    bins: tuple[str, ...]
    truth_counts: tuple[int, ...]
    predicted_counts: tuple[int, ...]
    chi2: float
    p_value: float
    degrees_of_freedom: int
    least_expected: float

    @property
    def is_rough(self) -> bool:
        """Whether some expected counts are so small that the p value is approximate."""
        return self.least_expected < SMALL_EXPECTED


def percent_bins(percents: Values) -> list[int]:
    """Which of `PERCENT_BINS` each percentage falls into."""
    return [lobe_score(float(value)) for value in percents]


def score_bins(scores: Values) -> list[int]:
    """Which of `SCORE_BINS` each score is."""
    return [int(value) for value in scores]


def compare_frequencies(
    truth: Sequence[int], predicted: Sequence[int], bins: Sequence[str]
) -> Contingency | NotDefined:
    """The chi-squared contingency test of two lists of bin numbers, without continuity correction.

    It compares distributions, not cases: a high p value does not show that the predictions are right.
    """
    if (why := too_few(len(truth), 1)) is not None:
        return why
    table = np.stack([np.bincount(side, minlength=len(bins)) for side in (truth, predicted)])
    # Bins that neither side fills are left out: only so do the paper's own pairs of chi-squared and p value (Table 3)
    # fit together.
    filled = [int(index) for index in np.flatnonzero(table.sum(axis=0))]
    if len(filled) < 2:
        only = bins[filled[0]]
        return NotDefined(f"truth and prediction are {only} in every case: there is one bin, nothing to test")
    table = table[:, filled]
    result = stats.chi2_contingency(table, correction=False)
    return Contingency(
        bins=tuple(bins[index] for index in filled),
        truth_counts=tuple(int(count) for count in table[0]),
        predicted_counts=tuple(int(count) for count in table[1]),
        chi2=float(result.statistic),
        p_value=float(result.pvalue),
        degrees_of_freedom=int(result.dof),
        least_expected=float(result.expected_freq.min()),
    )


@dataclass(frozen=True)
class Correlation:
    """A coefficient and the p value of its being zero (two-sided)."""

    coefficient: float
    p_value: float


def pearson(truth: Values, predicted: Values) -> Correlation | NotDefined:
    """The linear association."""
    return _correlate(stats.pearsonr, truth, predicted)


def kendall(truth: Values, predicted: Values) -> Correlation | NotDefined:
    """The agreement of the rankings: tau-b, which allows for ties (Knight 1966, as scipy has it)."""
    return _correlate(stats.kendalltau, truth, predicted)


def _correlate(test: Callable[[Values, Values], Any], truth: Values, predicted: Values) -> Correlation | NotDefined:
    if (why := unfit_for_association(truth, predicted)) is not None:
        return why
    result = test(truth, predicted)
    return Correlation(float(result.statistic), float(result.pvalue))


def mean_error(truth: Values, predicted: Values) -> float:
    """Prediction less truth: positive where the predictions are too high."""
    return float(np.mean(predicted - truth))


def mean_absolute_error(truth: Values, predicted: Values) -> float:
    """The paper's "mean error between ground truth and predicted"."""
    return float(np.mean(np.abs(predicted - truth)))


@dataclass(frozen=True)
class LinearFit:
    """`truth = intercept + slope * predicted`, in the units of the metric.

    A slope below 1 means that high predictions are too high.

    Attributes:
        root_mean_square: of the truth's distance from the line; the paper's "mean squared error from the regression
            line", as a root, so that it has the metric's unit.
    """

    intercept: Estimate
    slope: Estimate
    r_squared: float
    root_mean_square: float

    def at(self, predicted: Values) -> Values:
        """The truth that the line expects."""
        return np.asarray(self.intercept.value + self.slope.value * predicted)


def fit_line(truth: Values, predicted: Values) -> LinearFit | NotDefined:
    """Ordinary least squares with t intervals."""
    if (why := unfit_for_association(truth, predicted)) is not None:
        return why
    model = sm.OLS(truth, sm.add_constant(predicted)).fit()
    estimates = [
        Estimate(float(value), Interval(float(low), float(high)))
        for value, (low, high) in zip(model.params, model.conf_int(1 - CONFIDENCE), strict=True)
    ]
    root_mean_square = float(np.sqrt(np.mean(np.square(model.resid))))
    return LinearFit(estimates[0], estimates[1], float(model.rsquared), root_mean_square)


def confidence_band(truth: Values, predicted: Values, at: Positions) -> tuple[Positions, Positions] | NotDefined:
    """Lower and upper edge of the 95 % band of the line (of the mean, not of single cases) at `at`."""
    if (why := unfit_for_association(truth, predicted)) is not None:
        return why
    model = sm.OLS(truth, sm.add_constant(predicted)).fit()
    frame = model.get_prediction(sm.add_constant(at, has_constant="add")).conf_int(alpha=1 - CONFIDENCE)
    return frame[:, 0], frame[:, 1]


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
    """Bias and limits, with their 95 % intervals, in the units of the metric."""
    if (why := too_few(len(truth))) is not None:
        return why
    difference = predicted - truth
    count, bias, deviation = len(difference), float(np.mean(difference)), float(np.std(difference, ddof=1))
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    lower, upper = bias - DEVIATIONS * deviation, bias + DEVIATIONS * deviation
    # The intervals of the 1986 paper: t distribution, and a limit's variance is 3 s^2 / n.
    of_bias, of_limit = t * deviation / np.sqrt(count), t * deviation * np.sqrt(3 / count)
    fit = fit_line(difference, (truth + predicted) / 2)
    trend: Estimate | NotDefined
    if isinstance(fit, NotDefined):
        # In the words of this statistic: what the line calls truth is the difference here.
        why_no_line = fit.why.replace("prediction", "mean of truth and prediction")
        trend = not_varying("difference", difference) or NotDefined(why_no_line)
    else:
        trend = fit.slope
    return LimitsOfAgreement(
        bias=Estimate.within(bias, of_bias),
        lower=Estimate.within(lower, of_limit),
        upper=Estimate.within(upper, of_limit),
        standard_deviation=deviation,
        share_inside=float(np.mean((difference >= lower) & (difference <= upper))),
        trend=trend,
    )


@dataclass(frozen=True)
class Confusion:
    """How often each true score was predicted as each score.

    Attributes:
        counts: a row for each true score from 0 on, a column for each predicted one.
        exact: share of cases with the true score.
        within_one: share of cases at most one off.
        kappa: Cohen's kappa with quadratic weights (Cohen 1968): 1 is perfect, 0 is what chance gives.
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
    margins = (("truth", counts.sum(axis=1)), ("prediction", counts.sum(axis=0)))
    constant = [(name, int(np.argmax(margin))) for name, margin in margins if np.count_nonzero(margin) < 2]
    kappa: Estimate | NotDefined
    if (few := too_few(len(truth))) is not None:
        kappa = few
    elif constant:
        kappa = NotDefined("the {} is {} in every case".format(*constant[0]))
    else:
        # At perfect agreement the variance is zero, or less by rounding.
        with np.errstate(invalid="ignore", divide="ignore"):
            result = cohens_kappa(counts, wt="quadratic")
        half = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(max(float(result.var_kappa), 0.0))
        value = float(result.kappa)
        kappa = Estimate(value, Interval(float(value - half), float(min(value + half, 1.0))))
    return Confusion(rows, float(np.mean(off == 0)), float(np.mean(off <= 1)), kappa)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Recalibration and what it does to cases that it has not seen.

    Attributes:
        fit: the line through all cases, to be applied to new ones: `intercept + slope * predicted`, kept in 0-100.
        recalibrated: each case by the line through the others.
        error_before: mean absolute error as predicted.
        error_after: mean absolute error of `recalibrated`.
        gain: how much the mean absolute error falls, with its bootstrap interval.
    """

    fit: LinearFit
    recalibrated: Values
    error_before: float
    error_after: float
    bias_before: float
    bias_after: float
    gain: Estimate

    @property
    def is_worth_it(self) -> bool:
        """Whether the gain is surely above zero."""
        return isinstance(self.gain.interval, Interval) and self.gain.interval.low > 0


def calibrate(truth: Values, predicted: Values, *, seed: int) -> Calibration | NotDefined:
    """What the paper's own regression, used to recalibrate, would bring, on cases that it was not fitted to.

    The paper finds a slope of 0.84 for PO and says that "the system needs to be calibrated further".
    """
    if (why := too_few(len(truth), FEWEST_FOR_CALIBRATION)) is not None:
        return why
    fit, recalibrated = fit_line(truth, predicted), np.empty_like(predicted)
    if isinstance(fit, NotDefined):
        return fit
    # Each case by the line through all the others: what is shown is what a new case may expect.
    for index in range(len(truth)):
        others = np.arange(len(truth)) != index
        without = fit_line(truth[others], predicted[others])
        if isinstance(without, NotDefined):
            return NotDefined("a single case carries all the variation: without it there is no line")
        recalibrated[index : index + 1] = np.clip(without.at(predicted[index : index + 1]), 0.0, 100.0)
    gains = np.abs(predicted - truth) - np.abs(recalibrated - truth)
    return Calibration(
        fit=fit,
        recalibrated=recalibrated,
        error_before=mean_absolute_error(truth, predicted),
        error_after=mean_absolute_error(truth, recalibrated),
        bias_before=mean_error(truth, predicted),
        bias_after=mean_error(truth, recalibrated),
        gain=Estimate(float(np.mean(gains)), bootstrap(lambda values: float(np.mean(values)), gains, seed=seed)),
    )
