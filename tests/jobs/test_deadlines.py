"""A job that no worker has begun by its `not_after` fails and is never computed; one that was begun runs on."""

from collections.abc import Callable
from datetime import timedelta

import pytest
import redis

from jobs import states
from jobs.bootstrap import Connection
from jobs.errors import LeaseLostError, WrongStateError
from jobs.live.keys import Keys
from jobs.models import JobStatus
from tests.support.processes import until

Post = Callable[..., str]
Succeed = Callable[..., None]
Later = Callable[[], None]


def soon(seconds: float = 60) -> dict[str, object]:
    return {"not_after": states.now() + timedelta(seconds=seconds)}


@pytest.fixture
def later(server: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """An hour passes, for us and for Redis."""
    real = states.now

    def later() -> None:
        monkeypatch.setattr(states, "now", lambda: real() + timedelta(hours=1))
        for job_id in server.zrange(Keys().deadlines, 0, -1):
            server.zincrby(Keys().deadlines, -3_600_000, job_id)

    return later


def require_too_late(jobs: Connection, job_id: str) -> None:
    state = jobs.service.get(job_id)
    assert (state.status, state.attempt, state.started_at) == (JobStatus.FAILED, 0, None)
    assert state.error is not None
    assert (state.error.type, state.error.retryable) == ("/problems/deadline-passed", True)
    assert state.not_after is not None
    assert state.error.evidence == {"not_after": state.not_after.isoformat()}
    assert jobs.backends.store.files(job_id).names == {"job.json", "input", "manifest.json"}
    assert jobs.backends.store.state(job_id) == state


def test_a_worker_that_comes_too_late_begins_nothing(jobs: Connection, post: Post) -> None:
    job_id = post(jobs, **soon(0))
    with pytest.raises(WrongStateError):
        jobs.worker.claim(job_id, "late")
    require_too_late(jobs, job_id)


def test_a_job_that_no_worker_reaches_ends_soon_after(jobs: Connection, server: redis.Redis, post: Post) -> None:
    job_id, patient = post(jobs, **soon(0.5)), post(jobs)
    jobs.reconciler.start()
    until(lambda: jobs.service.get(job_id).status.is_final)
    require_too_late(jobs, job_id)
    state = jobs.service.get(job_id)
    assert state.finished_at is not None
    assert state.not_after is not None
    assert 0 <= (state.finished_at - state.not_after).total_seconds() < 5
    assert jobs.service.get(patient).status == JobStatus.QUEUED
    assert server.zcard(Keys().deadlines) == 0


def test_a_job_that_was_begun_runs_on(
    jobs: Connection, server: redis.Redis, post: Post, succeed: Succeed, later: Later
) -> None:
    job_id = post(jobs, **soon())
    with jobs.worker.claim(job_id, "in time") as lease:
        assert server.zcard(Keys().deadlines) == 0
        later()
        jobs.reconciler.reconcile()
        succeed(jobs, lease)
    assert jobs.service.get(job_id).status == JobStatus.SUCCEEDED


@pytest.mark.parametrize("is_wiped", [False, True])
def test_a_job_that_was_begun_is_begun_again_though_its_time_is_over(
    jobs: Connection, server: redis.Redis, post: Post, succeed: Succeed, later: Later, is_wiped: bool
) -> None:
    job_id = post(jobs, **soon())
    jobs.worker.claim(job_id, "lost").drop()
    later()
    if is_wiped:
        server.flushall()
    until(lambda: jobs.reconciler.reconcile() > 0 and jobs.service.get(job_id).status == JobStatus.QUEUED)
    jobs.reconciler.reconcile()
    succeed(jobs, jobs.worker.claim(job_id, "second"))
    assert (jobs.service.get(job_id).status, jobs.service.get(job_id).attempt) == (JobStatus.SUCCEEDED, 2)


def test_a_wiped_server_forgets_no_deadline(jobs: Connection, server: redis.Redis, post: Post, later: Later) -> None:
    job_id = post(jobs, **soon())
    server.flushall()
    jobs.reconciler.rebuild()
    later()
    jobs.reconciler.reconcile()
    require_too_late(jobs, job_id)


def test_a_worker_that_claims_meanwhile_keeps_it(jobs: Connection, post: Post, succeed: Succeed, later: Later) -> None:
    """The reconciler has listed the job as too late; before it can take the lease, a worker has it, in time."""
    job_id = post(jobs, **soon())
    lease = jobs.worker.claim(job_id, "in time")
    later()
    jobs.reconciler._end_if_too_late(job_id)
    lease.drop()  # now the lease can be had, and the claim decides
    jobs.reconciler._end_if_too_late(job_id)
    assert jobs.service.get(job_id).status == JobStatus.RUNNING


def test_while_it_is_ended_no_worker_begins_it(jobs: Connection, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = post(jobs, **soon(0))
    store, found = jobs.backends.store, []
    record_of = store.record

    def record(job_id: str) -> object:
        monkeypatch.undo()
        with pytest.raises(LeaseLostError):
            jobs.worker.claim(job_id, "late")
        found.append(job_id)
        return record_of(job_id)

    monkeypatch.setattr(store, "record", record)
    jobs.reconciler._end_if_too_late(job_id)
    assert found == [job_id]
    require_too_late(jobs, job_id)


def test_one_that_was_cancelled_is_cancelled_and_not_too_late(jobs: Connection, post: Post) -> None:
    job_id = post(jobs, **soon(0))
    jobs.backends.store.request_cancel(job_id)  # and its gateway was killed
    jobs.reconciler.reconcile()
    assert jobs.service.get(job_id).status == JobStatus.CANCELLED


def test_one_that_was_deleted_stays_deleted(jobs: Connection, server: redis.Redis, post: Post) -> None:
    job_id = post(jobs, **soon(0))
    jobs.backends.store.mark_purged(job_id)  # and its gateway was killed
    jobs.reconciler.reconcile()
    assert jobs.backends.store.files(job_id).names == {"purged.json"}
    assert server.zcard(Keys().deadlines) == 0
