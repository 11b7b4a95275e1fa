"""Figures of the report, as PNG and SVG; colours of Okabe and Ito, and every group has a marker of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from evaluation import statistics
from evaluation.analysis import Analysis
from evaluation.scores import Metric
from evaluation.statistics import Calibration, Confusion, Interval, LimitsOfAgreement, LinearFit, NotDefined, Values

BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREY: Final = "#666666"
SKY: Final = "#56B4E9"
BLACK: Final = "#000000"

PNG_DOTS_PER_INCH: Final = 150

#: Whole scores are moved by at most so much, so that equal ones can be seen beside each other (as in the paper).
JITTER: Final = 0.18
JITTER_NOTE: Final = f"Whole scores are moved by up to {JITTER} points, so that equal ones can be told apart."
#: As in the paper, column by column: PO above LSS, PHO above LHOS.
PANELS: Final = (Metric.PO, Metric.LSS, Metric.PHO, Metric.LHOS)

STYLE: Final[Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    # By default the salt of SVG ids is random; the same report shall give the same bytes.
    "svg.hashsalt": "lobewise",
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Drawn:
    """A figure in the report's folder.

    Attributes:
        name: of its files, without ending.
        caption: what it shows, with the number of cases.
    """

    name: str
    title: str
    caption: str


def draw_all(analysis: Analysis, folder: Path, label: str) -> tuple[Drawn, ...]:
    """Write every figure that the analysis has to `folder`; `label` stands on each."""
    drawn = []
    with mpl.rc_context(STYLE):
        for drawer in (_scatter, _planes, _bland_altman, _confusions, _calibrations, _overlaps):
            if (made := drawer(analysis)) is not None:
                save(made[1], folder, made[0].name, label)
                drawn.append(made[0])
    return tuple(drawn)


def save(figure: Figure, folder: Path, name: str, label: str) -> None:
    """Write PNG and SVG, with the label on top."""
    # On each figure, so that simulated data can never pass for real ones, wherever a figure is copied to.
    figure.suptitle(label, fontsize=10, color=ORANGE, fontweight="bold", wrap=True, parse_math=False)
    # Without version and date of matplotlib: the same report gives the same bytes.
    figure.savefig(folder / f"{name}.png", dpi=PNG_DOTS_PER_INCH, metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})


def _scatter(analysis: Analysis) -> tuple[Drawn, Figure]:
    figure = Figure(figsize=(10, 9.6), layout="constrained")
    panels = figure.subplots(2, 2).T.ravel()
    by_metric = {agreement.metric: agreement for agreement in analysis.agreements}
    for panel, letter, metric in zip(panels, "abcd", PANELS, strict=True):
        agreement = by_metric[metric]
        truth, predicted = analysis.scores.values(metric)
        limit = _limit(metric, truth, predicted)
        _draw_diagonal(panel, limit)
        if isinstance(agreement.fit, LinearFit):
            true_diseased, found_diseased = analysis.diseased.values(metric)
            at = np.linspace(found_diseased.min(), found_diseased.max(), 60)
            band = statistics.confidence_band(true_diseased, found_diseased, at)
            if not isinstance(band, NotDefined):
                panel.fill_between(at, *band, color=SKY, alpha=0.35, linewidth=0)
            panel.plot(at, agreement.fit.at(at), color=BLACK, linewidth=1.6, label="regression (diseased), 95 % band")
        _draw_groups(panel, analysis, predicted, truth, metric.is_percent)
        _frame(panel, limit, f"predicted {metric.name} ({metric.unit})", f"true {metric.name} ({metric.unit})")
        panel.set_title(f"({letter}) {metric.name}")
        lines = []
        for name, value in (("Pearson r", agreement.pearson), ("Kendall \u03c4", agreement.kendall)):
            lines.append(f"{name} {'not defined' if isinstance(value, NotDefined) else f'= {value.coefficient:.2f}'}")
        if isinstance(agreement.fit, LinearFit):
            sign = "+" if agreement.fit.slope.value >= 0 else "\u2212"
            slope = abs(agreement.fit.slope.value)
            lines.append(f"truth = {agreement.fit.intercept.value:.2f} {sign} {slope:.2f} \u00b7 prediction")
        elif isinstance(agreement.fit, NotDefined):
            lines.append("line not defined")
        panel.text(0.03, 0.97, "\n".join(lines), transform=panel.transAxes, va="top", fontsize=9, linespacing=1.4)
    _legend_below(figure, panels[0])
    caption = (
        f"Truth against prediction of {_count(analysis)}. Dashed: prediction equals truth. Solid, with its 95 % band: "
        f"the regression of Table 4, of the diseased. {JITTER_NOTE}"
    )
    return Drawn("scatter", "Truth and prediction (Figure 4 of the paper)", caption), figure


def _planes(analysis: Analysis) -> tuple[Drawn, Figure]:
    figure = Figure(figsize=(10, 9.6), layout="constrained")
    panels = figure.subplots(2, 2)
    for row, (extent, high) in zip(panels, ((Metric.PO, Metric.PHO), (Metric.LSS, Metric.LHOS)), strict=True):
        limit = max(_limit(extent, *analysis.scores.values(extent)), _limit(high, *analysis.scores.values(high)))
        for panel, side, name in zip(row, (0, 1), ("truth", "prediction"), strict=True):
            x, y = analysis.scores.values(extent)[side], analysis.scores.values(high)[side]
            _draw_diagonal(panel, limit, "all opacity is high opacity")
            _draw_groups(panel, analysis, x, y, extent.is_percent)
            _frame(panel, limit, f"{extent.name} ({extent.unit})", f"{high.name} ({high.unit})")
            panel.set_title(f"({extent.name}, {high.name}): {name}")
    _legend_below(figure, panels[0, 0])
    caption = (
        f"Combined measures of {_count(analysis)}: extent across, high opacity upwards. The closer to the "
        f"diagonal, the more of the opacity is dense. {JITTER_NOTE}"
    )
    return Drawn("planes", "Combined measures of severity (Figure 5 of the paper)", caption), figure


def _bland_altman(analysis: Analysis) -> tuple[Drawn, Figure] | None:
    if not len(analysis.diseased):
        return None
    figure = Figure(figsize=(10, 8.6), layout="constrained")
    panels = figure.subplots(2, 2).T.ravel()
    by_metric = {agreement.metric: agreement for agreement in analysis.agreements}
    for panel, metric in zip(panels, PANELS, strict=True):
        truth, predicted = analysis.diseased.values(metric)
        x, y = (truth + predicted) / 2, predicted - truth
        limits = by_metric[metric].limits
        if isinstance(limits, LimitsOfAgreement):
            lines = (("bias", limits.bias, "-"), ("", limits.lower, "--"), ("", limits.upper, "--"))
            for name, estimate, style in lines:
                panel.axhline(estimate.value, color=ORANGE, linestyle=style, linewidth=1.4)
                if isinstance(estimate.interval, Interval):
                    panel.axhspan(estimate.interval.low, estimate.interval.high, color=ORANGE, alpha=0.12, linewidth=0)
                text = f"{name} {estimate.value:+.2f}".strip().replace("-", "\u2212")
                if name or estimate.value != limits.bias.value:
                    # Beside the panel, where it hides no case.
                    at, across = (1, estimate.value), ("axes fraction", "data")
                    beside: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
                    panel.annotate(text, at, xycoords=across, fontsize=9, color="#8a3d00", **beside)
        else:
            panel.text(0.5, 0.95, f"limits not defined: {limits.why}", transform=panel.transAxes, ha="center", va="top")
        x, y = (x, y) if metric.is_percent else (_jittered(x, 1), _jittered(y, 2))
        panel.plot(x, y, "o", color=BLUE, markersize=5, alpha=0.75, markeredgewidth=0)
        panel.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
        panel.set_xlabel(f"mean of true and predicted {metric.name} ({metric.unit})")
        points = "percentage points" if metric.is_percent else metric.unit
        panel.set_ylabel(f"predicted \u2212 true {metric.name}\n({points})")
        panel.set_title(metric.name)
        panel.margins(x=0.06, y=0.2)
    caption = (
        f"Differences of {len(analysis.diseased)} diseased cases. Solid: bias; dashed: 95 % limits of agreement (bias "
        f"\u00b1 1.96 standard deviations); shaded: their 95 % confidence intervals. {JITTER_NOTE}"
    )
    return Drawn("bland-altman", "Limits of agreement (Bland and Altman)", caption), figure


def _confusions(analysis: Analysis) -> tuple[Drawn, Figure] | None:
    known = [(metric, found) for metric, found in analysis.confusions if isinstance(found, Confusion)]
    if not known:
        return None
    figure = Figure(figsize=(7.2 * len(known), 6.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(known)))
    for panel, (metric, confusion) in zip(panels, known, strict=True):
        counts = np.array(confusion.counts)
        highest = max(int(np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1)).max()), 4)
        shown = counts[: highest + 1, : highest + 1]
        shades = np.ma.masked_equal(shown, 0)
        # On a linear scale the many healthy cases would hide all else.
        norm = LogNorm(vmin=0.5, vmax=max(int(shown.max()), 2))
        panel.imshow(shades, cmap="cividis_r", norm=norm, origin="lower")
        for true, predicted in np.argwhere(shown > 0):
            is_dark = norm(shown[true, predicted]) > 0.5
            colour = "white" if is_dark else "black"
            panel.text(predicted, true, str(shown[true, predicted]), ha="center", va="center", color=colour, fontsize=9)
        for score in range(highest + 1):
            panel.add_patch(Rectangle((score - 0.5, score - 0.5), 1, 1, fill=False, edgecolor=GREY, lw=0.9))
        panel.set_xticks(range(0, highest + 1, 1 if highest < 12 else 2))
        panel.set_yticks(range(0, highest + 1, 1 if highest < 12 else 2))
        panel.set_xlabel(f"predicted {metric.name} (points)")
        panel.set_ylabel(f"true {metric.name} (points)")
        panel.set_title(f"{metric.name}, {metric.words}")
    caption = (
        f"Predicted scores for each true score, number of cases, of {_count(analysis)}. Outlined: prediction equals "
        "truth. Scores above the highest that occurs are left out."
    )
    return Drawn("confusion", "Confusion of the scores", caption), figure


def _calibrations(analysis: Analysis) -> tuple[Drawn, Figure] | None:
    known = [(one.metric, one.result) for one in analysis.recalibrations if isinstance(one.result, Calibration)]
    if not known:
        return None
    figure = Figure(figsize=(10, 5.0 * len(known)), layout="constrained")
    panels = figure.subplots(len(known), 2, squeeze=False)
    for (left, right), (metric, result) in zip(panels, known, strict=True):
        truth, predicted = analysis.scores.values(metric)
        limit = _limit(metric, truth, predicted)
        after = f"{metric.name} recalibrated, leave one out"
        sides = (
            (left, predicted, f"{metric.name} as predicted", result.error_before, result.bias_before),
            (right, result.recalibrated, after, result.error_after, result.bias_after),
        )
        for panel, values, title, error, bias in sides:
            _draw_diagonal(panel, limit)
            _draw_groups(panel, analysis, values, truth, True)
            _frame(panel, limit, f"predicted {metric.name} (%)", f"true {metric.name} (%)")
            panel.set_title(title)
            note = f"mean absolute error {error:.2f}\nmean error {bias:+.2f} percentage points"
            panel.text(0.03, 0.97, note, transform=panel.transAxes, va="top", fontsize=9)
        ends = np.array([0.0, predicted.max()])
        left.plot(ends, result.fit.at(ends), color=BLACK, linewidth=1.6, label="recalibrating line (all cases)")
    _legend_below(figure, panels[0, 0])
    caption = (
        f"Left: {_count(analysis)} as predicted, with the line that would recalibrate them. Right: each case "
        "recalibrated by the line through all the others, so that no case judges itself."
    )
    return Drawn("calibration", "Recalibration of PO and PHO", caption), figure


def _overlaps(analysis: Analysis) -> tuple[Drawn, Figure] | None:
    if not analysis.structures:
        return None
    figure = Figure(figsize=(10, 8.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    names = [summary.structure for summary in analysis.structures]
    rng = np.random.default_rng(0)
    distances = (bottom, "hausdorff_95_mm", "95 % Hausdorff distance (mm)")
    for panel, field, label in ((top, "dice", "Dice (0 to 1)"), distances):
        for place, name in enumerate(names):
            measured = [getattr(o, field) for o in analysis.overlaps if o.structure == name]
            values = np.array([value for value in measured if value is not None], np.float64)
            x = place + rng.uniform(-JITTER, JITTER, len(values))
            panel.plot(x, values, "o", color=BLUE, markersize=4.5, alpha=0.6, markeredgewidth=0)
            if len(values):
                median = float(np.median(values))
                panel.plot([place - 0.32, place + 0.32], [median, median], color=ORANGE, linewidth=2.2)
        panel.set_ylabel(label)
        panel.grid(axis="y", color="#dddddd", linewidth=0.8)
        panel.set_axisbelow(True)
    top.set_ylim(-0.03, 1.03)
    bottom.set_ylim(bottom=-0.03 * bottom.get_ylim()[1])
    bottom.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
    caption = (
        "Overlap of each structure, one dot a case; line: median. Cases that lack the structure on both sides are left "
        "out; on one side, Dice is 0 and there is no distance."
    )
    return Drawn("overlap", "Dice and surface distance", caption), figure


def _draw_diagonal(panel: Axes, limit: float, label: str = "prediction = truth") -> None:
    panel.plot([0, limit], [0, limit], "--", color=GREY, linewidth=1, label=label)


def _draw_groups(panel: Axes, analysis: Analysis, x: Values, y: Values, is_percent: bool) -> None:
    if not is_percent:
        x, y = _jittered(x, 1), _jittered(y, 2)
    control = np.array(analysis.is_control, dtype=np.bool_)
    styles: Mapping[str, dict[str, object]] = {
        "diseased": {"marker": "o", "color": BLUE, "alpha": 0.75, "markersize": 5.5, "markeredgewidth": 0},
        "control": {"marker": "s", "color": ORANGE, "markerfacecolor": "none", "markersize": 5, "markeredgewidth": 1.1},
    }
    for (name, style), wanted in zip(styles.items(), (~control, control), strict=True):
        if wanted.any():
            panel.plot(x[wanted], y[wanted], linestyle="none", label=f"{name} (n = {wanted.sum()})", **style)  # type: ignore[arg-type]


def _frame(panel: Axes, limit: float, x_label: str, y_label: str) -> None:
    panel.set_xlim(-0.03 * limit, 1.02 * limit)
    panel.set_ylim(-0.03 * limit, 1.02 * limit)
    panel.set_aspect("equal")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 4, 5, 10]))
    panel.set_xlabel(x_label)
    panel.set_ylabel(y_label)


def _legend_below(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))


def _limit(metric: Metric, truth: Values, predicted: Values) -> float:
    """Where the axes end: 20 for scores; for percentages a little beyond the highest, never below 5."""
    if not metric.is_percent:
        return 20.5
    return float(min(max(np.max(truth), np.max(predicted), 4.7) * 1.06, 102))


def _jittered(values: Values, stream: int) -> Values:
    return np.asarray(values + np.random.default_rng([0, stream]).uniform(-JITTER, JITTER, len(values)))


def _count(analysis: Analysis) -> str:
    diseased, controls = len(analysis.diseased), len(analysis.controls)
    return f"{diseased} diseased cases and {controls} controls" if controls else f"{diseased} cases"
