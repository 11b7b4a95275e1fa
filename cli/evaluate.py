"""`lobewise evaluate`: truth and prediction in, one report folder out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from cli.output import Exit, bar, fail, needs, out, titled_table
from jobs.version import __version__

with needs("evaluation"):
    from evaluation.analysis import Analysis, analyse
    from evaluation.errors import EvaluationError, ImageError
    from evaluation.masks import compare_all, read_manifest
    from evaluation.report import About, write_report
    from evaluation.scores import read_pairs
    from evaluation.tables import all_tables

#: Of the whole time, where there are masks.
MASKS_SHARE = 0.8

#: On the terminal: Tables 3 and 4 of the paper.
SHOWN_TABLES = 2


@dataclass(frozen=True)
class Request:
    """What is to be evaluated: `truth` and `predicted`, or `manifest`."""

    truth: Path | None
    predicted: Path | None
    manifest: Path | None
    label: str
    note: str
    control_group: str
    seed: int


def evaluate(request: Request, folder: Path) -> tuple[Analysis, list[Path]]:
    """Write the report to `folder`.

    Raises:
        typer.Exit: the input cannot be evaluated; what to do has been said.
    """
    given = (request.truth, request.predicted, request.manifest)
    inputs = [path for path in given if path is not None]
    if [path is not None for path in given] not in ([True, True, False], [False, False, True]):
        raise fail(Exit.USAGE, "Give --truth and --predicted, or --manifest alone.", "See: lobewise evaluate --help")
    try:
        with bar("reading") as shown:
            if request.manifest is not None:
                cases = read_manifest(request.manifest)
                compared = compare_all(cases, lambda case, done: shown.show(case, done * MASKS_SHARE))
                scores = compared.scores
            else:
                compared, scores = None, read_pairs(*inputs)
            shown.show("working out the statistics", MASKS_SHARE)
            overlaps = compared.overlaps if compared else ()
            analysis = analyse(scores, overlaps, control_group=request.control_group, seed=request.seed)
            shown.show("drawing", 0.9)
            sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs}
            about = About(request.label, request.note, __version__, sums)
            paths = write_report(folder, analysis, about, compared)
            shown.show("evaluated", 1.0)
    except EvaluationError as error:
        raise fail(Exit.SCAN_REFUSED if isinstance(error, ImageError) else Exit.USAGE, str(error)) from error
    return analysis, paths


def print_summary(request: Request, analysis: Analysis) -> None:
    """The paper's two tables, under the label."""
    counts = f"{len(analysis.diseased)} diseased, {len(analysis.controls)} controls"
    out.print(f"Data: {request.label} ({counts})", style="bold", markup=False, highlight=False)
    for table in all_tables(analysis)[:SHOWN_TABLES]:
        shown = titled_table(table.title)
        for column in table.columns[:-1]:
            shown.add_column(escape(column))
        for row in table.rows:
            shown.add_row(*(escape(cell) for cell in row[:-1]))
        out.print(shown)
