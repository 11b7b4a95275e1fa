"""What came of it: which client does which operation, which cannot, and the page that says so."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.clients.generators import OPERATIONS, Client

CANNOT: Final = Path(__file__).with_name("cannot.toml")
PAGE: Final = Path(__file__).parents[2] / "docs" / "clients.md"

#: How a client that could not be generated or compiled fails at each operation.
UNBUILT: Final = "was not built"

_HEAD: Final = """\
# Generated clients

`make test-clients` writes this page: it generates each client from the OpenAPI document, compiles or imports it, and
drives it against a running service that has scored a scan. A number says why something cannot be done.

"""


@dataclass
class Outcome:
    """A client as it went.

    Attributes:
        results: by operation, an empty string where it did what it should, or else what happened.
        fault: why it was not generated, compiled or run to its end.
        missing: programs that are not on this machine, so that it was not tried.
    """

    client: Client
    version: str
    seconds: float = 0.0
    results: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    missing: tuple[str, ...] = ()

    def detail(self, operation: str) -> str:
        return self.results.get(operation, self.fault or "the driver said nothing of it")


def known_impossibilities() -> dict[str, dict[str, str]]:
    """By client and operation, the reason; in the table `all` stands for each operation.

    Raises:
        ValueError: the table names an operation that there is not.
    """
    table: dict[str, dict[str, str]] = tomllib.loads(CANNOT.read_text())
    for client, reasons in table.items():
        if everything := reasons.pop("all", None):
            reasons.update(dict.fromkeys(OPERATIONS, everything))
        if unknown := reasons.keys() - OPERATIONS.keys():
            raise ValueError(f"{CANNOT.name}: {client} has no operation {', '.join(sorted(unknown))}")
    return table


def faults(outcomes: Iterable[Outcome], cannot: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is not as `cannot` says: what fails and should not, and what works by now."""
    found = []
    for outcome in outcomes:
        if outcome.missing:
            continue
        known = cannot.get(outcome.client.name, {})
        if outcome.fault:
            found.append(f"{outcome.client.name}: {outcome.fault}")
        for operation in OPERATIONS:
            detail = outcome.detail(operation)
            if detail and operation not in known and not outcome.fault:
                found.append(f"{outcome.client.name}: {operation}: {detail}")
            if not detail and operation in known:
                found.append(f"{outcome.client.name}: {operation} works now: take it from {CANNOT.name}")
    return found


def table(outcomes: Iterable[Outcome]) -> str:
    """One line a client, for people at a terminal: `.` did it, `-` could not, `?` was not tried."""
    outcomes = list(outcomes)
    width = max(len(outcome.client.name) for outcome in outcomes)
    lines = []
    for outcome in outcomes:
        signs = ["?" if outcome.missing else "-" if outcome.detail(name) else "." for name in OPERATIONS]
        cells = "  ".join(sign.center(len(name)) for sign, name in zip(signs, OPERATIONS, strict=True))
        said = f"no {', '.join(outcome.missing)}" if outcome.missing else f"{outcome.seconds:5.1f} s"
        lines.append(f"{outcome.client.name:{width}}  {cells}  {said}")
    return "\n".join([f"{'':{width}}  {'  '.join(OPERATIONS)}", *lines])


def page(outcomes: Iterable[Outcome], cannot: Mapping[str, Mapping[str, str]]) -> str:
    """The matrix as Markdown: operations down, since there are more of them than a page is wide."""
    outcomes = list(outcomes)
    notes: list[str] = []

    def cell(outcome: Outcome, operation: str) -> str:
        reason = cannot.get(outcome.client.name, {}).get(operation)
        if reason is None:
            return "yes"
        if reason not in notes:
            notes.append(reason)
        return f"no ({notes.index(reason) + 1})"

    lines = ["| |" + "".join(f" {o.client.name} |" for o in outcomes), "|---|" + "---|" * len(outcomes)]
    for operation, words in OPERATIONS.items():
        lines.append(f"| {words} |" + "".join(f" {cell(outcome, operation)} |" for outcome in outcomes))
    text = _HEAD + "\n".join(lines) + "\n\n"
    text += "".join(f"{number}. {reason}\n" for number, reason in enumerate(notes, 1)) + ("\n" if notes else "")
    text += "| client | generator | how |\n|---|---|---|\n"
    for outcome in outcomes:
        text += f"| {outcome.client.name} | {outcome.client.package} {outcome.version} | {outcome.client.options} |\n"
    return text
