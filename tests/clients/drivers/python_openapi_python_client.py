"""Drives the package that openapi-python-client makes."""

import hashlib
import importlib
import io
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from generated import Client, models
from generated.types import File
from python_steps import SCAN, UPLOAD, WORLD, put, step, until

client = Client(base_url=WORLD.address)


def operation(name: str) -> ModuleType:
    """A module of its own has each: `jobs.get_job`."""
    return importlib.import_module(f"generated.api.{name}")


def get_job(job_id: str) -> Any:
    return operation("jobs.get_job").sync(job_id, client=client)


def scan() -> File:
    return File(payload=io.BytesIO(SCAN.read_bytes()), file_name="scan.nii.gz")


def require_cancelled(job_id: str) -> None:
    assert isinstance(operation("jobs.cancel_job").sync(job_id, client=client), models.Job)
    until(lambda: get_job(job_id).status == models.JobStatus.CANCELLED or None)


def form() -> str:
    submission = models.UploadSubmission(
        file=scan(),
        priority=models.Priority.STAT,
        client_reference="openapi-python-client",
        callback_url=WORLD.callback_url,
    )
    key = f"openapi-python-client-{WORLD.scored.job_id}"
    job = operation("jobs.create_job").sync(client=client, body=submission, idempotency_key=key)
    assert isinstance(job, models.Job)
    assert (job.priority, job.client_reference) == (models.Priority.STAT, "openapi-python-client")
    assert job.input_.size_bytes == SCAN.stat().st_size
    return job.id


def source() -> None:
    submission = models.SourceSubmission(
        source=models.Source(url=WORLD.source_url, sha256=WORLD.source_sha256), priority=models.Priority.BATCH
    )
    job = operation("jobs.create_job_from_source").sync(client=client, body=submission)
    assert job.priority == models.Priority.BATCH
    require_cancelled(job.id)


def create_upload() -> models.Upload:
    body = models.UploadRequest(size_bytes=UPLOAD.stat().st_size, sha256=WORLD.upload_sha256)
    upload = operation("uploads.create_upload").sync(client=client, body=body)
    assert len(upload.parts) > 1
    return upload


def get_upload(upload_id: str) -> models.Upload:
    return operation("uploads.get_upload").sync(upload_id, client=client)


def part_bytes(upload: models.Upload, number: int) -> bytes:
    start = (number - 1) * upload.part_bytes
    return UPLOAD.read_bytes()[start : start + upload.part_bytes]


def part() -> models.Upload:
    upload = create_upload()
    query = parse_qs(urlsplit(upload.parts[0].url).query)
    answer = operation("uploads.put_upload_part").sync_detailed(
        upload.id,
        1,
        client=client,
        body=File(payload=io.BytesIO(part_bytes(upload, 1))),
        expires=int(query["expires"][0]),
        signature=query["signature"][0],
    )
    assert answer.status_code == 204, answer.content
    assert get_upload(upload.id).parts[0].received
    return upload


def upload_in_parts(begun: models.Upload | None) -> None:
    upload = get_upload((begun or create_upload()).id)
    for each in upload.parts:
        if not each.received:
            put(each.url, part_bytes(upload, each.number))
    completed = operation("uploads.complete_upload").sync(upload.id, client=client)
    assert completed.sha256 == WORLD.upload_sha256
    body = models.SourceSubmission(source=models.Source(upload_id=upload.id))
    job = operation("jobs.create_job_from_source").sync(client=client, body=body)
    assert job.input_.size_bytes == UPLOAD.stat().st_size
    require_cancelled(job.id)


def poll() -> None:
    call = operation("jobs.get_job").sync_detailed
    answer = call(WORLD.scored.job_id, client=client)
    assert answer.parsed.status == models.JobStatus.SUCCEEDED
    again = call(WORLD.scored.job_id, client=client, if_none_match=answer.headers["etag"])
    assert (again.status_code, again.parsed) == (304, None)


def validate() -> None:
    submission = models.UploadSubmission(file=scan(), priority=models.Priority.STAT)
    job = operation("jobs.validate_scan").sync(client=client, body=submission, prefer="wait=30")
    until(lambda: get_job(job.id).finished_at)
    assert get_job(job.id).status == models.JobStatus.SUCCEEDED
    seen = operation("results.get_inspection").sync(job.id, client=client)
    assert len(seen.shape) == 3


def callback(job_id: str) -> None:
    def delivered(times: int) -> models.Callback | None:
        found = operation("callbacks.get_callback").sync(job_id, client=client)
        is_there = found.status == models.CallbackStatus.DELIVERED and len(found.attempts) >= times
        return found if is_there else None

    assert until(lambda: delivered(1)).attempts[0].outcome == models.CallbackOutcome.DELIVERED
    operation("callbacks.redeliver_callback").sync(job_id, client=client)
    until(lambda: delivered(2))


def report() -> None:
    found = operation("results.get_report").sync(WORLD.scored.job_id, client=client)
    assert found.severity.percent_opacity == WORLD.scored.percent_opacity
    assert [lobe.label for lobe in found.lobes] == [1, 2, 3, 4, 5]


def mask() -> None:
    found = operation("results.get_mask").sync(WORLD.scored.job_id, models.MaskName.LUNGS, client=client)
    assert hashlib.sha256(found.payload.read()).hexdigest() == WORLD.scored.sha256


def mask_range() -> None:
    call = operation("results.get_mask").sync_detailed
    answer = call(WORLD.scored.job_id, models.MaskName.LUNGS, client=client, range_="bytes=2-101")
    assert (answer.status_code, len(answer.parsed.payload.read())) == (206, 100)
    assert answer.headers["content-range"] == f"bytes 2-101/{WORLD.scored.size_bytes}"


def lists() -> None:
    call = operation("jobs.list_jobs").sync
    oldest = models.ListJobsSort.OLDEST_FIRST
    first = call(client=client, limit=1, sort=oldest)
    second = call(client=client, limit=1, sort=oldest, cursor=first.next_cursor)
    assert first.items[0].id < second.items[0].id
    chosen = call(client=client, limit=200, status=[models.JobStatus.SUCCEEDED], priority=models.Priority.ROUTINE)
    assert WORLD.scored.job_id in [job.id for job in chosen.items]


def batch() -> None:
    items = [
        models.BatchItemSubmission(source=models.Source(url=url), client_reference="a batch")
        for url in (WORLD.source_url, WORLD.refused_url)
    ]
    made = operation("batches.create_batch").sync(client=client, body=models.BatchSubmission(items=items))
    operation("batches.cancel_batch").sync(made.id, client=client)
    found = operation("batches.get_batch").sync(made.id, client=client)
    assert (found.counts.refused, found.items[1].error.type_) == (1, "/problems/source-not-allowed")
    assert found.items[0].job.priority == models.Priority.BATCH


def problem() -> None:
    missing = get_job("unknown")
    assert isinstance(missing, models.Problem)
    assert (missing.status, missing.type_) == (404, "/problems/job-not-found")
    found = operation("jobs.list_jobs").sync(client=client, cursor="none")
    assert isinstance(found, models.Problem)
    assert (found.status, found.errors[0].pointer) == (422, "/query/cursor")


job_id = step("form", form)
step("source", source)
begun = step("part", part)
step("upload", lambda: upload_in_parts(begun))
step("cancel", lambda: require_cancelled(job_id))
step("poll", poll)
step("validate", validate)
step("callback", lambda: callback(job_id))
step("report", report)
step("mask", mask)
step("range", mask_range)
step("list", lists)
step("batch", batch)
step("problem", problem)
