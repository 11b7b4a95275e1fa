"""Reports and masks."""

import base64
import hashlib

import httpx
import pytest

from api import examples
from jobs.models import DicomProduct, MaskLabels, MaskName, NoDicomReason, Report
from jobs.worker_api import DicomResult
from worker.report import mask_labels

from .conftest import Service, dicom_bytes, mask_bytes, require_problem


@pytest.fixture(scope="module")
def job_id(shared: Service) -> str:
    return shared.succeeded()


def get(service: Service, job_id: str, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.client.get(f"/v1/jobs/{job_id}/masks/lobes", headers=names)


LOBES = mask_bytes(MaskName.LOBES)


def test_the_report_is_what_the_worker_stored_with_addresses(shared: Service, job_id: str) -> None:
    answer = shared.client.get(f"/v1/jobs/{job_id}/report")
    report = Report.model_validate_json(answer.content)
    assert answer.status_code == 200
    assert report.job_id == job_id
    assert report.lobes == examples.REPORT.lobes
    for name in MaskName:
        assert httpx.get(report.masks[name]).content == mask_bytes(name)
    again = shared.client.get(f"/v1/jobs/{job_id}/report", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("below", ["report", "labels", "masks/lungs", "dicom/seg"])
def test_results_are_409_until_the_job_has_succeeded(shared: Service, below: str) -> None:
    queued = shared.submit()
    failed = shared.submit()
    shared.worker.fail(failed)
    for job, status in ((queued, "queued"), (failed, "failed")):
        problem = require_problem(shared.client.get(f"/v1/jobs/{job}/{below}"), 409, "wrong-state")
        assert problem["evidence"] == {"status": status}


def test_labels_are_those_of_the_worker(shared: Service, job_id: str) -> None:
    labels = MaskLabels.model_validate_json(shared.client.get(f"/v1/jobs/{job_id}/labels").content)
    assert labels == examples.LABELS == mask_labels()
    report = shared.client.get(f"/v1/jobs/{job_id}/report").json()
    names = {label.number: label.name for label in labels.masks[MaskName.LOBES]}
    assert names == {lobe["label"]: lobe["lobe"] for lobe in report["lobes"]}


def test_a_job_of_a_version_without_labels_is_409(shared: Service) -> None:
    job_id = shared.submit()
    (path := shared.worker.folder / job_id).write_bytes(b"a mask")
    report = examples.REPORT.model_copy(update={"job_id": job_id})
    with shared.jobs.worker.claim(job_id, "test") as lease:
        shared.jobs.worker.succeed(lease, report, dict.fromkeys(MaskName, path))
    problem = require_problem(shared.client.get(f"/v1/jobs/{job_id}/labels"), 409, "wrong-state")
    assert "no labels" in problem["detail"]


def test_a_mask_comes_whole_with_its_digest(shared: Service, job_id: str) -> None:
    answer = get(shared, job_id)
    assert (answer.status_code, answer.content) == (200, LOBES)
    digest = base64.b64encode(hashlib.sha256(LOBES).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert answer.headers["content-length"] == str(len(LOBES))
    assert answer.headers["content-disposition"] == 'attachment; filename="lobes.nii.gz"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "content-encoding" not in answer.headers


def test_head_says_what_get_would(shared: Service, job_id: str) -> None:
    head = shared.client.head(f"/v1/jobs/{job_id}/masks/lobes")
    assert (head.status_code, head.content) == (200, b"")
    varying = {"x-request-id", "date"}
    assert {n: v for n, v in head.headers.items() if n not in varying} == {
        n: v for n, v in get(shared, job_id).headers.items() if n not in varying
    }


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=10-", 10, len(LOBES)),
        ("bytes=-7", len(LOBES) - 7, len(LOBES)),
        ("bytes=-99999999", 0, len(LOBES)),
        ("bytes=3-99999999", 3, len(LOBES)),
        ("Bytes=5-9", 5, 10),
    ],
)
def test_a_range_of_a_mask(shared: Service, job_id: str, asked: str, begin: int, end: int) -> None:
    answer = get(shared, job_id, Range=asked)
    assert (answer.status_code, answer.content) == (206, LOBES[begin:end])
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(LOBES)}"
    assert answer.headers["repr-digest"] == get(shared, job_id).headers["repr-digest"]


@pytest.mark.parametrize("asked", [f"bytes={len(LOBES)}-", "bytes=-0", "bytes=99999999-"])
def test_a_range_after_the_end_is_416(shared: Service, job_id: str, asked: str) -> None:
    answer = get(shared, job_id, Range=asked)
    assert require_problem(answer, 416, "range-not-satisfiable")["evidence"] == {"size_bytes": len(LOBES)}
    assert answer.headers["content-range"] == f"bytes */{len(LOBES)}"


@pytest.mark.parametrize("asked", ["bytes=9-5", "bytes=0-1,4-5", "bytes=-", "lines=1-2", "bytes=a-b", "bytes=1"])
def test_what_is_no_single_range_is_ignored(shared: Service, job_id: str, asked: str) -> None:
    answer = get(shared, job_id, Range=asked)
    assert (answer.status_code, answer.content) == (200, LOBES)


def test_if_range_gives_the_part_only_of_the_same_version(shared: Service, job_id: str) -> None:
    whole = get(shared, job_id)
    for same in (whole.headers["etag"], whole.headers["last-modified"]):
        assert get(shared, job_id, Range="bytes=0-4", If_Range=same).status_code == 206
    for other in ('"other"', "W/" + whole.headers["etag"], "Mon, 02 Mar 2026 09:30:41 GMT", "yesterday"):
        assert get(shared, job_id, Range="bytes=0-4", If_Range=other).content == LOBES


def test_a_known_mask_is_304(shared: Service, job_id: str) -> None:
    etag = get(shared, job_id).headers["etag"]
    for known in (etag, "*", f'"other", {etag}'):
        answer = get(shared, job_id, If_None_Match=known)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert get(shared, job_id, If_None_Match='"other"').status_code == 200


def test_a_mask_of_another_name_is_404(shared: Service, job_id: str) -> None:
    require_problem(shared.client.get(f"/v1/jobs/{job_id}/masks/heart"), 404, "not-found")


def test_dicom_comes_as_masks_do(shared: Service, job_id: str) -> None:
    report = shared.client.get(f"/v1/jobs/{job_id}/report").json()
    assert set(report["dicom"]) == set(DicomProduct)
    for product, url in report["dicom"].items():
        data = dicom_bytes(DicomProduct(product))
        answer, head = httpx.get(url), httpx.head(url)
        assert (answer.status_code, answer.content) == (200, data)
        assert answer.headers["content-type"] == head.headers["content-type"] == "application/dicom"
        assert answer.headers["content-disposition"] == f'attachment; filename="{product}.dcm"'
        assert head.headers["content-length"] == str(len(data))
        part = httpx.get(url, headers={"Range": "bytes=3-9", "If-Range": answer.headers["etag"]})
        assert (part.status_code, part.content) == (206, data[3:10])
        assert part.headers["repr-digest"] == answer.headers["repr-digest"]
        for call in (httpx.get, httpx.head):
            assert call(url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    require_problem(shared.client.get(f"/v1/jobs/{job_id}/dicom/pdf"), 404, "not-found")


@pytest.mark.parametrize("absent", [*NoDicomReason, None])
def test_a_job_without_dicom_says_why(shared: Service, absent: NoDicomReason | None) -> None:
    job_id = shared.submit()
    (path := shared.worker.folder / job_id).write_bytes(b"a mask")
    report = examples.REPORT.model_copy(update={"job_id": job_id, "dicom": {}})
    with shared.jobs.worker.claim(job_id, "test") as lease:
        shared.jobs.worker.succeed(
            lease, report, dict.fromkeys(MaskName, path), dicom=DicomResult(examples.IDENTITY, absent=absent)
        )
    for product in DicomProduct:
        problem = require_problem(shared.client.get(f"/v1/jobs/{job_id}/dicom/{product}"), 404, "no-dicom")
        assert problem["evidence"] == {"reason": absent or "earlier-version"}
    assert shared.client.get(f"/v1/jobs/{job_id}/report").json()["dicom"] == {}
