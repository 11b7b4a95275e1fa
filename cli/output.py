"""Reports as tables for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from importlib.util import find_spec
from typing import Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.models import Report

#: The packages of the project; an image copies those that it needs.
ROOMS: Final = ("api", "jobs", "worker", "pipeline", "training", "evaluation", "cli")

#: Results: what a pipe should get.
out: Final = Console()

#: Progress and problems, on the error stream, so that results can be piped.
err: Final = Console(stderr=True)


class Exit(IntEnum):
    """How a command ended."""

    OK = 0
    UNEXPECTED = 1
    """A fault of ours; a traceback says where."""
    USAGE = 2
    """The command was called wrongly, or a part of it is not installed."""
    SCAN_REFUSED = 3
    """The scan cannot be scored: unreadable, not a chest, no lungs."""
    SERVICE_PROBLEM = 4
    """The service does not answer, refuses or fails."""


def fail(code: Exit, sentence: str, *hints: str) -> typer.Exit:
    """Say why, and return what to raise."""
    err.print(f"[bold red]{sentence}[/]", highlight=False, soft_wrap=True)  # a path stays in one piece
    for hint in hints:
        err.print(hint, highlight=False, soft_wrap=True)
    return typer.Exit(code)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of an optional part: a missing one ends in a sentence that says what to do."""
    try:
        yield
    except ModuleNotFoundError as error:
        # Images carry only some rooms: the worker's has neither training nor evaluation, and pip could add none.
        if error.name in ROOMS:
            sentence = f"This command needs the part {error.name!r}, which this image does not carry."
            raise fail(Exit.USAGE, sentence, "Call it where the whole package is installed.") from error
        # A module that is missing inside a room that is there is a fault of ours, and keeps its traceback.
        if (error.name or "").partition(".")[0] in ROOMS:
            raise
        raise _missing(error.name, extra) from error


def require(module: str, extra: str) -> None:
    """The same without importing it: torch takes seconds, and some of our processes never use it."""
    if find_spec(module) is None:
        raise _missing(module, extra)


def _missing(module: str | None, extra: str) -> typer.Exit:
    sentence = f"This command needs a part that is not installed ({module})."
    return fail(Exit.USAGE, sentence, f"  pip install 'lobewise\\[{extra}]'")


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
    # Reports of older versions have no range.
    known = scores.percent_opacity_range
    between = "" if known is None else f" ({known.low:.1f} to {known.high:.1f})"
    return {
        "PO, percent opacity": f"{scores.percent_opacity:.2f}{between}",
        "PHO, percent high opacity": f"{scores.percent_high_opacity:.2f}",
        "LSS, lung severity score": str(scores.lung_severity_score),
        "LHOS, lung high opacity score": str(scores.lung_high_opacity_score),
        "Lung volume, ml": f"{report.lungs.volume_ml:.0f}",
    }


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


WORDS = {
    "fetch": "fetching the scan",
    "read": "reading the scan",
    "landmarks": "looking for the carina",
    "lungs": "drawing lungs and lobes",
    "lesions": "drawing opacities",
    "severity": "scoring",
    "store": "storing masks and report",
}


@dataclass(frozen=True)
class Bar:
    """One bar from 0 to 1, with what happens now beside it."""

    progress: Progress
    task: TaskID

    def show(self, what: str, fraction: float) -> None:
        """`what` may be a stage's name or a sentence."""
        self.progress.update(self.task, description=WORDS.get(what, what), completed=fraction)


@contextmanager
def bar(what: str) -> Iterator[Bar]:
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=err) as progress:
        yield Bar(progress, progress.add_task(what, total=1.0))
