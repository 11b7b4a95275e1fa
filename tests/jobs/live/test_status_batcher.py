"""States for an event loop: as `Jobs.get` tells them, one question for all who ask at once."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import redis

from jobs.bootstrap import Connection
from jobs.errors import JobNotFoundError, JobPurgedError
from jobs.live.connection import ViewFreshness
from jobs.live.status_batcher import StatusBatcher
from jobs.models import JobState
from jobs.states import new_id

Post = Callable[..., str]


def glancing(jobs: Connection, look: Callable[[StatusBatcher], Awaitable[list[JobState]]]) -> list[JobState]:
    async def run() -> list[JobState]:
        status_batcher = jobs.service.open_status_batcher()
        try:
            return await look(status_batcher)
        finally:
            await status_batcher.close()

    return asyncio.run(run())


def all_at_once(jobs: Connection, *job_ids: str) -> list[JobState]:
    return glancing(jobs, lambda status_batcher: asyncio.gather(*map(status_batcher.get, job_ids)))


def test_it_tells_what_get_does(jobs: Connection, post: Post, finished: Post) -> None:
    job_ids = [finished(jobs), post(jobs), post(jobs, priority="stat"), post(jobs, priority="batch")]
    assert all_at_once(jobs, *job_ids) == [jobs.service.get(job_id) for job_id in job_ids]


def test_many_who_ask_at_once_share_a_question(jobs: Connection, post: Post, server: redis.Redis) -> None:
    job_ids = [post(jobs) for _ in range(5)]
    all_at_once(jobs, *job_ids)  # Redis knows the script from here on
    before = server.info("commandstats")["cmdstat_evalsha"]["calls"]
    found = all_at_once(jobs, *job_ids * 40)
    asked = server.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    assert [state.id for state in found] == job_ids * 40
    assert asked <= 3


def test_who_goes_away_takes_no_answer_from_others(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)

    async def look(status_batcher: StatusBatcher) -> list[JobState]:
        hasty = asyncio.create_task(status_batcher.get(job_id))
        patient = asyncio.create_task(status_batcher.get(job_id))
        await asyncio.sleep(0)
        hasty.cancel()
        return [await patient, await status_batcher.get(job_id)]

    assert [state.id for state in glancing(jobs, look)] == [job_id, job_id]


def test_what_redis_does_not_know_the_blobs_tell(
    jobs: Connection, post: Post, finished: Post, server: redis.Redis
) -> None:
    job_ids = [finished(jobs), post(jobs)]
    server.flushall()
    assert [state.status for state in all_at_once(jobs, *job_ids)] == ["succeeded", "queued"]


def test_without_the_broker_the_blobs_tell(
    jobs: Connection, without_broker: Connection, post: Post, finished: Post
) -> None:
    job_ids = [finished(jobs), post(jobs)]
    assert [state.status for state in all_at_once(without_broker, *job_ids)] == ["succeeded", "queued"]


def test_unknown_impossible_and_purged_ids_are_errors(jobs: Connection, finished: Post) -> None:
    for job_id in (new_id(), "../../etc"):
        with pytest.raises(JobNotFoundError):
            all_at_once(jobs, job_id)
    job_id = finished(jobs)
    jobs.service.purge(job_id)
    with pytest.raises(JobPurgedError):
        all_at_once(jobs, job_id)


def test_a_silent_broker_is_asked_once(without_broker: Connection, jobs: Connection, post: Post) -> None:
    """Found by a drill: it was asked three times in turn, a second each."""
    job_id = post(jobs)

    def never(_job_id: str) -> JobState:
        raise AssertionError("this asks the broker again")

    async def look() -> JobState:
        status_batcher = StatusBatcher(
            without_broker.settings,
            ViewFreshness(1.0),
            never,
            without_broker.backends.store.state,
            without_broker.service.ends,
        )
        try:
            return await status_batcher.get(job_id)
        finally:
            await status_batcher.close()

    assert asyncio.run(look()).id == job_id
