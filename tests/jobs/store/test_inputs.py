"""A scan that came with a name is replaced by one without, whatever is interrupted, and none outlives its job's end."""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs import states
from jobs.attempts import Lease
from jobs.bootstrap import Connection, connect
from jobs.errors import JobPurgedError
from jobs.models import JobError, JobStatus
from jobs.problems import BY_SLUG
from jobs.settings import JobsSettings

Post = Callable[..., str]
NAMED, NAMELESS = b"a scan of Jane Doe", b"a scan"
STEPS = ("write_file", "create", "delete")
FAILED = JobError.of(BY_SLUG["lungs-not-found"], "There are none.", {})


class KilledError(BaseException):
    """In place of the process's end."""


@pytest.fixture
def settings(settings: JobsSettings) -> JobsSettings:
    return settings.model_copy(update={"deidentify": "basic"})


def names(jobs: Connection, job_id: str) -> frozenset[str]:
    return jobs.backends.store.files(job_id).names


def attempt(jobs: Connection, job_id: str, folder: Path) -> tuple[Lease, bytes]:
    """Claim the job and fetch its scan, as often as it takes until earlier leases have run out."""
    lease = jobs.worker.claim(job_id, "test")
    path = jobs.worker.fetch_input(lease, folder)
    return lease, path.read_bytes()


def replace(jobs: Connection, lease: Lease, folder: Path) -> None:
    (folder / "clean").write_bytes(NAMELESS)
    jobs.worker.replace_input(lease, folder / "clean")


def has_named(jobs: Connection) -> bool:
    blobs = jobs.backends.store.blobs
    return any(NAMED in (blobs.read(key) or b"") for key in blobs.keys("jobs/"))


def test_the_scan_is_replaced_and_its_digest_stays_that_of_what_came(
    jobs: Connection, post: Post, tmp_path: Path
) -> None:
    job_id = post(jobs, NAMED)
    assert names(jobs, job_id) == {"job.json", "received"}
    lease, scan = attempt(jobs, job_id, tmp_path)
    assert scan == NAMED
    assert lease.must_deidentify
    replace(jobs, lease, tmp_path)
    assert not has_named(jobs)
    jobs.worker.retry(lease, RuntimeError())
    later, scan = attempt(jobs, job_id, tmp_path)
    assert (scan, later.must_deidentify) == (NAMELESS, False)
    assert later.scan.sha256 == hashlib.sha256(NAMED).hexdigest(), "what the client sent, and results are found by"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_an_attempt_that_dies_at_any_step_leaves_a_whole_scan_to_the_next(
    step: str, when: str, jobs: Connection, post: Post, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = post(jobs, NAMED)
    lease, _ = attempt(jobs, job_id, tmp_path)
    blobs = jobs.backends.store.blobs
    real = getattr(blobs, step)

    def die(*args: Any) -> None:
        if when == "after":
            real(*args)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(blobs, step, die)
        with pytest.raises(KilledError):
            replace(jobs, lease, tmp_path)
    jobs.worker.retry(lease, RuntimeError())
    later, scan = attempt(jobs, job_id, tmp_path)
    assert scan == (NAMED if later.must_deidentify else NAMELESS)
    if later.must_deidentify:
        replace(jobs, later, tmp_path)
    assert not has_named(jobs)
    jobs.worker.fail(later, FAILED)
    assert jobs.service.get(job_id).status == JobStatus.FAILED


def test_of_two_attempts_that_replace_it_one_counts(jobs: Connection, post: Post, tmp_path: Path) -> None:
    job_id = post(jobs, NAMED)
    lease, _ = attempt(jobs, job_id, tmp_path)
    replace(jobs, lease, tmp_path)
    (tmp_path / "other").write_bytes(b"another")
    from jobs.store.inputs import Inputs

    Inputs(jobs.backends.store.blobs).replace(job_id, 2, tmp_path / "other")
    assert "attempts/2/input" not in names(jobs, job_id)
    jobs.worker.retry(lease, RuntimeError())
    assert attempt(jobs, job_id, tmp_path)[1] == NAMELESS


def test_no_scan_outlives_its_job_as_it_came(jobs: Connection, post: Post, tmp_path: Path) -> None:
    failed, cancelled = post(jobs, NAMED), post(jobs, NAMED)
    jobs.worker.fail(attempt(jobs, failed, tmp_path)[0], FAILED)
    jobs.service.cancel(cancelled)
    assert not has_named(jobs)


def test_what_a_killed_worker_left_of_an_ended_job_is_cleaned_up(
    jobs: Connection, post: Post, tmp_path: Path, settings: JobsSettings
) -> None:
    job_id = post(jobs, NAMED)
    lease, _ = attempt(jobs, job_id, tmp_path)
    # A worker of which nobody said that scans are de-identified leaves it, too.
    unaware = connect(settings.model_copy(update={"deidentify": "off", "redis_url": jobs.settings.redis_url}))
    unaware.worker.fail(lease, FAILED)
    unaware.close()
    assert has_named(jobs)
    assert jobs.cleanup.clean_up() == 1
    assert not has_named(jobs)


def test_a_job_that_was_deleted_meanwhile_keeps_nothing(jobs: Connection, post: Post, tmp_path: Path) -> None:
    job_id = post(jobs, NAMED)
    lease, _ = attempt(jobs, job_id, tmp_path)
    jobs.service.purge(job_id)
    with pytest.raises(JobPurgedError):
        replace(jobs, lease, tmp_path)
    assert names(jobs, job_id) == {"purged.json"}


def test_scans_that_were_accepted_before_are_read_as_they_are_and_kept(
    jobs: Connection, post: Post, tmp_path: Path, settings: JobsSettings
) -> None:
    before = connect(settings.model_copy(update={"deidentify": "off", "redis_url": jobs.settings.redis_url}))
    job_id = post(before, NAMED)
    before.close()
    lease, scan = attempt(jobs, job_id, tmp_path)
    assert (scan, lease.must_deidentify) == (NAMED, False)
    jobs.worker.fail(lease, FAILED)
    jobs.cleanup.clean_up(states.now() + timedelta(days=2))
    assert "input" in names(jobs, job_id)
