"""Every statistic of the report, from paired scores and overlaps of masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation import statistics
from evaluation.masks import STRUCTURES, Overlap
from evaluation.scores import CaseScores, Metric, PairedScores
from evaluation.statistics import (
    Calibration,
    Confusion,
    Contingency,
    Correlation,
    Estimate,
    Interval,
    LimitsOfAgreement,
    LinearFit,
    NotDefined,
    Values,
)
from pipeline.anatomy import Lobe

#: Of a lobe: 0 to 4 (paper, "Metrics of severity").
HIGHEST_GRADE: Final = 4
#: The paper counts controls with a predicted PO below 1 %, and from 1 to 2 %.
FALSE_ALARM_PERCENT: Final = (1.0, 2.0)


@dataclass(frozen=True)
class Association:
    """A correlation with its bootstrap interval."""

    coefficient: float
    p_value: float
    interval: Interval | NotDefined


@dataclass(frozen=True)
class Agreement:
    """One of the four scores; all but `frequencies` are of the diseased cases.

    Attributes:
        fit: None for LSS and LHOS, to which the paper fits no line.
    """

    metric: Metric
    frequencies: Contingency | NotDefined
    pearson: Association | NotDefined
    kendall: Association | NotDefined
    fit: LinearFit | NotDefined | None
    mean_error: Estimate | NotDefined
    mean_absolute_error: Estimate | NotDefined
    limits: LimitsOfAgreement | NotDefined

    @classmethod
    def of(cls, metric: Metric, scores: PairedScores, is_control: Sequence[bool], seed: int) -> "Agreement":
        """Of one score of all cases; `seed` is the bootstrap's."""
        bins = statistics.PERCENT_BINS if metric.is_percent else statistics.SCORE_BINS
        bins_of = statistics.percent_bins if metric.is_percent else statistics.score_bins
        true_bins, predicted_bins = (bins_of(side) for side in scores.values(metric))
        # As in the paper: the chi-squared test is of all cases; correlation, regression and errors are of the diseased,
        # since many zeros of the controls would make any association look strong.
        truth, predicted = scores.where([not one for one in is_control]).values(metric)
        return cls(
            metric=metric,
            frequencies=statistics.compare_frequencies(true_bins, predicted_bins, bins),
            pearson=_associate(statistics.pearson, truth, predicted, seed),
            kendall=_associate(statistics.kendall, truth, predicted, seed),
            fit=statistics.fit_line(truth, predicted) if metric.is_percent else None,
            mean_error=_estimate(statistics.mean_error, truth, predicted, seed),
            mean_absolute_error=_estimate(statistics.mean_absolute_error, truth, predicted, seed),
            limits=statistics.limits_of_agreement(truth, predicted),
        )


@dataclass(frozen=True)
class FalseAlarms:
    """How many controls have which predicted PO, in the bins of the paper's results."""

    controls: int
    below_1_percent: int
    from_1_to_2_percent: int
    above: int
    highest_percent: float

    @classmethod
    def of(cls, controls: PairedScores) -> "FalseAlarms | NotDefined":
        """Not defined without controls."""
        if not len(controls):
            return NotDefined("there are no controls")
        _, predicted = controls.values(Metric.PO)
        one, two = FALSE_ALARM_PERCENT
        return cls(
            controls=len(controls),
            below_1_percent=int(np.sum(predicted < one)),
            from_1_to_2_percent=int(np.sum((predicted >= one) & (predicted < two))),
            above=int(np.sum(predicted >= two)),
            highest_percent=float(predicted.max()),
        )


@dataclass(frozen=True, eq=False)
class Recalibration:
    """What recalibrating PO or PHO would do to all cases, controls included."""

    metric: Metric
    result: Calibration | NotDefined
    controls_below_1_before: int
    controls_below_1_after: int

    @classmethod
    def of(cls, metric: Metric, scores: PairedScores, is_control: Sequence[bool], seed: int) -> "Recalibration":
        """Judged leaving out one case at a time."""
        truth, predicted = scores.values(metric)
        result, controls = statistics.calibrate(truth, predicted, seed=seed), np.array(is_control, dtype=np.bool_)
        after = predicted if isinstance(result, NotDefined) else result.recalibrated
        below = [int(np.sum(values[controls] < FALSE_ALARM_PERCENT[0])) for values in (predicted, after)]
        return cls(metric, result, *below)


@dataclass(frozen=True)
class LobeAgreement:
    """One lobe, or all of them together (`lobe` is None); of all cases."""

    lobe: Lobe | None
    pearson: Correlation | NotDefined
    mean_absolute_error: float
    severity: Confusion | NotDefined
    high_opacity: Confusion | NotDefined

    @classmethod
    def of(cls, scores: PairedScores, lobe: Lobe | None) -> "LobeAgreement":
        """Of scores that have lobes; of all five together where `lobe` is None."""
        truth, predicted = (
            [found for case in side for found in case.lobes if lobe in (found.lobe, None)]
            for side in (scores.truth, scores.predicted)
        )
        percents = [np.array([found.percent_opacity for found in side], np.float64) for side in (truth, predicted)]
        return cls(
            lobe,
            statistics.pearson(*percents),
            statistics.mean_absolute_error(*percents),
            statistics.confuse([f.severity_score for f in truth], [f.severity_score for f in predicted], HIGHEST_GRADE),
            statistics.confuse(
                [f.high_opacity_score for f in truth], [f.high_opacity_score for f in predicted], HIGHEST_GRADE
            ),
        )


@dataclass(frozen=True)
class StructureSummary:
    """Overlap of one structure over the cases that have it on either side.

    Attributes:
        neither: cases where both sides lack it; they do not count.
        missed: cases where the prediction lacks it: Dice 0, no distance.
        invented: cases where the truth lacks it: Dice 0, no distance.
    """

    structure: str
    cases: int
    neither: int
    missed: int
    invented: int
    mean_dice: Estimate | NotDefined
    median_dice: float | None
    worst_dice: float | None
    worst_case: str | None
    median_hausdorff_95_mm: float | None
    worst_hausdorff_95_mm: float | None
    mean_surface_mm: float | None

    @classmethod
    def of(cls, structure: str, overlaps: Sequence[Overlap], seed: int) -> "StructureSummary":
        """Of the overlaps of all structures; `seed` is the bootstrap's."""
        mine = [overlap for overlap in overlaps if overlap.structure == structure]
        scored = [(overlap.dice, overlap.case) for overlap in mine if overlap.dice is not None]
        dices = np.array([value for value, _ in scored], dtype=np.float64)
        mean_dice: Estimate | NotDefined = NotDefined("no case has it")
        if scored:
            interval = statistics.bootstrap(lambda drawn: float(np.mean(drawn)), dices, seed=seed)
            mean_dice = Estimate(float(np.mean(dices)), interval)
        worst = min(scored, default=(None, None))
        far = [o.hausdorff_95_mm for o in mine if o.hausdorff_95_mm is not None]
        near = [o.mean_surface_mm for o in mine if o.mean_surface_mm is not None]
        return cls(
            structure=structure,
            cases=len(scored),
            neither=len(mine) - len(scored),
            missed=sum(o.is_true and not o.is_predicted for o in mine),
            invented=sum(o.is_predicted and not o.is_true for o in mine),
            mean_dice=mean_dice,
            median_dice=float(np.median(dices)) if scored else None,
            worst_dice=worst[0],
            worst_case=worst[1],
            median_hausdorff_95_mm=float(np.median(far)) if far else None,
            worst_hausdorff_95_mm=max(far, default=None),
            mean_surface_mm=float(np.mean(near)) if near else None,
        )


@dataclass(frozen=True, eq=False)
class Analysis:
    """All statistics of the report, with the scores and overlaps that they are of."""

    scores: PairedScores
    is_control: tuple[bool, ...]
    agreements: tuple[Agreement, ...]
    false_alarms: FalseAlarms | NotDefined
    recalibrations: tuple[Recalibration, ...]
    confusions: tuple[tuple[Metric, Confusion | NotDefined], ...]
    lobes: tuple[LobeAgreement, ...]
    structures: tuple[StructureSummary, ...]
    overlaps: tuple[Overlap, ...]
    seed: int

    @property
    def diseased(self) -> PairedScores:
        return self.scores.where([not is_control for is_control in self.is_control])

    @property
    def controls(self) -> PairedScores:
        return self.scores.where(self.is_control)


def analyse(
    scores: PairedScores, overlaps: Sequence[Overlap] = (), *, control_group: str = "control", seed: int = 0
) -> Analysis:
    """All statistics of the report.

    Args:
        control_group: cases of this group (whatever its capitals) are the controls; without groups, there are none.
        seed: of the bootstrap.
    """
    is_control = tuple((group or "").casefold() == control_group.casefold() for group in scores.groups)
    confusions = []
    for metric in (Metric.LSS, Metric.LHOS):
        truth, predicted = (statistics.score_bins(side) for side in scores.values(metric))
        confusions.append((metric, statistics.confuse(truth, predicted, metric.highest)))
    structures = STRUCTURES if overlaps else ()
    return Analysis(
        scores=scores,
        is_control=is_control,
        agreements=tuple(Agreement.of(metric, scores, is_control, seed) for metric in Metric),
        false_alarms=FalseAlarms.of(scores.where(is_control)),
        recalibrations=tuple(Recalibration.of(m, scores, is_control, seed) for m in Metric if m.is_percent),
        confusions=tuple(confusions),
        lobes=tuple(LobeAgreement.of(scores, lobe) for lobe in (*Lobe, None)) if scores.have_lobes else (),
        structures=tuple(StructureSummary.of(structure, overlaps, seed) for structure in structures),
        overlaps=tuple(overlaps),
        seed=seed,
    )


def _associate(
    correlate: Callable[[Values, Values], Correlation | NotDefined], truth: Values, predicted: Values, seed: int
) -> Association | NotDefined:
    whole = correlate(truth, predicted)
    if isinstance(whole, NotDefined):
        return whole

    def coefficient(drawn_truth: Values, drawn_predicted: Values) -> float:
        drawn = correlate(drawn_truth, drawn_predicted)
        return float("nan") if isinstance(drawn, NotDefined) else drawn.coefficient

    return Association(whole.coefficient, whole.p_value, statistics.bootstrap(coefficient, truth, predicted, seed=seed))


def _estimate(
    statistic: Callable[[Values, Values], float], truth: Values, predicted: Values, seed: int
) -> Estimate | NotDefined:
    if (why := statistics.too_few(len(truth), 1)) is not None:
        return why
    return Estimate(statistic(truth, predicted), statistics.bootstrap(statistic, truth, predicted, seed=seed))


def ranked_by_lesions(overlaps: Sequence[Overlap]) -> tuple[str, ...]:
    """Cases with true lesions, from the best Dice to the worst."""
    lesions = [o for o in overlaps if o.structure == "lesions" and o.is_true and o.dice is not None]
    return tuple(o.case for o in sorted(lesions, key=lambda overlap: (-(overlap.dice or 0.0), overlap.case)))


def worst_cases(scores: PairedScores, count: int) -> tuple[tuple[CaseScores, CaseScores], ...]:
    """The largest errors of PO, truth and prediction side by side (the paper calls those over 20 % outliers)."""
    pairs = zip(scores.truth, scores.predicted, strict=True)
    ordered = sorted(pairs, key=lambda both: -abs(both[0].percent_opacity - both[1].percent_opacity))
    return tuple(ordered[:count])
