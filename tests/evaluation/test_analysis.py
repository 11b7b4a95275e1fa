"""Which cases each statistic is of, and what becomes of cohorts that define little."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.analysis import Agreement, Analysis, analyse, ranked_by_lesions, worst_cases
from evaluation.masks import Overlap
from evaluation.scores import Metric, PairedScores
from evaluation.statistics import (
    Calibration,
    Confusion,
    Contingency,
    Estimate,
    Interval,
    NotDefined,
    pearson,
)
from tests.support.evaluation_cohorts import case, noisy_cohort


def of(analysis: Analysis, metric: Metric) -> Agreement:
    return next(agreement for agreement in analysis.agreements if agreement.metric is metric)


def overlap(name: str, structure: str, dice: float | None, is_true: bool = True, is_predicted: bool = True) -> Overlap:
    distance = 3.0 if is_true and is_predicted else None
    return Overlap(name, structure, is_true, is_predicted, dice, distance, distance)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(noisy_cohort(covid=24, controls=12))


def test_frequencies_are_of_all_cases_and_correlations_of_the_diseased(analysis: Analysis) -> None:
    agreement = of(analysis, Metric.PO)
    assert isinstance(agreement.frequencies, Contingency)
    assert sum(agreement.frequencies.truth_counts) == 36
    known = pearson(*analysis.diseased.values(Metric.PO))
    assert len(analysis.diseased) == 24
    assert not isinstance(agreement.pearson, NotDefined)
    assert not isinstance(known, NotDefined)
    assert agreement.pearson.coefficient == known.coefficient
    assert isinstance(agreement.pearson.interval, Interval)
    assert known.coefficient in agreement.pearson.interval


def test_only_percentages_are_fitted(analysis: Analysis) -> None:
    assert of(analysis, Metric.PO).fit is not None
    assert of(analysis, Metric.LSS).fit is None


def test_controls_are_counted_as_the_paper_does() -> None:
    percents = [0.0, 0.99, 1.0, 1.99, 2.0, 40.0]
    truth = tuple(case(str(i), [0.0] * 5, "Control") for i in range(6))
    predicted = tuple(case(str(i), [p] * 5, "Control") for i, p in enumerate(percents))
    found = analyse(PairedScores(truth, predicted)).false_alarms
    assert not isinstance(found, NotDefined)
    assert (found.controls, found.below_1_percent, found.from_1_to_2_percent, found.above) == (6, 2, 2, 2)
    assert found.highest_percent == pytest.approx(40)


def test_without_groups_all_are_diseased_and_there_are_no_false_alarms() -> None:
    cohort = noisy_cohort(6, 4)
    bare = PairedScores(*(tuple(replace(s, group=None) for s in side) for side in (cohort.truth, cohort.predicted)))
    analysis = analyse(bare)
    assert (len(analysis.diseased), len(analysis.controls)) == (10, 0)
    assert analysis.false_alarms == NotDefined("there are no controls")


def test_the_controls_may_have_another_name() -> None:
    assert len(analyse(noisy_cohort(6, 4), control_group="COVID").controls) == 6


def test_recalibration_is_of_all_cases_and_says_what_happens_to_the_controls(analysis: Analysis) -> None:
    po = analysis.recalibrations[0]
    assert isinstance(po.result, Calibration)
    assert len(po.result.recalibrated) == 36
    assert po.result.error_after < po.result.error_before
    assert (po.controls_below_1_before, po.controls_below_1_after) == (12, 12)


def test_lobes_are_compared_one_by_one_and_together(analysis: Analysis) -> None:
    assert len(analysis.lobes) == 6
    together = analysis.lobes[-1]
    assert together.lobe is None
    assert isinstance(together.severity, Confusion)
    assert np.sum(together.severity.counts) == 5 * 36


def test_the_same_seed_gives_the_same_intervals(analysis: Analysis) -> None:
    assert analyse(noisy_cohort(covid=24, controls=12)).agreements == analysis.agreements
    assert analyse(noisy_cohort(covid=24, controls=12), seed=1).agreements != analysis.agreements


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_a_cohort_of_zeros_defines_little_and_says_why(count: int) -> None:
    zeros = tuple(case(str(number), [0.0] * 5) for number in range(count))
    analysis = analyse(PairedScores(zeros, zeros))
    for agreement in analysis.agreements:
        assert isinstance(agreement.pearson, NotDefined)
        assert isinstance(agreement.kendall, NotDefined)
        assert isinstance(agreement.frequencies, NotDefined)
        assert isinstance(agreement.mean_absolute_error, Estimate)
        assert agreement.mean_absolute_error.value == 0
    assert all(isinstance(one.result, NotDefined) for one in analysis.recalibrations)


def test_structures_count_the_cases_that_have_them() -> None:
    lesions = [
        overlap("a", "lesions", 0.9),
        overlap("b", "lesions", 0.6),
        overlap("c", "lesions", 0.0, is_predicted=False),
        overlap("d", "lesions", 0.0, is_true=False),
        overlap("e", "lesions", None, is_true=False, is_predicted=False),
    ]
    analysis = analyse(noisy_cohort(5, 0), lesions)
    summary = next(found for found in analysis.structures if found.structure == "lesions")
    assert (summary.cases, summary.missed, summary.invented, summary.neither) == (4, 1, 1, 1)
    assert isinstance(summary.mean_dice, Estimate)
    assert summary.mean_dice.value == pytest.approx(1.5 / 4)
    assert (summary.worst_dice, summary.worst_case) == (0.0, "c")
    assert summary.median_hausdorff_95_mm == 3.0
    assert ranked_by_lesions(lesions) == ("a", "b", "c")
    lungs = next(found for found in analysis.structures if found.structure == "lungs")
    assert lungs.mean_dice == NotDefined("no case has it")


def test_the_largest_errors_come_first() -> None:
    errors = [abs(t.percent_opacity - p.percent_opacity) for t, p in worst_cases(noisy_cohort(), 5)]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 5
