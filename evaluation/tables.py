"""The tables of the report: what the statistics say, in words and rounded numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.analysis import (
    Agreement,
    Analysis,
    Association,
    FalseAlarms,
    LobeAgreement,
    Recalibration,
    StructureSummary,
    worst_cases,
)
from evaluation.scores import CaseScores, Metric
from evaluation.statistics import (
    Calibration,
    Confusion,
    Contingency,
    Correlation,
    Estimate,
    LimitsOfAgreement,
    NotDefined,
)

SHOWN_CASES: Final = 10

PAPER_TABLE_3: Final = {
    Metric.PO: ("2.11", ".72", "0.92", "0.77"),
    Metric.PHO: ("1.00", ".60", "0.97", "0.86"),
    Metric.LSS: ("23.50", ".2", "0.91", "0.83"),
    Metric.LHOS: ("2.21", ".95", "0.90", "0.83"),
}
"""Chi-squared, its p value, Pearson's coefficient and Kendall's tau of Chaganti et al. 2020."""

PAPER_TABLE_4: Final = {
    Metric.PO: ("3.5", "0.854", "3.3 [1.3, 5.4]", "0.839 [0.769, 0.908]"),
    Metric.PHO: ("1.9", "0.948", "0.4 [0.2, 0.7]", "0.805 [0.768, 0.843]"),
}
"""Mean error, R-squared, intercept and slope. The paper's intercepts (0.033, 0.004) can only be fractions of the lungs:
in percent, their intervals would be far too narrow for its mean errors. Here they are percentage points."""


@dataclass(frozen=True)
class Table:
    """Cells as text; a row for each of `rows`, all as long as `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def all_tables(analysis: Analysis) -> tuple[Table, ...]:
    """In the order of the report; those without data are left out."""
    rows = []
    for agreement in analysis.agreements:
        chi2, chi2_p, pearson, kendall = PAPER_TABLE_3[agreement.metric]
        paper = f"\u03c7\u00b2 {chi2}, p {chi2_p}; r {pearson}; \u03c4 {kendall}"
        cells = (*_chi2_cells(agreement.frequencies), *_association_cells(agreement.pearson))
        rows.append((agreement.metric.name, *cells, *_association_cells(agreement.kendall), paper))
    columns = ("Metric", "\u03c7\u00b2 (df)", "p", "Pearson r [95 %]", "p", "Kendall \u03c4 [95 %]", "p", "Paper")
    notes = [
        f"Chi-squared: all {len(analysis.scores)} cases. Correlations: the {len(analysis.diseased)} diseased, "
        "with bootstrap intervals.",
        "The chi-squared test compares how often each bin occurs, not case with case: a high p value does not show "
        "that the predictions are right.",
        "The last column is what Chaganti et al. report on their 100 patients and 100 controls: other data than these.",
    ]
    if any(isinstance(a.frequencies, Contingency) and a.frequencies.is_rough for a in analysis.agreements):
        notes.append("\u2020 Some expected counts are below 5: the p value is approximate.")
    association_table = Table("Correlation and frequencies (Table 3 of the paper)", columns, tuple(rows), tuple(notes))
    tables = [
        association_table,
        _fit_table(analysis),
        _false_alarm_table(analysis.false_alarms),
        _limits_table(analysis),
        _confusion_table(analysis),
        _calibration_table(analysis),
    ]
    if analysis.lobes:
        tables.append(_lobe_table(analysis.lobes, len(analysis.scores)))
    if analysis.structures:
        tables.append(_structure_table(analysis.structures))
    return (*tables, _case_table(analysis), _frequency_table(analysis))


def _chi2_cells(found: Contingency | NotDefined) -> tuple[str, str]:
    if isinstance(found, NotDefined):
        return _not_defined(found), "\u2013"
    mark = " \u2020" if found.is_rough else ""
    return f"{found.chi2:.2f} ({found.degrees_of_freedom})", p_value(found.p_value) + mark


def _association_cells(found: Association | NotDefined) -> tuple[str, str]:
    if isinstance(found, NotDefined):
        return _not_defined(found), "\u2013"
    return estimate(Estimate(found.coefficient, found.interval)), p_value(found.p_value)


def _fit_table(analysis: Analysis) -> Table:
    rows = []
    for agreement in analysis.agreements:
        error, r_squared, intercept, slope = PAPER_TABLE_4.get(agreement.metric, ("", "", "", ""))
        paper = f"error {error}; R\u00b2 {r_squared}; intercept {intercept}; slope {slope}" if error else "\u2013"
        cells = (estimate(agreement.mean_absolute_error), estimate(agreement.mean_error))
        rows.append((agreement.metric.name, *cells, *_fit_cells(agreement), paper))
    columns = ("Metric", "Mean absolute error [95 %]", "Mean error [95 %]", "R\u00b2", "RMS from line")
    notes = (
        f"Of the {len(analysis.diseased)} diseased cases. truth = intercept + slope \u00d7 prediction, so a slope "
        "below 1 means that high predictions are too high. Errors are prediction less truth.",
        "PO, PHO: percentage points of the lungs; LSS, LHOS: points of 20, to which the paper fits no line. Errors "
        "have bootstrap intervals, intercept and slope those of the t distribution.",
        "The paper's intercepts of 0.033 and 0.004 are read as fractions of the lungs. It calls its error both "
        "\u201cmean error\u201d and \u201cmean squared error from the regression line\u201d; both are given here.",
    )
    return Table(
        "Linear fit and mean error (Table 4 of the paper)",
        (*columns, "Intercept [95 %]", "Slope [95 %]", "Paper"),
        tuple(rows),
        notes,
    )


def _fit_cells(agreement: Agreement) -> tuple[str, str, str, str]:
    fit = agreement.fit
    if fit is None:
        return "\u2013", "\u2013", "\u2013", "\u2013"
    if isinstance(fit, NotDefined):
        return _not_defined(fit), "\u2013", "\u2013", "\u2013"
    return (
        f"{fit.r_squared:.3f}",
        f"{fit.root_mean_square:.2f}",
        estimate(fit.intercept),
        estimate(fit.slope, digits=3),
    )


def _frequency_table(analysis: Analysis) -> Table:
    rows = []
    for agreement in analysis.agreements:
        found = agreement.frequencies
        if isinstance(found, NotDefined):
            rows.append((agreement.metric.name, _not_defined(found), "\u2013", "\u2013"))
            continue
        for name, true, predicted in zip(found.bins, found.truth_counts, found.predicted_counts, strict=True):
            rows.append((agreement.metric.name, name, str(true), str(predicted)))
    notes = ("The table of the chi-squared test; bins without a case on either side are left out.",)
    return Table("Cases in each bin", ("Metric", "Bin", "Truth", "Prediction"), tuple(rows), notes)


def _false_alarm_table(found: FalseAlarms | NotDefined) -> Table:
    title = "False alarms: predicted PO of the controls"
    columns = ("Controls", "below 1 %", "1 to 2 %", "2 % and above", "Highest")
    paper = ("The paper: of 100 controls, 98 below 1 %, 2 between 1 and 2 %.",)
    if isinstance(found, NotDefined):
        return Table(title, columns, ((_not_defined(found), *("\u2013",) * 4),), paper)
    counts = (found.controls, found.below_1_percent, found.from_1_to_2_percent, found.above)
    return Table(title, columns, ((*map(str, counts), f"{found.highest_percent:.2f} %"),), paper)


def _limits_table(analysis: Analysis) -> Table:
    rows = tuple((agreement.metric.name, *_limits_cells(agreement.limits)) for agreement in analysis.agreements)
    columns = ("Metric", "Bias [95 %]", "Lower limit [95 %]", "Upper limit [95 %]", "Cases inside", "Trend [95 %]")
    notes = (
        f"Of the {len(analysis.diseased)} diseased cases; prediction less truth, in points. Limits: bias \u00b1 1.96 "
        "standard deviations (Bland and Altman 1986). Trend: how the difference grows with the mean of both; away from "
        "0, the limits are too wide at one end and too narrow at the other.",
    )
    return Table("Limits of agreement", columns, rows, notes)


def _limits_cells(found: LimitsOfAgreement | NotDefined) -> tuple[str, ...]:
    if isinstance(found, NotDefined):
        return _not_defined(found), "\u2013", "\u2013", "\u2013", "\u2013"
    limits = (estimate(found.bias), estimate(found.lower), estimate(found.upper))
    return (*limits, f"{100 * found.share_inside:.0f} %", estimate(found.trend))


def _confusion_table(analysis: Analysis) -> Table:
    rows = tuple((metric.name, *_confusion_cells(found)) for metric, found in analysis.confusions)
    notes = (
        f"All {len(analysis.scores)} cases. Kappa: Cohen's, with quadratic weights; 1 is perfect, 0 is what chance "
        "gives.",
    )
    return Table("Agreement of the scores", ("Metric", "Exact", "Within one", "Weighted kappa [95 %]"), rows, notes)


def _confusion_cells(found: Confusion | NotDefined) -> tuple[str, str, str]:
    if isinstance(found, NotDefined):
        return _not_defined(found), "\u2013", "\u2013"
    return f"{100 * found.exact:.0f} %", f"{100 * found.within_one:.0f} %", estimate(found.kappa)


def _calibration_table(analysis: Analysis) -> Table:
    columns = ("Metric", "Recalibrated score", "Mean absolute error before \u2192 after")
    rest = ("Gain [95 %]", "Mean error before \u2192 after", "Controls below 1 % before \u2192 after", "Advice")
    rows = tuple(_calibration_row(one) for one in analysis.recalibrations)
    notes = (
        f"All {len(analysis.scores)} cases, controls included, in percentage points. The line to use is fitted to all; "
        "errors after it are of cases left out of their own fit, and so are what a new case of this kind may expect.",
        "A line with an intercept above 0 lifts healthy lungs off zero: look at the controls before you use it.",
    )
    return Table("Recalibration", (*columns, *rest), rows, notes)


def _calibration_row(one: Recalibration) -> tuple[str, ...]:
    result, name = one.result, one.metric.name
    if isinstance(result, NotDefined):
        return (name, _not_defined(result), *("\u2013",) * 5)
    return (
        name,
        f"{result.fit.intercept.value:.3f} {_signed(result.fit.slope.value)} \u00d7 {name}, kept in 0 to 100",
        f"{result.error_before:.2f} \u2192 {result.error_after:.2f}",
        estimate(result.gain),
        f"{result.bias_before:+.2f} \u2192 {result.bias_after:+.2f}",
        f"{one.controls_below_1_before} \u2192 {one.controls_below_1_after}",
        _advice(one, result),
    )


def _advice(one: Recalibration, result: Calibration) -> str:
    if not result.is_worth_it:
        return "leave as it is: no sure gain"
    if one.controls_below_1_after < one.controls_below_1_before:
        return "smaller errors, but more false alarms among controls"
    return "worth it on data of this kind"


def _lobe_table(lobes: Sequence[LobeAgreement], cases: int) -> Table:
    rows = tuple((_lobe_name(found), *_lobe_cells(found)) for found in lobes)
    columns = ("Lobe", "Pearson r of percent opacity", "Mean absolute error (points)")
    rest = ("Score: exact", "kappa [95 %]", "High opacity score: exact", "kappa [95 %]")
    notes = (f"All {cases} cases; percent of the lobe, and its scores 0 to 4.",)
    return Table("Lobes", (*columns, *rest), rows, notes)


def _lobe_name(found: LobeAgreement) -> str:
    return "all five" if found.lobe is None else found.lobe.slug.replace("_", " ")


def _lobe_cells(found: LobeAgreement) -> Iterable[str]:
    yield f"{found.pearson.coefficient:.2f}" if isinstance(found.pearson, Correlation) else _not_defined(found.pearson)
    yield f"{found.mean_absolute_error:.2f}"
    for confusion in (found.severity, found.high_opacity):
        exact, _, kappa = _confusion_cells(confusion)
        yield exact
        yield kappa


def _structure_table(structures: Sequence[StructureSummary]) -> Table:
    columns = ("Structure", "Cases", "Mean Dice [95 %]", "Median", "Worst (case)")
    distances = ("95 % Hausdorff: median (mm)", "worst (mm)", "Mean surface distance (mm)")
    rows = tuple(_structure_row(found) for found in structures)
    notes = (
        "Lesions count within the lungs of their own side, as they do in the scores. Cases that lack a structure on "
        "both sides do not count; where one side lacks it, Dice is 0 and there is no distance (missed: the prediction "
        "lacks it; invented: the truth does).",
    )
    return Table("Overlap of the masks", (*columns, *distances, "Missed, invented, neither"), rows, notes)


def _structure_row(found: StructureSummary) -> tuple[str, ...]:
    worst = f"{_number(found.worst_dice)} ({found.worst_case})" if found.worst_case is not None else "\u2013"
    return (
        found.structure.replace("_", " "),
        str(found.cases),
        estimate(found.mean_dice, digits=3),
        _number(found.median_dice),
        worst,
        _number(found.median_hausdorff_95_mm, 1),
        _number(found.worst_hausdorff_95_mm, 1),
        _number(found.mean_surface_mm, 2),
        f"{found.missed}, {found.invented}, {found.neither}",
    )


def _case_table(analysis: Analysis) -> Table:
    pairs = worst_cases(analysis.scores, SHOWN_CASES)
    columns = ("Case", "Group", "PO true \u2192 predicted", "PHO", "LSS", "LHOS")
    notes = ("By the error of PO, the largest first. The paper calls an error above 20 points an outlier.",)
    groups = dict(zip(analysis.scores.cases, analysis.scores.groups, strict=True))
    rows = tuple((true.case, groups[true.case] or "\u2013", *_both(true, predicted)) for true, predicted in pairs)
    return Table("Cases with the largest errors", columns, rows, notes)


def _both(true: CaseScores, predicted: CaseScores) -> Iterable[str]:
    for metric in Metric:
        digits = 1 if metric.is_percent else 0
        yield f"{true.of(metric):.{digits}f} \u2192 {predicted.of(metric):.{digits}f}"


def estimate(found: Estimate | NotDefined, digits: int = 2) -> str:
    """`3.10 [2.80, 3.40]`, or that it is not defined and why."""
    if isinstance(found, NotDefined):
        return _not_defined(found)
    value = _plain(found.value, digits)
    if isinstance(found.interval, NotDefined):
        return f"{value} (no interval: {found.interval.why})"
    return f"{value} [{_plain(found.interval.low, digits)}, {_plain(found.interval.high, digits)}]"


def p_value(p: float) -> str:
    """As the paper prints it: `< .001`, `.72`."""
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".removeprefix("0") if p < 0.05 else f"{p:.2f}".removeprefix("0")


def _plain(value: float, digits: int) -> str:
    """Without `-0.00`."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else '-'} {abs(value):.3f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "\u2013" if value is None else f"{value:.{digits}f}"


def _not_defined(found: NotDefined) -> str:
    return f"not defined: {found.why}"
