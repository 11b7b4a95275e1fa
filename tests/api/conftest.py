"""A real gateway on 127.0.0.1 over real blobs and a real Valkey; tests act as the worker through `Jobs`."""

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from api import examples
from api.app import create_app
from jobs.bootstrap import Connection, connect
from jobs.models import ImageName, JobError, MaskName, SeverityScores
from jobs.settings import ApiSettings, JobsSettings
from jobs.store.object_store import RESERVE

MAX_UPLOAD_BYTES = 1 << 20
ALLOWED_SOURCE = "https://pacs.example/ct/"
DOCUMENT = create_app().openapi()


def nifti(size_bytes: int = 2000, fill: bytes = b"\0") -> bytes:
    """Begins as a NIfTI file does; the gateway looks no deeper."""
    return (b"\x5c\x01\0\0" + fill * 340 + b"n+1\0").ljust(size_bytes, fill)


def mask_bytes(name: MaskName) -> bytes:
    return gzip.compress(f"mask {name}".encode() * 500, mtime=0)


def image_bytes(name: ImageName) -> bytes:
    return f"image {name}".encode() * 500


@dataclass
class Worker:
    """Does what a worker does, but for the science."""

    jobs: Connection
    folder: Path

    def succeed(self, job_id: str, percent_opacity: float = 12.3) -> None:
        scores = examples.SEVERITY.model_copy(update={"percent_opacity": percent_opacity})
        report = examples.REPORT.model_copy(update={"job_id": job_id, "severity": SeverityScores(**dict(scores))})
        masks = {}
        for name in MaskName:
            masks[name] = self.folder / f"{job_id}-{name}"
            masks[name].write_bytes(mask_bytes(name))
        images = {name: self.folder / name for name in ImageName}
        for name, path in images.items():
            path.write_bytes(image_bytes(name))
        with self.jobs.worker.claim(job_id, "test") as lease:
            self.jobs.worker.succeed(lease, report, masks, examples.LABELS, images=images)

    def fail(self, job_id: str, error: JobError = examples.FAILURE) -> None:
        with self.jobs.worker.claim(job_id, "test") as lease:
            self.jobs.worker.fail(lease, error)


@dataclass
class Service:
    """A running gateway."""

    jobs: Connection
    client: httpx.Client
    worker: Worker
    blobs: Path

    @property
    def address(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def submit(self, scan: bytes = nifti(), **options: str) -> str:
        answer = self.client.post("/v1/jobs", files={"file": ("scan.nii", scan)}, data=options)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def succeeded(self, percent_opacity: float = 12.3, **options: str) -> str:
        job_id = self.submit(**options)
        self.worker.succeed(job_id, percent_opacity)
        return job_id

    def stored_files(self) -> set[Path]:
        """But for the audit trail, which every request may add to, and the space that is held back."""
        trail = self.blobs / "audit"
        files = (path for path in self.blobs.rglob("*") if path.is_file() and path.name != RESERVE)
        return {path for path in files if trail not in path.parents}


@contextmanager
def serving(app: object) -> Iterator[str]:
    """The address of `app`, served by uvicorn in a thread."""
    protocol = "api.protocol:PiecewiseProtocol"
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=0, http=protocol, log_level="warning", access_log=False, proxy_headers=False
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def running_service(
    folder: Path,
    settings: ApiSettings = ApiSettings(),  # noqa: B008  # frozen
    **jobs_settings: object,
) -> Iterator[Service]:
    given = {"max_upload_bytes": MAX_UPLOAD_BYTES, "source_allowlist": (ALLOWED_SOURCE,), **jobs_settings}
    jobs = connect(JobsSettings(data_dir=folder, **given))  # type: ignore[arg-type]
    (masks := folder / "masks").mkdir(parents=True)
    try:
        with (
            serving(create_app(settings, jobs)) as address,
            httpx.Client(base_url=address, timeout=30) as client,
        ):
            yield Service(jobs, client, Worker(jobs, masks), folder / "blobs")
    finally:
        jobs.close()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """For tests that do not mind the jobs of others."""
    with running_service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Service]:
    """For tests that look at all jobs, or break something."""
    with running_service(tmp_path / "service") as service:
        yield service


def require_problem(answer: httpx.Response, status: int, slug: str) -> dict:
    """The body, once it is known to be a whole problem of this type."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert (answer.status_code, body["status"], body["type"]) == (status, status, f"/problems/{slug}"), body
    assert set(body) == {"type", "title", "status", "detail", "instance", "retryable", "evidence", "errors"}
    assert body["detail"]
    assert ("retry-after" in answer.headers) is body["retryable"]
    return body
