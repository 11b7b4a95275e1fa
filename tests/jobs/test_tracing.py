"""When traces are sent, and what becomes of a process where they cannot be."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.models import JobRecord
from jobs.store.job_store import Claim
from jobs.store.object_store import traced
from tests.support.collector import Collector, collecting

PROGRAM = """
import logging, sys
from opentelemetry.trace import SpanKind
from jobs import tracing
from jobs.logs import configure_logging

configure_logging("json")
if "without" in sys.argv:
    class Wall:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("opentelemetry"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.meta_path.insert(0, Wall())
tracing.configure_tracing("a-service")
span = tracing.entry("work", None, SpanKind.SERVER)
with tracing.ended(span), tracing.active(span), tracing.step("part") as part:
    logging.getLogger("lobewise").info("inside")
logging.getLogger("lobewise").info("outside")
with tracing.step("alone"):
    pass
tracing.stop_tracing()
print("opentelemetry.sdk" in sys.modules, tracing.traceparent_of(span) or "")
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def run(*arguments: str, **environment: str) -> tuple[bool, str, list[dict[str, Any]]]:
    """Whether the SDK was imported, the span's traceparent, and what was logged."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported, _, traceparent = done.stdout.strip("\n").partition(" ")
    return imported == "True", traceparent, [json.loads(line) for line in done.stderr.splitlines()]


def test_without_configuration_nothing_is_imported_and_nothing_told() -> None:
    imported, traceparent, log = run()
    assert (imported, traceparent) == (False, "")
    assert [line["event"] for line in log] == ["inside", "outside"]
    assert not any("trace_id" in line for line in log)


@pytest.mark.parametrize("switch", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_the_standard_switches_turn_them_off(switch: dict[str, str]) -> None:
    imported, traceparent, _ = run(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", **switch)
    assert (imported, traceparent) == (False, "")


def test_without_the_extra_a_process_says_so_and_goes_on() -> None:
    imported, _, log = run("without", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert not imported
    assert "pip install 'lobewise[tracing]'" in log[0]["event"]
    assert [line["event"] for line in log[1:]] == ["inside", "outside"]


def test_lines_within_a_span_have_its_ids_and_a_step_alone_is_no_trace(collector: Collector) -> None:
    _, traceparent, log = run(
        **collector.environment(OTEL_SERVICE_NAME="ours", OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test")
    )
    part, work = sorted(collector.spans, key=lambda span: span.name)
    assert traceparent.startswith(f"00-{work.trace_id}-{work.span_id}-")
    assert (part.name, part.parent_id, part.service) == ("part", work.span_id, "ours")
    inside, outside = log
    assert (inside["trace_id"], inside["span_id"]) == (part.trace_id, part.span_id)
    assert "trace_id" not in outside


def test_a_collector_on_this_machine_is_asked_without_a_proxy(collector: Collector) -> None:
    run(**collector.environment(HTTP_PROXY="http://127.0.0.1:1", ALL_PROXY="socks5://127.0.0.1:1"))
    assert len(collector.spans) == 2


def test_the_standard_sampler_is_heeded(collector: Collector) -> None:
    _, traceparent, _ = run(**collector.environment(OTEL_TRACES_SAMPLER="always_off"))
    assert int(traceparent[-2:], 16) & 1 == 0
    assert collector.spans == []


def test_a_wrong_protocol_and_exporter_are_told(collector: Collector) -> None:
    _, _, log = run(**collector.environment(OTEL_EXPORTER_OTLP_PROTOCOL="grpc"))
    assert "'grpc'" in log[0]["event"]
    _, _, log = run(OTEL_TRACES_EXPORTER="zipkin")
    assert "'zipkin'" in log[0]["event"]


def test_records_without_a_trace_are_those_of_before() -> None:
    """So a reader of the version before breaks on none as long as nobody switches traces on."""
    before: dict[str, Any] = {"id": "1", "created_at": "2026-01-01T00:00:00Z", "input": {}}
    record = JobRecord.model_validate(before)
    claim = Claim.model_validate({"attempt": 1, "started_at": "2026-01-01T00:00:00Z", "worker": "w"})
    assert record.traceparent is claim.traceparent is None
    assert "traceparent" not in record.model_dump_json(exclude_none=True) + claim.model_dump_json(exclude_none=True)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("jobs/01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b11/attempts/2/lungs.nii.gz", "jobs/attempts/2/lungs.nii.gz"),
        (f"callbacks/disabled/{'0a' * 32}.json", "callbacks/disabled"),
        (f"idempotency/{'0a' * 32}/1.json", "idempotency/1.json"),
    ],
)
def test_a_blob_is_told_without_ids_and_hashes(key: str, name: str) -> None:
    assert traced(key, 7) == {"lobewise.blob.name": name, "lobewise.blob.size_bytes": 7}
