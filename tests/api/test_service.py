"""Health, metrics, problem pages, request ids, faults, and a broker that is down."""

import logging
import re
import time
from pathlib import Path

import httpx
import pytest

from api import examples, problem_docs
from api.app import create_app
from jobs import problems
from jobs.bootstrap import connect
from jobs.errors import SourceError
from jobs.live.job_metrics import OTHER, PROBLEMS
from jobs.live.workers import WorkerStats
from jobs.problems import BY_SLUG, PROBLEM_TYPES
from jobs.settings import ApiSettings, JobsSettings
from pipeline.errors import PipelineError, UnreadableScanError

from .conftest import Service, Worker, nifti, require_problem, running_service, serving

ROOT = Path(__file__).parents[2]
PRODUCT = ("api", "jobs", "worker", "pipeline", "cli")


def test_it_is_ready_once_a_worker_is(alone: Service) -> None:
    assert alone.client.get("/healthz").json() == {"status": "ok"}
    problem = require_problem(alone.client.get("/readyz"), 503, "not-ready")
    assert problem["evidence"] == {"broker": True, "blobs": True, "workers": 0}
    assert alone.client.get("/v1/models").json() == {"items": []}
    alone.jobs.worker.workers.announce("w1", 60, examples.MODELS)
    alone.jobs.worker.workers.announce("w2", 60, examples.MODELS[:2])
    answer = alone.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"broker": True, "blobs": True, "workers": 2})
    named = {model["name"]: model["sha256"] for model in alone.client.get("/v1/models").json()["items"]}
    assert named == {model.name: model.sha256 for model in examples.MODELS}


def test_llms_txt_says_what_it_is_and_leads_on(alone: Service) -> None:
    answer = alone.client.get("/llms.txt")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert re.match(r"# Lobewise\n\n> .+\n\n", answer.text)
    links = re.findall(r"\]\(([^)]+)\)", answer.text)
    assert len(links) == 3
    assert [alone.client.get(f"/{link}").status_code for link in links] == [200, 200, 200]


def figures(service: Service) -> dict[str, float]:
    lines = service.client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_metrics_count_what_the_workers_did(alone: Service) -> None:
    alone.succeeded(priority="stat")
    alone.worker.fail(alone.submit())
    stats = WorkerStats(peak_memory_bytes=5 << 30, gpu_memory_used_bytes=1 << 30, gpu_memory_total_bytes=80 << 30)
    alone.jobs.worker.workers.announce("host:1", 30, worker_stats=stats)
    found = figures(alone)
    slug = examples.FAILURE.type.rpartition("/")[2]
    assert found['lobewise_jobs_finished_total{outcome="succeeded",problem=""}'] == 1
    assert found[f'lobewise_jobs_finished_total{{outcome="failed",problem="{slug}"}}'] == 1
    assert found['lobewise_jobs_finished_total{outcome="failed",problem="other"}'] == 0
    assert found['lobewise_job_seconds_bucket{le="+Inf",priority="stat"}'] == 1
    assert found['lobewise_job_seconds_count{priority="routine"}'] == 1
    assert found['lobewise_stage_seconds_count{stage="store"}'] == 1
    assert found['lobewise_running_jobs{stage="lesions"}'] == 0
    assert found['lobewise_worker_memory_peak_bytes{worker="host:1"}'] == 5 << 30
    assert found['lobewise_worker_gpu_memory_total_bytes{worker="host:1"}'] == 80 << 30
    assert not any(name.startswith("lobewise_worker_gpu_utilization_ratio{") for name in found)


def test_metrics_count_what_happened(alone: Service) -> None:
    alone.succeeded(priority="stat")
    alone.submit(nifti(3000))
    alone.client.get("/v1/jobs/unknown")
    found = figures(alone)
    assert found['lobewise_jobs{status="succeeded"}'] == 1
    assert found['lobewise_jobs{status="queued"}'] == 1
    assert found['lobewise_jobs_accepted_total{priority="stat"}'] == 1
    assert found['lobewise_queue_jobs{priority="routine"}'] == 1
    assert 0 < found['lobewise_queue_oldest_seconds{priority="routine"}'] < 60
    assert found['lobewise_queue_jobs{priority="stat"}'] == found['lobewise_queue_oldest_seconds{priority="stat"}'] == 0
    assert found["lobewise_event_streams"] == found["lobewise_uploads"] == 0
    assert found["lobewise_upload_bytes_total"] == 5000
    assert found['lobewise_http_requests_total{method="POST",route="/v1/jobs",status="202"}'] == 2
    assert found['lobewise_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="404"}'] == 1
    assert found['lobewise_http_request_seconds_count{method="POST",route="/v1/jobs"}'] == 2
    assert (found["lobewise_broker_up"], found["lobewise_blobs_up"], found["lobewise_workers_ready"]) == (1, 1, 0)


@pytest.mark.parametrize("problem", PROBLEM_TYPES, ids=lambda problem: problem.slug)
def test_every_type_leads_to_its_page(shared: Service, problem: problem_docs.ProblemType) -> None:
    answer = shared.client.get(problem.uri)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert problem.slug in answer.text


def test_the_pages_and_the_docs_are_one() -> None:
    assert (ROOT / "docs/problems.md").read_text() == problem_docs.markdown()


def slugs_in(*rooms: str) -> set[str]:
    """Of the problems that the code of these rooms makes."""
    return {slug for room in rooms for path in (ROOT / room).rglob("*.py") for slug in _slugs(path.read_text())}


def test_every_way_a_job_fails_is_documented() -> None:
    def leaves(error: type) -> set[type]:
        return set().union(*map(leaves, error.__subclasses__())) if error.__subclasses__() else {error}

    assert UnreadableScanError not in leaves(PipelineError)
    codes = {error.code for error in leaves(PipelineError)} | {error.problem.slug for error in leaves(SourceError)}
    given_up = re.findall(r"problems\.([A-Z_]+)", (ROOT / "jobs/recovery/finalize.py").read_text())
    codes |= {getattr(problems, name).slug for name in given_up}
    assert codes == set(PROBLEMS) - {OTHER}, "a problem that has no row, or that metrics count as another"
    assert slugs_in(*PRODUCT) <= set(BY_SLUG), "a problem type that no page explains"


def _slugs(source: str) -> set[str]:
    return set(re.findall(r'"/problems/([a-z-]+)"', source))


def test_an_unknown_type_is_404(shared: Service) -> None:
    require_problem(shared.client.get("/problems/unheard-of"), 404, "not-found")


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v2/jobs", "/v1/jobs/", "/%ff", "/v1/jobs/a/b/c", "//v1/jobs"])
def test_the_routers_own_404_is_a_problem(shared: Service, path: str) -> None:
    require_problem(httpx.get(shared.address + path), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/jobs", "GET, POST"),
        ("DELETE", "/v1/jobs/x/masks/lungs", "GET, HEAD"),
        ("POST", "/v1/jobs/x", "DELETE, GET"),
        ("GET", "/v1/jobs/x/cancel", "POST"),
        ("TRACE", "/healthz", "GET"),
    ],
)
def test_the_routers_own_405_is_a_problem(shared: Service, method: str, path: str, allow: str) -> None:
    answer = shared.client.request(method, path)
    require_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == allow


def test_request_ids_come_back_if_they_are_harmless(shared: Service) -> None:
    assert shared.client.get("/healthz", headers={"X-Request-ID": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for bad in ("a b", "x" * 65, "<script>", ""):
        given = shared.client.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert given not in ("", bad)
    ids = {shared.client.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_a_fault_says_nothing_of_the_inside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def cancel(job_id: str) -> object:
        raise ZeroDivisionError("a secret of the inside")

    broken = connect(JobsSettings(data_dir=tmp_path))
    broken.service.cancel = cancel
    with serving(create_app(ApiSettings(), broken)) as address:
        answer = httpx.post(f"{address}/v1/jobs/x/cancel", headers={"X-Request-ID": "trace-me"})
    broken.close()
    require_problem(answer, 500, "internal-error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "trace-me"
    faults = [record for record in caplog.records if record.getMessage() == "a request failed" and record.exc_info]
    assert len(faults) == 1


def test_the_log_holds_no_names(alone: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    alone.client.post("/v1/jobs", files={"file": ("MEIER.nii", nifti())}, data={"client_reference": "REF-77"})
    alone.client.post("/v1/jobs", files={"file": ("MEIER.nii", b"bad")}, data={"client_reference": "REF-77" * 50})
    ours = [str(vars(record)) for record in caplog.records if record.name.split(".")[0] in ("lobewise", "api", "jobs")]
    assert any("'route': '/v1/jobs', 'status': 202" in line for line in ours)
    assert not any("MEIER" in line or "REF-77" in line for line in ours)


def test_links_follow_the_public_url(tmp_path: Path) -> None:
    settings = ApiSettings(public_url="https://ct.example/lobewise/")
    with running_service(tmp_path / "service", settings) as service:
        job_id = service.succeeded()
        job = service.client.get(f"/v1/jobs/{job_id}").json()
        report = service.client.get(f"/v1/jobs/{job_id}/report").json()
    assert job["links"]["self"] == f"https://ct.example/lobewise/v1/jobs/{job_id}"
    assert report["masks"]["lungs"] == f"https://ct.example/lobewise/v1/jobs/{job_id}/masks/lungs"


def test_links_keep_the_prefix_that_a_proxy_strips(tmp_path: Path) -> None:
    with running_service(
        tmp_path / "service", ApiSettings(root_path="/lobewise", allowed_hosts=("ct.example",))
    ) as service:
        answer = service.client.post("/v1/jobs", files={"file": nifti()}, headers={"Host": "ct.example"})
        assert answer.headers["location"].startswith("http://ct.example/lobewise/v1/jobs/")


def test_a_host_header_that_is_none_leaves_links_relative(tmp_path: Path) -> None:
    settings = ApiSettings(host="0.0.0.0")  # noqa: S104 (it listens elsewhere)
    with running_service(tmp_path / "service", settings) as service:
        answer = service.client.post("/v1/jobs", files={"file": nifti()}, headers={"Host": 'a"b c'})
    assert answer.status_code == 202
    assert answer.headers["location"].startswith("/v1/jobs/")


def test_while_the_broker_is_down_nothing_is_taken_but_all_can_be_read(tmp_path: Path) -> None:
    """The gateway talks to a server of its own that is stopped midway."""
    from jobs import embedded_redis

    server = embedded_redis.join(tmp_path / "valkey")
    jobs = connect(JobsSettings(data_dir=tmp_path, redis_url=server.url))
    worker = Worker(jobs, tmp_path)
    with serving(create_app(ApiSettings(), jobs)) as address, httpx.Client(base_url=address, timeout=30) as client:
        service = Service(jobs, client, worker, tmp_path / "blobs")
        done, waiting = service.succeeded(), service.submit()
        server.close()
        before = service.stored_files()

        begun = time.monotonic()
        answer = client.post("/v1/jobs", files={"file": nifti()}, headers={"Idempotency-Key": "k"})
        seconds = time.monotonic() - begun
        problem = require_problem(answer, 503, "broker-unavailable")
        assert problem["retryable"]
        assert seconds < 2  # what the contract promises
        assert service.stored_files() == before

        assert client.get(f"/v1/jobs/{waiting}").json()["status"] == "queued"
        assert client.get(f"/v1/jobs/{done}").json()["status"] == "succeeded"
        assert client.get(f"/v1/jobs/{done}/report").status_code == 200
        assert client.get(f"/v1/jobs/{done}/masks/lungs", headers={"Range": "bytes=0-3"}).status_code == 206
        assert {job["id"] for job in client.get("/v1/jobs").json()["items"]} == {done, waiting}
        assert require_problem(client.get("/readyz"), 503, "not-ready")["evidence"]["broker"] is False
        require_problem(client.get("/v1/models"), 503, "broker-unavailable")
        assert "lobewise_broker_up 0.0" in client.get("/metrics").text
        assert client.get("/healthz").status_code == 200
    jobs.close()


def test_every_row_of_the_table_answers_a_call_or_ends_a_job() -> None:
    assert all(problem.status is None or 400 <= problem.status < 600 for problem in PROBLEM_TYPES)
    assert all(problem.status or problem.ends_job for problem in PROBLEM_TYPES)
