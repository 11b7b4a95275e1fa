"""Traces: where a job's time went, from the client's call to the last blob, for OpenTelemetry.

Off unless the standard variables say where traces go (`OTEL_EXPORTER_OTLP_ENDPOINT`): then the SDK of the extra
`tracing` is imported; until then spans are the API's own that record nothing. Spans hold ids, names of routes, stages
and blobs, sizes and numbers. No address, no file name and nothing else that a client sent: they may be a patient's. Of
an exception a span has the class alone, since its message may quote a scan.

A trace goes on where its `traceparent` (W3C) is known: from the client's header, then from the durable record of the
job, so that it outlives the broker. `entry` begins where work comes in, `step` divides it.
"""

import atexit
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.typing import EventDict

from jobs.proxies import is_loopback
from jobs.version import __version__

if TYPE_CHECKING:  # of the extra `tracing`
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float | bool]

JOB_ID: Final = "lobewise.job.id"
TENANT: Final = "lobewise.tenant"
ATTEMPT: Final = "lobewise.attempt"
ATTEMPT_SPAN: Final = "attempt"
OUTCOME: Final = "lobewise.outcome"

#: How long a process that ends waits for a collector to take the last spans.
STOP_SECONDS: Final = 2.0
#: A collector that is down for a night fills no disk with complaints.
COMPLAIN_EVERY_SECONDS: Final = 60.0

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER_LOG: Final = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
_W3C: Final = TraceContextTextMapPropagator()

# Not OpenTelemetry's global provider: an instrumented library would send addresses and headers through that.
_provider: "TracerProvider | None" = None
_tracer: trace.Tracer = trace.NoOpTracer()
#: The ids of the next span, if they are known before (`end_lost`).
_given: ContextVar[SpanContext | None] = ContextVar("given", default=None)


def configure_tracing(service: str) -> None:
    """Send traces from now on, if the environment says where to. Each process does so once, after a fork or spawn.

    `service` is what the process is called where `OTEL_SERVICE_NAME` says nothing else.
    """
    global _provider, _tracer
    if _provider is not None or not _is_wanted(os.environ):
        return
    try:
        _provider = _make_provider(service)
    except ImportError as error:
        log.warning("no traces are sent: %s is not installed; pip install 'lobewise[tracing]'", error.name)
    except Exception as error:  # a wrong variable must not keep a scan waiting
        log.warning("no traces are sent: the OTEL_* variables are not understood (%s)", type(error).__name__)
    else:
        _tracer = _provider.get_tracer("lobewise", __version__)
        atexit.register(stop_tracing)


def stop_tracing() -> None:
    """Send what is left, if that can be done in `STOP_SECONDS`."""
    global _provider, _tracer
    stopped, _provider, _tracer = _provider, None, trace.NoOpTracer()
    if stopped is not None:
        # In a thread, since the SDK's own shutdown waits for as long as the collector lets it.
        last = threading.Thread(target=stopped.shutdown, name="last-traces", daemon=True)
        last.start()
        last.join(STOP_SECONDS)


def collector_takes() -> bool | None:
    """Whether a collector takes traces from here, asked with an empty request; None where none are wanted.

    Raises ImportError: the extra is not installed.
    """
    if not _is_wanted(os.environ):
        return None
    from opentelemetry.sdk.trace.export import SpanExportResult

    _EXPORTER_LOG.setLevel(logging.CRITICAL)
    return _exporter(STOP_SECONDS).export([]) is SpanExportResult.SUCCESS


def entry(
    name: str, parent: str | None, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes | None = None
) -> Span:
    """Work comes in: a span below `parent`, a `traceparent`; the first of a new trace where that is none."""
    return _tracer.start_span(name, _context(parent), kind, attributes)


def child(name: str, attributes: Attributes | None = None, kind: SpanKind = SpanKind.INTERNAL) -> Span:
    """A part of the work in progress, which the caller ends."""
    # Outside of a trace there is none, so that the rounds of the reconciler make no noise.
    is_inside = trace.get_current_span().get_span_context().is_valid
    return _tracer.start_span(name, None, kind, attributes) if is_inside else INVALID_SPAN


@contextmanager
def step(name: str, attributes: Attributes | None = None, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[Span]:
    """A part of the work in progress, done inside the block."""
    span = child(name, attributes, kind)
    with ended(span), active(span):
        yield span


def active(span: Span) -> AbstractContextManager[Span]:
    """What is logged and what steps begin inside belongs to the span. Does not end it."""
    return trace.use_span(span, record_exception=False, set_status_on_exception=False)


@contextmanager
def ended(span: Span) -> Iterator[None]:
    """Ends the span with the block, as failed where the block raised."""
    try:
        yield
    except BaseException as error:
        fail(span, type(error).__name__)
        raise
    finally:
        end(span)


def end(span: Span) -> None:
    """Once; a second time changes nothing."""
    if span.is_recording():  # the SDK warns of a second end
        span.end()


def fail(span: Span, fault: str) -> None:
    """It came to nothing; `fault` is the class of an exception, or another short name."""
    if span.is_recording():
        span.set_attribute("error.type", fault)
        span.set_status(Status(StatusCode.ERROR))


@contextmanager
def continued(traceparent: str | None) -> Iterator[None]:
    """Steps inside belong to the trace of `traceparent`."""
    token = attach(_context(traceparent)) if traceparent else None
    try:
        yield
    finally:
        if token is not None:
            detach(token)


def traceparent_of(span: Span | None = None) -> str | None:
    """What others need to go on with the trace below a span (the active one); None if it belongs to none."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span or trace.get_current_span()))
    return carrier.get("traceparent")


def link(span: Span, traceparent: str | None) -> None:
    """The span has to do with one of another trace."""
    context = trace.get_current_span(_context(traceparent)).get_span_context()
    if context.is_valid:
        span.add_link(context)


def branch(name: str, attributes: Attributes | None = None) -> str | None:
    """A trace of its own that is linked to the active span; its traceparent.

    For work that is split into very many pieces: no viewer shows the spans of a thousand jobs as one trace.
    """
    span = entry(name, None, attributes=attributes)
    link(span, traceparent_of())
    end(span)
    return traceparent_of(span)


def end_lost(
    traceparent: str | None, name: str, parent: str | None, began_at: datetime, attributes: Attributes
) -> None:
    """End a span in place of the process that began it and died; `traceparent` is that span's own."""
    lost = trace.get_current_span(_context(traceparent)).get_span_context()
    if not lost.is_valid:
        return
    token = _given.set(lost)
    try:
        start_ns = int(began_at.timestamp() * 1e9)
        span = _tracer.start_span(name, _context(parent), SpanKind.CONSUMER, attributes, start_time=start_ns)
    finally:
        _given.reset(token)
    span.set_status(Status(StatusCode.ERROR))
    end(span)


def with_ids(_logger: object, _method: str, event: EventDict) -> EventDict:
    """For structlog: lines that are logged within a span have its `trace_id` and `span_id`."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _context(traceparent: str | None) -> Context:
    """Of that span; an empty one where it is none or not understood, and where traces are off.

    Off means off: a client's `traceparent` then gets into no record, so that an older version can read that.
    """
    # What else a client may send, `tracestate` and `baggage`, is free text and left out.
    is_known = traceparent is not None and _provider is not None
    return _W3C.extract({"traceparent": traceparent} if is_known else {}, context=Context())


def _exporter(timeout_seconds: float | None = None) -> "OTLPSpanExporter":
    """Raises ImportError."""
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "http://localhost:4318")
    session = requests.Session()
    # The environment's proxies are for others: a collector on this machine is asked straight.
    session.trust_env = not is_loopback(urlsplit(endpoint).hostname or "")
    return OTLPSpanExporter(timeout=timeout_seconds, session=session)


def _make_provider(service: str) -> "TracerProvider":
    """Sends spans in batches, by a thread of its own, so that no job waits for a collector. Raises ImportError."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Ids(IdGenerator):
        # The SDK's own come from `random`, which a library may seed alike in every process.
        system = random.SystemRandom()

        def generate_span_id(self) -> int:
            given = _given.get()
            return given.span_id if given else self.system.getrandbits(64) or 1

        def generate_trace_id(self) -> int:
            given = _given.get()
            return given.trace_id if given else self.system.getrandbits(128) or 1

        def is_trace_id_random(self) -> bool:
            return True

    next_complaint = 0.0

    def is_due(_record: logging.LogRecord) -> bool:
        nonlocal next_complaint
        if time.monotonic() < next_complaint:
            return False
        next_complaint = time.monotonic() + COMPLAIN_EVERY_SECONDS
        return True

    _EXPORTER_LOG.setLevel(logging.ERROR)  # it warns of each retry
    _EXPORTER_LOG.addFilter(is_due)
    ours = {
        "service.name": service,
        "service.namespace": "lobewise",
        "service.version": __version__,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    # `Resource.create` lets what it is given win, and here the environment shall.
    from_environment = OTELResourceDetector().detect().attributes
    resource = Resource.create({name: value for name, value in ours.items() if name not in from_environment})
    provider = TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter()))
    return provider


def _is_wanted(environment: Mapping[str, str]) -> bool:
    """As the specification of OpenTelemetry's variables says; OTLP over HTTP is the only exporter."""
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
