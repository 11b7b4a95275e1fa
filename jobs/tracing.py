"""Traces: where a job's time went, from the client's call to the last blob, for OpenTelemetry.

Off, with nothing imported, unless the standard variables say where traces go (`OTEL_EXPORTER_OTLP_ENDPOINT`); needs the
extra `tracing`. Spans hold ids, names of routes, stages and blobs, sizes and numbers. No address, no file name and
nothing else that a client sent: they may be a patient's. Of an exception only the class is told.

A trace goes on where its `traceparent` (W3C) is known: from the client's header, then from the durable record of the
job, so that it outlives the broker. `entry` begins where work comes in, `step` divides it. A step outside a trace
leaves none, so that the reaper's and the sweeper's rounds make no noise.
"""

import atexit
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from structlog.typing import EventDict

if TYPE_CHECKING:  # of the extra `tracing`
    from jobs.otel import Tracing

log = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float | bool]
Kind = Literal["internal", "server", "client", "producer", "consumer"]

JOB_ID: Final = "lobewise.job.id"
ATTEMPT: Final = "lobewise.attempt"
ATTEMPT_SPAN: Final = "attempt"
OUTCOME: Final = "lobewise.outcome"

STOP_SECONDS: Final = 2.0
"""How long a process that ends waits for a collector to take the last spans."""
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_tracing: "Tracing | None" = None


class Span:
    """A piece of work in a trace. This one leaves none: traces are off, or it belongs to none."""

    @property
    def traceparent(self) -> str | None:
        """What others need to go on with the trace below this span."""
        return None

    def rename(self, name: str) -> None:
        """What it is called, once that is known."""

    def note(self, attributes: Attributes) -> None:
        """Say more about it."""

    def fail(self, what: str) -> None:
        """It came to nothing; `what` is the class of an exception, or a word."""

    def link(self, traceparent: str | None) -> None:
        """It has to do with a span of another trace."""

    def end(self) -> None:
        """Once; what comes later changes nothing."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """What is logged and what steps begin inside belongs to it. Does not end it."""
        yield


NO_SPAN: Final = Span()


def configure_tracing(service: str) -> None:
    """Send traces from now on, if the environment says where to. Each process does so once, after a fork or spawn.

    Args:
        service: what the process is called where `OTEL_SERVICE_NAME` says nothing else.
    """
    global _tracing
    if _tracing is not None or not _is_wanted(os.environ):
        return
    try:
        from jobs.otel import Tracing

        _tracing = Tracing(service)
    except ImportError as error:
        log.warning("no traces are sent: %s is not installed; pip install 'lobewise[tracing]'", error.name)
    except Exception as error:  # a wrong variable must not keep a scan waiting
        log.warning("no traces are sent: the OTEL_* variables are not understood (%s)", type(error).__name__)
    else:
        atexit.register(stop_tracing)


def stop_tracing() -> None:
    """Send what is left, if that can be done in short time."""
    global _tracing
    stopped, _tracing = _tracing, None
    if stopped is not None:
        last = threading.Thread(target=stopped.stop, name="last-traces", daemon=True)
        last.start()
        last.join(STOP_SECONDS)


def collector_takes() -> bool | None:
    """Whether a collector takes traces from here, asked with an empty request; None where none are wanted.

    Raises:
        ImportError: the extra is not installed.
    """
    if not _is_wanted(os.environ):
        return None
    from jobs import otel

    return otel.takes(STOP_SECONDS)


def entry(name: str, parent: str | None, kind: Kind = "internal", attributes: Attributes | None = None) -> Span:
    """Work comes in: a span below `parent`, a `traceparent`; the first of a new trace where that is none."""
    return _tracing.entry(name, parent, kind, attributes or {}) if _tracing else NO_SPAN


def child(name: str, attributes: Attributes | None = None, kind: Kind = "internal") -> Span:
    """A part of the work at hand, which the caller ends."""
    return _tracing.child(name, kind, attributes or {}) if _tracing else NO_SPAN


@contextmanager
def step(name: str, attributes: Attributes | None = None, kind: Kind = "internal") -> Iterator[Span]:
    """A part of the work at hand, done inside."""
    if _tracing is None:
        yield NO_SPAN
        return
    span = child(name, attributes, kind)
    with ended(span), span.active():
        yield span


@contextmanager
def ended(span: Span) -> Iterator[None]:
    """Ends the span, as failed where the work was."""
    try:
        yield
    except BaseException as error:
        span.fail(type(error).__name__)
        raise
    finally:
        span.end()


@contextmanager
def continued(traceparent: str | None) -> Iterator[None]:
    """Steps inside belong to the trace of `traceparent`."""
    if _tracing is None or traceparent is None:
        yield
        return
    with _tracing.continued(traceparent):
        yield


def current() -> Span:
    """The span that is active here."""
    return _tracing.current() if _tracing else NO_SPAN


def branch(name: str, attributes: Attributes | None = None) -> str | None:
    """A trace of its own that is linked to the active span: where work is split into very many pieces."""
    if _tracing is None:
        return None
    span = entry(name, None, attributes=attributes)
    span.link(current().traceparent)
    span.end()
    return span.traceparent


def tell_for(
    traceparent: str | None, name: str, parent: str | None, began_at: datetime, attributes: Attributes
) -> None:
    """End a span in place of the process that began it and died; `traceparent` is that span's own."""
    if _tracing is not None and traceparent is not None:
        _tracing.tell_for(traceparent, name, parent, began_at, attributes)


class Steps:
    """Steps one after the other: each ends when the next begins, the last with `close`."""

    def __init__(self) -> None:
        self._name, self._span = "", NO_SPAN

    def to(self, name: str) -> None:
        """Nothing changes if that one is under way."""
        if name != self._name:
            self._span.end()
            self._name, self._span = name, child(name)

    def close(self, error: BaseException | None) -> None:
        if error is not None:
            self._span.fail(type(error).__name__)
        self._span.end()


def with_ids(_logger: object, _method: str, event: EventDict) -> EventDict:
    """For structlog: lines that are logged within a span have its `trace_id` and `span_id`."""
    traceparent = current().traceparent
    if traceparent is not None:
        _, event["trace_id"], event["span_id"], _ = traceparent.split("-")
    return event


def _is_wanted(environment: Mapping[str, str]) -> bool:
    """As the specification of OpenTelemetry's variables says; only OTLP over HTTP is there."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter not in ("", "otlp"):
        if exporter != "none":
            log.warning("no traces are sent: OTEL_TRACES_EXPORTER is %r; otlp and none are known", exporter)
        return False
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    is_wanted = bool(exporter) or any(environment.get(name) for name in _ENDPOINTS)
    if is_wanted and protocol != "http/protobuf":
        log.warning("traces are sent as http/protobuf (by default to port 4318), not as %r", protocol)
    return is_wanted
