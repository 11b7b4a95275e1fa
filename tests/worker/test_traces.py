"""One trace from the client's call to the last blob: real gateway, worker and sender, real OTLP over HTTP."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from cli.local import free_port
from jobs.bootstrap import connect
from jobs.models import ImageName
from jobs.settings import JobsSettings
from tests.support.collector import Collector, Told, collecting

TINY_WORKER = Path(__file__).parents[1] / "support" / "tiny_worker.py"
GATEWAY, SENDER = ("-m", "api"), ("-m", "api.callback_sender")
FAST = {"LEASE_SECONDS": "1.5", "HEARTBEAT_SECONDS": "0.2", "REAP_SECONDS": "0.3", "RETRY_SECONDS": "0.2"}
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, CLIENT, PRODUCER, CONSUMER, ERROR = 2, 3, 4, 5, 2
STAGES = ("fetch", "read", "landmarks", "lesions", "store")
MASKS = ("lungs", "lobes", "lesions", "high-opacity")
PATIENT = re.compile(r"Doe|Jane|pacs\.example|secret", re.IGNORECASE)

pytestmark = pytest.mark.timeout(300)


@dataclass
class Service:
    """Processes over one data folder, and a client of theirs."""

    folder: Path
    environment: dict[str, str]
    client: httpx.Client
    stack: ExitStack

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        log = self.stack.enter_context((self.folder / "log").open("ab"))
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.stack.callback(stop, process)
        return process

    def start_worker(self) -> "subprocess.Popen[bytes]":
        process = self.start(str(TINY_WORKER))
        self.until_ready(200)
        return process

    def until_ready(self, *statuses: int) -> None:
        while True:
            try:
                if self.client.get("/readyz").status_code in statuses:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)

    def submit(self, order: dict[str, Any], headers: dict[str, str] | None = None, **options: str) -> httpx.Response:
        """All that could name a patient does."""
        scan = (b"\x5c\x01\0\0" + b"\0" * 340 + b"n+1\0").ljust(352, b"\0") + json.dumps(order).encode()
        answer = self.client.post(
            "/v1/jobs?patient=Doe",
            files={"file": ("Doe_Jane.nii", scan)},
            data={"client_reference": "Doe-4711", **options},
            headers={"baggage": "patient=Doe", "tracestate": "doe=jane", "user-agent": "Doe/1", **(headers or {})},
        )
        assert answer.status_code == 202, answer.text
        return answer

    def finished(self, job_id: str) -> dict[str, Any]:
        while True:
            job: dict[str, Any] = self.client.get(f"/v1/jobs/{job_id}").json()
            if job["status"] not in ("queued", "running"):
                return job
            time.sleep(0.1)

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = (self.folder / "log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait(30)


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Service]:
    """A gateway; workers are the test's to start."""
    port = free_port()
    inherited = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "LOBEWISE_REDIS_URL")}
    given = {f"LOBEWISE_{name}": value for name, value in FAST.items()}
    given |= {"LOBEWISE_DATA_DIR": str(folder / "data"), "LOBEWISE_API_PORT": str(port), "TMPDIR": str(folder)}
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30))
        service = Service(folder, {**inherited, **given, **environment}, client, stack)
        service.start(*GATEWAY)
        service.until_ready(200, 503)
        yield service


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def require_whole(spans: list[Told], roots: set[str]) -> dict[str, str]:
    """Every parent is there, or one of `roots`; the answer is each span's parent's name by its id."""
    names = {span.span_id: span.name for span in spans}
    assert len(names) == len(spans), "a span came twice"
    orphans = [span.name for span in spans if span.parent_id not in {*names, *roots}]
    assert orphans == []
    return {span.span_id: names.get(span.parent_id, "") for span in spans}


def test_one_trace_leads_from_the_callers_span_to_the_last_blob_and_the_callback(
    collector: Collector, tmp_path: Path
) -> None:
    receiver = f"{collector.endpoint}/ended"
    calm = {"LOBEWISE_REAP_SECONDS": "10"}  # nothing is sent again, however slow the machine is now
    with serving(tmp_path, **collector.environment(LOBEWISE_CALLBACK_ALLOWLIST=receiver, **calm)) as service:
        service.start_worker()
        service.start(*SENDER)
        answer = service.submit(
            {"do": "score", "seconds": 0.1},
            headers={"traceparent": f"00-{TRACE}-{CALLER}-01"},
            callback_url=f"{receiver}?token=secret",
        )
        job_id = answer.json()["id"]
        assert service.finished(job_id)["status"] == "succeeded"
        spans = collector.wait_for(TRACE, "POST /v1/jobs", "attempt", "callback")
        log = service.log

    parents = require_whole(spans, {CALLER})
    tree = Counter((parents[span.span_id], span.name) for span in spans)
    queue = "send lobewise.routine"
    assert tree == {
        ("", "POST /v1/jobs"): 1,
        ("POST /v1/jobs", "upload"): 1,
        ("upload", "blob write"): 1,
        ("POST /v1/jobs", "accept"): 1,
        ("accept", "blob create"): 1,
        ("accept", queue): 1,
        ("POST /v1/jobs", "attempt"): 1,
        ("attempt", "claim"): 1,
        ("claim", "blob create"): 1,
        **{("attempt", stage): 1 for stage in STAGES},
        ("attempt", "publish"): 1,
        ("publish", "blob write"): len(MASKS) + len(ImageName) + 1,
        ("publish", "blob create"): 1,
        ("POST /v1/jobs", "callback"): 1,
        ("callback", "blob create"): 1,
    }

    by_name = {span.name: span for span in spans}
    post, attempt, callback = by_name["POST /v1/jobs"], by_name["attempt"], by_name["callback"]
    assert (post.kind, by_name[queue].kind, attempt.kind, callback.kind) == (SERVER, PRODUCER, CONSUMER, CLIENT)
    services = ("lobewise-gateway", "lobewise-worker", "lobewise-sender")
    assert (post.service, attempt.service, callback.service) == services
    assert post.attributes == {
        "lobewise.job.id": job_id,
        "lobewise.tenant": "default",
        "http.request.method": "POST",
        "http.route": "/v1/jobs",
        "http.response.status_code": 202,
    }
    assert attempt.attributes["lobewise.attempt"] == 1
    assert attempt.attributes["lobewise.outcome"] == "succeeded"
    assert callback.attributes["lobewise.outcome"] == "delivered"
    written = {span.attributes.get("lobewise.blob.name") for span in spans}
    assert written >= {"jobs/input", "jobs/job.json", "jobs/attempts/1/claim.json", "jobs/manifest.json"}
    assert written >= {f"jobs/attempts/1/{name}.nii.gz" for name in MASKS} | {"jobs/attempts/1/report.json"}
    upload = next(span for span in spans if span.attributes.get("lobewise.blob.name") == "jobs/input")
    assert upload.attributes["lobewise.blob.size_bytes"] > 352
    for span in spans:
        assert span.begin_ns <= span.end_ns
        assert span.status != ERROR, span

    assert answer.headers["traceresponse"] == f"00-{TRACE}-{post.span_id}-01"
    ((path, headers),) = collector.others
    assert path.startswith("/ended")
    assert headers["traceparent"] == f"00-{TRACE}-{callback.span_id}-01"
    of_the_job = [line for line in log if line.get("trace_id") == TRACE]
    assert {line["span_id"] for line in of_the_job} >= {post.span_id, attempt.span_id}
    assert {"request", "the attempt begins", "the attempt is done"} <= {line["event"] for line in of_the_job}
    assert [text for text in collector.texts if PATIENT.search(text)] == []


def test_the_trace_outlives_a_wiped_broker_and_a_killed_worker(collector: Collector, tmp_path: Path) -> None:
    with serving(tmp_path, **collector.environment()) as service:
        answer = service.submit({"do": "die-once", "mark": str(tmp_path / "died"), "after_seconds": 0.5})
        trace_id = answer.headers["traceresponse"].split("-")[1]
        wipe(tmp_path / "data")
        collector.wait_for(trace_id, "send lobewise.routine", "send lobewise.routine")  # by the reaper
        service.start_worker()
        job = service.finished(answer.json()["id"])
        assert (job["status"], job["attempt"]) == ("succeeded", 2)
        spans = collector.wait_for(trace_id, "POST /v1/jobs", "attempt", "attempt")

    parents = require_whole(spans, {""})
    assert [span.name for span in spans if not span.parent_id] == ["POST /v1/jobs"]
    lost, second = (span for span in spans if span.name == "attempt")
    assert parents[lost.span_id] == parents[second.span_id] == "POST /v1/jobs"
    assert [span.attributes["lobewise.attempt"] for span in (lost, second)] == [1, 2]
    assert (lost.attributes["lobewise.outcome"], lost.status) == ("worker-lost", ERROR)
    assert (second.attributes["lobewise.outcome"], second.status) == ("succeeded", 0)
    assert lost.end_ns - lost.begin_ns > 0.5e9
    assert {"claim", "fetch", "read"} <= {span.name for span in spans if span.parent_id == lost.span_id}
    done = {span.name for span in spans if span.parent_id == second.span_id}
    assert done == {"claim", *STAGES, "publish"} - {"lesions"}


def wipe(data: Path) -> None:
    """All that the broker and the live view hold."""
    jobs = connect(JobsSettings(data_dir=data, redis_url=None))
    with redis.Redis.from_url(jobs.settings.redis_url or "") as server:
        server.flushall()
    jobs.close()


def test_what_fails_is_told_by_its_class_alone(collector: Collector, tmp_path: Path) -> None:
    with serving(tmp_path, **collector.environment(LOBEWISE_MAX_ATTEMPTS="1")) as service:
        service.start_worker()
        fault, refused = (service.submit({"do": what, "patient": "Doe"}) for what in ("fault", "not-chest"))
        for answer in (fault, refused):
            assert service.finished(answer.json()["id"])["status"] == "failed"
        traces = [answer.headers["traceresponse"].split("-")[1] for answer in (fault, refused)]
        of_ours, of_the_scan = (collector.wait_for(trace, "attempt", "POST /v1/jobs") for trace in traces)
    attempts = [next(span for span in spans if span.name == "attempt") for spans in (of_ours, of_the_scan)]
    assert attempts[0].attributes["error.type"] == "RuntimeError"
    assert attempts[0].attributes["lobewise.outcome"] == "fault"
    assert attempts[1].attributes["lobewise.outcome"] == "failed"
    assert attempts[1].attributes["lobewise.problem"] == "lungs-not-found"
    assert [span.status for span in attempts] == [ERROR, 0]
    assert [text for text in collector.texts if PATIENT.search(text)] == []


def test_each_job_of_a_batch_has_a_trace_of_its_own_that_leads_back_to_the_call(
    collector: Collector, tmp_path: Path
) -> None:
    source = "https://pacs.example/Doe/"
    with serving(tmp_path, **collector.environment(LOBEWISE_SOURCE_ALLOWLIST=source)) as service:
        items = [{"source": {"url": f"{source}{number}.nii.gz?token=secret"}} for number in range(3)]
        answer = service.client.post("/v1/batches", json={"items": items})
        assert answer.status_code == 202, answer.text
        job_id = answer.json()["items"][0]["job"]["id"]
        service.client.post(f"/v1/jobs/{job_id}/cancel")
        spans = collector.wait_for(answer.headers["traceresponse"].split("-")[1], "POST /v1/batches")
        call = next(span for span in spans if span.name == "POST /v1/batches")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            roots = [span for span in collector.spans if span.name == "job of a batch"]
            cancels = [span for span in collector.spans if span.name == "POST /v1/jobs/{job_id}/cancel"]
            if len(roots) == 3 and cancels:
                break
            time.sleep(0.1)
    assert len({root.trace_id for root in roots} | {call.trace_id}) == 4
    assert [root.links for root in roots] == [(call.span_id,)] * 3
    first = next(root for root in roots if root.attributes["lobewise.job.id"] == job_id)
    assert [cancel.links for cancel in cancels] == [(first.span_id,)]
    for root in roots:
        spans = collector.wait_for(root.trace_id, "accept", "send lobewise.batch")
        assert require_whole(spans, {""})
    assert [text for text in collector.texts if PATIENT.search(text)] == []


@pytest.mark.parametrize("fault", ["hangs", "is down"])
def test_a_collector_that_does_not_answer_holds_nothing_up(collector: Collector, tmp_path: Path, fault: str) -> None:
    collector.hangs_seconds = 600.0
    to = collector.endpoint if fault == "hangs" else f"http://127.0.0.1:{free_port()}"
    with serving(tmp_path, **collector.environment(OTEL_EXPORTER_OTLP_ENDPOINT=to)) as service:
        worker = service.start_worker()
        begin = time.monotonic()
        jobs = [service.submit({"do": "score"}).json()["id"] for _ in range(5)]
        assert [service.finished(job_id)["status"] for job_id in jobs] == ["succeeded"] * 5
        assert time.monotonic() - begin < 30
        begin = time.monotonic()
        stop(worker)
        assert time.monotonic() - begin < 25
        complaints = [line for line in service.log if line["logger"].startswith("opentelemetry.exporter")]
        assert len(complaints) <= 3, "one a process and minute"


def test_a_process_that_ends_or_kills_itself_sends_what_it_still_has(collector: Collector, tmp_path: Path) -> None:
    """And of a call that is not sampled there is nothing."""
    late = {"LOBEWISE_CANCEL_GRACE_SECONDS": "0.5", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with serving(tmp_path, **collector.environment(**late)) as service:
        worker = service.start_worker()
        unsampled = service.submit({"do": "score"}, headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
        whole = service.submit({"do": "score"})
        for answer in (unsampled, whole):
            assert service.finished(answer.json()["id"])["status"] == "succeeded"
        assert collector.spans == []
        short = service.submit({"do": "memory-unless-frugal"})
        assert service.finished(short.json()["id"])["status"] == "succeeded"
        stuck = service.submit({"do": "hang-on"})
        address = f"/v1/jobs/{stuck.json()['id']}"
        while service.client.get(address).json()["status"] != "running":
            time.sleep(0.1)
        service.client.post(f"{address}/cancel")
        assert service.finished(stuck.json()["id"])["status"] == "cancelled"
        stop(worker)
        assert {span.service for span in collector.spans} == {"lobewise-worker"}
    assert unsampled.headers["traceresponse"].startswith(f"00-{TRACE}-")
    assert collector.trace(TRACE) == []
    expected = ((whole, ["succeeded"]), (short, ["out-of-memory", "succeeded"]), (stuck, ["cancelled"]))
    for answer, outcomes in expected:
        spans = collector.trace(answer.headers["traceresponse"].split("-")[1])
        require_whole(spans, {""})
        assert {"POST /v1/jobs", "attempt"} <= {span.name for span in spans}
        assert [span.attributes["lobewise.outcome"] for span in spans if span.name == "attempt"] == outcomes
