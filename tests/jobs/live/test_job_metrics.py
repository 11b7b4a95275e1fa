"""What workers did is counted once for each job, however it came to its end."""

import time
from collections.abc import Callable

import pytest
import redis

from jobs.bootstrap import Connection, connect
from jobs.errors import LeaseLostError
from jobs.live.job_metrics import BUCKETS_SECONDS, PROBLEMS
from jobs.live.keys import METRICS
from jobs.live.workers import WorkerStats
from jobs.models import JobError, JobStatus, Priority, Stage
from tests.jobs.conftest import report_for

INFINITY = float("inf")


def counted(jobs: Connection) -> dict[tuple[str, str], int]:
    return {
        (str(outcome), slug): n for (outcome, slug), n in jobs.service.monitoring.job_metrics().finished.items() if n
    }


def ended(jobs: Connection) -> int:
    return sum(histogram.buckets[INFINITY] for histogram in jobs.service.monitoring.job_metrics().job_seconds.values())


def error(slug: str = "not-chest-ct") -> JobError:
    return JobError(type=f"/problems/{slug}", title="t", detail="d", retryable=False)


def test_a_job_counts_once_with_its_stages_and_its_time(jobs: Connection, post: Callable[..., str]) -> None:
    job_id = post(jobs, priority=Priority.STAT)
    report = report_for(job_id)
    seconds = {"fetch": 0.1, "lungs": 7.0, "lesions": 5000.0, "a stage of another version": 1.0}
    report = report.model_copy(update={"provenance": report.provenance.model_copy(update={"seconds": seconds})})
    with jobs.worker.claim(job_id, "w") as lease:
        lease.report(Stage.LUNGS, 0.2)
        assert jobs.service.monitoring.running()[Stage.LUNGS] == 1
        jobs.worker.succeed(lease, report, {})
    figures = jobs.service.monitoring.job_metrics()
    assert counted(jobs) == {("succeeded", ""): 1}
    assert sum(jobs.service.monitoring.running().values()) == 0
    lungs, lesions = figures.stage_seconds[Stage.LUNGS], figures.stage_seconds[Stage.LESIONS]
    assert (lungs.buckets[5.0], lungs.buckets[10.0], lungs.buckets[INFINITY], lungs.sum_seconds) == (0, 1, 1, 7.0)
    assert (lesions.buckets[BUCKETS_SECONDS[-1]], lesions.buckets[INFINITY]) == (0, 1)
    assert figures.stage_seconds[Stage.FETCH].buckets[0.1] == 1
    assert figures.stage_seconds[Stage.STORE].buckets[INFINITY] == 1
    assert figures.stage_seconds[Stage.READ].buckets[INFINITY] == 0
    assert figures.job_seconds[Priority.STAT].buckets[INFINITY] == ended(jobs) == 1


def test_a_failure_counts_with_its_problem_and_an_unknown_one_as_other(
    jobs: Connection, post: Callable[..., str]
) -> None:
    for slug in ("not-chest-ct", "unheard-of"):
        with jobs.worker.claim(post(jobs), "w") as lease:
            jobs.worker.fail(lease, error(slug), {"read": 0.3})
    assert counted(jobs) == {("failed", "not-chest-ct"): 1, ("failed", "other"): 1}
    assert jobs.service.monitoring.job_metrics().stage_seconds[Stage.READ].buckets[0.5] == 2
    assert set(jobs.service.monitoring.job_metrics().finished) == {
        (JobStatus.SUCCEEDED, ""),
        (JobStatus.CANCELLED, ""),
        *((JobStatus.FAILED, slug) for slug in PROBLEMS),
    }


def test_a_job_that_is_attempted_again_counts_once(jobs: Connection, post: Callable[..., str]) -> None:
    job_id = post(jobs)
    with jobs.worker.claim(job_id, "w") as lease:
        jobs.worker.retry(lease, RuntimeError("a fault"))
    assert counted(jobs) == {}
    with jobs.worker.claim(job_id, "w") as lease:
        jobs.worker.fail(lease, error(), {"fetch": 0.1})
        with pytest.raises(LeaseLostError):
            jobs.worker.fail(lease, error(), {"fetch": 0.1})
    assert counted(jobs) == {("failed", "not-chest-ct"): 1}
    assert jobs.service.monitoring.job_metrics().stage_seconds[Stage.FETCH].buckets[INFINITY] == ended(jobs) == 1


def test_a_job_that_the_reaper_gives_up_counts_once(jobs: Connection, post: Callable[..., str]) -> None:
    job_id = post(jobs)
    for _ in range(jobs.settings.max_attempts):
        jobs.worker.claim(job_id, "w")  # and dies: no heartbeat
        time.sleep(jobs.settings.lease_seconds + 0.1)
        jobs.reconciler.reconcile()
    assert counted(jobs) == {("failed", "poison"): 1}
    jobs.reconciler.reconcile()
    jobs.reconciler.rebuild()
    assert ended(jobs) == 1


def test_a_job_cancelled_while_it_waited_counts_and_a_deleted_one_does_not(
    jobs: Connection, post: Callable[..., str]
) -> None:
    jobs.service.cancel(post(jobs))
    jobs.service.purge(post(jobs))
    assert counted(jobs) == {("cancelled", ""): 1}


def test_a_rebuild_counts_nothing_again(jobs: Connection, server: redis.Redis, finished: Callable[..., str]) -> None:
    finished(jobs)
    server.flushall()
    jobs.reconciler.rebuild()
    assert counted(jobs) == {}
    finished(jobs)
    assert counted(jobs) == {("succeeded", ""): 1}


def test_a_job_that_ends_while_the_broker_is_down_ends_all_the_same_and_counts_later(
    jobs: Connection, post: Callable[..., str]
) -> None:
    job_id = post(jobs)
    down = connect(jobs.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    with jobs.worker.claim(job_id, "w") as lease:
        down.worker.fail(lease, error(), {"read": 1.0})
    assert down.service.get(job_id).status is JobStatus.FAILED
    assert counted(jobs) == {}
    time.sleep(jobs.settings.lease_seconds + 0.1)
    jobs.reconciler.reconcile()
    assert counted(jobs) == {("failed", "not-chest-ct"): 1}
    assert jobs.service.monitoring.job_metrics().stage_seconds[Stage.READ].buckets[INFINITY] == 0
    down.close()


def test_bounds_of_another_version_go_into_the_next_of_ours(jobs: Connection, server: redis.Redis) -> None:
    server.hset(METRICS, mapping={"stage:read:le:3": 2, "stage:read:le:99999": 1, "stage:read:ms": 1500})
    read = jobs.service.monitoring.job_metrics().stage_seconds[Stage.READ]
    assert (read.buckets[2.5], read.buckets[5.0], read.buckets[1800.0], read.buckets[INFINITY]) == (0, 2, 2, 3)
    assert read.sum_seconds == 1.5


def test_workers_say_how_they_are_until_they_fall_silent(jobs: Connection) -> None:
    worker_stats = WorkerStats(peak_memory_bytes=5, gpu_memory_used_bytes=2, gpu_memory_total_bytes=3)
    jobs.worker.workers.announce("host:1", 0.3, worker_stats=worker_stats)
    jobs.worker.workers.announce("host:2", 30)
    assert jobs.service.monitoring.job_metrics().workers == {"host:1": worker_stats}
    time.sleep(0.4)
    assert jobs.service.monitoring.job_metrics().workers == {}
