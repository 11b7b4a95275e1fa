"""Pages of jobs: complete, stable, the same from Redis as from the blobs."""

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.bootstrap import Connection, connect
from jobs.errors import InvalidCursorError
from jobs.live.keys import Keys
from jobs.live.pagination import ALL, Query, severity_member
from jobs.models import InputInfo, JobRecord, JobState, JobStatus, Manifest, Priority, SeverityScores
from jobs.settings import JobsSettings
from jobs.states import JobPage, first_id, make_state, new_id, now
from jobs.store.job_store import Claim

Post = Callable[..., str]

FIRST = datetime(2026, 3, 2, 9, tzinfo=UTC)
#: Of some jobs the scan was long in coming; and clocks may be set back.
DELAYS_SECONDS = (0, 0, 0.2, 3, 90, -4)
REFERENCES = ("worklist-1", "worklist-2", "=worklist")
moments = st.integers(-20_000, 140_000).map(lambda n: FIRST + timedelta(milliseconds=n))
queries = st.builds(
    Query,
    sort=st.sampled_from(["-created_at", "created_at", "severity"]),
    status=st.frozensets(st.sampled_from(JobStatus), max_size=3),
    priority=st.none() | st.sampled_from(Priority),
    client_reference=st.none() | st.sampled_from((*REFERENCES, "no job's")),
    created_after=st.none() | moments,
    created_before=st.none() | moments,
)


def succeeded(percent_opacity: float) -> JobState:
    scores = SeverityScores(
        percent_opacity=percent_opacity, percent_high_opacity=0, lung_severity_score=0, lung_high_opacity_score=0
    )
    return make_state(
        id=new_id(),
        status=JobStatus.SUCCEEDED,
        created_at=now(),
        updated_at=now(),
        input=InputInfo(),
        severity=scores,
    )


def pages(jobs: Connection, limit: int, query: Query = ALL) -> Iterator[JobPage]:
    cursor = None
    while True:
        page = jobs.service.list(query, limit=limit, cursor=cursor)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


def ids(jobs: Connection, limit: int, query: Query = ALL) -> list[str]:
    return [state.id for page in pages(jobs, limit, query) for state in page.items]


@given(queries)
def test_a_cursor_leads_back_to_its_member(query: Query) -> None:
    member = severity_member(succeeded(50.0)) if query.sort == "severity" else new_id()
    assert member is not None
    assert query.decode(query.encode(member)) == member


@given(queries, queries)
def test_a_cursor_of_another_query_is_refused(one: Query, other: Query) -> None:
    member = severity_member(succeeded(50.0)) if one.sort == "severity" else new_id()
    if one != other:
        with pytest.raises(InvalidCursorError):
            other.decode(one.encode(member or ""))


@given(queries, st.text() | st.binary().map(lambda b: base64.urlsafe_b64encode(b).decode()))
def test_anything_else_is_refused(query: Query, cursor: str) -> None:
    with pytest.raises(InvalidCursorError):
        query.decode(cursor)


@given(queries, st.text())
def test_a_forged_member_is_refused(query: Query, member: str) -> None:
    with pytest.raises(InvalidCursorError):
        query.decode(query.encode(member))


def test_a_cursor_of_the_version_before_goes_on() -> None:
    member = new_id()
    for query in (ALL, Query("created_at", frozenset({JobStatus.QUEUED}), Priority.STAT)):
        before = [query.sort, next(iter(query.status), None), query.priority, member]
        assert query.decode(base64.urlsafe_b64encode(json.dumps(before).encode()).decode()) == member


@given(st.floats(0, 100), st.floats(0, 100))
def test_members_sort_as_the_percentages_do(one: float, other: float) -> None:
    first, second = severity_member(succeeded(one)), severity_member(succeeded(other))
    assert first is not None
    assert second is not None
    if round(one, 4) < round(other, 4):
        assert first < second


@pytest.fixture
def jobs_of_all_kinds(jobs: Connection, post: Post, finished: Post) -> Connection:
    for percent, priority in zip((5.0, 100.0, 0.0, 5.0, 42.0), (*Priority, *Priority), strict=False):
        finished(jobs, percent, priority=priority)
        jobs.service.cancel(post(jobs, priority=priority))
        post(jobs, priority=priority)
    return jobs


def of(*status: JobStatus) -> frozenset[JobStatus]:
    return frozenset(status)


SOME = [
    ALL,
    Query("created_at"),
    Query("severity"),
    Query(status=of(JobStatus.QUEUED)),
    Query(status=of(JobStatus.CANCELLED, JobStatus.SUCCEEDED), priority=Priority.STAT),
    Query("severity", priority=Priority.ROUTINE),
    Query("severity", of(JobStatus.SUCCEEDED, JobStatus.QUEUED)),
    Query("severity", of(JobStatus.FAILED)),
    Query(
        "created_at", priority=Priority.BATCH, client_reference="mine", created_before=datetime.max.replace(tzinfo=UTC)
    ),
]


def test_every_list_is_the_same_from_redis_and_from_the_blobs_and_for_any_page_size(
    jobs_of_all_kinds: Connection, without_broker: Connection
) -> None:
    for query in SOME:
        whole = ids(jobs_of_all_kinds, 99, query)
        assert ids(without_broker, 99, query) == whole
        assert ids(jobs_of_all_kinds, 2, query) == whole
        assert ids(without_broker, 4, query) == whole
    assert len(ids(jobs_of_all_kinds, 99)) == 15


def test_the_latest_the_oldest_or_the_most_severe_comes_first(jobs_of_all_kinds: Connection) -> None:
    latest, oldest = ids(jobs_of_all_kinds, 3), ids(jobs_of_all_kinds, 3, Query("created_at"))
    assert latest == oldest[::-1] == sorted(latest, reverse=True)
    found = [state.severity for page in pages(jobs_of_all_kinds, 2, Query("severity")) for state in page.items]
    assert [scores.percent_opacity for scores in found if scores] == [100.0, 42.0, 5.0, 5.0, 0.0]


def test_jobs_that_arrive_while_paging_neither_repeat_nor_hide_others(jobs: Connection, post: Post) -> None:
    old = [post(jobs) for _ in range(6)]
    page = jobs.service.list(limit=3)
    for _ in range(4):
        post(jobs)
    rest = jobs.service.list(limit=9, cursor=page.next_cursor)
    assert [s.id for s in (*page.items, *rest.items)] == sorted(old, reverse=True)


def test_a_page_survives_a_wipe_in_the_middle(jobs: Connection, server: redis.Redis, post: Post) -> None:
    all_of_them = sorted(post(jobs) for _ in range(5))
    page = jobs.service.list(Query("created_at"), limit=2)
    server.flushall()
    rest = jobs.service.list(Query("created_at"), limit=9, cursor=page.next_cursor)
    assert [s.id for s in (*page.items, *rest.items)] == all_of_them


# Filters


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Some jobs of every kind, over two minutes."""
    jobs = connect(JobsSettings(data_dir=tmp_path_factory.mktemp("listed")))
    jobs.reconciler.rebuild()
    random = Random(21)  # noqa: S311  # dice
    for number in range(60):
        made_at = FIRST + timedelta(seconds=2 * number)
        created_at = made_at + timedelta(seconds=random.choice(DELAYS_SECONDS))
        record = JobRecord(
            id=first_id(made_at.timestamp() * 1000) + new_id()[13:],
            created_at=created_at,
            input=InputInfo(),
            priority=random.choice(list(Priority)),
            client_reference=random.choice((None, *REFERENCES)),
        )
        store_job(jobs, record, random.choice(list(JobStatus)), random.choice((0.0, 5.0, 42.0, 100.0)))
    yield jobs
    jobs.close()


@pytest.fixture(scope="module")
def listed_from_blobs(listed: Connection) -> Iterator[Connection]:
    other = connect(listed.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    yield other
    other.close()


def store_job(jobs: Connection, record: JobRecord, status: JobStatus, percent_opacity: float) -> None:
    store = jobs.backends.store
    store.create_job(record)
    jobs.backends.live.put(store.state(record.id), guard="new")
    if status != JobStatus.QUEUED:
        store.attempts.create_claim(record.id, Claim(attempt=1, started_at=record.created_at, worker="one"))
        jobs.backends.live.put(store.state(record.id))
    if status.is_final:
        severity = succeeded(percent_opacity).severity if status == JobStatus.SUCCEEDED else None
        ended = {"outcome": status.value, "attempt": 1, "finished_at": record.created_at, "severity": severity}
        store.create_manifest(Manifest.model_validate({"job_id": record.id, **ended}))
        jobs.backends.live.put(store.state(record.id))


def states_of(jobs: Connection) -> list[JobState]:
    """What the blobs say."""
    return [jobs.backends.store.state(files.job_id, files) for files in jobs.backends.store.all_files()]


@pytest.fixture(scope="module")
def states(listed: Connection) -> list[JobState]:
    return states_of(listed)


def expected(states: list[JobState], query: Query) -> list[str]:
    members = [query.member(state) for state in states]
    return [m.rpartition(":")[2] for m in sorted((m for m in members if m), reverse=query.is_descending)]


@given(queries, st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_any_filters_find_what_the_blobs_say(
    listed: Connection, states: list[JobState], query: Query, limit: int
) -> None:
    assert ids(listed, limit, query) == expected(states, query)


@given(queries)
@settings(max_examples=8, deadline=None)
def test_any_filters_find_the_same_without_the_broker(
    listed: Connection, listed_from_blobs: Connection, query: Query
) -> None:
    assert ids(listed_from_blobs, 30, query) == ids(listed, 7, query)


@pytest.mark.parametrize("cost", [0, 10**9])
@given(query=queries.filter(lambda query: query.sort == "severity"), limit=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_both_ways_to_the_most_severe_lead_to_the_same(
    listed: Connection, states: list[JobState], cost: int, query: Query, limit: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.live.job_lists._READ_COST", cost)
        assert ids(listed, limit, query) == expected(states, query)


def test_a_range_of_times_has_its_first_moment_and_not_its_last(listed: Connection, states: list[JobState]) -> None:
    states = sorted(states, key=lambda state: state.created_at)
    first, last = states[10].created_at, states[40].created_at
    found = ids(listed, 200, Query(created_after=first, created_before=last))
    assert sorted(found) == sorted(state.id for state in states if first <= state.created_at < last)
    days = [Query(created_before=first), Query(created_after=first, created_before=last), Query(created_after=last)]
    assert sorted(i for query in days for i in ids(listed, 200, query)) == sorted(state.id for state in states)


NARROW = [
    Query("created_at", client_reference="mine"),
    Query("severity", client_reference="mine"),
    Query(status=of(JobStatus.QUEUED, JobStatus.SUCCEEDED), created_after=FIRST),
]


@pytest.mark.parametrize("query", NARROW)
def test_a_view_that_an_older_version_filled_is_not_believed_until_its_lists_are_whole(
    jobs: Connection, server: redis.Redis, post: Post, finished: Post, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {post(jobs, client_reference="mine"), finished(jobs, client_reference="mine")}
    others = {post(jobs), finished(jobs, client_reference="yours")}
    right = expected(states_of(jobs), query)
    assert ids(jobs, 9, query) == right
    server.delete(Keys().delays, Keys().references)  # an older version knows neither
    assert ids(jobs, 9, query) == right
    jobs.reconciler.reconcile()
    with monkeypatch.context() as patch:
        patch.setattr(jobs.service.listing, "_walk_blobs", lambda *_: pytest.fail("the view is whole again"))
        assert ids(jobs, 9, query) == right
    assert set(server.zrange(Keys().delays, 0, -1)) == found | others

    # It goes on running for a while, and deletes a job: what it leaves in the lists goes at the next look.
    gone = right[0]
    monkeypatch.setattr("jobs.live.redis_view.reference_member", lambda _state: None)
    jobs.service.purge(gone)
    server.zadd(Keys().delays, {gone: 0})
    assert ids(jobs, 9, query) == right[1:]
    jobs.reconciler.reconcile()
    assert gone not in str(server.zrange(Keys().delays, 0, -1)) + str(server.zrange(Keys().references, 0, -1))


def test_nothing_is_left_of_a_deleted_job(jobs: Connection, server: redis.Redis, finished: Post) -> None:
    job_id = finished(jobs, client_reference="mine")
    assert server.zcard(Keys().delays) == server.zcard(Keys().references) == 1
    jobs.service.purge(job_id)
    assert server.zcard(Keys().delays) == server.zcard(Keys().references) == 0


def test_no_reference_is_a_part_of_a_key_or_member(jobs: Connection, server: redis.Redis, post: Post) -> None:
    post(jobs, client_reference="worklist-4711")
    members = [member for key in server.scan_iter("*", _type="zset") for member in server.zrange(key, 0, -1)]
    assert "4711" not in str(list(server.scan_iter("*"))) + str(members)


@pytest.mark.parametrize("query", [Query("created_at", client_reference="mine"), Query(client_reference="mine"), ALL])
def test_a_walk_is_complete_and_has_nothing_twice_while_jobs_come_and_go(
    jobs: Connection, post: Post, query: Query
) -> None:
    kept, gone = [post(jobs, client_reference="mine") for _ in range(12)], []
    seen: list[str] = []
    for number, page in enumerate(pages(jobs, 3, query)):
        seen += [state.id for state in page.items]
        post(jobs, client_reference="mine" if number < 5 else "yours")
        left = [job_id for job_id in kept if job_id not in seen]
        if left and number < 2:
            jobs.service.purge(left[0])
            kept.remove(left[0])
            gone.append(left[0])
    assert len(seen) == len(set(seen))
    assert set(kept) <= set(seen)


def test_a_page_whose_jobs_went_meanwhile_still_leads_on(
    jobs: Connection, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_ids = [post(jobs) for _ in range(6)]
    real = jobs.backends.live.page

    def page(query: Query, after: str | None, limit: int) -> list[str] | None:
        found = real(query, after, limit)
        for job_id in job_ids[:3]:
            jobs.backends.live.remove(job_id)
        return found

    monkeypatch.setattr(jobs.backends.live, "page", page)
    assert [state.id for state in jobs.service.list(Query("created_at"), limit=2).items] == job_ids[3:5]
