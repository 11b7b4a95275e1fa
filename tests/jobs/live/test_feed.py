"""The feed tells every change of every job, in each job's order, or says that it cannot."""

import time
from collections.abc import Callable
from contextlib import suppress

import pytest
import redis

from jobs.bootstrap import Connection, connect
from jobs.errors import BrokerUnavailableError, CursorExpiredError, InvalidCursorError
from jobs.live.keys import Keys
from jobs.models import JobError
from jobs.settings import JobsSettings

Finished = Callable[..., str]


def told(jobs: Connection, cursor: str, limit: int = 200) -> list[tuple[str, str]]:
    """Job and type of all that followed the cursor, read in pages."""
    found: list[tuple[str, str]] = []
    has_more = True
    while has_more:
        changes, states = jobs.service.changes(cursor, limit=limit)
        assert len(changes.items) == len(states) <= limit
        found += [(change.job_id, change.type.value) for change in changes.items]
        cursor, has_more = changes.next_cursor, changes.has_more
    return found


def now(jobs: Connection) -> str:
    return jobs.service.changes(None, limit=1, from_oldest=False)[0].next_cursor


@pytest.mark.parametrize("limit", [1, 2, 200])
def test_each_change_is_told_once_and_in_order(
    jobs: Connection, post: Callable[..., str], finished: Finished, limit: int
) -> None:
    cursor = now(jobs)
    first = post(jobs)
    done = finished(jobs)
    with jobs.worker.claim(first, "test") as lease:
        jobs.worker.requeue(lease)
    jobs.service.cancel(first)
    jobs.service.purge(done)
    everything = told(jobs, cursor, limit)
    assert [kind for job, kind in everything if job == first] == ["created", "running", "queued", "cancelled"]
    assert [kind for job, kind in everything if job == done] == ["created", "running", "succeeded", "purged"]
    oldest, _ = jobs.service.changes(None, limit=200)
    assert [(change.job_id, change.type.value) for change in oldest.items] == everything


def test_a_page_says_what_is_shown_of_its_jobs(jobs: Connection, finished: Finished) -> None:
    cursor = now(jobs)
    job_id = finished(jobs, 33.0, client_reference="worklist-1")
    changes, states = jobs.service.changes(cursor, limit=200)
    assert [state.client_reference for state in states if state] == ["worklist-1"] * 3
    assert states[-1] is not None
    assert states[-1].severity is not None
    jobs.service.purge(job_id)
    changes, states = jobs.service.changes(cursor, limit=200)
    assert states == [None] * 4
    assert [change.at for change in changes.items] == sorted(change.at for change in changes.items)


def test_nothing_of_a_deleted_job_stays_but_its_id(jobs: Connection, finished: Finished, server: redis.Redis) -> None:
    jobs.service.purge(finished(jobs, client_reference="worklist-1"))
    assert {name for _, fields in server.xrange(Keys().feed) for name in fields} == {"job", "type", "prev"}  # type: ignore[union-attr]


def test_a_wiped_broker_expires_every_cursor_and_tells_nothing_until_it_is_rebuilt(
    jobs: Connection, finished: Finished, post: Callable[..., str], server: redis.Redis
) -> None:
    kept = now(jobs)
    finished(jobs)
    server.flushall()
    with pytest.raises(BrokerUnavailableError):
        jobs.service.changes(kept, limit=10)
    jobs.reconciler.rebuild()
    post(jobs)
    with pytest.raises(CursorExpiredError):
        jobs.service.changes(kept, limit=10)
    # Those that were there are found by the list; only what is new is a change.
    assert [kind for _, kind in told(jobs, jobs.service.changes(None, limit=1)[0].next_cursor)] == []
    assert len(jobs.service.list(limit=10).items) == 2


def test_what_happened_while_the_broker_was_away_is_told_afterwards(
    jobs: Connection, without_broker: Connection, post: Callable[..., str]
) -> None:
    cursor = now(jobs)
    queued = post(jobs)
    deleted = post(jobs)
    unseen = post(without_broker)
    without_broker.service.cancel(queued)
    without_broker.service.purge(deleted)
    assert [kind for _, kind in told(jobs, cursor)] == ["created", "created"]
    jobs.reconciler.rebuild()
    everything = told(jobs, cursor)
    assert [kind for job, kind in everything if job == queued] == ["created", "cancelled"]
    assert [kind for job, kind in everything if job == deleted] == ["created", "purged"]
    assert [kind for job, kind in everything if job == unseen] == ["created"]


def test_a_job_that_is_first_shown_at_its_end_was_created_too(
    jobs: Connection, without_broker: Connection, post: Callable[..., str]
) -> None:
    cursor = now(jobs)
    job_id = post(without_broker)
    without_broker.service.cancel(job_id)
    jobs.service.get(job_id)
    assert told(jobs, cursor) == [(job_id, "created"), (job_id, "cancelled")]


def test_a_cursor_is_good_until_a_change_after_it_is_dropped(
    jobs: Connection, post: Callable[..., str], server: redis.Redis
) -> None:
    beginning = now(jobs)
    ids = [post(jobs) for _ in range(4)]
    changes, _ = jobs.service.changes(beginning, limit=200)
    after = [f"{beginning.partition('.')[0]}.{change.id}" for change in changes.items]
    server.xtrim(Keys().feed, maxlen=2, approximate=False)
    for lost in (beginning, after[0]):
        with pytest.raises(CursorExpiredError):
            jobs.service.changes(lost, limit=10)
    # Its own change is gone, and none that came after it.
    assert [job for job, _ in told(jobs, after[1])] == ids[2:]
    assert told(jobs, after[3]) == []
    assert [change.job_id for change in jobs.service.changes(None, limit=10)[0].items] == ids[2:]


def test_a_server_that_lost_its_last_changes_expires_the_cursors_to_them(
    jobs: Connection, post: Callable[..., str], server: redis.Redis
) -> None:
    post(jobs)
    before = now(jobs)
    post(jobs)
    lost = now(jobs)
    (entry, _), *_ = server.xrevrange(Keys().feed, count=1)  # type: ignore[misc]
    server.xdel(Keys().feed, entry)  # as a replica that was behind, or an older copy of the data, would
    with pytest.raises(CursorExpiredError):
        jobs.service.changes(lost, limit=10)
    after = post(jobs)
    with pytest.raises(CursorExpiredError):
        jobs.service.changes(lost, limit=10)
    assert told(jobs, before) == [(after, "created")]


@pytest.mark.parametrize("text", ["x", "1-1", "abc.", "abc.1-1 ", "a" * 100 + ".1-1", "é.1-1"])
def test_what_is_no_cursor_is_refused(jobs: Connection, text: str) -> None:
    with pytest.raises(InvalidCursorError):
        jobs.service.changes(text, limit=10)


@pytest.mark.parametrize(("limits", "most"), [({"feed_events": 100}, 200), ({"feed_seconds": 1}, 101)])
def test_length_and_age_are_bounded(
    settings: JobsSettings, post: Callable[..., str], limits: dict[str, int], most: int
) -> None:
    small = connect(settings.model_copy(update=limits))
    try:
        small.reconciler.rebuild()
        with redis.Redis.from_url(small.settings.redis_url or "", decode_responses=True) as server:
            job_id = post(small)

            def change() -> None:
                server.delete(f"lobewise:purged:{job_id}")
                small.backends.live.remove_traces(job_id)

            for _ in range(250):  # Redis drops whole nodes of a hundred
                change()
            time.sleep(1.1)
            change()
            assert 1 <= server.xlen(Keys().feed) <= most
    finally:
        small.close()


def test_failures_are_told_as_such(jobs: Connection, post: Callable[..., str]) -> None:
    cursor = now(jobs)
    job_id = post(jobs)
    with suppress(Exception), jobs.worker.claim(job_id, "test") as lease:
        jobs.worker.fail(lease, JobError(type="/problems/x", title="x", detail="x", retryable=False))
    assert told(jobs, cursor)[-1] == (job_id, "failed")
