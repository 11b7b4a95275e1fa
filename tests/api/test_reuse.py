"""A scan that was scored before is answered at once."""

from collections.abc import Iterator

import httpx
import pytest

from jobs.live.workers import WorkerStats
from jobs.models import MaskName

from .conftest import Service, Worker, mask_bytes, nifti, require_problem, running_service

DIGEST = "a" * 64


class DigestWorker(Worker):
    """Says what it computes with, as a real one does."""

    def compute(self, job_id: str) -> None:
        real = self.jobs.worker.succeed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.jobs.worker, "succeed", lambda *given, **named: real(*given, digest=DIGEST, **named))
            self.succeed(job_id)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("reuse") / "service", reuse_results=True) as service:
        stats = WorkerStats(peak_memory_bytes=1, result_digest=DIGEST)
        service.jobs.worker.workers.announce("ready", 600, (), stats)
        yield service


@pytest.fixture(scope="module")
def first(service: Service) -> str:
    job_id = service.submit()
    DigestWorker(service.jobs, service.worker.folder).compute(job_id)
    return job_id


def post(service: Service, prefer: str = "", **options: str) -> httpx.Response:
    headers = {"Prefer": prefer} if prefer else {}
    return service.client.post("/v1/jobs", files={"file": nifti()}, data=options, headers=headers)


def test_the_answer_has_the_scores_and_says_whose_they_are(service: Service, first: str) -> None:
    answer = post(service, client_reference="again")
    job = answer.json()
    assert (answer.status_code, job["status"], job["reused_from"]) == (202, "succeeded", first)
    assert (job["client_reference"], job["attempt"], job["started_at"]) == ("again", 0, None)
    assert job["severity"] == service.client.get(f"/v1/jobs/{first}").json()["severity"]
    assert "retry-after" not in answer.headers
    report = service.client.get(job["links"]["report"]).json()
    assert (report["job_id"], report["provenance"]["reused_from"]) == (job["id"], first)
    assert httpx.get(report["masks"]["lobes"]).content == mask_bytes(MaskName.LOBES)
    assert "lobewise_jobs_reused_total 1.0" in service.client.get("/metrics").text


def test_who_would_have_waited_gets_200(service: Service, first: str) -> None:
    answer = post(service, "wait=20")
    assert (answer.status_code, answer.json()["reused_from"]) == (200, first)


def test_it_can_be_switched_off_for_a_job(service: Service, first: str) -> None:
    assert first
    assert post(service, reuse="false").json()["status"] == "queued"
    problem = require_problem(post(service, reuse="perhaps"), 422, "invalid-parameters")
    assert [error["pointer"] for error in problem["errors"]] == ["/body/reuse"]


def test_a_scan_that_came_in_parts_is_the_same_scan(service: Service, first: str) -> None:
    upload = service.client.post("/v1/uploads", json={"size_bytes": len(nifti())}).json()
    service.client.put(upload["parts"][0]["url"], content=nifti())
    service.client.post(upload["links"]["complete"])
    job = service.client.post("/v1/jobs/from-source", json={"source": {"upload_id": upload["id"]}}).json()
    assert job["reused_from"] == first
    assert service.client.get(upload["links"]["self"]).status_code == 404
