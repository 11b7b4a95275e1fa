"""Real parts: an embedded Valkey, blobs in a folder, a real sender in a thread and real HTTP receivers."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from api.callback_sender import Sender
from jobs import states
from jobs.bootstrap import Connection, connect
from jobs.models import Callback, CallbackStatus, InputInfo, JobError, JobRecord, Manifest, SeverityScores
from jobs.recovery import finalize
from jobs.settings import JobsSettings

OLD_SECRET = "whsec_b2xkZXIgc2VjcmV0IG9mIHRlc3RzLCAyNCBieXRlcw=="
NEW_SECRET = "whsec_bmV3ZXIgc2VjcmV0IG9mIHRlc3RzLCAyNCBieXRlcw=="
SCORES = SeverityScores(
    percent_opacity=12.5, percent_high_opacity=1.0, lung_severity_score=5, lung_high_opacity_score=1
)


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers as `answer` says, with the number of the request from 1; keeps all it got."""

    url: str
    answer: Callable[[BaseHTTPRequestHandler, int], None]
    got: list[Received] = field(default_factory=list)


def status(*codes: int, **headers: str) -> Callable[[BaseHTTPRequestHandler, int], None]:
    """These codes in turn, the last one for ever."""

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(codes[min(number, len(codes)) - 1])
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return answer


TAKEN = status(204)


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    """Start a receiver on loopback."""
    servers = []

    def start(answer: Callable[[BaseHTTPRequestHandler, int], None] = TAKEN) -> Receiver:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                found.got.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                found.answer(self, len(found.got))

            def do_GET(self) -> None:
                found.got.append(Received(self.path, {}, b"a redirect was followed"))
                status(200)(self, 1)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        found = Receiver(f"http://127.0.0.1:{server.server_port}/ended", answer)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return found

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def settings(tmp_path: Path) -> JobsSettings:
    return JobsSettings(
        data_dir=tmp_path / "data",
        callback_allowlist=("http://127.0.0.1", "http://localhost"),
        callback_secrets=f"{NEW_SECRET} {OLD_SECRET}",
        callback_timeout_seconds=0.5,
        callback_retry_seconds=(0.05, 0.05),
    )


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.callback_sender.LOOK_SECONDS", 0.02)


@pytest.fixture(autouse=True)
def any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers of tests listen on any port, which an allowed prefix cannot say."""
    from jobs import callbacks

    allowed = callbacks.is_allowed

    def without_port(url: str, prefixes: tuple[str, ...], schemes: Any) -> bool:
        scheme, _, rest = url.partition("://")
        host, _, path = rest.partition("/")
        return allowed(f"{scheme}://{host.partition(':')[0]}/{path}", prefixes, schemes)

    monkeypatch.setattr(callbacks, "is_allowed", without_port)


@pytest.fixture
def jobs(settings: JobsSettings) -> Iterator[Connection]:
    jobs = connect(settings)
    jobs.reconciler.rebuild()
    yield jobs
    jobs.close()


@pytest.fixture
def end_job(jobs: Connection) -> Callable[..., str]:
    """Accept a job and end it, as a worker would; the answer is its id."""

    def end(url: str | None, outcome: str = "succeeded", *, tenant: str = "default", **more: Any) -> str:
        one = jobs.tenants.of(tenant)
        record = JobRecord(
            id=states.new_id(),
            created_at=states.now(),
            input=InputInfo(size_bytes=1, sha256="0" * 64),
            callback_url=url,
            client_reference="worklist-4711",
            **more,
        )
        one.service.accept(record.model_copy(update={"address": f"https://lobewise.example/v1/jobs/{record.id}"}))
        error = JobError(type="/problems/x", title="x", detail="x", retryable=False) if outcome == "failed" else None
        manifest = Manifest(
            job_id=record.id,
            outcome=outcome,
            attempt=1,
            finished_at=states.now(),
            severity=SCORES if outcome == "succeeded" else None,
            error=error,
        )
        assert finalize.end_job(one.backends, record, manifest)
        return record.id

    return end


@contextmanager
def sending(jobs: Connection) -> Iterator[None]:
    """A sender at work."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(Sender(jobs.tenants, jobs.settings).run(stop),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()
        loop.close()


@pytest.fixture
def settled(jobs: Connection) -> Callable[[str], Callback]:
    """Wait until no attempt is due any more."""

    def wait(job_id: str, seconds: float = 10) -> Callback:
        deadline = time.monotonic() + seconds
        while (callback := jobs.service.callbacks.get(job_id)).status is CallbackStatus.PENDING:
            assert time.monotonic() < deadline, callback
            time.sleep(0.02)
        return callback

    return wait
