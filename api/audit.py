"""What of a request goes into the audit trail, and when: with the head of its answer, which waits for a change."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

from api.errors import ApiError
from jobs import problems
from jobs.access.caller import Caller
from jobs.audit.entries import Act, Entry, Outcome
from jobs.audit.trail import AuditTrail
from jobs.states import is_id

#: A change is answered after that time, too, when the trail has not stored it; its entry waits on.
STORED_WITHIN_SECONDS: Final = 2.0

#: What each operation does. None: says nothing of a patient or a client's work; only its refusals are recorded.
ACTS: Final[Mapping[str, Act | None]] = {
    "create_job": Act.SUBMIT,
    "create_job_from_source": Act.SUBMIT,
    "validate_scan": Act.SUBMIT,
    "validate_scan_from_source": Act.SUBMIT,
    "create_batch": Act.SUBMIT,
    "create_upload": Act.SUBMIT,
    "complete_upload": Act.SUBMIT,
    # A large scan has hundreds, between the two before.
    "put_upload_part": Act.LOOK,
    "get_upload": Act.LOOK,
    "abort_upload": Act.DELETE,
    "get_job": Act.READ,
    "watch_job": Act.READ,
    "cancel_job": Act.CANCEL,
    "delete_job": Act.DELETE,
    "list_jobs": Act.LIST,
    "list_events": Act.LIST,
    "list_batches": Act.LIST,
    "get_batch": Act.READ,
    "cancel_batch": Act.CANCEL,
    "get_callback": Act.READ,
    "get_batch_callback": Act.READ,
    "redeliver_callback": Act.REDELIVER,
    "redeliver_batch_callback": Act.REDELIVER,
    "get_report": Act.READ,
    "get_inspection": Act.READ,
    "get_labels": Act.READ,
    "get_mask": Act.DOWNLOAD,
    "head_mask": Act.LOOK,
    "get_scan": Act.DOWNLOAD,
    "get_picture": Act.DOWNLOAD,
    # Whoever has the address needs no key for the mask, and its bytes may not pass through here.
    "get_mask_url": Act.DOWNLOAD,
    "export_reports_ndjson": Act.EXPORT,
    "export_reports_csv": Act.EXPORT,
    "list_models": None,
    "get_quota": None,
    "get_health": None,
    "get_readiness": None,
    "get_metrics": None,
    "get_problem_type": None,
}
_REFUSED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.MISDIRECTED_REQUEST})
_KINDS: Final = {"job_id": "job", "batch_id": "batch", "upload_id": "upload"}
#: By the first part of an address, for what a request made.
_MADE: Final = {"jobs": "job", "batches": "batch", "uploads": "upload"}


async def record(
    trail: AuditTrail | None, scope: Scope, status: int, headers: Headers, request_id: str, trace_id: str | None
) -> None:
    """Record what an answer with this status and these headers says was done; a change is stored by then, as a rule."""
    entry = None if trail is None else entry_of(scope, status, headers)
    if trail is None or entry is None or not entry.is_wanted(trail.level):
        return
    entry.request_id, entry.trace_id = request_id, trace_id
    stored = trail.record(entry)
    if stored is None or not entry.is_change:
        return
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: object) -> None:
        with suppress(RuntimeError):  # the gateway has stopped meanwhile
            loop.call_soon_threadsafe(done.set)

    # Not the future itself, which others wait for, too: a time-out would cancel it.
    stored.add_done_callback(wake)
    with suppress(TimeoutError):
        async with asyncio.timeout(STORED_WITHIN_SECONDS):
            await done.wait()


def refusal(trail: AuditTrail, app: FastAPI, scope: Scope) -> ApiError | None:
    """Why a request is not worked on: it would have to be recorded, and too much waits to be stored already."""
    if trail.is_full:
        for route in app.state.routes:
            if route.matches(scope)[0] is Match.FULL:
                act = ACTS.get(route.operation_id)
                if act is not None and trail.refuses(Entry(act)):
                    return ApiError(problems.STORAGE_UNAVAILABLE, "The audit trail cannot be stored now.")
                break
    return None


def ids_of(scope: Scope) -> dict[str, str]:
    """Which job, batch or upload a request is about, by the name of its parameter."""
    given = scope.get("path_params", {})
    return {name: given[name] for name in _KINDS if is_id(str(given.get(name)))}


def made_by(headers: Headers) -> tuple[str | None, str | None]:
    """Kind and id of what a request made."""
    kind, _, made_id = headers.get("location", "").rpartition("/v1/")[2].partition("/")
    return (_MADE.get(kind), made_id) if is_id(made_id) else (None, None)


def entry_of(scope: Scope, status: int, headers: Headers) -> Entry | None:
    """What an answer with this status and these headers says was done; None for what is never recorded."""
    operation = getattr(scope.get("route"), "operation_id", None)
    act = ACTS.get(operation or "")
    outcome: Outcome = "refused" if status in _REFUSED else "done" if status < HTTPStatus.BAD_REQUEST else "failed"
    if act is None:
        if outcome != "refused":
            return None
        act = Act.LOOK
    # Still open, or as the client knows it: it learns nothing of a patient. A job that has ended needs no next poll.
    elif act is Act.READ and (status == HTTPStatus.NOT_MODIFIED or "retry-after" in headers):
        act = Act.LOOK
    client = scope.get("client")
    address = normal_address(client[0]) if client else None
    caller: Caller | None = scope.get("state", {}).get("caller")
    # Who is not known is nobody's subject, and the id that they tried may be anything.
    if status == HTTPStatus.UNAUTHORIZED or caller is None:
        return Entry(act, outcome, address=address, operation=operation, status=status)
    kind, found_id = next(((_KINDS[name], value) for name, value in ids_of(scope).items()), (None, None))
    if act is Act.SUBMIT and found_id is None:
        kind, found_id = made_by(headers)
    part: Any = scope.get("path_params", {}).get("name") if found_id is not None else None
    return Entry(
        act,
        outcome,
        tenant=caller.tenant,
        subject=caller.subject,
        address=address,
        kind=kind,
        id=found_id,
        part=part if outcome == "done" else None,
        operation=operation,
        status=status,
    )


@lru_cache(maxsize=4096)
def normal_address(address: str) -> str | None:
    """An address, written in one way; None for what a proxy, or who pretends to be one, put in an address's place."""
    try:
        return str(ip_address(address))
    except ValueError:
        return None
