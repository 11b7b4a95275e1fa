"""Statistics on data whose answers are known: published examples, closed forms, perfect and opposite agreement."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from evaluation.statistics import (
    PERCENT_BINS,
    SCORE_BINS,
    Calibration,
    Confusion,
    Contingency,
    Correlation,
    Estimate,
    Interval,
    LimitsOfAgreement,
    LinearFit,
    NotDefined,
    bootstrap,
    calibrate,
    compare_frequencies,
    confidence_band,
    confuse,
    fit_line,
    kendall,
    limits_of_agreement,
    mean_absolute_error,
    mean_error,
    pearson,
    percent_bins,
)

ANSCOMBE_X = np.array([10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5], dtype=np.float64)
ANSCOMBE_X4 = np.array([8, 8, 8, 8, 8, 8, 8, 19, 8, 8, 8], dtype=np.float64)
ANSCOMBE_Y = (
    [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68],
    [9.14, 8.14, 8.74, 8.77, 9.26, 8.10, 6.13, 3.10, 9.13, 7.26, 4.74],
    [7.46, 6.77, 12.74, 7.11, 7.81, 8.84, 6.08, 5.39, 8.15, 6.42, 5.73],
    [6.58, 5.76, 7.71, 8.84, 8.47, 7.04, 5.25, 12.50, 5.56, 7.91, 6.89],
)
"""Anscombe 1973: four sets with one line, y = 3.00 + 0.500 x, and one correlation, 0.816."""

WRIGHT_LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
WRIGHT_MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
"""Peak flow in l/min by two meters, first measurements (Bland and Altman 1986, Table 1)."""

PUBLISHED_CHI2 = {"PO": (2.11, 0.72, 5), "PHO": (1.00, 0.60, 3), "LSS": (23.50, 0.2, 20), "LHOS": (2.21, 0.95, 8)}
"""Table 3 of the paper, and the number of bins with which each pair fits together."""

percents = arrays(np.float64, st.integers(4, 30), elements=st.floats(0, 100).map(lambda value: round(value, 3)))


def mean_of(sample: np.ndarray) -> float:
    return float(np.mean(sample))


def linear(truth: np.ndarray, predicted: np.ndarray) -> LinearFit:
    fit = fit_line(truth, predicted)
    assert isinstance(fit, LinearFit), fit
    return fit


@pytest.mark.parametrize("number", range(4))
def test_anscombes_quartet_has_one_line_and_one_correlation(number: int) -> None:
    x, y = ANSCOMBE_X4 if number == 3 else ANSCOMBE_X, np.array(ANSCOMBE_Y[number])
    fit, correlation = linear(y, x), pearson(y, x)
    assert isinstance(correlation, Correlation)
    assert fit.intercept.value == pytest.approx(3.00, abs=0.01)
    assert fit.slope.value == pytest.approx(0.500, abs=0.001)
    assert fit.r_squared == pytest.approx(0.67, abs=0.01)
    assert correlation.coefficient == pytest.approx(0.816, abs=0.001)
    assert correlation.p_value == pytest.approx(0.00217, abs=0.0001)


def test_the_intervals_of_a_fit_are_those_of_the_textbook() -> None:
    """Anscombe's first set: standard errors 1.125 and 0.118 with nine degrees of freedom, t = 2.262."""
    fit = linear(np.array(ANSCOMBE_Y[0]), ANSCOMBE_X)
    assert isinstance(fit.intercept.interval, Interval)
    assert isinstance(fit.slope.interval, Interval)
    assert fit.intercept.interval.high - fit.intercept.value == pytest.approx(2.262 * 1.1247, abs=0.005)
    assert fit.slope.value - fit.slope.interval.low == pytest.approx(2.262 * 0.1179, abs=0.001)
    assert fit.root_mean_square == pytest.approx(1.237 * np.sqrt(9 / 11), abs=0.001)


def test_the_band_of_a_fit_is_narrowest_at_the_mean() -> None:
    band = confidence_band(np.array(ANSCOMBE_Y[0]), ANSCOMBE_X, np.array([0.0, 9.0, 20.0]))
    assert not isinstance(band, NotDefined)
    width = band[1] - band[0]
    assert width[1] == pytest.approx(2 * 2.262 * 1.237 / np.sqrt(11), abs=0.005)
    assert width[1] < min(width[0], width[2])


def test_kendalls_tau_of_a_worked_example() -> None:
    """Five ranks with two discordant pairs of ten: tau = (8 - 2) / 10."""
    result = kendall(np.array([1.0, 2, 3, 4, 5]), np.array([3.0, 1, 2, 4, 5]))
    assert isinstance(result, Correlation)
    assert result.coefficient == pytest.approx(0.6)


def test_kendalls_tau_allows_for_ties() -> None:
    """tau-b = (C - D) / sqrt((n0 - ties in x)(n0 - ties in y)): five concordant pairs, one tie on one side of six."""
    result = kendall(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4]))
    assert isinstance(result, Correlation)
    assert result.coefficient == pytest.approx(5 / np.sqrt(5 * 6))


def test_bland_and_altmans_own_example() -> None:
    """Mean difference -2.1 l/min, standard deviation 38.8, 95 % interval of the bias -22.1 to 17.8.

    Standard errors 9.4 and 16.3; the paper rounds 1.96 to 2, and so has its limits at -79.7 and 75.5.
    """
    result = limits_of_agreement(np.array(WRIGHT_MINI, np.float64), np.array(WRIGHT_LARGE, np.float64))
    assert isinstance(result, LimitsOfAgreement)
    assert isinstance(result.bias.interval, Interval)
    assert isinstance(result.lower.interval, Interval)
    assert result.bias.value == pytest.approx(-2.1, abs=0.05)
    assert result.standard_deviation == pytest.approx(38.8, abs=0.05)
    assert (result.bias.interval.low, result.bias.interval.high) == pytest.approx((-22.1, 17.8), abs=0.1)
    assert result.lower.value == pytest.approx(-79.7 + 0.04 * 38.8, abs=0.1)
    assert result.upper.value == pytest.approx(75.5 - 0.04 * 38.8, abs=0.1)
    assert result.lower.value - result.lower.interval.low == pytest.approx(2.12 * 16.3, abs=0.1)
    assert result.share_inside == pytest.approx(16 / 17)


def test_a_textbook_contingency_table() -> None:
    """Rows 10, 20, 30 and 6, 9, 17 (Zar): chi-squared 0.2716, two degrees of freedom, p 0.873."""
    truth, predicted = [0] * 10 + [1] * 20 + [2] * 30, [0] * 6 + [1] * 9 + [2] * 17
    result = compare_frequencies(truth, predicted, PERCENT_BINS)
    assert isinstance(result, Contingency)
    assert result.chi2 == pytest.approx(0.2716, abs=0.0001)
    assert result.p_value == pytest.approx(0.873, abs=0.001)
    assert result.degrees_of_freedom == 2
    assert result.bins == PERCENT_BINS[:3]


@pytest.mark.parametrize("metric", PUBLISHED_CHI2)
def test_the_papers_p_values_are_those_of_its_bins_without_the_empty_ones(metric: str) -> None:
    chi2, p_value, bins = PUBLISHED_CHI2[metric]
    digits = 0.05 if metric == "LSS" else 0.01
    assert stats.chi2.sf(chi2, bins - 1) == pytest.approx(p_value, abs=digits)


def test_bins_that_nobody_fills_cost_no_degree_of_freedom() -> None:
    result = compare_frequencies([0, 3, 3, 20], [0, 3, 20, 20], SCORE_BINS)
    assert isinstance(result, Contingency)
    assert result.bins == ("0", "3", "20")
    assert result.degrees_of_freedom == 2
    assert result.is_rough


def test_the_ends_of_the_bins() -> None:
    assert percent_bins(np.array([0, 0.99, 1, 25, 25.01, 50, 75, 75.01, 100])) == [0, 0, 1, 1, 2, 2, 3, 4, 4]


@given(percents)
def test_the_same_frequencies_have_no_chi_squared(values: np.ndarray) -> None:
    result = compare_frequencies(percent_bins(values), percent_bins(values[::-1]), PERCENT_BINS)
    assert isinstance(result, NotDefined) or (result.chi2 == pytest.approx(0) and result.p_value == pytest.approx(1))


@settings(deadline=None)
@given(percents.filter(lambda values: np.ptp(values) > 1e-3))
def test_perfect_agreement(values: np.ndarray) -> None:
    fit, both = linear(values, values), [pearson(values, values), kendall(values, values)]
    assert all(isinstance(one, Correlation) and one.coefficient == pytest.approx(1) for one in both)
    assert fit.intercept.value == pytest.approx(0, abs=1e-6)
    assert fit.slope.value == pytest.approx(1)
    assert fit.r_squared == pytest.approx(1)
    assert (mean_error(values, values), mean_absolute_error(values, values)) == (0, 0)
    limits = limits_of_agreement(values, values)
    assert isinstance(limits, LimitsOfAgreement)
    assert limits.lower.value == limits.bias.value == limits.upper.value == 0
    assert limits.trend == NotDefined("the difference is 0 in every case")


@settings(deadline=None)
@given(percents.filter(lambda values: np.ptp(values) > 1e-3))
def test_opposite_agreement(values: np.ndarray) -> None:
    both = [pearson(values, 100 - values), kendall(values, 100 - values)]
    assert all(isinstance(one, Correlation) and one.coefficient == pytest.approx(-1, abs=1e-6) for one in both)
    assert linear(values, 100 - values).slope.value == pytest.approx(-1, abs=1e-6)


@settings(deadline=None)
@given(percents.filter(lambda values: np.ptp(values) > 1), st.floats(-20, 20), st.floats(0.2, 3))
def test_a_line_is_found_and_undone(predicted: np.ndarray, intercept: float, slope: float) -> None:
    fit = linear(intercept + slope * predicted, predicted)
    assert fit.intercept.value == pytest.approx(intercept, abs=1e-6)
    assert fit.slope.value == pytest.approx(slope, rel=1e-6)


@given(percents, st.floats(-50, 50))
def test_a_shift_is_the_bias(truth: np.ndarray, shift: float) -> None:
    limits = limits_of_agreement(truth, truth + shift)
    assert isinstance(limits, LimitsOfAgreement)
    assert limits.bias.value == pytest.approx(shift, abs=1e-9)
    assert mean_absolute_error(truth, truth + shift) == pytest.approx(abs(shift), abs=1e-9)


@pytest.mark.parametrize(
    ("truth", "predicted", "why"),
    [
        ([0, 0, 0, 0], [1, 2, 3, 4], "the truth is 0 in every case"),
        ([1, 2, 3, 4], [7, 7, 7, 7], "the prediction is 7 in every case"),
        ([1, 2], [1, 2], "2 cases; at least 3 are needed"),
        ([1], [1], "1 case; at least 3 are needed"),
        ([], [], "0 cases; at least 3 are needed"),
    ],
)
def test_what_is_not_defined_says_why(truth: list[float], predicted: list[float], why: str) -> None:
    sides = np.array(truth, np.float64), np.array(predicted, np.float64)
    for result in (pearson(*sides), kendall(*sides), fit_line(*sides)):
        assert result == NotDefined(why)


def test_one_bin_is_nothing_to_test() -> None:
    result = compare_frequencies([0, 0], [0, 0], PERCENT_BINS)
    assert isinstance(result, NotDefined)
    assert "0-1 %" in result.why
    assert isinstance(compare_frequencies([], [], PERCENT_BINS), NotDefined)


def test_weighted_kappa_of_a_worked_example() -> None:
    """Cohen 1968's formula by hand: observed disagreement 0.6 of 10 (squares), expected by the margins."""
    truth, predicted = [0] * 4 + [1] * 4 + [2] * 2, [0, 0, 0, 1, 1, 1, 1, 2, 2, 0]
    result = confuse(truth, predicted, 2)
    assert isinstance(result, Confusion)
    assert result.counts == ((3, 1, 0), (0, 3, 1), (1, 0, 1))
    assert (result.exact, result.within_one) == pytest.approx((0.7, 0.9))
    observed = sum((t - p) ** 2 for t, p in zip(truth, predicted, strict=True)) / 10
    expected = sum((t - p) ** 2 for t in truth for p in predicted) / 100
    assert isinstance(result.kappa, Estimate)
    assert result.kappa.value == pytest.approx(1 - observed / expected)


def test_a_side_that_does_not_vary_has_no_kappa() -> None:
    for sides, name in ((([2, 2, 2, 2], [0, 1, 2, 2]), "truth"), (([0, 1, 2, 2], [2, 2, 2, 2]), "prediction")):
        result = confuse(*sides, 4)
        assert isinstance(result, Confusion)
        assert result.kappa == NotDefined(f"the {name} is 2 in every case")


@given(st.lists(st.integers(0, 20), min_size=3, max_size=30))
def test_scores_agree_with_themselves(scores: list[int]) -> None:
    result = confuse(scores, scores, 20)
    assert isinstance(result, Confusion)
    assert (result.exact, result.within_one) == (1, 1)
    if len(set(scores)) > 1:
        assert isinstance(result.kappa, Estimate)
        assert result.kappa.value == pytest.approx(1)
    else:
        assert isinstance(result.kappa, NotDefined)


def test_a_bootstrap_interval_is_about_the_one_in_closed_form_and_repeatable() -> None:
    values = np.random.default_rng(1).normal(10, 2, 200)
    interval = bootstrap(mean_of, values, seed=7)
    assert isinstance(interval, Interval)
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(200)
    assert interval.low == pytest.approx(np.mean(values) - half, abs=0.05)
    assert interval.high == pytest.approx(np.mean(values) + half, abs=0.05)
    assert interval == bootstrap(mean_of, values, seed=7)
    assert interval != bootstrap(mean_of, values, seed=8)


def test_cases_are_drawn_with_their_truth() -> None:
    """Were they drawn apart, the correlation of perfect agreement would not stay 1."""
    values = np.arange(20, dtype=np.float64)
    interval = bootstrap(lambda t, p: float(np.corrcoef(t, p)[0, 1]), values, values, seed=0)
    assert isinstance(interval, Interval)
    assert (interval.low, interval.high) == pytest.approx((1, 1))


def test_a_statistic_that_few_resamples_define_has_no_interval() -> None:
    values = np.array([0.0, 0, 0, 0, 0, 0, 0, 9])
    result = bootstrap(lambda sample: float(np.corrcoef(sample, sample)[0, 1]), values, seed=0)
    assert isinstance(result, NotDefined)
    assert "resamples" in result.why
    assert isinstance(bootstrap(mean_of, values[:2], seed=0), NotDefined)


def test_recalibration_undoes_a_slope_on_cases_it_has_not_seen() -> None:
    rng = np.random.default_rng(3)
    truth = rng.uniform(2, 60, 80)
    predicted = (truth - 3) / 0.84 + rng.normal(0, 0.5, 80)
    result = calibrate(truth, predicted, seed=0)
    assert isinstance(result, Calibration)
    assert result.fit.slope.value == pytest.approx(0.84, abs=0.01)
    assert result.error_after < 0.3 * result.error_before
    assert abs(result.bias_after) < 0.05
    assert result.is_worth_it


def test_recalibrating_what_is_right_but_noisy_is_not_worth_it() -> None:
    rng = np.random.default_rng(4)
    truth = rng.uniform(20, 80, 40)
    result = calibrate(truth, truth + rng.normal(0, 3, 40), seed=0)
    assert isinstance(result, Calibration)
    assert not result.is_worth_it


def test_each_case_is_recalibrated_by_the_others() -> None:
    """The last case alone is off the line: by the line through the others it is not mended at all."""
    predicted = np.append(np.arange(10.0, 30.0), 40.0)
    truth = np.append(np.arange(10.0, 30.0), 90.0)
    result = calibrate(truth, predicted, seed=0)
    assert isinstance(result, Calibration)
    assert result.recalibrated[-1] == pytest.approx(40)


def test_calibration_says_why_it_is_not_defined() -> None:
    few, lone = np.arange(9.0), np.append(np.zeros(11), 5.0)
    assert calibrate(few, few, seed=0) == NotDefined("9 cases; at least 10 are needed")
    assert isinstance(calibrate(lone, lone, seed=0), NotDefined)
    flat = calibrate(np.zeros(12), np.arange(12.0), seed=0)
    assert flat == NotDefined("the truth is 0 in every case")
