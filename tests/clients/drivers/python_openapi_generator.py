"""Drives the package that openapi-generator's `python` makes."""

import hashlib
from typing import Any
from urllib.parse import parse_qs, urlsplit

from generated import (
    ApiClient,
    ApiException,
    BatchesApi,
    CallbacksApi,
    Configuration,
    JobsApi,
    ResultsApi,
    UploadsApi,
    models,
)
from python_steps import SCAN, UPLOAD, WORLD, put, step, until

client = ApiClient(Configuration(host=WORLD.address))
jobs, results, uploads = JobsApi(client), ResultsApi(client), UploadsApi(client)
batches, callbacks = BatchesApi(client), CallbacksApi(client)


def require_cancelled(job_id: str) -> models.Job:
    jobs.cancel_job(job_id)

    def found() -> models.Job | None:
        job = jobs.get_job(job_id)
        return job if job.status == models.JobStatus.CANCELLED else None

    job: models.Job = until(found)
    return job


def header(answer: Any, name: str) -> str:
    """Its dictionary minds capitals, which HTTP does not."""
    return str({key.lower(): value for key, value in answer.headers.items()}[name])


def form() -> str:
    job = jobs.create_job(
        file=("scan.nii.gz", SCAN.read_bytes()),
        priority=models.Priority.STAT,
        client_reference="python",
        callback_url=WORLD.callback_url,
        idempotency_key=f"python-{WORLD.scored.job_id}",
    )
    assert isinstance(job, models.Job)
    assert (job.priority, job.client_reference) == (models.Priority.STAT, "python")
    assert job.input.size_bytes == SCAN.stat().st_size
    return str(job.id)


def source() -> None:
    submission = models.SourceSubmission(
        source=models.Source(url=WORLD.source_url, sha256=WORLD.source_sha256), priority=models.Priority.BATCH
    )
    job = jobs.create_job_from_source(submission)
    assert job.priority == models.Priority.BATCH
    require_cancelled(job.id)


def create_upload() -> models.Upload:
    upload = uploads.create_upload(models.UploadRequest(size_bytes=UPLOAD.stat().st_size, sha256=WORLD.upload_sha256))
    assert len(upload.parts) > 1
    return upload


def part_bytes(upload: models.Upload, number: int) -> bytes:
    start = (number - 1) * upload.part_bytes
    return UPLOAD.read_bytes()[start : start + upload.part_bytes]


def part() -> models.Upload:
    upload = create_upload()
    query = parse_qs(urlsplit(upload.parts[0].url).query)
    uploads.put_upload_part(upload.id, 1, int(query["expires"][0]), query["signature"][0], part_bytes(upload, 1))
    assert uploads.get_upload(upload.id).parts[0].received
    return upload


def upload_in_parts(begun: models.Upload | None) -> None:
    upload = uploads.get_upload((begun or create_upload()).id)
    for each in upload.parts:
        if not each.received:
            put(each.url, part_bytes(upload, each.number))
    assert uploads.complete_upload(upload.id).sha256 == WORLD.upload_sha256
    job = jobs.create_job_from_source(models.SourceSubmission(source=models.Source(upload_id=upload.id)))
    assert job.input.size_bytes == UPLOAD.stat().st_size
    require_cancelled(job.id)


def poll() -> None:
    answer = jobs.get_job_with_http_info(WORLD.scored.job_id)
    assert answer.data.status == models.JobStatus.SUCCEEDED
    try:
        status = jobs.get_job_with_http_info(WORLD.scored.job_id, if_none_match=header(answer, "etag")).status_code
    except ApiException as error:  # what is no success is raised by this client
        status = error.status
    assert status == 304


def validate() -> None:
    job = jobs.validate_scan(file=("scan.nii.gz", SCAN.read_bytes()), priority=models.Priority.STAT, prefer="wait=30")

    until(lambda: jobs.get_job(job.id).finished_at)
    assert jobs.get_job(job.id).status == models.JobStatus.SUCCEEDED
    seen = results.get_inspection(job.id)
    assert len(seen.shape) == 3


def callback(job_id: str) -> None:
    first = until(lambda: delivered(job_id, 1))
    assert first.attempts[0].outcome == models.CallbackOutcome.DELIVERED
    callbacks.redeliver_callback(job_id)
    until(lambda: delivered(job_id, 2))


def delivered(job_id: str, times: int) -> models.Callback | None:
    found = callbacks.get_callback(job_id)
    is_there = found.status == models.CallbackStatus.DELIVERED and len(found.attempts) >= times
    return found if is_there else None


def report() -> None:
    found = results.get_report(WORLD.scored.job_id)
    assert found.severity.percent_opacity == WORLD.scored.percent_opacity
    assert [lobe.label for lobe in found.lobes] == [1, 2, 3, 4, 5]


def mask() -> None:
    found = results.get_mask(WORLD.scored.job_id, models.MaskName.LUNGS)
    assert hashlib.sha256(found).hexdigest() == WORLD.scored.sha256


def mask_range() -> None:
    answer = results.get_mask_with_http_info(WORLD.scored.job_id, models.MaskName.LUNGS, range="bytes=2-101")
    assert (answer.status_code, len(answer.data)) == (206, 100)
    assert header(answer, "content-range") == f"bytes 2-101/{WORLD.scored.size_bytes}"


def lists() -> None:
    first = jobs.list_jobs(limit=1, sort="created_at")
    second = jobs.list_jobs(limit=1, sort="created_at", cursor=first.next_cursor)
    assert (len(first.items), len(second.items)) == (1, 1)
    assert first.items[0].id < second.items[0].id
    succeeded = jobs.list_jobs(status=[models.JobStatus.SUCCEEDED], priority=models.Priority.ROUTINE, limit=200)
    assert WORLD.scored.job_id in [job.id for job in succeeded.items]


def batch() -> None:
    items = [
        models.BatchItemSubmission(source=models.Source(url=url), client_reference="python batch")
        for url in (WORLD.source_url, WORLD.refused_url)
    ]
    made = batches.create_batch(models.BatchSubmission(items=items))
    batches.cancel_batch(made.id)
    found = batches.get_batch(made.id)
    assert found.counts.refused == 1
    assert found.items[1].error.type.endswith("source-not-allowed")
    assert found.items[0].job.priority == models.Priority.BATCH


def problem() -> None:
    for run, status, slug in (
        (lambda: jobs.get_job("unknown"), 404, "job-not-found"),
        (lambda: jobs.list_jobs(cursor="none"), 422, "invalid-parameters"),
    ):
        try:
            run()
        except ApiException as error:
            found = error.data
        assert isinstance(found, models.Problem)
        assert (found.status, found.type) == (status, f"/problems/{slug}")
    assert found.errors[0].pointer == "/query/cursor"


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
