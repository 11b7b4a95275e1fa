"""Progress bars on the error stream, so that results can be piped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from cli.exits import err

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
