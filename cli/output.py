"""Reports as tables for people."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.models import PercentRange, Report

LEGEND = (
    "PO, PHO: percent of the lungs that are opaque, densely opaque (-200 HU or more). "
    "LSS, LHOS: each lobe 0-4 by its affected percent, summed, 0-20."
)


def print_report(console: Console, report: Report, truth: Report | None = None) -> None:
    """The scores overall and per lobe; beside them the known truth, if there is one."""
    table = _table("Severity", truth, ("", "score", "truth"))
    found, known = _totals(report), _totals(truth) if truth else {}
    for name, value in found.items():
        _add(table, name, value, known.get(name))
    console.print(table)
    console.print(_lobes(report, truth))
    console.print(f"[dim]{LEGEND}[/]")
    for finding in report.quality:
        colour = {"info": "blue", "warning": "yellow", "error": "red"}[finding.severity]
        console.print(f"[{colour}]{finding.code}[/] {escape(finding.message)}", highlight=False)


def _totals(report: Report) -> dict[str, str]:
    scores = report.severity
    return {
        "PO, percent opacity": f"{scores.percent_opacity:.2f}{_between(scores.percent_opacity_range)}",
        "PHO, percent high opacity": f"{scores.percent_high_opacity:.2f}",
        "LSS, lung severity score": str(scores.lung_severity_score),
        "LHOS, lung high opacity score": str(scores.lung_high_opacity_score),
        "Lung volume, ml": f"{report.lungs.volume_ml:.0f}",
    }


def _between(part: PercentRange | None) -> str:
    """What it may be, if that is known."""
    return "" if part is None else f" ({part.low:.1f} to {part.high:.1f})"


def _lobes(report: Report, truth: Report | None) -> Table:
    table = _table("Lobes", truth, ("lobe", "volume ml", "opacity %", "high %", "score", "truth"))
    expected = {lobe.lobe: lobe for lobe in truth.lobes} if truth else {}
    for lobe in report.lobes:
        cells = (f"{lobe.volume_ml:.0f}", f"{lobe.percent_opacity:.1f}", f"{lobe.percent_high_opacity:.1f}")
        known = expected.get(lobe.lobe)
        _add(
            table,
            lobe.lobe.replace("_", " "),
            *cells,
            str(lobe.severity_score),
            f"{known.percent_opacity:.1f} %, {known.percent_high_opacity:.1f} %, {known.severity_score}"
            if known
            else None,
        )
    return table


def _table(title: str, truth: Report | None, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns if truth else columns[:-1]):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _add(table: Table, *cells: str | None) -> None:
    """The last cell is the truth's, and may be missing."""
    table.add_row(*(cell for cell in cells if cell is not None))
