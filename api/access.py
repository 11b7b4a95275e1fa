"""Which role each operation needs, and the answer to callers who lack it."""

from collections.abc import Mapping
from typing import Any, Final

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from api.errors import ApiError, problem_of
from jobs import problems
from jobs.access.caller import NOBODY, Caller, Role
from jobs.access.doors import Doors
from jobs.access.sessions import Sessions
from jobs.errors import JobsError, UnauthenticatedError

#: The role of each operation; None: public, or with a right of its own. `create_app` refuses one that is not here.
ROLES: Final[Mapping[str, Role | None]] = {
    "create_job": Role.SUBMIT,
    "create_job_from_source": Role.SUBMIT,
    "validate_scan": Role.SUBMIT,
    "validate_scan_from_source": Role.SUBMIT,
    "create_batch": Role.SUBMIT,
    "create_upload": Role.SUBMIT,
    "get_upload": Role.SUBMIT,
    # Its address is signed, for this part and some minutes: whoever has that needs no key.
    "put_upload_part": None,
    "complete_upload": Role.SUBMIT,
    "abort_upload": Role.SUBMIT,
    "list_jobs": Role.READ,
    "get_job": Role.READ,
    "watch_job": Role.READ,
    "list_events": Role.READ,
    "list_batches": Role.READ,
    "get_batch": Role.READ,
    "get_callback": Role.READ,
    "get_batch_callback": Role.READ,
    "get_report": Role.READ,
    "get_inspection": Role.READ,
    "get_labels": Role.READ,
    "get_mask": Role.READ,
    "get_mask_url": Role.READ,
    "head_mask": Role.READ,
    "get_scan": Role.READ,
    "get_picture": Role.READ,
    "export_reports_ndjson": Role.READ,
    "export_reports_csv": Role.READ,
    "list_models": Role.READ,
    "get_quota": Role.READ,
    "cancel_job": Role.CANCEL,
    "cancel_batch": Role.CANCEL,
    "delete_job": Role.ADMIN,
    "redeliver_callback": Role.ADMIN,
    "redeliver_batch_callback": Role.ADMIN,
    "get_metrics": Role.METRICS,
    "get_health": None,
    "get_readiness": None,
    "get_problem_type": None,
}
#: Of the pages: the key, sealed (`jobs.access.sessions`).
COOKIE: Final = "lobewise-session"
SECURITY_SCHEMES: Final[dict[str, Any]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key that the operator gave out, or a token (JWT) of the operator's OpenID Connect issuer.",
    },
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same key or token, where a proxy needs `Authorization` for itself. It goes first.",
    },
}


async def identify(doors: Doors, scope: Scope) -> None:
    """Put the caller into the request's state, and why it is nobody, if it is."""
    state = scope.setdefault("state", {})
    state["caller"] = NOBODY
    try:
        state["caller"] = await _caller(doors, scope)
    except JobsError as error:
        # Told by `authorize`: what is public is nobody's, too.
        state["refusal"] = error


async def authorize(request: Request) -> None:
    """A dependency of every operation.

    Raises:
        ApiError (unauthenticated, forbidden): the caller may not do this.
        JobsError: who calls cannot be found out now.
    """
    role = ROLES[request.scope["route"].operation_id]
    if role is None or role in request.state.caller.roles:
        return
    refusal: JobsError | None = getattr(request.state, "refusal", None)
    if refusal is None:
        challenge = f'Bearer realm="lobewise", error="insufficient_scope", scope="{role}"'
        detail = f"this needs the role `{role}`"
        evidence = {"role": role}
        raise ApiError(problems.FORBIDDEN, detail, evidence=evidence, headers={"WWW-Authenticate": challenge})
    if problem_of(refusal).retryable:
        raise refusal
    challenge = 'Bearer realm="lobewise"'
    if isinstance(refusal, UnauthenticatedError) and refusal.has_credentials:
        challenge += ', error="invalid_token"'
    raise ApiError(problem_of(refusal), str(refusal), headers={"WWW-Authenticate": challenge})


async def is_still_allowed(request: Request) -> bool:
    """Whether the caller would be let in now: asked by what goes on for long."""
    try:
        caller = await _caller(request.app.state.doors, request.scope)
    except JobsError:
        return False
    return ROLES[request.scope["route"].operation_id] in caller.roles


async def _caller(doors: Doors, scope: Scope) -> Caller:
    """Raises JobsError."""
    headers, server = Headers(scope=scope), scope.get("server")
    authorization, api_key = headers.get("authorization"), headers.get("x-api-key")
    # A page's: a program that says who it is does not come with one.
    cookie = None if authorization or api_key else cookie_parser(headers.get("cookie", "")).get(COOKIE)
    if cookie is not None and not doors.are_open:
        sessions: Sessions = scope["app"].state.sessions
        opened = sessions.open(cookie) if sessions.is_ready else await run_sync(sessions.open, cookie)
        # What is over or changed is no key.
        api_key = opened or "-"
    # Where the connection was taken; a socket in the file system has no port.
    host = server[0] if server is not None and server[1] is not None else None
    return await doors.caller_of(authorization, api_key, host)


def security(operation_id: str) -> list[dict[str, list[str]]]:
    """What the OpenAPI document says of an operation."""
    role = ROLES[operation_id]
    return [] if role is None else [{name: []} for name in SECURITY_SCHEMES]
