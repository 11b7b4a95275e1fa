"""The tables of the report: the statistics in words and rounded numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.analysis import Analysis, StructureSummary, worst_cases
from evaluation.scores import Metric
from evaluation.statistics import Confusion, Contingency, Correlation, Estimate, NotDefined

#: Of a cell without a number.
DASH: Final = "\u2013"

SHOWN_CASES: Final = 10
#: Of Chaganti et al. 2020, on other data: shown beside ours, as the report prints them.
PAPER_TABLE_3: Final = {
    Metric.PO: "\u03c7\u00b2 2.11, p .72; r 0.92; \u03c4 0.77",
    Metric.PHO: "\u03c7\u00b2 1.00, p .60; r 0.97; \u03c4 0.86",
    Metric.LSS: "\u03c7\u00b2 23.50, p .2; r 0.91; \u03c4 0.83",
    Metric.LHOS: "\u03c7\u00b2 2.21, p .95; r 0.90; \u03c4 0.83",
}
#: The paper's intercepts (0.033, 0.004) can only be fractions of the lungs: in percent, their intervals would be far
#: too narrow for its mean errors. Here they are percentage points.
PAPER_TABLE_4: Final = {
    Metric.PO: "error 3.5; R\u00b2 0.854; intercept 3.3 [1.3, 5.4]; slope 0.839 [0.769, 0.908]",
    Metric.PHO: "error 1.9; R\u00b2 0.948; intercept 0.4 [0.2, 0.7]; slope 0.805 [0.768, 0.843]",
}


@dataclass(frozen=True)
class Table:
    """Cells as text; a row for each of `rows`, all as long as `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def all_tables(analysis: Analysis) -> tuple[Table, ...]:
    """In the order of the report; those without data are left out."""
    tables = [*_paper_tables(analysis), *_further_tables(analysis)]
    columns: tuple[str, ...]
    if analysis.lobes:
        rows: list[tuple[str, ...]] = []
        for one in analysis.lobes:
            r = f"{one.pearson.coefficient:.2f}" if isinstance(one.pearson, Correlation) else _not_defined(one.pearson)
            scores = [cell for found in (one.severity, one.high_opacity) for cell in _confusion_cells(found)[::2]]
            name = "all five" if one.lobe is None else one.lobe.slug.replace("_", " ")
            rows.append((name, r, f"{one.mean_absolute_error:.2f}", *scores))
        columns = ("Lobe", "Pearson r of percent opacity", "Mean absolute error (points)")
        columns += ("Score: exact", "kappa [95 %]", "High opacity score: exact", "kappa [95 %]")
        note = f"All {len(analysis.scores)} cases; percent of the lobe, and its scores 0 to 4."
        tables.append(Table("Lobes", columns, tuple(rows), (note,)))
    if analysis.structures:
        tables.append(_structure_table(analysis.structures))
    groups = dict(zip(analysis.scores.cases, analysis.scores.groups, strict=True))
    rows = []
    for true, predicted in worst_cases(analysis.scores, SHOWN_CASES):
        digits = {metric: 1 if metric.is_percent else 0 for metric in Metric}
        cells = (f"{true.of(m):.{d}f} \u2192 {predicted.of(m):.{d}f}" for m, d in digits.items())
        rows.append((true.case, groups[true.case] or DASH, *cells))
    columns = ("Case", "Group", "PO true \u2192 predicted", "PHO", "LSS", "LHOS")
    note = "By the error of PO, the largest first. The paper calls an error above 20 points an outlier."
    tables.append(Table("Cases with the largest errors", columns, tuple(rows), (note,)))
    rows = []
    for agreement in analysis.agreements:
        counts, metric_name = agreement.frequencies, agreement.metric.name
        if isinstance(counts, NotDefined):
            rows.append((metric_name, *_undefined(counts, 3)))
        else:
            sides = (map(str, side) for side in (counts.truth_counts, counts.predicted_counts))
            rows += [(metric_name, *row) for row in zip(counts.bins, *sides, strict=True)]
    note = "The table of the chi-squared test; bins without a case on either side are left out."
    tables.append(Table("Cases in each bin", ("Metric", "Bin", "Truth", "Prediction"), tuple(rows), (note,)))
    return tuple(tables)


def _paper_tables(analysis: Analysis) -> Iterator[Table]:
    """What the paper reports too: Tables 3 and 4, and the false alarms of its Results."""
    rows: list[tuple[str, ...]] = []
    fits: list[tuple[str, ...]] = []
    for agreement in analysis.agreements:
        metric, found, fit = agreement.metric, agreement.frequencies, agreement.fit
        if isinstance(found, NotDefined):
            cells = _undefined(found, 2)
        else:
            mark = " \u2020" if found.is_rough else ""
            cells = (f"{found.chi2:.2f} ({found.degrees_of_freedom})", p_value(found.p_value) + mark)
        for one in (agreement.pearson, agreement.kendall):
            if isinstance(one, NotDefined):
                cells += _undefined(one, 2)
            else:
                cells += (estimate(Estimate(one.coefficient, one.interval)), p_value(one.p_value))
        rows.append((metric.name, *cells, PAPER_TABLE_3[metric]))
        cells = (DASH,) * 4
        if isinstance(fit, NotDefined):
            cells = _undefined(fit, 4)
        elif fit is not None:
            cells = (f"{fit.r_squared:.3f}", f"{fit.root_mean_square:.2f}")
            cells += (estimate(fit.intercept), estimate(fit.slope, digits=3))
        errors = (estimate(agreement.mean_absolute_error), estimate(agreement.mean_error))
        fits.append((metric.name, *errors, *cells, PAPER_TABLE_4.get(metric, DASH)))
    columns: tuple[str, ...] = ("Metric", "\u03c7\u00b2 (df)", "p", "Pearson r [95 %]", "p")
    columns += ("Kendall \u03c4 [95 %]", "p", "Paper")
    notes: tuple[str, ...] = (
        f"Chi-squared: all {len(analysis.scores)} cases. Correlations: the {len(analysis.diseased)} diseased, "
        "with bootstrap intervals.",
        "The chi-squared test compares how often each bin occurs, not case with case: a high p value does not show "
        "that the predictions are right.",
        "The last column is what Chaganti et al. report on their 100 patients and 100 controls: other data than these.",
    )
    if any(isinstance(a.frequencies, Contingency) and a.frequencies.is_rough for a in analysis.agreements):
        notes += ("\u2020 Some expected counts are below 5: the p value is approximate.",)
    yield Table("Correlation and frequencies (Table 3 of the paper)", columns, tuple(rows), notes)
    columns = ("Metric", "Mean absolute error [95 %]", "Mean error [95 %]", "R\u00b2", "RMS from line")
    columns += ("Intercept [95 %]", "Slope [95 %]", "Paper")
    notes = (
        f"Of the {len(analysis.diseased)} diseased cases. truth = intercept + slope \u00d7 prediction, so a slope "
        "below 1 means that high predictions are too high. Errors are prediction less truth.",
        "PO, PHO: percentage points of the lungs; LSS, LHOS: points of 20, to which the paper fits no line. Errors "
        "have bootstrap intervals, intercept and slope those of the t distribution.",
        "The paper's intercepts of 0.033 and 0.004 are read as fractions of the lungs. It calls its error both "
        "\u201cmean error\u201d and \u201cmean squared error from the regression line\u201d; both are given here.",
    )
    yield Table("Linear fit and mean error (Table 4 of the paper)", columns, tuple(fits), notes)
    alarms = analysis.false_alarms
    if isinstance(alarms, NotDefined):
        cells = _undefined(alarms, 5)
    else:
        counts = (alarms.controls, alarms.below_1_percent, alarms.from_1_to_2_percent, alarms.above)
        cells = (*map(str, counts), f"{alarms.highest_percent:.2f} %")
    columns = ("Controls", "below 1 %", "1 to 2 %", "2 % and above", "Highest")
    paper = "The paper: of 100 controls, 98 below 1 %, 2 between 1 and 2 %."
    yield Table("False alarms: predicted PO of the controls", columns, (cells,), (paper,))


def _further_tables(analysis: Analysis) -> Iterator[Table]:
    """What the paper does not report: limits of agreement, agreement of the scores, recalibration."""
    rows: list[tuple[str, ...]] = []
    for agreement in analysis.agreements:
        limits, name = agreement.limits, agreement.metric.name
        if isinstance(limits, NotDefined):
            rows.append((name, *_undefined(limits, 5)))
            continue
        cells = (estimate(limits.bias), estimate(limits.lower), estimate(limits.upper))
        rows.append((name, *cells, f"{100 * limits.share_inside:.0f} %", estimate(limits.trend)))
    columns: tuple[str, ...] = ("Metric", "Bias [95 %]", "Lower limit [95 %]", "Upper limit [95 %]")
    note = (
        f"Of the {len(analysis.diseased)} diseased cases; prediction less truth, in points. Limits: bias \u00b1 1.96 "
        "standard deviations (Bland and Altman 1986). Trend: how the difference grows with the mean of both; away from "
        "0, the limits are too wide at one end and too narrow at the other."
    )
    yield Table("Limits of agreement", (*columns, "Cases inside", "Trend [95 %]"), tuple(rows), (note,))
    rows = [(metric.name, *_confusion_cells(found)) for metric, found in analysis.confusions]
    note = "Kappa: Cohen's, with quadratic weights; 1 is perfect, 0 is what chance gives."
    columns = ("Metric", "Exact", "Within one", "Weighted kappa [95 %]")
    yield Table("Agreement of the scores", columns, tuple(rows), (f"All {len(analysis.scores)} cases. {note}",))
    rows = []
    for one in analysis.recalibrations:
        result, name = one.result, one.metric.name
        if isinstance(result, NotDefined):
            rows.append((name, *_undefined(result, 6)))
            continue
        if not result.is_worth_it:
            advice = "leave as it is: no sure gain"
        elif one.controls_below_1_after < one.controls_below_1_before:
            advice = "smaller errors, but more false alarms among controls"
        else:
            advice = "worth it on data of this kind"
        sign, slope = "+" if result.fit.slope.value >= 0 else "-", abs(result.fit.slope.value)
        line = f"{result.fit.intercept.value:.3f} {sign} {slope:.3f} \u00d7 {name}, kept in 0 to 100"
        errors = f"{result.error_before:.2f} \u2192 {result.error_after:.2f}"
        biases = f"{result.bias_before:+.2f} \u2192 {result.bias_after:+.2f}"
        controls = f"{one.controls_below_1_before} \u2192 {one.controls_below_1_after}"
        rows.append((name, line, errors, estimate(result.gain), biases, controls, advice))
    columns = ("Metric", "Recalibrated score", "Mean absolute error before \u2192 after")
    columns += ("Gain [95 %]", "Mean error before \u2192 after", "Controls below 1 % before \u2192 after", "Advice")
    notes = (
        f"All {len(analysis.scores)} cases, controls included, in percentage points. The line to use is fitted to all; "
        "errors after it are of cases left out of their own fit, and so are what a new case of this kind may expect.",
        "A line with an intercept above 0 lifts healthy lungs off zero: look at the controls before you use it.",
    )
    yield Table("Recalibration", columns, tuple(rows), notes)


def _structure_table(structures: Sequence[StructureSummary]) -> Table:
    columns: tuple[str, ...] = ("Structure", "Cases", "Mean Dice [95 %]", "Median", "Worst (case)")
    columns += ("95 % Hausdorff: median (mm)", "worst (mm)", "Mean surface distance (mm)", "Missed, invented, neither")
    rows = []
    for found in structures:
        worst = f"{_number(found.worst_dice)} ({found.worst_case})" if found.worst_case is not None else DASH
        overlap = (estimate(found.mean_dice, digits=3), _number(found.median_dice), worst)
        far = (_number(found.median_hausdorff_95_mm, 1), _number(found.worst_hausdorff_95_mm, 1))
        lacking = f"{found.missed}, {found.invented}, {found.neither}"
        name = found.structure.replace("_", " ")
        rows.append((name, str(found.cases), *overlap, *far, _number(found.mean_surface_mm, 2), lacking))
    note = (
        "Lesions count within the lungs of their own side, as they do in the scores. Cases that lack a structure on "
        "both sides do not count; where one side lacks it, Dice is 0 and there is no distance (missed: the prediction "
        "lacks it; invented: the truth does)."
    )
    return Table("Overlap of the masks", columns, tuple(rows), (note,))


def _confusion_cells(found: Confusion | NotDefined) -> tuple[str, ...]:
    if isinstance(found, NotDefined):
        return _undefined(found, 3)
    return f"{100 * found.exact:.0f} %", f"{100 * found.within_one:.0f} %", estimate(found.kappa)


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


def _number(value: float | None, digits: int = 3) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _undefined(found: NotDefined, cells: int) -> tuple[str, ...]:
    return _not_defined(found), *(DASH,) * (cells - 1)


def _not_defined(found: NotDefined) -> str:
    return f"not defined: {found.why}"
