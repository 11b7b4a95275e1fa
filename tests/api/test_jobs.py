"""Looking at jobs, stopping and deleting them."""

import json
from pathlib import Path

import pytest
import redis

from jobs.live.keys import Keys
from jobs.models import Priority, Stage

from .conftest import ALLOWED_SOURCE, Service, require_problem, running_service

UNKNOWN = "01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b11"
BELOW = ["", "/report", "/masks/lungs"]


def test_a_job_is_followed_by_its_etag(shared: Service) -> None:
    path = f"/v1/jobs/{shared.submit()}"
    first = shared.client.get(path)
    assert first.status_code == 200
    same = shared.client.get(path, headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
    assert int(same.headers["retry-after"]) == int(first.headers["retry-after"]) > 0

    job_id = first.json()["id"]
    with shared.jobs.worker.claim(job_id, "test") as lease:
        lease.report(Stage.LUNGS, 0.5)
        running = shared.client.get(path, headers={"If-None-Match": first.headers["etag"]})
        lease.drop()
    assert running.status_code == 200
    assert (running.json()["status"], running.json()["stage"], running.json()["progress"]) == ("running", "lungs", 0.5)
    assert running.json()["attempt"] == 1
    assert running.headers["etag"] != first.headers["etag"]


def test_a_succeeded_job_has_scores_and_links(shared: Service) -> None:
    job_id = shared.succeeded()
    answer = shared.client.get(f"/v1/jobs/{job_id}")
    job = answer.json()
    assert "retry-after" not in answer.headers
    assert job["status"] == "succeeded"
    assert job["severity"]["percent_opacity"] == 12.3
    assert job["links"]["cancel"] is None
    assert job["links"]["report"] == f"{shared.address}/v1/jobs/{job_id}/report"
    assert set(job["links"]["masks"]) == {"lungs", "lobes", "lesions", "high-opacity"}


def test_a_failed_job_is_a_200_with_the_problem_inside(shared: Service) -> None:
    job_id = shared.submit()
    shared.worker.fail(job_id)
    answer = shared.client.get(f"/v1/jobs/{job_id}")
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"]["type"] == "/problems/lungs-not-found"
    assert shared.client.get(answer.json()["error"]["type"]).status_code == 200


@pytest.mark.parametrize("job_id", [UNKNOWN, "7", "..", "%00", "a%2Fb", "é"])
@pytest.mark.parametrize("below", BELOW)
def test_an_unknown_job_is_404(shared: Service, job_id: str, below: str) -> None:
    answer = shared.client.get(f"/v1/jobs/{job_id}{below}")
    assert answer.status_code == 404
    assert answer.json()["type"] in ("/problems/job-not-found", "/problems/not-found")


def test_a_queued_job_is_cancelled_at_once(shared: Service) -> None:
    job_id = shared.submit()
    answer = shared.client.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    problem = require_problem(shared.client.post(f"/v1/jobs/{job_id}/cancel"), 409, "wrong-state")
    assert problem["evidence"] == {"status": "cancelled"}


def test_a_running_job_is_asked_to_stop(shared: Service) -> None:
    job_id = shared.submit()
    with shared.jobs.worker.claim(job_id, "test") as lease:
        answers = [shared.client.post(f"/v1/jobs/{job_id}/cancel") for _ in range(2)]
        assert [(a.status_code, a.json()["status"], a.json()["cancel_requested"]) for a in answers] == [
            (202, "running", True)
        ] * 2
        shared.jobs.worker.confirm_cancel(lease)
    assert shared.client.get(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"


def test_a_deleted_job_is_gone_with_all_its_files(alone: Service) -> None:
    job_id = alone.succeeded()
    assert alone.client.delete(f"/v1/jobs/{job_id}").status_code == 204
    for below in BELOW:
        require_problem(alone.client.get(f"/v1/jobs/{job_id}{below}"), 410, "job-purged")
    require_problem(alone.client.delete(f"/v1/jobs/{job_id}"), 410, "job-purged")
    require_problem(alone.client.post(f"/v1/jobs/{job_id}/cancel"), 410, "job-purged")
    assert alone.client.get("/v1/jobs").json()["items"] == []
    assert not [path for path in alone.stored_files() if path.name == "input" or "attempts" in path.parts]


# Lists


def pages(service: Service, query: str) -> list[list[str]]:
    """The client references page by page, led by the Link header."""
    found, address = [], f"/v1/jobs?{query}"
    while address:
        answer = service.client.get(address)
        assert answer.status_code == 200, answer.text
        found.append([job["client_reference"] for job in answer.json()["items"]])
        link = answer.headers.get("link")
        assert (link is None) is (answer.json()["next_cursor"] is None)
        address = link.removesuffix('>; rel="next"').removeprefix("<") if link else ""
    return found


def test_jobs_are_listed_in_pages(alone: Service) -> None:
    for name in "abcde":
        alone.submit(client_reference=name, priority="stat" if name in "bd" else "batch")
    assert pages(alone, "limit=2") == [["e", "d"], ["c", "b"], ["a"]]
    assert pages(alone, "limit=2&sort=created_at") == [["a", "b"], ["c", "d"], ["e"]]
    assert pages(alone, "limit=5") == [["e", "d", "c", "b", "a"]]
    assert pages(alone, "limit=1&priority=stat") == [["d"], ["b"]]
    assert pages(alone, "status=running") == [[]]


def test_the_worst_lungs_come_first(alone: Service) -> None:
    for name, percent in [("mild", 3.5), ("severe", 61.0), ("clear", 0.0), ("moderate", 24.9)]:
        alone.succeeded(percent, client_reference=name)
    alone.submit(client_reference="waiting")
    assert pages(alone, "sort=severity&limit=3") == [["severe", "moderate", "mild"], ["clear"]]
    assert pages(alone, "sort=severity&priority=routine") == [["severe", "moderate", "mild", "clear"]]
    assert pages(alone, "status=queued") == [["waiting"]]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "/query/limit"),
        ("limit=201", "/query/limit"),
        ("limit=ten", "/query/limit"),
        ("status=done", "/query/status/0"),
        ("priority=high", "/query/priority"),
        ("sort=name", "/query/sort"),
        ("cursor=forged", "/query/cursor"),
        ("client_reference=", "/query/client_reference"),
        ("client_reference=a&client_reference=b", "/query/client_reference"),
        ("status=queued&status=done", "/query/status/1"),
        ("created_after=", "/query/created_after"),
        ("created_after=2026-03-02", "/query/created_after"),
        ("created_after=2026-03-02T09:30:00", "/query/created_after"),
        ("created_after=1772444700", "/query/created_after"),
        ("created_before=2026-13-02T09:30:00Z", "/query/created_before"),
        (
            "created_after=2026-03-02T09:30:00Z&created_before=2026-03-02T10:30:00%2B01:00",
            "/query/created_before",
        ),
        ("statuss=failed", "/query/statuss"),
    ],
)
def test_a_wrong_parameter_is_pointed_at(shared: Service, query: str, pointer: str) -> None:
    problem = require_problem(shared.client.get(f"/v1/jobs?{query}"), 422, "invalid-parameters")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


def test_filters_go_together_and_along_the_links(alone: Service) -> None:
    for percent, name in [(3.0, "mine"), (9.0, "yours"), (6.0, "mine"), (1.0, "mine")]:
        alone.succeeded(percent, client_reference=name)
    alone.client.post(f"/v1/jobs/{alone.submit(client_reference='mine')}/cancel")
    waiting = alone.submit(client_reference="mine", priority="stat")
    first, *_, last = [job["created_at"] for job in alone.client.get("/v1/jobs?sort=created_at").json()["items"]]
    query = f"client_reference=mine&created_after={first}&limit=1"
    assert len(pages(alone, query)) == 5
    assert len(pages(alone, f"{query}&created_before={last}")) == 4
    assert len(pages(alone, f"{query}&status=cancelled&status=queued&sort=created_at")) == 2
    found = alone.client.get("/v1/jobs", params={"client_reference": "mine", "sort": "severity"}).json()["items"]
    assert [job["severity"]["percent_opacity"] for job in found] == [6.0, 3.0, 1.0]
    # The offset's + arrives as a blank where a client did not encode it.
    found = alone.client.get(f"/v1/jobs?created_after={last.replace('Z', '+00:00')}&priority=stat").json()["items"]
    assert [job["id"] for job in found] == [waiting]


def test_a_cursor_belongs_to_its_query(alone: Service) -> None:
    alone.submit()
    alone.submit()
    cursor = alone.client.get("/v1/jobs?limit=1").json()["next_cursor"]
    for other in ({"sort": "created_at"}, {"client_reference": "mine"}, {"status": "queued"}):
        answer = alone.client.get("/v1/jobs", params={"cursor": cursor, **other})
        require_problem(answer, 422, "invalid-parameters")


@pytest.mark.parametrize("priority", list(Priority))
def test_every_priority_is_taken(shared: Service, priority: Priority) -> None:
    job_id = shared.submit(priority=priority)
    assert shared.client.get(f"/v1/jobs/{job_id}").json()["priority"] == priority


def test_how_a_job_ended_is_what_its_manifest_says(alone: Service) -> None:
    """Whoever writes into Redis changes what is shown of open jobs at most."""
    job_id, failed = alone.succeeded(percent_opacity=11.8), alone.submit()
    alone.worker.fail(failed)
    with redis.Redis.from_url(alone.jobs.settings.redis_url or "", decode_responses=True) as server:
        for id_ in (job_id, failed):
            state = json.loads(server.hget(Keys().key("job", id_), "state"))
            other = {"percent_opacity": 0.0, "percent_high_opacity": 0.0, "lung_severity_score": 0}
            state |= {"severity": other | {"lung_high_opacity_score": 0}, "status": "succeeded", "error": None}
            server.hset(Keys().key("job", id_), "state", json.dumps(state))
            server.xadd(Keys().key("events", id_), {"state": json.dumps(state), "cancel": ""})
    for _ in range(2):  # the first look reads the manifest
        job = alone.client.get(f"/v1/jobs/{job_id}").json()
        assert (job["status"], job["severity"]["percent_opacity"]) == ("succeeded", 11.8)
        other = alone.client.get(f"/v1/jobs/{failed}").json()
        assert (other["status"], other["severity"]) == ("failed", None)
        assert other["error"]["type"] == "/problems/lungs-not-found"
    assert [item["severity"] for item in alone.client.get("/v1/jobs").json()["items"]] == [None, job["severity"]]
    listed = alone.client.get("/v1/jobs?sort=severity").json()["items"]
    # The order is Redis' own; a job whose place and state there contradict each other is left out of it.
    assert all(item["severity"] == job["severity"] for item in listed)
    changes = alone.client.get("/v1/events").json()["items"]
    assert [change["severity"] for change in changes if change["type"] == "lobewise.job.succeeded"] == [job["severity"]]
    events = alone.client.get(f"/v1/jobs/{job_id}/events").text
    assert '"percent_opacity": 11.8' in events
    assert '"percent_opacity": 0.0' not in events


def test_a_receiver_s_secret_is_not_shown(tmp_path: Path) -> None:
    with running_service(tmp_path / "service", callback_allowlist=("https://receiver.example/",)) as service:
        url = "https://receiver.example/done?token=secret"
        job_id = service.submit(callback_url=url)
        assert service.client.get(f"/v1/jobs/{job_id}").json()["callback_url"] == "https://receiver.example/done"
        assert service.jobs.backends.store.record(job_id).callback_url == url
        batch = {"items": [{"source": {"url": ALLOWED_SOURCE + "1.nii"}}], "callback_url": url}
        assert service.client.post("/v1/batches", json=batch).json()["callback_url"] == "https://receiver.example/done"


def test_a_job_that_will_wait_for_long_is_asked_for_less_often(alone: Service) -> None:
    first, last = alone.submit(), [alone.submit() for _ in range(3)][-1]
    assert alone.client.get(f"/v1/jobs/{last}").json()["estimated_start_at"] is None
    alone.jobs.worker.workers.announce("one", 600)
    alone.worker.fail(alone.submit())  # the first measurement: no time at all
    with redis.Redis.from_url(alone.jobs.settings.redis_url or "") as server:
        waits = {}
        for seconds in (0, 8, 600):
            server.delete("lobewise:recent")
            server.lpush("lobewise:recent", 1000 * seconds)
            waits[seconds] = alone.client.get(f"/v1/jobs/{last}").headers["retry-after"]
    assert alone.client.get(f"/v1/jobs/{first}").headers["retry-after"] == "2"
    assert waits[0] == "2"
    assert 10 <= int(waits[8]) <= 12  # half of three jobs before it
    assert waits[600] == "20"
