"""Jobs that validate their scan: read and inspected by a worker, and not scored."""

import httpx
import pytest

from api import examples
from jobs.models import Inspection

from .conftest import Service, nifti, require_problem


def validate(service: Service, scan: bytes = nifti(), **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.client.post("/v1/validate", files={"file": ("scan.nii", scan)}, headers=names)


@pytest.fixture(scope="module")
def validated(shared: Service) -> str:
    """A job whose scan was inspected."""
    job_id: str = validate(shared).json()["id"]
    with shared.jobs.worker.claim(job_id, "test") as lease:
        shared.jobs.worker.succeed_inspected(lease, examples.INSPECTION, {})
    return job_id


def test_a_scan_to_validate_becomes_a_job_of_that_task(shared: Service) -> None:
    answer = validate(shared)
    assert answer.status_code == 202
    assert answer.headers["location"].endswith(answer.json()["id"])
    assert (answer.json()["task"], answer.json()["status"]) == ("validate", "queued")
    assert shared.client.get(f"/v1/jobs/{shared.submit()}").json()["task"] == "score"


def test_the_inspection_is_what_the_worker_stored(shared: Service, validated: str) -> None:
    job = shared.client.get(f"/v1/jobs/{validated}").json()
    assert (job["status"], job["severity"]) == ("succeeded", None)
    assert (job["links"]["report"], job["links"]["masks"]) == (None, None)
    assert Inspection.model_validate_json(httpx.get(job["links"]["inspection"]).content) == examples.INSPECTION


@pytest.mark.parametrize("below", ["report", "masks/lungs", "masks/lungs/url"])
def test_what_was_not_scored_has_no_scores(shared: Service, validated: str, below: str) -> None:
    problem = require_problem(shared.client.get(f"/v1/jobs/{validated}/{below}"), 409, "wrong-state")
    assert "it has an inspection" in problem["detail"]


def test_what_was_scored_has_no_inspection(shared: Service) -> None:
    scored, queued = shared.succeeded(), validate(shared).json()["id"]
    problem = require_problem(shared.client.get(f"/v1/jobs/{scored}/inspection"), 409, "wrong-state")
    assert "it has a report" in problem["detail"]
    require_problem(shared.client.get(f"/v1/jobs/{queued}/inspection"), 409, "wrong-state")


def test_a_key_of_a_validation_is_not_that_of_a_submission(shared: Service) -> None:
    first = validate(shared, idempotency_key="once")
    again = validate(shared, idempotency_key="once")
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    other = shared.client.post("/v1/jobs", files={"file": ("s", nifti())}, headers={"idempotency-key": "once"})
    require_problem(other, 422, "idempotency-key-reused")


def test_validated_jobs_are_listed_but_not_by_severity(shared: Service, validated: str) -> None:
    for sort, is_listed in (("-created_at", True), ("severity", False)):
        page = shared.client.get("/v1/jobs", params={"limit": 200, "sort": sort}).json()
        assert (validated in [job["id"] for job in page["items"]]) == is_listed


def test_a_validated_job_is_deleted_with_its_inspection(shared: Service) -> None:
    before = shared.stored_files()
    job_id = validate(shared).json()["id"]
    with shared.jobs.worker.claim(job_id, "test") as lease:
        shared.jobs.worker.succeed_inspected(lease, examples.INSPECTION, {})
    assert shared.client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert not [path for path in shared.stored_files() - before if "inspection" in path.name]
