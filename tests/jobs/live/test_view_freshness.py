"""When the live view may be believed: not while it may be behind the blobs."""

import time
from collections.abc import Callable

import pytest
import redis

from jobs import states
from jobs.bootstrap import Connection
from jobs.errors import BrokerUnavailableError
from jobs.live.connection import ViewFreshness
from jobs.models import InputInfo, JobError, JobRecord, JobState, JobStatus
from jobs.recovery import finalize


def shown(status: JobStatus) -> JobState:
    record = JobRecord(id="x", created_at=states.now(), input=InputInfo())
    return states.changed(states.queued(record), status=status)


class RedisConnection:
    pass


def test_an_end_is_always_believed() -> None:
    view_freshness = ViewFreshness(60.0)
    view_freshness.lose()
    assert view_freshness.holds(shown(JobStatus.SUCCEEDED), is_whole=False)


def test_what_is_open_is_not_believed_after_an_answer_that_did_not_come() -> None:
    view_freshness = ViewFreshness(60.0)
    assert view_freshness.holds(shown(JobStatus.RUNNING), is_whole=True)
    view_freshness.lose()
    assert not view_freshness.holds(shown(JobStatus.RUNNING), is_whole=True)


def test_what_is_open_is_not_believed_in_a_view_that_was_wiped() -> None:
    assert not ViewFreshness(60.0).holds(shown(JobStatus.QUEUED), is_whole=False)


def test_a_new_connection_is_no_reason_to_doubt_but_one_that_was_lost_is() -> None:
    view_freshness, connections = ViewFreshness(60.0), [RedisConnection(), RedisConnection()]
    for connection in connections:
        view_freshness.connected(connection)
    assert view_freshness.holds(shown(JobStatus.RUNNING), is_whole=True)
    view_freshness.connected(connections[0])
    assert not view_freshness.holds(shown(JobStatus.RUNNING), is_whole=True)


def test_a_gateway_that_asked_nothing_while_the_broker_was_away_shows_no_step_back(
    jobs: Connection, post: Callable[..., str], server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the campaign (seed 5): one gateway read the end from the blobs, the other showed the job as running."""
    job_id = post(jobs)
    jobs.reconciler.rebuild()
    lease = jobs.worker.claim(job_id, "worker")
    assert jobs.service.get(job_id).status == JobStatus.RUNNING

    def away(*_: object, **__: object) -> None:
        raise BrokerUnavailableError("away")

    with monkeypatch.context() as outage:
        outage.setattr(jobs.backends.live, "put", away)
        jobs.worker.fail(lease, JobError(type="/problems/x", title=".", detail=".", retryable=False))
    server.execute_command("CLIENT KILL TYPE normal SKIPME yes")  # what a restart does to every connection
    assert jobs.service.get(job_id).status == JobStatus.FAILED


def test_a_job_that_was_cancelled_while_the_broker_was_away_is_shown_so_when_it_is_back(
    jobs: Connection, post: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the campaign (seed 1): shown as queued again, until a worker took its message."""
    job_id = post(jobs)
    jobs.reconciler.rebuild()

    def away(*_: object, **__: object) -> None:
        raise BrokerUnavailableError("away")

    with monkeypatch.context() as outage:
        outage.setattr(jobs.backends.live, "put", away)
        outage.setattr(jobs.backends.live, "_read", away)
        assert jobs.service.cancel(job_id).status == JobStatus.CANCELLED
    live = jobs.backends.live
    deadline = time.monotonic() + 10
    while live.status(job_id) != JobStatus.CANCELLED and time.monotonic() < deadline:
        time.sleep(0.05)
    assert live.status(job_id) == JobStatus.CANCELLED


def test_a_comparison_shows_the_end_of_a_job_whose_process_did_not_live_to_show_it(
    jobs: Connection, post: Callable[..., str]
) -> None:
    job_id = post(jobs)
    record = jobs.backends.store.record(job_id)
    jobs.backends.store.create_manifest(finalize.cancelled(record, 0))
    assert jobs.backends.live.status(job_id) == JobStatus.QUEUED
    jobs.reconciler.rebuild()
    assert jobs.backends.live.status(job_id) == JobStatus.CANCELLED


def test_a_reaper_compares_after_its_connections_broke(
    jobs: Connection, post: Callable[..., str], server: redis.Redis
) -> None:
    jobs.reconciler.reconcile()
    job_id = post(jobs)
    jobs.backends.store.create_manifest(finalize.cancelled(jobs.backends.store.record(job_id), 0))
    server.execute_command("CLIENT KILL TYPE normal SKIPME yes")
    jobs.reconciler.reconcile()
    jobs.reconciler.reconcile()
    assert jobs.backends.live.status(job_id) == JobStatus.CANCELLED
