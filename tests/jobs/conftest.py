"""Real parts: an embedded Valkey for each test, and its blobs once in a folder, once on S3."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from jobs import states
from jobs.attempts import Lease
from jobs.bootstrap import Connection, connect
from jobs.models import InputInfo, JobRecord, LobeScores, LungVolumes, MaskName, Provenance, Report, SeverityScores
from jobs.settings import JobsSettings

LOBES = ("left_upper", "left_lower", "right_upper", "right_middle", "right_lower")


@pytest.fixture
def settings(tmp_path: Path, blob_url: str) -> JobsSettings:
    return JobsSettings(
        data_dir=tmp_path / "data",
        redis_url=None,
        blob_url=blob_url,
        lease_seconds=0.4,
        heartbeat_seconds=0.1,
        reap_seconds=0.1,
        retry_seconds=0.05,
        cancel_grace_seconds=0.3,
    )


@pytest.fixture
def jobs(settings: JobsSettings) -> Iterator[Connection]:
    jobs = connect(settings)
    jobs.reconciler.rebuild()
    yield jobs
    jobs.close()


@pytest.fixture
def server(jobs: Connection) -> Iterator[redis.Redis]:
    """The Redis behind `jobs`."""
    with redis.Redis.from_url(jobs.settings.redis_url or "", decode_responses=True) as client:
        yield client


@pytest.fixture
def without_broker(jobs: Connection) -> Iterator[Connection]:
    """The same blobs, but nobody listens where the broker should be."""
    other = connect(jobs.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    yield other
    other.close()


def upload(jobs: Connection, job_id: str, data: bytes = b"a scan") -> InputInfo:
    async def stream() -> InputInfo:
        sink = jobs.service.open_upload(job_id)
        await sink.write(data)
        return await sink.finish()

    return asyncio.run(stream())


@pytest.fixture
def post() -> Callable[..., str]:
    """Upload and accept a job; the answer is its id."""

    def post(jobs: Connection, data: bytes = b"a scan", **options: Any) -> str:
        job_id = states.new_id()
        record = JobRecord(id=job_id, created_at=states.now(), input=upload(jobs, job_id, data), **options)
        return jobs.service.accept(record).id

    return post


def report_for(job_id: str, percent_opacity: float = 12.5) -> Report:
    lobe = {"volume_ml": 800.0, "percent_opacity": percent_opacity, "percent_high_opacity": 0.0}
    scores = {"severity_score": 1, "high_opacity_score": 0}
    return Report(
        job_id=job_id,
        severity=SeverityScores(
            percent_opacity=percent_opacity,
            percent_high_opacity=0.0,
            lung_severity_score=5,
            lung_high_opacity_score=0,
        ),
        lungs=LungVolumes(volume_ml=4000.0, opacity_ml=40 * percent_opacity, high_opacity_ml=0.0),
        lobes=[LobeScores.model_validate({"lobe": n, "label": i, **lobe, **scores}) for i, n in enumerate(LOBES, 1)],
        landmarks=[],
        quality=[],
        provenance=Provenance(input_sha256="0" * 64, software="0", models=[], device="cpu", seconds={}),
    )


@pytest.fixture
def succeed(tmp_path: Path) -> Callable[..., None]:
    """Publish a report and one mask's bytes for all masks under a lease."""

    def succeed(jobs: Connection, lease: Lease, percent_opacity: float = 12.5, mask: bytes = b"a mask") -> None:
        path = tmp_path / "mask.nii.gz"
        path.write_bytes(mask)
        jobs.worker.succeed(lease, report_for(lease.job_id, percent_opacity), dict.fromkeys(MaskName, path))

    return succeed


@pytest.fixture
def finished(post: Callable[..., str], succeed: Callable[..., None]) -> Callable[..., str]:
    """A job that succeeded; the answer is its id."""

    def finished(jobs: Connection, percent_opacity: float = 12.5, **options: Any) -> str:
        job_id = post(jobs, **options)
        with jobs.worker.claim(job_id, "test") as lease:
            succeed(jobs, lease, percent_opacity)
        return job_id

    return finished
