"""Pages of jobs: complete, stable, the same from Redis as from the blobs."""

import base64
import json
from collections.abc import Callable, Iterator

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from jobs.bootstrap import Connection
from jobs.errors import InvalidCursorError
from jobs.live.pagination import Query, severity_member
from jobs.models import InputInfo, JobState, JobStatus, Priority, SeverityScores
from jobs.states import JobPage, make_state, new_id, now

Post = Callable[..., str]

queries = st.builds(
    Query,
    sort=st.sampled_from(["-created_at", "created_at", "severity"]),
    status=st.none() | st.sampled_from(JobStatus),
    priority=st.none() | st.sampled_from(Priority),
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


def pages(jobs: Connection, limit: int, **query: object) -> Iterator[JobPage]:
    cursor = None
    while True:
        page = jobs.service.list(limit=limit, cursor=cursor, **query)  # type: ignore[arg-type]
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


def ids(jobs: Connection, limit: int, **query: object) -> list[str]:
    return [state.id for page in pages(jobs, limit, **query) for state in page.items]


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
    forged = json.dumps([query.sort, query.status, query.priority, member])
    with pytest.raises(InvalidCursorError):
        query.decode(base64.urlsafe_b64encode(forged.encode()).decode())


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


ALL = [
    {},
    {"sort": "created_at"},
    {"sort": "severity"},
    {"status": JobStatus.QUEUED},
    {"status": JobStatus.CANCELLED, "priority": Priority.STAT},
    {"sort": "severity", "priority": Priority.ROUTINE},
    {"sort": "severity", "status": JobStatus.SUCCEEDED},
    {"sort": "severity", "status": JobStatus.FAILED},
    {"priority": Priority.BATCH, "sort": "created_at"},
]


def test_every_list_is_the_same_from_redis_and_from_the_blobs_and_for_any_page_size(
    jobs_of_all_kinds: Connection, without_broker: Connection
) -> None:
    for query in ALL:
        whole = ids(jobs_of_all_kinds, 99, **query)
        assert ids(without_broker, 99, **query) == whole
        assert ids(jobs_of_all_kinds, 2, **query) == whole
        assert ids(without_broker, 4, **query) == whole
    assert len(ids(jobs_of_all_kinds, 99)) == 15


def test_the_latest_the_oldest_or_the_most_severe_comes_first(jobs_of_all_kinds: Connection) -> None:
    latest, oldest = ids(jobs_of_all_kinds, 3), ids(jobs_of_all_kinds, 3, sort="created_at")
    assert latest == oldest[::-1] == sorted(latest, reverse=True)
    found = [state.severity for page in pages(jobs_of_all_kinds, 2, sort="severity") for state in page.items]
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
    page = jobs.service.list(limit=2, sort="created_at")
    server.flushall()
    rest = jobs.service.list(limit=9, sort="created_at", cursor=page.next_cursor)
    assert [s.id for s in (*page.items, *rest.items)] == all_of_them
