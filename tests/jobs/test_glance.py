"""States for an event loop: as `Jobs.get` tells them, one question for all who ask at once."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import redis

from lobewise.jobs.belief import Belief
from lobewise.jobs.errors import JobNotFoundError, JobPurgedError
from lobewise.jobs.glance import Glance
from lobewise.jobs.ids import new_id
from lobewise.jobs.models import JobState
from lobewise.jobs.service import Jobs

Post = Callable[..., str]


def glancing(jobs: Jobs, look: Callable[[Glance], Awaitable[list[JobState]]]) -> list[JobState]:
    async def run() -> list[JobState]:
        glance = jobs.open_glance()
        try:
            return await look(glance)
        finally:
            await glance.close()

    return asyncio.run(run())


def all_at_once(jobs: Jobs, *job_ids: str) -> list[JobState]:
    return glancing(jobs, lambda glance: asyncio.gather(*map(glance.get, job_ids)))


def test_it_tells_what_get_does(jobs: Jobs, post: Post, finished: Post) -> None:
    job_ids = [finished(jobs), post(jobs), post(jobs, priority="stat"), post(jobs, priority="batch")]
    assert all_at_once(jobs, *job_ids) == [jobs.get(job_id) for job_id in job_ids]


def test_many_who_ask_at_once_share_a_question(jobs: Jobs, post: Post, server: redis.Redis) -> None:
    job_ids = [post(jobs) for _ in range(5)]
    all_at_once(jobs, *job_ids)  # Redis knows the script from here on
    before = server.info("commandstats")["cmdstat_evalsha"]["calls"]
    found = all_at_once(jobs, *job_ids * 40)
    asked = server.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    assert [state.id for state in found] == job_ids * 40
    assert asked <= 3


def test_who_goes_away_takes_no_answer_from_others(jobs: Jobs, post: Post) -> None:
    job_id = post(jobs)

    async def look(glance: Glance) -> list[JobState]:
        hasty = asyncio.create_task(glance.get(job_id))
        patient = asyncio.create_task(glance.get(job_id))
        await asyncio.sleep(0)
        hasty.cancel()
        return [await patient, await glance.get(job_id)]

    assert [state.id for state in glancing(jobs, look)] == [job_id, job_id]


def test_what_redis_does_not_know_the_blobs_tell(jobs: Jobs, post: Post, finished: Post, server: redis.Redis) -> None:
    job_ids = [finished(jobs), post(jobs)]
    server.flushall()
    assert [state.status for state in all_at_once(jobs, *job_ids)] == ["succeeded", "queued"]


def test_without_the_broker_the_blobs_tell(jobs: Jobs, without_broker: Jobs, post: Post, finished: Post) -> None:
    job_ids = [finished(jobs), post(jobs)]
    assert [state.status for state in all_at_once(without_broker, *job_ids)] == ["succeeded", "queued"]


def test_unknown_impossible_and_purged_ids_are_errors(jobs: Jobs, finished: Post) -> None:
    for job_id in (new_id(), "../../etc"):
        with pytest.raises(JobNotFoundError):
            all_at_once(jobs, job_id)
    job_id = finished(jobs)
    jobs.purge(job_id)
    with pytest.raises(JobPurgedError):
        all_at_once(jobs, job_id)


def test_a_silent_broker_is_asked_once(without_broker: Jobs, jobs: Jobs, post: Post) -> None:
    """Found by a drill: it was asked three times in turn, a second each."""
    job_id = post(jobs)

    def never(_job_id: str) -> JobState:
        raise AssertionError("this asks the broker again")

    async def look() -> JobState:
        glance = Glance(without_broker.settings, Belief(1.0), never, without_broker._records.state)
        try:
            return await glance.get(job_id)
        finally:
            await glance.close()

    assert asyncio.run(look()).id == job_id
