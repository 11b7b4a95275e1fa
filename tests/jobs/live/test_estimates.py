"""When a queued job may begin: from its position, the ready workers and what the last jobs took."""

from collections.abc import Callable
from datetime import datetime

import pytest
import redis

from jobs import states
from jobs.bootstrap import Connection
from jobs.live.keys import RECENT
from jobs.live.redis_view import RECENT_KEPT
from jobs.models import JobState, JobStatus

Post = Callable[..., str]


@pytest.mark.parametrize(
    ("position", "ready", "running", "seconds"),
    [
        (1, 1, 0, 0.0),  # an idle worker
        (1, 1, 1, 40.0),  # behind the one that runs
        (3, 1, 1, 120.0),
        (1, 4, 4, 10.0),  # of four that run, one ends every ten seconds
        (8, 4, 4, 80.0),
        (2, 4, 2, 0.0),
        (3, 4, 2, 10.0),
        (5, 2, 7, 100.0),  # five whose workers were lost a moment ago
    ],
)
def test_the_wait_follows_from_who_is_ahead_and_how_many_work(
    position: int, ready: int, running: int, seconds: float
) -> None:
    assert states.estimated_wait_seconds(position, ready, running, 40.0) == seconds


@pytest.mark.parametrize(("ready", "seconds_per_job"), [(0, 40.0), (2, None), (0, None)])
def test_without_workers_or_a_measurement_there_is_no_estimate(ready: int, seconds_per_job: float | None) -> None:
    assert states.estimated_wait_seconds(1, ready, 0, seconds_per_job) is None


def wait_of(state: JobState) -> float | None:
    return state.estimated_start_at and (state.estimated_start_at - states.now()).total_seconds()


def test_a_queued_job_has_it_and_no_other(jobs: Connection, server: redis.Redis, post: Post, finished: Post) -> None:
    waiting = [post(jobs) for _ in range(3)]
    for worker in ("one", "two"):
        jobs.worker.workers.announce(worker, 600)
    assert [jobs.service.get(job_id).estimated_start_at for job_id in waiting] == [None] * 3
    server.lpush(RECENT, 60_000, 20_000)
    waits = [wait_of(jobs.service.get(job_id)) for job_id in waiting]
    assert waits == [pytest.approx(wanted, abs=5) for wanted in (0, 0, 20)]
    lease = jobs.worker.claim(waiting[0], "one")
    assert jobs.service.get(waiting[0]).estimated_start_at is None
    waits = [wait_of(jobs.service.get(job_id)) for job_id in waiting[1:]]
    assert waits == [pytest.approx(wanted, abs=5) for wanted in (0, 20)]
    lease.drop()


def test_it_alone_makes_no_new_revision(jobs: Connection, server: redis.Redis, post: Post) -> None:
    _, second = post(jobs), post(jobs)
    jobs.worker.workers.announce("one", 600)
    seen = {}
    for took_ms in (1_000_000, 3_000_000):
        server.lpush(RECENT, took_ms)
        state = jobs.service.get(second)
        seen[state.revision] = state.estimated_start_at
    assert len(seen) == 1
    assert isinstance(seen.popitem()[1], datetime)


def test_what_workers_ended_is_measured_and_the_oldest_forgotten(
    jobs: Connection, server: redis.Redis, post: Post, finished: Post
) -> None:
    finished(jobs)
    assert server.llen(RECENT) == 1
    assert 0 <= int(server.lindex(RECENT, 0)) < 30_000
    # Neither says how long a worker needs: no worker began the one, and the worker of the other was lost.
    jobs.service.cancel(post(jobs))
    lost = post(jobs)
    jobs.worker.claim(lost, "lost").drop()
    jobs.service.cancel(lost)
    jobs.reconciler.reconcile()
    assert jobs.service.get(lost).status == JobStatus.CANCELLED
    assert server.llen(RECENT) == 1
    server.lpush(RECENT, *range(RECENT_KEPT))
    finished(jobs)
    assert server.llen(RECENT) == RECENT_KEPT
