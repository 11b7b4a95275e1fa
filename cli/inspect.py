"""`lobewise inspect`: what the reader sees in a file, without scoring it and without anything about the patient."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cli.output import needs, print_findings, titled_table
from jobs.models import Inspection, JobError
from jobs.problems import BY_SLUG
from jobs.version import __version__

with needs("worker"):
    from pipeline.errors import PipelineError
    from pipeline.io.overview import draw_slices
    from pipeline.io.read import read_ct
    from worker.report import inspection_of

#: Of the longest bar of the histogram.
BAR_LETTERS = 50


def inspect(path: Path, picture: Path | None) -> Inspection:
    """Read `path`, draw its middle slices to `picture` where one is wanted, and say what was seen.

    A file that is refused is an answer too: its problem is in `refused`.
    """
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size_bytes = sum(file.stat().st_size for file in files)
    try:
        scan = read_ct(path)
    except PipelineError as error:
        problem = JobError.of(BY_SLUG[error.code], error.detail, error.evidence)
        return Inspection(software=__version__, input_size_bytes=size_bytes, refused=problem)
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_slices(picture, scan.volume)
    return inspection_of(scan, size_bytes, picture)


def print_inspection(console: Console, seen: Inspection) -> None:
    """The same for people."""
    table = titled_table("File")
    table.add_column("")
    table.add_column("value")
    table.add_column("from")
    table.add_row("bytes", str(seen.input_size_bytes), "")
    table.add_row("software", seen.software, "")
    if seen.refused is not None:
        console.print(table)
        console.print(f"[bold red]{escape(seen.refused.title)}: {escape(seen.refused.detail)}[/]", highlight=False)
        for name, value in seen.refused.evidence.items():
            console.print(f"  {escape(name)}: {escape(str(value))}", highlight=False)
        return
    used = ", ".join(seen.geometry.used) if seen.geometry else ""
    table.add_row("format", seen.geometry.file_format if seen.geometry else "", "")
    table.add_row("voxels z, y, x", _numbers(seen.shape), "")
    table.add_row("spacing z, y, x, mm", _numbers(seen.spacing_mm), used)
    table.add_row("first voxel, LPS mm", _numbers(seen.origin_mm), used)
    table.add_row("axes x, y, z lead to", seen.axes or "", used)
    for row, name in zip(seen.direction or [], ("left", "back", "head"), strict=True):
        table.add_row(f"direction, {name}", _numbers(row), used)
    for name, reason in (seen.geometry.ignored if seen.geometry else {}).items():
        table.add_row(f"ignored: {escape(name)}", escape(reason), "")
    console.print(table)
    if (values := seen.histogram) is not None:
        table = titled_table(f"Hounsfield units, {values.lowest_hu} to {values.highest_hu}")
        table.add_column("from", justify="right")
        table.add_column("voxels", justify="right")
        table.add_column("")
        most = max(values.voxels)
        for number, count in enumerate(values.voxels):
            if count:
                letters = "#" * round(BAR_LETTERS * count / most)
                table.add_row(str(values.first_hu + number * values.bin_hu), str(count), letters)
        console.print(table)
    print_findings(console, seen.quality)


def _numbers(values: tuple[float, ...] | tuple[int, ...] | None) -> str:
    return ", ".join(f"{value:g}" for value in values or ())
