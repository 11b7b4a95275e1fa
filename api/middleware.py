"""What surrounds every request: its id, its log line, its metrics, safe headers, and the answer to a fault."""

import logging
import re
import time
from typing import Final
from uuid import uuid4

from fastapi import FastAPI, Request
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from api import audit
from api.access import identify
from api.errors import internal_error, problem_response
from api.metrics import Metrics
from api.upload_limits import UploadLimiter
from jobs import tracing
from jobs.audit.trail import AuditTrail
from jobs.states import is_id

logger = logging.getLogger("lobewise.api")

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: Those of each answer that has no others of the kind.
SAFE_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    # Results belong to patients: no cache between may keep them.
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    # An answer that a browser shows as a page loads nothing, runs nothing and is framed by nobody.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
#: A client may send any word as a method; as a label each would be a time series of its own.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: Asked every few seconds, by machines: not traced, and nothing that scans must give way to.
_ROUTINE: Final = ("/healthz", "/readyz", "/metrics")


class RequestEnvelope:
    """Logs hold the route's template, ids of jobs, batches and uploads, the status and the request id: no file names,
    no client references.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, upload_limiter: UploadLimiter) -> None:
        self._app = app
        self._metrics = metrics
        self._upload_limiter = upload_limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        span: Span = INVALID_SPAN
        if not scope["path"].endswith(_ROUTINE):
            if scope["method"] == "GET":
                self._upload_limiter.defer_to_reader()
            # Goes on with the client's trace. Path and query are left out: they may hold anything, signatures too.
            span = tracing.entry("request", Headers(scope=scope).get("traceparent"), SpanKind.SERVER)
        app: FastAPI = scope["app"]
        trail: AuditTrail | None = app.state.audit
        envelope = _Envelope(scope, send, trail, tracing.traceparent_of(span))
        with tracing.ended(span), tracing.active(span), bound_contextvars(request_id=envelope.request_id):
            try:
                await identify(app.state.doors, scope)
                refusal = None if trail is None else audit.refusal(trail, app, scope)
                answer = self._app if refusal is None else problem_response(Request(scope), refusal)
                await answer(scope, receive, envelope.send)
            except Exception:
                logger.exception("a request failed")
                # Once headers are out it is too late for another status: raising makes the server close the connection.
                if envelope.status:
                    raise
                await internal_error(Request(scope))(scope, receive, envelope.send)
            finally:
                self._record(scope, envelope)

    def _record(self, scope: Scope, envelope: "_Envelope") -> None:
        seconds = time.perf_counter() - envelope.began
        # The template, not the path: ids would make a time series of each job, and paths may hold signatures.
        route = getattr(scope.get("route"), "path", "(none)")
        method = scope["method"] if scope["method"] in _METHODS else "(other)"
        self._metrics.answered(method, route, envelope.status, seconds)
        span = trace.get_current_span()
        status = envelope.status
        span.update_name(f"{method} {route}")
        tenant = scope["state"]["caller"].tenant
        span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
        span.set_attributes({tracing.TENANT: tenant})
        job_id = scope.get("path_params", {}).get("job_id")
        if job_id is not None and is_id(job_id):
            span.set_attributes({tracing.JOB_ID: job_id})
        if status >= 500:
            tracing.fail(span, str(status))
        fields = {"method": method, "route": route, "status": envelope.status, "seconds": round(seconds, 4)}
        fields["tenant"] = tenant
        fields |= audit.ids_of(scope) or envelope.made
        logger.info("request", extra=fields)


class _Envelope:
    def __init__(self, scope: Scope, send: Send, trail: AuditTrail | None, traceparent: str | None) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        self.began = time.perf_counter()
        self.status = 0
        #: Ids of what the request made, as `ids_of` names those of its address.
        self.made: dict[str, str] = {}
        self._scope = scope
        self._trail = trail
        self._traceparent = traceparent
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            if self._traceparent is not None:
                headers["traceresponse"] = self._traceparent
            # A route may have more to say with each of its answers, a refusal too.
            for name, value in (SAFE_HEADERS | self._scope.get("state", {}).get("headers", {})).items():
                headers.setdefault(name, value)
            kind, made_id = audit.made_by(headers)
            if made_id is not None:
                self.made = {f"{kind}_id": made_id}
            trace_id = None if self._traceparent is None else self._traceparent.split("-")[1]
            # Before the answer: whoever is told that something was done can rely on finding it in the trail.
            await audit.record(self._trail, self._scope, self.status, headers, self.request_id, trace_id)
        await self._send(message)
