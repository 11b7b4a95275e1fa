"""What callers do, over a real gateway; a thread acts as the worker."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from lobewise_client import (
    DeletedError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    KeyReusedError,
    NotFinishedError,
    NotFoundError,
    Priority,
    Progress,
    ScanRefusedError,
    WrongStateError,
)

from api import examples
from jobs.models import MaskName as Masks
from tests.api.conftest import Service, mask_bytes, nifti

from .conftest import MIB, PART_BYTES, MakeClient

Work = Callable[..., None]


def test_a_scan_is_scored_and_saved(client: Any, worker: Work, tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(nifti())
    seen: list[Progress] = []
    worker(1)
    result = client.score(
        tmp_path / "scan.nii", priority=Priority.STAT, client_reference="worklist-1", on_progress=seen.append
    )
    assert result.report.severity.percent_opacity == 12.3
    assert (result.job.status, result.job.priority, result.job.client_reference) == ("succeeded", "stat", "worklist-1")
    assert [one.stage for one in seen][:2] == ["upload", "upload"]
    assert seen[-1] == Progress("succeeded", 1.0)
    fractions = [one.fraction for one in seen if one.stage == "upload"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert result.masks["lobes"].read() == mask_bytes(Masks.LOBES)
    paths = result.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)
    assert {path.name for path in paths} == {*(f"{name}.nii.gz" for name in Masks), "labels.json", "report.json"}
    assert (tmp_path / "out" / "lungs.nii.gz").read_bytes() == mask_bytes(Masks.LUNGS)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["job_id"] == result.job.id


@pytest.mark.parametrize("kind", ["bytes", "file", "pipe"])
def test_whatever_holds_bytes_is_a_scan(kind: str, client: Any, service: Service) -> None:
    class Pipe(BytesIO):
        def seekable(self) -> bool:
            return False

    scan = nifti(3000)
    stream = BytesIO(b"before" + scan)
    stream.seek(6)
    job = client.submit({"bytes": scan, "file": stream, "pipe": Pipe(scan)}[kind])
    assert job.input.size_bytes == 3000
    assert not stream.closed


def test_a_folder_is_zipped_without_its_names(client: Any, service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "Doe^Jane"
    (folder / "series").mkdir(parents=True)
    (folder / "series" / "Doe^Jane-1.dcm").write_bytes(b"one")
    (folder / "series" / "Doe^Jane-2.dcm").write_bytes(b"two" * 1000)
    (folder / "link").symlink_to("/etc/passwd")
    job = client.submit(folder)
    stored = (service.blobs / "jobs" / job.id / "input").read_bytes()
    with ZipFile(BytesIO(stored)) as archive:
        assert archive.namelist() == ["000000", "000001"]
        assert archive.read("000001") == b"two" * 1000
    assert b"Jane" not in stored
    again = client.submit(folder)
    assert again.input.sha256 == job.input.sha256, "its times are in it, and a repeated request would be another"


def test_a_large_scan_goes_in_parts(make_client: MakeClient, service: Service, worker: Work) -> None:
    client = make_client(service.address, parts_above_bytes=PART_BYTES)
    seen: list[Progress] = []
    scan = nifti(2 * PART_BYTES + MIB)
    worker(1)
    result = client.score(scan, on_progress=seen.append)
    assert (result.job.input.size_bytes, result.job.status) == (len(scan), "succeeded")
    fractions = [one.fraction for one in seen if one.stage == "upload"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_the_same_key_makes_the_same_job(client: Any) -> None:
    scan, key = nifti(2222), "key-of-" + str(id(client))
    first, second = (client.submit(scan, idempotency_key=key) for _ in range(2))
    assert first.id == second.id
    assert client.submit(scan).id != first.id
    with pytest.raises(KeyReusedError):
        client.submit(nifti(2223), idempotency_key=key)


def test_a_job_that_fails_raises_its_problem(client: Any, failing: Work) -> None:
    failing(1)
    with pytest.raises(JobFailedError) as caught:
        client.score(nifti())
    assert caught.value.problem.type == examples.FAILURE.type
    assert caught.value.job.status == "failed"
    assert examples.FAILURE.title in str(caught.value)


def test_a_job_is_followed_to_its_end(client: Any, service: Service) -> None:
    job_id = service.submit()
    seen = []
    for job in client.follow(job_id, wait_seconds=20):
        seen.append(job.status)
        if job.status == "queued" and len(seen) < 3:
            service.worker.succeed(job_id)
    assert seen[0] == "queued"
    assert seen[-2:] == ["running", "succeeded"]
    assert [job.status for job in client.follow(job_id)] == ["succeeded"]


def test_where_a_job_stands_in_the_queue_is_told_without_events(client: Any, service: Service) -> None:
    first, second = service.submit(priority="batch"), service.submit(priority="batch")
    for job in client.follow(second, wait_seconds=20):
        if job.queue_position is not None:
            break
    assert job.queue_position >= 2
    client.cancel(first)
    client.cancel(second)


def test_waiting_has_its_limit_and_a_stop_its_error(client: Any, service: Service) -> None:
    job_id = service.submit()
    with pytest.raises(NotFinishedError) as caught:
        client.wait(job_id, wait_seconds=0.5)
    assert caught.value.job_id == job_id
    assert client.cancel(job_id).status == "cancelled"
    with pytest.raises(JobCancelledError):
        client.wait(job_id)
    with pytest.raises(WrongStateError) as wrong:
        client.report(job_id)
    assert wrong.value.slug == "wrong-state"


def test_what_is_not_there_and_what_was_deleted(client: Any, service: Service) -> None:
    job_id = service.succeeded()
    client.delete(job_id)
    for call in (client.get, client.report, client.wait):
        with pytest.raises(DeletedError):
            call(job_id)
    with pytest.raises(NotFoundError, match="404"):
        list(client.follow("no/such job"))


def test_a_request_that_is_wrong_says_where(client: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.submit(nifti(), priority="urgent")
    assert [error.pointer for error in caught.value.errors] == ["/body/priority"]
    with pytest.raises(ScanRefusedError):
        client.submit(b"no scan at all")
    with pytest.raises(TypeError, match="colour"):
        client.submit(nifti(), colour="red")
    with pytest.raises(ValueError, match="line break"):
        client.submit(nifti(), client_reference='x"\r\n\r\n')


def test_jobs_are_listed_over_all_pages(client: Any, service: Service) -> None:
    ids = [service.submit(priority="stat") for _ in range(5)]
    listed = [job.id for job in client.list_jobs(priority="stat", status="queued", limit=2)]
    assert listed[:5] == ids[::-1]
    for job_id in ids:
        client.cancel(job_id)


def test_jobs_and_reports_are_found_by_reference_and_time(client: Any, service: Service) -> None:
    reference = f"found-{id(client)}"
    job_id, other = (service.succeeded(client_reference=reference) for _ in range(2))
    since = client.get(job_id).created_at
    found = client.list_jobs(client_reference=reference, status=["succeeded", "failed"], created_after=since)
    assert [job.id for job in found] == [other, job_id]
    assert list(client.list_jobs(client_reference=reference, created_before=since)) == []
    assert [one.job_id for one in client.export_reports(client_reference=reference)] == [job_id, other]
    assert [one.job_id for one in client.export_reports(client_reference=reference, limit=1)] == [job_id]


def test_a_batch_is_made_looked_at_and_stopped(client: Any, service: Service) -> None:
    upload = client.upload(nifti(4000))
    assert upload.status == "complete"
    scans = [
        {"upload_id": upload.id, "client_reference": "a"},
        {"url": "https://pacs.example/ct/1.nii.gz", "priority": "routine"},
        {"url": "https://elsewhere.example/1.nii.gz"},
    ]
    batch = client.create_batch(scans)
    assert (batch.counts.queued, batch.counts.refused, batch.counts.unfinished) == (2, 1, 2)
    items = list(client.batch_items(batch.id))
    assert [item.job.priority if item.job else item.error.type for item in items] == [
        "batch",
        "routine",
        "/problems/source-not-allowed",
    ]
    assert client.cancel_batch(batch.id).counts.cancelled == 2
    assert client.get_batch(batch.id).id == batch.id


def test_what_else_the_service_says(client: Any, service: Service) -> None:
    client.health()
    with pytest.raises(InvalidRequestError) as refused:
        client.submit_source("https://pacs.example/ct/2.nii.gz", callback_url="https://elsewhere.example/")
    assert refused.value.slug == "callback-not-allowed"
    with pytest.raises(WrongStateError) as caught:
        client.get_callback(service.submit())
    assert caught.value.slug == "no-callback"
    upload = client.upload(nifti(5000))
    client.abort_upload(upload.id)
    with pytest.raises(NotFoundError):
        client.get_upload(upload.id)
    assert client.models() == []
    labels = client.labels(service.succeeded())
    assert [one.number for one in labels.masks["lobes"]] == [1, 2, 3, 4, 5]
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    assert client.get(client.submit(nifti(), not_after=later).id).not_after == later


def test_a_scan_is_validated(client: Any, inspector: Work) -> None:
    inspector(1)
    seen = client.validate(nifti(), wait_seconds=20)
    assert (seen.shape, seen.geometry.file_format) == (examples.INSPECTION.shape, "NIfTI-1")


def test_masks_are_saved_whole_or_not_at_all(client: Any, service: Service, tmp_path: Path) -> None:
    job_id = service.succeeded()
    path = client.save_mask(job_id, "lesions", tmp_path / "lesions.nii.gz")
    assert gzip.decompress(path.read_bytes()).startswith(b"mask lesions")
    with pytest.raises(NotFoundError):
        client.save_mask(job_id, "heart", tmp_path / "heart.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["lesions.nii.gz"]
