"""The option `not_after`, however a scan is submitted."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from .conftest import ALLOWED_SOURCE, Service, nifti, require_problem


def at(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def submit(service: Service, way: str, not_after: Any, **headers: str) -> httpx.Response:
    if way == "form":
        files, data = {"file": nifti()}, {"not_after": not_after}
        return service.client.post("/v1/jobs", files=files, data=data, headers=headers)
    body = {"source": {"url": ALLOWED_SOURCE + "1.nii.gz"}, "not_after": not_after}
    return service.client.post("/v1/jobs", json=body, headers=headers)


@pytest.mark.parametrize("way", ["form", "json"])
def test_a_deadline_to_come_stands_in_the_job(shared: Service, way: str) -> None:
    job = submit(shared, way, "2100-01-01T02:00:00.1239+02:00").json()
    assert job["not_after"] == "2100-01-01T00:00:00.123000Z"
    assert submit(shared, "form", "").json()["not_after"] is None


@pytest.mark.parametrize("way", ["form", "json"])
@pytest.mark.parametrize(
    "not_after",
    [
        "2020-01-01T00:00:00Z", "4102444800", "2100-01-01", "2100-01-01T00:00:00", "soon", "9999-12-31T23:59:59-12:00",
        "2100-02-30T00:00:00Z", "2100-01-01T00:00:00+01",
    ],
)  # fmt: skip
def test_one_that_is_over_or_no_time_is_refused(shared: Service, way: str, not_after: str) -> None:
    before = shared.stored_files()
    problem = require_problem(submit(shared, way, not_after), 422, "invalid-parameters")
    assert [error["pointer"] for error in problem["errors"]] == ["/body/not_after"]
    assert shared.stored_files() == before


def test_a_number_is_no_time(shared: Service) -> None:
    require_problem(submit(shared, "json", 4_102_444_800), 422, "invalid-parameters")


@pytest.mark.parametrize("way", ["form", "json"])
def test_a_request_that_is_repeated_after_its_deadline_gets_the_first_answer(shared: Service, way: str) -> None:
    headers = {"Idempotency-Key": f"late-{way}"}
    not_after = at(1.5)
    first = submit(shared, way, not_after, **headers)
    assert first.status_code == 202, first.text
    time.sleep(1.5)
    again = submit(shared, way, not_after, **headers)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    require_problem(submit(shared, way, at(60), **headers), 422, "idempotency-key-reused")


def test_a_job_that_no_worker_began_in_time_says_so(alone: Service) -> None:
    job_id = submit(alone, "form", at(1)).json()["id"]
    time.sleep(1)
    alone.jobs.reconciler.reconcile()
    job = alone.client.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["error"]["type"], job["started_at"]) == ("failed", "/problems/deadline-passed", None)
    metrics = alone.client.get("/metrics").text
    assert 'lobewise_jobs_finished_total{outcome="failed",problem="deadline-passed"} 1.0' in metrics


def test_an_item_of_a_batch_whose_time_is_over_is_refused_alone(alone: Service) -> None:
    source = {"url": ALLOWED_SOURCE + "1.nii.gz"}
    items = [{"source": source, "not_after": at(-1)}, {"source": source, "not_after": at(60)}]
    batch = alone.client.post("/v1/batches", json={"items": items}).json()
    assert batch["items"][0]["error"]["type"] == "/problems/invalid-parameters"
    assert batch["items"][1]["job"]["not_after"] is not None
    answer = alone.client.post("/v1/batches", json={"items": [{"source": source, "not_after": "soon"}]})
    problem = require_problem(answer, 422, "invalid-parameters")
    assert [error["pointer"] for error in problem["errors"]] == ["/body/items/0/not_after"]
