"""Callbacks over HTTP: who may be called, what is said about it, and asking again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import states
from jobs.callbacks import Answer

from .conftest import ALLOWED_SOURCE, Service, nifti, require_problem, running_service

RECEIVER = "https://pacs.example/lobewise/finished"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    allowed = ("https://pacs.example/lobewise/", "http://intern.example:8080/in")
    with running_service(tmp_path / "service", callback_allowlist=allowed) as service:
        yield service


def tell(service: Service, http_status: int) -> None:
    """Do what a sender does, with this answer."""
    for job_id in service.jobs.service.callbacks.take_due(10):
        delivery = service.jobs.service.callbacks.next_delivery(job_id)
        assert delivery is not None
        service.jobs.service.callbacks.record_answer(delivery, Answer(states.now(), 0.1, http_status=http_status))


def test_a_job_says_whom_it_calls_back_and_how_that_went(service: Service) -> None:
    job_id = service.submit(callback_url=RECEIVER)
    job = service.client.get(f"/v1/jobs/{job_id}").json()
    assert job["callback_url"] == RECEIVER
    assert job["links"]["callback"] == f"{service.address}/v1/jobs/{job_id}/callback"
    assert service.client.get(job["links"]["callback"]).json()["status"] == "waiting"
    service.worker.succeed(job_id)
    assert service.client.get(job["links"]["callback"]).json()["status"] == "pending"
    tell(service, 503)
    pending = service.client.get(job["links"]["callback"]).json()
    assert (pending["status"], pending["attempts"][0]["outcome"]) == ("pending", "retry")
    assert pending["next_attempt_at"] == pending["attempts"][0]["next_attempt_at"]
    asked = service.client.post(f"{job['links']['callback']}/redeliver")
    assert asked.status_code == 202
    tell(service, 200)
    log = service.client.get(job["links"]["callback"]).json()
    assert (log["status"], log["next_attempt_at"], len(log["attempts"])) == ("delivered", None, 2)


def test_the_message_knows_the_address_that_the_client_used(service: Service) -> None:
    job_id = service.succeeded(callback_url=RECEIVER)
    assert service.jobs.service.callbacks.take_due(1) == [job_id]
    delivery = service.jobs.service.callbacks.next_delivery(job_id)
    assert delivery is not None
    assert delivery.record.address == f"{service.address}/v1/jobs/{job_id}"


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/lobewise/finished",
        "https://pacs.example/elsewhere",
        "https://pacs.example/lobewise/../admin",
        "https://pacs.example@other.example/lobewise/finished",
        "http://pacs.example/lobewise/finished",
        "http://intern.example/in",
        "ftp://pacs.example/lobewise/",
        "nonsense",
    ],
)
def test_an_address_that_is_not_allowed_is_refused_and_nothing_is_kept(service: Service, url: str) -> None:
    before = service.stored_files()
    form = service.client.post("/v1/jobs", files={"file": ("scan.nii", nifti())}, data={"callback_url": url})
    require_problem(form, 422, "callback-not-allowed")
    source = {"source": {"url": "https://pacs.example/ct/1.nii"}, "callback_url": url}
    require_problem(service.client.post("/v1/jobs/from-source", json=source), 422, "callback-not-allowed")
    assert service.stored_files() == before


def test_plain_http_is_for_receivers_that_the_operator_names_so(service: Service) -> None:
    assert service.submit(callback_url="http://intern.example:8080/in/box")


def test_without_a_callback_there_is_none_to_look_at(service: Service) -> None:
    job_id = service.submit()
    assert service.client.get(f"/v1/jobs/{job_id}").json()["links"]["callback"] is None
    require_problem(service.client.get(f"/v1/jobs/{job_id}/callback"), 409, "no-callback")
    require_problem(service.client.post(f"/v1/jobs/{job_id}/callback/redeliver"), 409, "no-callback")


def test_before_its_end_a_job_has_nothing_to_tell_again(service: Service) -> None:
    job_id = service.submit(callback_url=RECEIVER)
    require_problem(service.client.post(f"/v1/jobs/{job_id}/callback/redeliver"), 409, "wrong-state")


def test_a_repeated_request_with_another_receiver_is_another_request(service: Service) -> None:
    def post(url: str) -> object:
        files, headers = {"file": ("scan.nii", nifti())}, {"Idempotency-Key": "one"}
        return service.client.post("/v1/jobs", files=files, data={"callback_url": url}, headers=headers)

    first, again = post(RECEIVER), post(RECEIVER)
    assert first.json()["id"] == again.json()["id"]
    require_problem(post(f"{RECEIVER}/2"), 422, "idempotency-key-reused")


def test_the_metrics_count_what_was_tried_and_what_is_due(service: Service) -> None:
    service.succeeded(callback_url=RECEIVER)
    metrics = service.client.get("/metrics").text
    assert "lobewise_callbacks_pending 1.0" in metrics
    tell(service, 500)
    metrics = service.client.get("/metrics").text
    assert 'lobewise_callback_attempts_total{outcome="retry"} 1.0' in metrics
    assert 'lobewise_callback_attempts_total{outcome="delivered"} 0.0' in metrics


def test_a_batch_says_whom_it_calls_back_and_how_that_went(service: Service) -> None:
    items = [{"source": {"url": f"{ALLOWED_SOURCE}{n}.nii.gz"}} for n in range(2)]
    body = {"items": items, "callback_url": RECEIVER}
    posted = service.client.post("/v1/batches", json=body, headers={"Idempotency-Key": "night-1"})
    batch = posted.json()
    assert (posted.status_code, batch["callback_url"]) == (202, RECEIVER)
    assert {found["job"]["batch_id"] for found in batch["items"]} == {batch["id"]}
    callback = batch["links"]["callback"]
    assert callback == f"{service.address}/v1/batches/{batch['id']}/callback"
    assert service.client.get(callback).json() == {
        "batch_id": batch["id"], "url": RECEIVER, "status": "waiting", "next_attempt_at": None, "attempts": [],
    }  # fmt: skip
    require_problem(service.client.post(f"{callback}/redeliver"), 409, "wrong-state")
    service.client.post(batch["links"]["cancel"])
    tell(service, 503)
    assert service.client.get(callback).json()["status"] == "pending"
    assert service.client.post(f"{callback}/redeliver").status_code == 202
    tell(service, 200)
    log = service.client.get(callback).json()
    assert (log["status"], [attempt["round"] for attempt in log["attempts"]]) == ("delivered", [1, 2])
    again = service.client.post("/v1/batches", json=body, headers={"Idempotency-Key": "night-1"})
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (batch["id"], "true")
    other = service.client.post("/v1/batches", json={"items": items}, headers={"Idempotency-Key": "night-1"})
    require_problem(other, 422, "idempotency-key-reused")


def test_a_batch_without_an_address_or_with_one_that_is_not_allowed(service: Service) -> None:
    items = [{"source": {"url": f"{ALLOWED_SOURCE}1.nii.gz"}}]
    body = {"items": items, "callback_url": "https://other.example/in"}
    refused = service.client.post("/v1/batches", json=body, headers={"Idempotency-Key": "k"})
    require_problem(refused, 422, "callback-not-allowed")
    batch = service.client.post("/v1/batches", json={"items": items}, headers={"Idempotency-Key": "k"}).json()
    assert batch["links"]["callback"] is None
    unknown = f"{batch['id'][:-1]}{'1' if batch['id'].endswith('0') else '0'}"
    for method, path in (("GET", "callback"), ("POST", "callback/redeliver")):
        answer = service.client.request(method, f"/v1/batches/{batch['id']}/{path}")
        require_problem(answer, 409, "no-callback")
        missing = service.client.request(method, f"/v1/batches/{unknown}/{path}")
        require_problem(missing, 404, "batch-not-found")
