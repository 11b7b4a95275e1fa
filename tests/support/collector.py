"""A collector of traces for tests: OTLP over HTTP on the loopback interface, as the specification has it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.processes import until


@dataclass(frozen=True)
class Told:
    """A span as it came. Ids are hexadecimal; a root has the parent ''."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    status: int
    begin_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[str, ...]
    """Span ids."""


@dataclass
class Collector:
    """Keeps what it is sent, and how other requests looked."""

    endpoint: str
    spans: list[Told] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """All of each request but the ids, which are random and may hold any letters."""
    others: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    hangs_seconds: float = 0.0

    def environment(self, **more: str) -> dict[str, str]:
        """What a process needs to send its traces here, at once."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100", **more}

    def trace(self, trace_id: str) -> list[Told]:
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.begin_ns)

    def wait_for(self, trace_id: str, *names: str, seconds: float = 60.0) -> list[Told]:
        """The spans of a trace, once it has as many of these names as are given."""

        def found() -> list[str]:
            return [span.name for span in self.trace(trace_id)]

        def are_there() -> bool:
            there = found()
            return all(there.count(name) >= names.count(name) for name in names)

        assert until(are_there, seconds), f"only {found()} came"
        return self.trace(trace_id)

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            named = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_told(span, named["service.name"]) for span in scope.spans]
                for span in scope.spans:
                    _forget_ids(span, *span.links)
        self.texts.append(MessageToJson(request))


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                time.sleep(collector.hangs_seconds)
                collector.take(body)
            else:
                collector.others.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()


def _told(span: Any, service: str) -> Told:
    return Told(
        name=span.name,
        service=service,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        status=span.status.code,
        begin_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        links=tuple(link.span_id.hex() for link in span.links),
    )


def _forget_ids(*messages: Any) -> None:
    for message in messages:
        for name in ("trace_id", "span_id", "parent_span_id"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
