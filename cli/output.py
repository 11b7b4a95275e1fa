"""Reports as tables for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.models import MaskLabels, QualityFinding, Report

#: The packages of the project; an image copies those that it needs.
ROOMS: Final = ("api", "jobs", "worker", "pipeline", "training", "evaluation", "cli")

#: Results: what a pipe should get.
out: Final = Console()

#: Progress and problems, on the error stream, so that results can be piped.
err: Final = Console(stderr=True)


class Exit(IntEnum):
    """How a command ended."""

    OK = 0
    #: A fault of ours; a traceback says where.
    UNEXPECTED = 1
    #: The command was called wrongly, or a part of it is not installed.
    USAGE = 2
    #: The scan cannot be scored: unreadable, not a chest, no lungs.
    SCAN_REFUSED = 3
    #: The service does not answer, refuses or fails.
    SERVICE_PROBLEM = 4


class ServiceError(Exception):
    """The service cannot be reached, refuses, ended or did not become ready; the message is for people."""


def fail(code: Exit, sentence: str, *hints: str) -> typer.Exit:
    """Print plain sentences that say why a command ends, and return what to raise."""
    # Escaped, for a path or a label in brackets is no markup; unwrapped, so that a path stays in one piece.
    err.print(f"[bold red]{escape(sentence)}[/]", highlight=False, soft_wrap=True)
    for hint in hints:
        err.print(escape(hint), highlight=False, soft_wrap=True)
    return typer.Exit(code)


def fail_refused(title: str, detail: str, evidence: dict[str, Any]) -> typer.Exit:
    """The same for a scan that was refused, here or by a service, in the words of its problem."""
    # The sentence names the findings already.
    seen = ", ".join(f"{name} {value}" for name, value in evidence.items() if name != "findings")
    return fail(Exit.SCAN_REFUSED, f"{title}: {detail}", *([f"What was seen: {seen}"] if seen else []))


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
    return fail(Exit.USAGE, sentence, f"  pip install 'lobewise[{extra}]'")


LEGEND: Final = (
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
    table = _table("Lobes", truth, ("lobe", "volume ml", "opacity %", "high %", "score", "truth"))
    expected = {lobe.lobe: lobe for lobe in truth.lobes} if truth else {}
    for lobe in report.lobes:
        cells = (f"{lobe.volume_ml:.0f}", f"{lobe.percent_opacity:.1f}", f"{lobe.percent_high_opacity:.1f}")
        known_lobe = None
        if true := expected.get(lobe.lobe):
            known_lobe = f"{true.percent_opacity:.1f} %, {true.percent_high_opacity:.1f} %, {true.severity_score}"
        _add(table, lobe.lobe.replace("_", " "), *cells, str(lobe.severity_score), known_lobe)
    console.print(table)
    console.print(f"[dim]{LEGEND}[/]")
    print_findings(console, report.quality)


def print_findings(console: Console, findings: list[QualityFinding]) -> None:
    """What a reader should know, the colour by severity."""
    for finding in findings:
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


def _table(title: str, truth: Report | None, columns: tuple[str, ...]) -> Table:
    table = titled_table(title)
    for index, column in enumerate(columns if truth else columns[:-1]):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def titled_table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")


def _add(table: Table, *cells: str | None) -> None:
    """The last cell is the truth's, and may be missing."""
    table.add_row(*(cell for cell in cells if cell is not None))


def write_document(document: Report | MaskLabels, path: Path) -> Path:
    path.write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


#: A worker reports the names of its stages, which are for programs.
STAGE_TEXTS: Final = {
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
        self.progress.update(self.task, description=STAGE_TEXTS.get(what, what), completed=fraction)


@contextmanager
def bar(what: str) -> Iterator[Bar]:
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=err) as progress:
        yield Bar(progress, progress.add_task(what, total=1.0))
