"""Exit codes, and the sentences that go with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from importlib.util import find_spec
from typing import Final

import typer
from rich.console import Console

out: Final = Console()
"""Results: what a pipe should get."""

err: Final = Console(stderr=True)
"""Progress and problems: what people should see."""


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
    """Around imports of an optional part: a missing one ends in the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "lobewise":
            raise
        raise _missing(error.name, extra) from error


def require(module: str, extra: str) -> None:
    """The same without importing it: torch takes seconds, and some of our processes never use it."""
    if find_spec(module) is None:
        raise _missing(module, extra)


def _missing(module: str | None, extra: str) -> typer.Exit:
    sentence = f"This command needs a part that is not installed ({module})."
    return fail(Exit.USAGE, sentence, f"  pip install 'lobewise\\[{extra}]'")
