"""`lobewise audit`: look into the trail of who did what. It needs the storage; no gateway has to run."""

import json
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from cli.output import Exit, err, fail, out
from jobs.audit.entries import Head, TamperedError
from jobs.errors import BrokerUnavailableError

audit = typer.Typer(
    name="audit",
    help="Verify and export the trail of who did what. docs/audit.md tells what it holds and what can be found.",
    epilog="Example:  [bold]lobewise audit verify[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
_FORMATS: Final = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
Since = Annotated[datetime | None, typer.Option(help="From this time (UTC) on.", formats=_FORMATS)]
Until = Annotated[datetime | None, typer.Option(help="Before this time (UTC).", formats=_FORMATS)]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")]


@audit.command(
    epilog="Examples:  [bold]lobewise audit verify[/]   "
    "[bold]lobewise audit verify --heads heads-of-march.txt[/] with what [bold]lobewise audit heads[/] printed then"
)
def verify(
    since: Since = None,
    heads: Annotated[
        Path | None,
        typer.Option(help="Heads that were kept elsewhere: the trail must have each of them still.", exists=True),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what was changed, cut off, moved or made up in the trail. Fails if anything was, and says where."""
    from jobs.audit.trail import audit_keys
    from jobs.audit.verification import verify as verify_trail
    from jobs.bootstrap import connect

    known = [] if heads is None else list(_kept(heads))
    with closing(connect()) as jobs:
        # Redis first, since the trail goes on: what it knows by now is in the store.
        with suppress(BrokerUnavailableError):
            known += [("Redis", head) for head in jobs.backends.live.audit_heads.all()]
        blobs, keys = jobs.backends.store.blobs, audit_keys(jobs.settings)
        found = verify_trail(blobs, keys, known, "" if since is None else since.date().isoformat())
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        counts = f"{found.days} days, {found.chains} chains, {found.segments} segments, {found.entries} entries"
        out.print(f"{counts}; {len(known)} heads known from elsewhere", highlight=False)
        for note in found.notes:
            err.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
        for fault in found.faults:
            err.print(f"WRONG: {fault}", highlight=False, markup=False, soft_wrap=True)
    if found.faults:
        raise fail(Exit.UNEXPECTED, f"The audit trail is not as it was written: {len(found.faults)} faults.")


@audit.command(
    epilog="Examples:  [bold]lobewise audit export --since 2026-03-01 --until 2026-04-01 > march.jsonl[/]   "
    "[bold]lobewise audit export --format fhir --tenant radiology > events.ndjson[/]"
)
def export(
    kind: Annotated[
        Literal["jsonl", "fhir"], typer.Option("--format", help="Entries as they are, or AuditEvents of FHIR R4.")
    ] = "jsonl",
    since: Since = None,
    until: Until = None,
    tenant: Annotated[str | None, typer.Option(help="Only what callers of this tenant did.")] = None,
) -> None:
    """Print the entries in the order of their times, one a line."""
    from jobs.audit.fhir import audit_event
    from jobs.audit.verification import entries
    from jobs.bootstrap import connect

    begin, end = (moment and moment.replace(tzinfo=UTC) for moment in (since, until))
    with closing(connect()) as jobs:
        try:
            for entry in entries(jobs.backends.store.blobs, begin, end, tenant=tenant):
                typer.echo(json.dumps(entry if kind == "jsonl" else audit_event(entry), sort_keys=True))
        except (TamperedError, ValueError) as error:
            raise fail(Exit.UNEXPECTED, f"It breaks off: {error}", "lobewise audit verify says where.") from error


@audit.command(epilog="Example:  [bold]lobewise audit heads >> heads.txt[/] every day, on another machine's disk")
def heads(since: Since = None) -> None:
    """Print where each chain stands: kept where nobody can change it, this pins all that came before."""
    from jobs.audit.verification import verify as verify_trail
    from jobs.bootstrap import connect

    with closing(connect()) as jobs:
        day = "" if since is None else since.date().isoformat()
        found = verify_trail(jobs.backends.store.blobs, since=day)
    for head in sorted(found.heads):
        typer.echo(f"{head.day} {head.chain} {head.n} {head.hash}")


def _kept(path: Path) -> Iterator[tuple[str, Head]]:
    """Raises typer.Exit: it is no file of heads."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            day, chain, n, digest = line.split()
            yield (path.name, Head(day, chain, int(n), digest))
        except ValueError as error:
            raise fail(
                Exit.USAGE, f"{path}, line {number}: it is no head as lobewise audit heads prints it."
            ) from error
