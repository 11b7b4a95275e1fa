"""The feed of all changes over HTTP."""

import threading
import time
from pathlib import Path

import pytest
import redis

from jobs.settings import ApiSettings

from .conftest import Service, require_problem, running_service


def page(service: Service, prefer: str = "", **query: str) -> dict:
    answer = service.client.get("/v1/events", params=query, headers={"Prefer": prefer} if prefer else {})
    assert answer.status_code == 200, answer.text
    body: dict = answer.json()
    return body


def test_a_client_that_keeps_its_cursor_gets_each_change(shared: Service) -> None:
    cursor = page(shared, start="newest")["next_cursor"]
    job_id = shared.succeeded(33.0, client_reference="worklist-4711")
    assert shared.client.delete(f"/v1/jobs/{shared.submit()}").status_code == 204
    got: list[dict] = []
    has_more = True
    while has_more:
        body = page(shared, cursor=cursor, limit="2")
        got, cursor, has_more = got + body["items"], body["next_cursor"], body["has_more"]
    assert page(shared, cursor=cursor) == {"items": [], "next_cursor": cursor, "has_more": False}
    mine = [event for event in got if event["job_id"] == job_id]
    kinds = [event["type"].removeprefix("lobewise.job.") for event in mine]
    assert kinds == ["created", "running", "succeeded"]
    assert [event["status"] for event in mine] == ["queued", "running", "succeeded"]
    assert {event["client_reference"] for event in mine} == {"worklist-4711"}
    assert [event["severity"] and event["severity"]["percent_opacity"] for event in mine] == [None, None, 33.0]
    assert got[-1] | {"id": "", "time": "", "job_id": ""} == {
        "id": "",
        "time": "",
        "type": "lobewise.job.purged",
        "job_id": "",
        "status": None,
        "client_reference": None,
        "batch_id": None,
        "severity": None,
    }


def test_a_wait_ends_with_the_first_change(shared: Service) -> None:
    cursor = page(shared, start="newest")["next_cursor"]
    later = threading.Timer(0.3, shared.submit)
    begin = time.monotonic()
    later.start()
    answer = shared.client.get("/v1/events", params={"cursor": cursor}, headers={"Prefer": "wait=20"})
    later.join()
    assert 0.2 < time.monotonic() - begin < 10
    assert [event["type"] for event in answer.json()["items"]] == ["lobewise.job.created"]
    assert answer.headers["preference-applied"] == "wait=20"


def test_a_wait_without_a_change_ends_in_time(shared: Service) -> None:
    begin = time.monotonic()
    body = page(shared, "wait=1", start="newest")
    assert 0.9 < time.monotonic() - begin < 5
    assert body["items"] == []
    assert page(shared, cursor=body["next_cursor"])["items"] == []


def test_too_many_waits_are_answered_at_once(tmp_path: Path) -> None:
    with running_service(tmp_path / "service", ApiSettings(max_streams=1)) as service:
        while service.client.get("/v1/events").status_code == 503:  # until the reconciler has looked
            time.sleep(0.05)
        waiting = threading.Thread(target=page, args=(service, "wait=3"), kwargs={"start": "newest"})
        waiting.start()
        time.sleep(0.5)
        answer = service.client.get("/v1/events", headers={"Prefer": "wait=3"})
        assert waiting.is_alive()
        assert "preference-applied" not in answer.headers
        waiting.join()


def test_a_cursor_from_before_a_wipe_is_410(alone: Service) -> None:
    cursor = page(alone, start="newest")["next_cursor"]
    with redis.Redis.from_url(alone.jobs.settings.redis_url or "") as server:
        server.flushall()
    require_problem(alone.client.get("/v1/events", params={"cursor": cursor}), 503, "broker-unavailable")
    alone.jobs.reconciler.rebuild()
    problem = require_problem(alone.client.get("/v1/events", params={"cursor": cursor}), 410, "cursor-expired")
    assert not problem["retryable"]


@pytest.mark.parametrize(
    "query", ["cursor=x", "cursor=", "limit=0", "limit=201", "start=now", "after=1", "limit=1&limit=2"]
)
def test_what_is_not_understood_is_422(shared: Service, query: str) -> None:
    require_problem(shared.client.get(f"/v1/events?{query}"), 422, "invalid-parameters")
