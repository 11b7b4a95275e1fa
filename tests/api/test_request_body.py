"""Scans in parts over HTTP, on a folder and on S3: as a client sees them."""

import hashlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from jobs.models import MaskName
from jobs.settings import ApiSettings
from jobs.states import new_id
from jobs.store.object_store import RESERVE
from tests.support.seaweed import S3Server

from .conftest import Service, mask_bytes, nifti, require_problem, running_service
from .test_streaming import gateway

MIB = 1 << 20
PART_BYTES = 5 * MIB
SCAN = nifti(2 * PART_BYTES + 1000, fill=b"\x07")
SHA256 = hashlib.sha256(SCAN).hexdigest()
UPLOADS = {"max_upload_bytes": 16 * MIB, "upload_part_bytes": PART_BYTES}


@pytest.fixture
def service(tmp_path: Path, blob_url: str) -> Iterator[Service]:
    with running_service(tmp_path / "service", blob_url=blob_url, **UPLOADS) as service:
        yield service


@pytest.fixture
def on_folder(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "service", ApiSettings(idle_seconds=0.5), **UPLOADS) as service:
        yield service


def begin(service: Service, scan: bytes = SCAN, **wanted: object) -> dict:
    answer = service.client.post("/v1/uploads", json={"size_bytes": len(scan), **wanted})
    assert answer.status_code == 201, answer.text
    upload = answer.json()
    assert answer.headers["location"] == upload["links"]["self"]
    return upload


def send(part: dict, scan: bytes = SCAN) -> httpx.Response:
    start = (part["number"] - 1) * PART_BYTES
    return httpx.put(part["url"], content=scan[start : start + part["size_bytes"]], timeout=60)


def send_all(upload: dict, scan: bytes = SCAN) -> None:
    for part in upload["parts"]:
        if not part["received"]:
            assert send(part, scan).is_success


def completed(service: Service, scan: bytes = SCAN) -> dict:
    upload = begin(service, scan)
    send_all(upload, scan)
    answer = service.client.post(upload["links"]["complete"])
    assert answer.status_code == 200, answer.text
    return answer.json()


def submit(service: Service, upload_id: str, key: str | None = None, **options: str) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return service.client.post(
        "/v1/jobs/from-source", json={"source": {"upload_id": upload_id}, **options}, headers=headers
    )


def keys(service: Service, folder: str = "uploads/") -> list[str]:
    return list(service.jobs.backends.store.blobs.keys(folder))


def test_a_scan_in_parts_becomes_a_job(service: Service) -> None:
    upload = begin(service, sha256=SHA256)
    assert (upload["status"], upload["part_bytes"], len(upload["parts"])) == ("open", PART_BYTES, 3)
    send_all(upload)
    done = service.client.post(upload["links"]["complete"]).json()
    assert (done["status"], done["sha256"], done["urls_expire_at"]) == ("complete", SHA256, None)
    assert done["links"]["complete"] is None
    assert all(part["received"] and part["url"] is None for part in done["parts"])
    answer = submit(service, upload["id"], priority="stat")
    assert answer.status_code == 202, answer.text
    assert answer.json()["input"] == {"size_bytes": len(SCAN), "sha256": SHA256, "source": None}
    assert answer.json()["priority"] == "stat"
    assert keys(service) == []
    require_problem(service.client.get(upload["links"]["self"]), 404, "upload-not-found")


def test_an_interrupted_upload_goes_on_with_new_addresses(service: Service) -> None:
    upload = begin(service)
    assert send(upload["parts"][2]).is_success
    problem = require_problem(service.client.post(upload["links"]["complete"]), 409, "upload-incomplete")
    assert problem["evidence"] == {"missing_parts": [1, 2], "wrong_parts": []}
    require_problem(submit(service, upload["id"]), 409, "upload-incomplete")
    resumed = service.client.get(upload["links"]["self"]).json()
    assert [part["received"] for part in resumed["parts"]] == [False, False, True]
    send_all(resumed)
    assert service.client.post(upload["links"]["complete"]).json()["sha256"] == SHA256


def test_other_bytes_than_announced_are_a_problem_and_are_deleted(service: Service) -> None:
    upload = begin(service, sha256="0" * 64)
    send_all(upload)
    problem = require_problem(service.client.post(upload["links"]["complete"]), 422, "upload-mismatch")
    assert (problem["evidence"]["expected_sha256"], problem["evidence"]["found_sha256"]) == ("0" * 64, SHA256)
    assert keys(service) == []
    require_problem(service.client.get(upload["links"]["self"]), 404, "upload-not-found")


def test_an_aborted_upload_takes_nothing_more(service: Service) -> None:
    upload = begin(service)
    assert send(upload["parts"][0]).is_success
    assert service.client.delete(upload["links"]["self"]).status_code == 204
    assert send(upload["parts"][1]).status_code == 404
    require_problem(service.client.delete(upload["links"]["self"]), 404, "upload-not-found")
    require_problem(service.client.post(upload["links"]["complete"]), 404, "upload-not-found")
    assert keys(service) == []


def test_a_repeated_submission_gets_the_first_answer_though_the_upload_is_gone(service: Service) -> None:
    upload_id = completed(service)["id"]
    first, again = submit(service, upload_id, "k"), submit(service, upload_id, "k")
    assert again.headers["idempotent-replayed"] == "true"
    assert first.json()["id"] == again.json()["id"]
    require_problem(submit(service, upload_id, "k", priority="stat"), 422, "idempotency-key-reused")
    require_problem(submit(service, upload_id, "another"), 404, "upload-not-found")
    assert len(service.client.get("/v1/jobs").json()["items"]) == 1


def test_what_is_no_scan_becomes_no_job(service: Service) -> None:
    upload_id = completed(service, b"%PDF-1.7" * 1000)["id"]
    require_problem(submit(service, upload_id, "k"), 415, "unsupported-format")
    assert keys(service, "jobs/") == []
    assert submit(service, completed(service)["id"], "k").status_code == 202, "the key is free again"


def test_a_deleted_job_leaves_nothing_of_its_upload(service: Service) -> None:
    job = submit(service, completed(service)["id"]).json()
    service.worker.succeed(job["id"])
    assert service.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert keys(service) == []
    assert keys(service, "jobs/") == [f"jobs/{job['id']}/purged.json"]


def test_a_mask_has_an_address(service: Service) -> None:
    job_id = service.succeeded()
    answer = service.client.get(f"/v1/jobs/{job_id}/masks/lobes/url")
    assert answer.headers["cache-control"] == "no-store"
    address = answer.json()
    is_signed = "X-Amz-Signature" in address["url"]
    assert is_signed is (service.jobs.backends.store.blobs.bucket is not None)
    assert (address["expires_at"] is not None) is is_signed
    data = httpx.get(address["url"], headers={"Range": "bytes=0-9"})
    assert (data.status_code, data.content) == (206, mask_bytes(MaskName.LOBES)[:10])
    whole = httpx.get(address["url"]).content
    assert (len(whole), hashlib.sha256(whole).hexdigest()) == (address["size_bytes"], address["sha256"])
    require_problem(service.client.get(f"/v1/jobs/{service.submit()}/masks/lobes/url"), 409, "wrong-state")


@pytest.mark.parametrize("scan_bytes", [16 * MIB + 1, 1 << 60])
def test_too_large_a_scan_is_refused_before_a_byte_is_sent(service: Service, scan_bytes: int) -> None:
    answer = service.client.post("/v1/uploads", json={"size_bytes": scan_bytes})
    assert require_problem(answer, 413, "upload-too-large")["evidence"] == {"limit_bytes": 16 * MIB}
    assert keys(service) == []


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        ({}, "/body/size_bytes"),
        ({"size_bytes": 0}, "/body/size_bytes"),
        ({"size_bytes": 10**30}, "/body/size_bytes"),
        ({"size_bytes": 5, "sha256": "abc"}, "/body/sha256"),
        ({"size_bytes": 5, "file_name": "Doe^Jane.nii"}, "/body/file_name"),
    ],
)
def test_a_wrong_announcement_is_pointed_at(shared: Service, wanted: dict, pointer: str) -> None:
    answer = shared.client.post("/v1/uploads", json=wanted)
    if answer.status_code == 413:  # a number beyond all limits is still a number
        return
    problem = require_problem(answer, 422, "invalid-parameters")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


def test_an_announcement_is_json(shared: Service) -> None:
    require_problem(shared.client.post("/v1/uploads", data={"size_bytes": 5}), 415, "unsupported-content-type")
    json = {"Content-Type": "application/json"}
    require_problem(shared.client.post("/v1/uploads", content=b"{", headers=json), 400, "malformed-request")
    answer = shared.client.post("/v1/uploads", content=b" " * 70_000, headers=json)
    require_problem(answer, 413, "upload-too-large")


def test_an_upload_that_cannot_be_is_not_found(shared: Service) -> None:
    for upload_id in (new_id(), "x", "..%5C.."):
        require_problem(shared.client.get(f"/v1/uploads/{upload_id}"), 404, "upload-not-found")
        require_problem(submit(shared, upload_id), 404, "upload-not-found")


class TestAFolder:
    """The gateway itself takes the parts."""

    @pytest.mark.parametrize("size_bytes", [0, PART_BYTES - 1, PART_BYTES + 1, 3 * PART_BYTES])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_part_of_another_size_is_refused_and_not_kept(
        self, on_folder: Service, size_bytes: int, chunked: bool
    ) -> None:
        part = begin(on_folder)["parts"][0]
        body = iter([bytes(size_bytes)]) if chunked else bytes(size_bytes)
        problem = require_problem(httpx.put(part["url"], content=body, timeout=60), 422, "wrong-part-size")
        assert problem["evidence"]["expected_bytes"] == PART_BYTES
        assert [path.name for path in on_folder.stored_files()] == ["upload.json"]

    def test_changed_addresses_are_refused(self, on_folder: Service) -> None:
        upload, other = begin(on_folder), begin(on_folder)
        url = upload["parts"][0]["url"]
        query = parse_qs(urlsplit(url).query)
        assert set(query) == {"expires", "signature"}
        for changed in (
            url.replace("/parts/1?", "/parts/2?"),
            url.replace(upload["id"], other["id"]),
            url.replace(upload["id"], new_id()),
            url.replace(query["expires"][0], str(int(query["expires"][0]) + 60)),
            url[:-4] + "0000",
        ):
            assert changed != url
            require_problem(httpx.put(changed, content=bytes(PART_BYTES)), 403, "url-not-valid")
        require_problem(httpx.put(url.partition("?")[0], content=b""), 422, "invalid-parameters")
        require_problem(httpx.get(url), 405, "method-not-allowed")
        assert {path.name for path in on_folder.stored_files()} == {"upload.json"}

    def test_an_expired_address_is_refused(self, on_folder: Service) -> None:
        upload = begin(on_folder)
        signed = on_folder.jobs.service.uploads._parts.signer.sign(upload["id"], 1, 1_700_000_000)
        url = f"{upload['links']['self']}/parts/1?expires={signed.expires}&signature={signed.signature}"
        require_problem(httpx.put(url, content=bytes(PART_BYTES)), 403, "url-not-valid")

    def test_a_part_that_stands_still_is_given_up(self, on_folder: Service) -> None:
        def body() -> Iterator[bytes]:
            yield bytes(1000)
            time.sleep(3)
            yield bytes(PART_BYTES - 1000)

        part = begin(on_folder)["parts"][0]
        try:
            answer = httpx.put(part["url"], content=body(), timeout=60)
            require_problem(answer, 408, "request-timeout")
        except httpx.TransportError:
            pass  # the connection was closed while we still wrote
        assert {path.name for path in on_folder.stored_files()} == {"upload.json"}

    def test_a_complete_upload_takes_no_part(self, on_folder: Service) -> None:
        upload = begin(on_folder)
        send_all(upload)
        on_folder.client.post(upload["links"]["complete"])
        require_problem(send(upload["parts"][0]), 409, "upload-closed")
        assert {path.name.partition("-")[0] for path in on_folder.stored_files()} == {
            "upload.json",
            "completed.json",
            "scan",
        }


def test_a_bucket_that_is_gone_is_a_problem_of_the_storage(tmp_path: Path, s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket("gone-behind-the-gateway")
    with running_service(tmp_path / "service", blob_url=f"s3://{bucket}/x", **UPLOADS) as service:
        upload, job_id = begin(service), service.submit()
        s3_server.delete_bucket(bucket)
        for answer in (
            service.client.post("/v1/uploads", json={"size_bytes": 5}),
            service.client.get(upload["links"]["self"]),
            service.client.post(upload["links"]["complete"]),
            service.client.delete(upload["links"]["self"]),
            submit(service, upload["id"]),
            service.client.post("/v1/jobs", files={"file": ("scan.nii", nifti())}),
            service.client.get(f"/v1/jobs/{job_id}/report"),
        ):
            require_problem(answer, 503, "storage-unavailable")
        assert service.client.get("/readyz").json()["evidence"]["blobs"] is False
        s3_server.make_bucket(bucket)
        assert not s3_server.keys(bucket)


def test_a_full_disk_is_a_problem_of_the_storage_and_keeps_nothing(tmp_path: Path) -> None:
    with gateway(tmp_path) as (address, pid), httpx.Client(base_url=address, timeout=60) as client:
        part = client.post("/v1/uploads", json={"size_bytes": PART_BYTES}).json()["parts"][0]
        resource.prlimit(
            pid, resource.RLIMIT_FSIZE, (MIB, MIB)
        )  # no file may grow beyond: writes fail as on a full disk
        require_problem(httpx.put(part["url"], content=bytes(PART_BYTES), timeout=60), 503, "storage-unavailable")
        require_problem(client.post("/v1/jobs", files={"file": nifti(PART_BYTES)}), 503, "storage-unavailable")
        assert client.get("/v1/jobs").json()["items"] == []
        blobs = tmp_path / "blobs"
        left = {path for path in blobs.rglob("*") if path.is_file() and blobs / "audit" not in path.parents}
        assert {path.name for path in left} <= {"upload.json", RESERVE}
