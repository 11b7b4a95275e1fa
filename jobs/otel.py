"""The side of `tracing` that needs OpenTelemetry's SDK. Only `tracing` imports it, and only where traces are wanted."""

import logging
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jobs.tracing import NO_SPAN, Attributes, Kind, Span
from jobs.version import __version__

COMPLAIN_EVERY_SECONDS: Final = 60.0
_LOG: Final = logging.getLogger(OTLPSpanExporter.__module__)
_W3C: Final = TraceContextTextMapPropagator()
_given: ContextVar[SpanContext | None] = ContextVar("given", default=None)
"""The ids of the next span, if they are known before."""


class Tracing:
    """Where spans go: to a collector, in batches and by a thread of its own, so that no job waits for it."""

    def __init__(self, service: str) -> None:
        # What the environment says (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`) goes first.
        ours = {
            "service.name": service,
            "service.namespace": "lobewise",
            "service.version": __version__,
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
        said = OTELResourceDetector().detect().attributes
        resource = Resource.create({name: value for name, value in ours.items() if name not in said})
        self._provider = TracerProvider(resource=resource, id_generator=_Ids(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        _LOG.setLevel(logging.ERROR)  # not each retry
        _LOG.addFilter(_Rarely())
        self._tracer = self._provider.get_tracer("lobewise", __version__)

    def stop(self) -> None:
        self._provider.shutdown()

    def entry(self, name: str, parent: str | None, kind: Kind, attributes: Attributes) -> Span:
        return self._begun(name, kind, attributes, _context(parent))

    def child(self, name: str, kind: Kind, attributes: Attributes) -> Span:
        is_inside = trace.get_current_span().get_span_context().is_valid
        return self._begun(name, kind, attributes) if is_inside else NO_SPAN

    def current(self) -> Span:
        span = trace.get_current_span()
        return _Recorded(span) if span.get_span_context().is_valid else NO_SPAN

    @contextmanager
    def continued(self, traceparent: str) -> Iterator[None]:
        token = attach(_context(traceparent))
        try:
            yield
        finally:
            detach(token)

    def tell_for(
        self, traceparent: str, name: str, parent: str | None, began_at: datetime, attributes: Attributes
    ) -> None:
        context = trace.get_current_span(_context(traceparent)).get_span_context()
        token = _given.set(context)
        try:
            span = self._tracer.start_span(
                name,
                _context(parent),
                SpanKind.CONSUMER,
                dict(attributes),
                start_time=int(began_at.timestamp() * 1e9),
            )
        finally:
            _given.reset(token)
        span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _begun(self, name: str, kind: Kind, attributes: Attributes, context: Context | None = None) -> Span:
        return _Recorded(self._tracer.start_span(name, context, SpanKind[kind.upper()], dict(attributes)))


def takes(seconds: float) -> bool:
    """Whether the collector takes an empty request within that time."""
    _LOG.setLevel(logging.CRITICAL)
    return OTLPSpanExporter(timeout=seconds).export([]) is SpanExportResult.SUCCESS


class _Recorded(Span):
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(dict(attributes))

    def fail(self, what: str) -> None:
        self._span.set_attribute("error.type", what)
        self._span.set_status(Status(StatusCode.ERROR))

    def link(self, traceparent: str | None) -> None:
        context = trace.get_current_span(_context(traceparent)).get_span_context()
        if context.is_valid:
            self._span.add_link(context)

    def end(self) -> None:
        if self._span.is_recording():  # the SDK warns of a second end
            self._span.end()

    @contextmanager
    def active(self) -> Iterator[None]:
        with trace.use_span(self._span, record_exception=False, set_status_on_exception=False):
            yield


class _Ids(IdGenerator):
    """Random, whatever a library does to the seed of `random`; or those of a span that another process began."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def generate_span_id(self) -> int:
        given = _given.get()
        return given.span_id if given else self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        given = _given.get()
        return given.trace_id if given else self._random.getrandbits(128) or 1

    def is_trace_id_random(self) -> bool:
        return True


class _Rarely(logging.Filter):
    """A collector that is down for a night fills no disk."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        del record
        is_due = time.monotonic() >= self._next
        if is_due:
            self._next = time.monotonic() + COMPLAIN_EVERY_SECONDS
        return is_due


def _context(traceparent: str | None) -> Context:
    """Of that span; an empty one where it is none or not understood. What else a client may send is left out:
    `tracestate` and `baggage` hold free text.
    """
    return _W3C.extract({"traceparent": traceparent} if traceparent else {}, context=Context())
