"""What requests leave in the audit trail and in the log."""

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.audit import ACTS
from jobs.audit import trail as trail_module
from jobs.audit.entries import AUDIT
from jobs.audit.verification import entries, verify
from jobs.errors import StorageUnavailableError
from jobs.models import MaskName

from .conftest import DOCUMENT, Service, nifti, require_problem, running_service


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("audited")
    with running_service(folder, audit="all", audit_seconds=0.05) as service:
        yield service


def trail_of(service: Service, request_id: str) -> list[dict[str, Any]]:
    """The entries of one request, once they are stored; those of the trail itself have no request."""
    audit = service.jobs.backends.audit
    assert audit is not None
    deadline = time.monotonic() + 5
    while audit.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [entry for entry in entries(audit.blobs) if entry.get("request_id") == request_id]


def stored(service: Service, request_id: str) -> list[dict[str, Any]]:
    """As `trail_of`, at once: what was stored before the answer."""
    return [entry for entry in entries(service.jobs.backends.store.blobs) if entry.get("request_id") == request_id]


def test_every_operation_of_the_document_is_some_act() -> None:
    operations = {operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()}
    assert operations == set(ACTS)


def test_a_change_is_stored_before_it_is_answered(audited: Service) -> None:
    client = audited.client
    made = client.post("/v1/jobs", files={"file": ("scan.nii", nifti())}, headers={"X-Request-ID": "submit-1"})
    job_id = made.json()["id"]
    (entry,) = stored(audited, "submit-1")
    assert {name: entry[name] for name in entry if name not in ("at", "n", "chain", "hash", "previous")} == {
        "act": "submit",
        "address": "127.0.0.1",
        "id": job_id,
        "kind": "job",
        "operation": "create_job",
        "outcome": "done",
        "request_id": "submit-1",
        "status": 202,
        "subject": "anonymous",
        "tenant": "default",
    }
    client.post(f"/v1/jobs/{job_id}/cancel", headers={"X-Request-ID": "cancel-1"})
    client.delete(f"/v1/jobs/{job_id}", headers={"X-Request-ID": "delete-1"})
    found = [stored(audited, name)[0] for name in ("cancel-1", "delete-1")]
    assert [(entry["act"], entry["id"], entry["outcome"]) for entry in found] == [
        ("cancel", job_id, "done"),
        ("delete", job_id, "done"),
    ]


@pytest.mark.parametrize(
    ("path", "act", "part"),
    [
        ("/v1/jobs/{}", "read", None),
        ("/v1/jobs/{}/report", "read", None),
        ("/v1/jobs/{}/labels", "read", None),
        ("/v1/jobs/{}/masks/lungs", "download", "lungs"),
        ("/v1/jobs/{}/masks/lobes/url", "download", "lobes"),
        ("/v1/jobs/{}/dicom/seg", "download", "seg"),
        ("/v1/jobs/{}/fhir", "read", None),
        ("/v1/reports.csv", "export", None),
        ("/v1/reports.ndjson", "export", None),
        ("/v1/jobs", "list", None),
        ("/v1/batches", "list", None),
        ("/v1/events", "list", None),
    ],
)
def test_who_is_given_something_is_recorded(audited: Service, path: str, act: str, part: str | None) -> None:
    job_id = audited.succeeded()
    request_id = path.translate({ord("/"): "-", ord("{"): None, ord("}"): None}) + "x"
    assert audited.client.get(path.format(job_id), headers={"X-Request-ID": request_id}).status_code == 200
    (entry,) = trail_of(audited, request_id)
    about = job_id if "{}" in path else None
    assert (entry["act"], entry.get("part"), entry.get("id"), entry["outcome"]) == (act, part, about, "done")


def test_a_job_that_is_open_or_known_is_looked_at_and_one_that_has_ended_is_read(audited: Service) -> None:
    job_id = audited.submit()
    audited.client.get(f"/v1/jobs/{job_id}", headers={"X-Request-ID": "open"})
    audited.worker.succeed(job_id)
    answer = audited.client.get(f"/v1/jobs/{job_id}", headers={"X-Request-ID": "ended"})
    known = {"X-Request-ID": "known", "If-None-Match": answer.headers["ETag"]}
    audited.client.get(f"/v1/jobs/{job_id}", headers=known)
    acts = [trail_of(audited, name)[0]["act"] for name in ("open", "ended", "known")]
    assert acts == ["look", "read", "look"]


def test_what_fails_is_recorded_as_failed(audited: Service) -> None:
    missing = "0197a3c0-0000-7000-8000-000000000000"
    audited.client.get(f"/v1/jobs/{missing}/report", headers={"X-Request-ID": "missing"})
    audited.client.delete("/v1/jobs/Mustermann", headers={"X-Request-ID": "no-id"})
    ((first,), (second,)) = trail_of(audited, "missing"), trail_of(audited, "no-id")
    assert (first["outcome"], first["status"], first["id"]) == ("failed", 404, missing)
    # What is no id may be anything, a name too.
    assert (second["outcome"], second["status"], second.get("id")) == ("failed", 404, None)


def test_nothing_of_a_patient_or_a_client_gets_into_the_trail(audited: Service) -> None:
    canary = "Mustermann-1962"
    job_id = audited.submit(client_reference=canary)
    audited.client.get("/v1/jobs", params={"client_reference": canary}, headers={"User-Agent": canary})
    audited.client.get(f"/v1/{canary}", headers={"X-Request-ID": f"{canary}!"})
    assert trail_of(audited, "none") == []
    blobs = audited.jobs.backends.store.blobs
    text = b"".join(blobs.read(key) or b"" for key in blobs.keys(AUDIT))
    assert job_id.encode() in text
    assert b"Mustermann" not in text


def test_health_metrics_and_pages_are_not_recorded(audited: Service) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/v1/models", "/problems/not-found", "/nowhere"):
        audited.client.get(path, headers={"X-Request-ID": f"routine{path.count('/')}"})
    assert trail_of(audited, "routine1") + trail_of(audited, "routine2") == []


def test_the_default_records_reads_and_no_polls(tmp_path: Path) -> None:
    with running_service(tmp_path / "service", audit_seconds=0.05) as service:
        job_id = service.submit()
        for _ in range(3):
            service.client.get(f"/v1/jobs/{job_id}")
        service.worker.succeed(job_id)
        for name in MaskName:
            service.client.get(f"/v1/jobs/{job_id}/masks/{name}")
        trail_of(service, "none")
        told = service.client.get("/metrics").text
        assert 'lobewise_audit_entries_total{act="submit"} 1.0' in told
        assert f'lobewise_audit_entries_total{{act="download"}} {len(MaskName)}.0' in told
        assert 'act="look"' not in told
        assert "lobewise_audit_behind_seconds 0.0" in told
        assert "lobewise_audit_dropped_total 0.0" in told
        blobs = service.jobs.backends.store.blobs
        service.jobs.backends.audit.close()  # type: ignore[union-attr]
        heads = [("Redis", head) for head in service.jobs.backends.live.audit_heads.all()]
        assert (verify(blobs, known=heads).faults, len(heads)) == ([], 1)


def test_a_store_that_refuses_the_trail_stops_reads_then_changes_and_all_goes_on_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_module, "WAITING_LIMIT", 5)
    monkeypatch.setattr(trail_module, "CHANGES_RESERVE", 2)
    monkeypatch.setattr(trail_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr("api.audit.STORED_WITHIN_SECONDS", 0.1)
    with running_service(tmp_path / "service", audit_seconds=0.05) as service:
        job_id, other = service.succeeded(), service.succeeded()
        audit = service.jobs.backends.audit
        assert audit is not None
        trail_of(service, "none")

        with monkeypatch.context() as full:
            # The trail's own view of the store, as if its folder were full; the jobs' still takes what it is given.
            full.setattr(audit, "blobs", _Refusing())
            for _ in range(5):
                assert service.client.get(f"/v1/jobs/{job_id}/report").status_code == 200
            refused = service.client.get(f"/v1/jobs/{job_id}/report")
            require_problem(refused, 503, "storage-unavailable")
            assert "report" not in refused.text.replace("/report", "")
            assert service.client.get("/healthz").status_code == 200
            ready = require_problem(service.client.get("/readyz"), 503, "not-ready")
            assert ready["evidence"]["audit"] is False
            # What is deleted frees the store, so that is done still, and its entry waits.
            assert service.client.delete(f"/v1/jobs/{job_id}").status_code == 204
            assert service.client.delete(f"/v1/jobs/{other}").status_code == 204
            require_problem(service.client.delete(f"/v1/jobs/{job_id}"), 503, "storage-unavailable")
            told = service.client.get("/metrics").text
            behind = re.search(r"^lobewise_audit_behind_seconds (\S+)$", told, re.MULTILINE)
            assert behind is not None
            assert float(behind[1]) > 0.2
        trail_of(service, "none")
        assert service.client.get(f"/v1/jobs/{job_id}/report").status_code == 410
        trail_of(service, "none")
        acts = [entry["act"] for entry in entries(service.jobs.backends.store.blobs)]
        assert acts == ["begin", "submit", "submit", *["read"] * 5, "delete", "delete", "read"]


class _Refusing:
    def __getattr__(self, name: str) -> Any:
        raise StorageUnavailableError("no space left")


def test_a_request_that_was_refused_is_recorded(audited: Service) -> None:
    signed = "/v1/uploads/0197a3c0-0000-7000-8000-000000000000/parts/1?expires=1&signature=x"
    answer = audited.client.put(signed, content=b"x", headers={"X-Request-ID": "refused-1"})
    assert answer.status_code == 403
    (entry,) = trail_of(audited, "refused-1")
    assert (entry["outcome"], entry["status"], entry["operation"]) == ("refused", 403, "put_upload_part")


def test_the_log_names_the_job_of_a_request(audited: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lobewise.api"):
        job_id = audited.submit()
        audited.client.get(f"/v1/jobs/{job_id}")
        audited.client.get("/v1/jobs/Mustermann")
        upload = audited.client.post("/v1/uploads", json={"size_bytes": 2000}).json()["id"]
        audited.client.delete(f"/v1/uploads/{upload}")
    lines = [record for record in caplog.records if record.getMessage() == "request"]
    assert [getattr(line, "job_id", None) for line in lines] == [job_id, job_id, None, None, None]
    assert [getattr(line, "upload_id", None) for line in lines] == [None, None, None, upload, upload]


def test_an_address_is_the_clients_as_trusted_proxies_tell_it(audited: Service) -> None:
    for name, given in (("v4", "192.0.2.7"), ("v6", "2001:db8::0:1"), ("word", "Mustermann")):
        headers = {"X-Request-ID": f"from-{name}", "X-Forwarded-For": given}
        httpx.get(f"{audited.address}/v1/jobs", headers=headers)
    found = [trail_of(audited, f"from-{name}")[0].get("address") for name in ("v4", "v6", "word")]
    assert found == ["192.0.2.7", "2001:db8::1", None]
