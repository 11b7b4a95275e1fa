"""`lobewise keys`: who may call the service. It needs the object store alone; no gateway has to run."""

import json
import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Column, Table

from cli.output import Exit, err, fail, out
from jobs import states
from jobs.access.caller import DEFAULT_TENANT, TENANT_NAME, Role
from jobs.audit.entries import Act, Entry
from jobs.settings import JobsSettings, read_settings

if TYPE_CHECKING:  # they bring the broker and the stores, which take a while: all commands load this module
    from jobs.access.keys import Keys, KeyState, StoredKey

keys = typer.Typer(
    name="keys",
    help="Make, list, replace and end the keys to the service. docs/access.md tells about roles and tenants.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
NEVER: Final = "never"
_UNITS: Final = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}
KeyId = Annotated[str, typer.Argument(help="The id, as [bold]lobewise keys list[/] shows it; not the key itself.")]
#: What a program that hands in scans and fetches their scores needs.
USUAL_ROLES: Final = [Role.SUBMIT, Role.READ, Role.CANCEL]


@keys.command(
    epilog="Examples:  [bold]lobewise keys create 'PACS router' --role submit --role read[/]   "
    "[bold]lobewise keys create prometheus --role metrics --expires never[/]   "
    "[bold]KEY=$(lobewise keys create viewer --tenant radiology --role read --expires 90d)[/]"
)
def create(
    name: Annotated[str, typer.Argument(help="Who gets it, for the list; no patient's name.")],
    role: Annotated[list[Role], typer.Option(help="What it may do; several times for several roles.")] = USUAL_ROLES,
    tenant: Annotated[str, typer.Option(help="Whose scans it sees.")] = DEFAULT_TENANT,
    expires: Annotated[
        str, typer.Option(help="A time from now (90d, 12h, 30m), a date (2027-01-31), or never.")
    ] = "365d",
) -> None:
    """Make a key. It is printed once, on the output; the service keeps a hash of it."""
    if not re.fullmatch(TENANT_NAME, tenant):
        raise fail(Exit.USAGE, f"{tenant!r} is no tenant: at most 63 lower-case letters, digits and dashes.")
    if len(name) > 200:
        raise fail(Exit.USAGE, "The name may have 200 characters.")
    held = _keys()
    is_first = not held.all()
    key, stored = held.create(name, frozenset(role), tenant, end_of(expires))
    _record(Act.CREATE_KEY, stored)
    _show(key, stored)
    if is_first:
        err.print("It is the first: from now on the service wants a key from every caller (docs/access.md).")


@keys.command("list", epilog="Example:  [bold]lobewise keys list --json | jq '.[] | select(.status == \"valid\")'[/]")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Those that have ended, too.")] = False,
) -> None:
    """Show which keys there are: whose, for what, until when."""
    shown = [state for state in _keys().all() if everything or state.status() == "valid"]
    if as_json:
        typer.echo(json.dumps([_row(state) for state in shown], indent=2))
        return
    # An id in one piece, so that it can be copied.
    columns = (Column("id", no_wrap=True), "name", "tenant", "roles", "created", "ends", "status")
    table = Table(*columns, box=None, header_style="bold")
    for state in shown:
        row = _row(state)
        cells = (row["id"], row["name"], row["tenant"], " ".join(row["roles"]), row["created_at"][:10])
        ends = (row["ends_at"] or NEVER)[:16].replace("T", " ")
        table.add_row(*(escape(cell) for cell in (*cells, ends, row["status"])))
    out.print(table)


@keys.command(epilog="Example:  [bold]lobewise keys revoke 3f1c09d27a5be864[/]")
def revoke(key_id: KeyId) -> None:
    """End a key at once, and for good. Every gateway has heard of it within seconds."""
    from jobs.access.keys import REFRESH_SECONDS, NoSuchKeyError

    try:
        state = _keys().revoke(key_id)
    except NoSuchKeyError as error:
        raise fail(Exit.USAGE, f"There is no key {key_id!r}.", "lobewise keys list --all shows them.") from error
    _record(Act.REVOKE_KEY, state.key)
    err.print(f"Revoked: {escape(state.key.name)}. Gateways refuse it within {REFRESH_SECONDS:.0f} s.")


@keys.command(epilog="Example:  [bold]lobewise keys rotate 3f1c09d27a5be864 --overlap 7d[/]")
def rotate(
    key_id: KeyId,
    overlap: Annotated[str, typer.Option(help="How long the old one is good for still: 24h, 7d; 0h: no more.")] = "24h",
) -> None:
    """Make a key with the same name, tenant, roles and life as another, which ends after a while."""
    from jobs.access.keys import NoSuchKeyError

    try:
        key, stored = _keys().rotate(key_id, span_of(overlap))
    except NoSuchKeyError as error:
        raise fail(
            Exit.USAGE, f"{str(error).capitalize()}.", "lobewise keys list shows those that are valid."
        ) from error
    _record(Act.CREATE_KEY, stored)
    _record(Act.REVOKE_KEY, stored, key_id)
    _show(key, stored)
    err.print(f"The old one, {key_id}, ends after {escape(overlap)}.", highlight=False)


def end_of(text: str) -> datetime | None:
    """When a key ends. Raises typer.Exit: that is no time, or past."""
    if text == NEVER:
        return None
    try:
        day = datetime.fromisoformat(text)
    except ValueError:
        return states.now() + span_of(text)
    moment = day if day.tzinfo else day.replace(tzinfo=UTC)
    if moment <= states.now():
        raise fail(Exit.USAGE, f"{text} is past.")
    return moment


def span_of(text: str) -> timedelta:
    """Raises typer.Exit: that is no span of time."""
    match = re.fullmatch(r"(\d{1,5})([dhm])", text)
    if match is None:
        raise fail(Exit.USAGE, f"{text!r} is no time: 90d, 12h and 30m are.")
    return int(match[1]) * _UNITS[match[2]]


def _keys() -> "Keys":
    from jobs.access.keys import Keys
    from jobs.bootstrap import blobs_of

    return Keys(blobs_of(read_settings(JobsSettings)))


def _record(act: Act, stored: "StoredKey", key_id: str | None = None) -> None:
    """In the audit trail, before a key is shown: one that nobody could say the origin of is not given out."""
    from jobs.audit.trail import record_at_once
    from jobs.bootstrap import blobs_of

    settings = read_settings(JobsSettings)
    who = f"command line, user {os.getuid()}"
    entry = Entry(act, tenant=stored.tenant, subject=who, kind="key", id=key_id or stored.id)
    record_at_once(blobs_of(settings), settings, entry)


def _show(key: str, stored: "StoredKey") -> None:
    # The key alone on the output, so that it can be piped to where it is kept and shown nowhere.
    typer.echo(key)
    ends = stored.expires_at.isoformat(timespec="minutes") if stored.expires_at else NEVER
    roles = ", ".join(sorted(stored.roles))
    sentence = f"Key {stored.id} of {stored.name!r}, tenant {stored.tenant}, may {roles}; ends: {ends}."
    err.print(escape(sentence), "It is shown this once.", highlight=False, soft_wrap=True)


def _row(state: "KeyState") -> dict[str, Any]:
    key = state.key
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "roles": sorted(key.roles),
        "created_at": key.created_at.isoformat(),
        "ends_at": state.ends_at.isoformat() if state.ends_at else None,
        "status": state.status(),
        "replaces": key.replaces,
    }
