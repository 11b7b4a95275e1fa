"""Many scans in one call: POST /v1/batches and what follows."""

import hashlib
from typing import Annotated, Any, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from api import examples, openapi
from api.dependencies import Addresses, AddressesDep, JobsDep, MetricsDep, SettingsDep
from api.errors import ApiError, problem_of
from api.request_body import HEAD_BYTES, MAX_BATCH_BYTES, body_chunks, read_json, require_length, require_scan
from api.routes.submission import IdempotencyKey
from api.schemas import Batch, BatchItemSubmission, BatchSubmission, BatchUploadedItem, Schema
from api.views import batch_view
from jobs import problems, states, tracing
from jobs.batches import BatchItem, BatchRecord
from jobs.errors import JobsError, UnavailableError
from jobs.models import InputInfo, JobError, JobRecord
from jobs.remote_sources import is_allowed
from jobs.service import JobService

router = APIRouter(tags=["batches"])

FIRST_PAGE: Final = 100
BatchId = Annotated[str, Path(description="`id` of the batch", examples=[examples.BATCH_ID])]
_BODY: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/BatchSubmission"},
            "examples": {"two": {"summary": "one to fetch, one that came in parts", "value": examples.BATCH_REQUEST}},
        }
    },
}


class BatchQuery(Schema):
    limit: int = Field(default=FIRST_PAGE, ge=1, le=200, description="how many items a page has at most")
    cursor: str | None = Field(
        default=None, pattern=r"^[0-9]{1,4}$", description="`next_cursor` of the page before", examples=["100"]
    )


@router.post(
    "/v1/batches",
    operation_id="create_batch",
    summary="Submit many scans",
    status_code=202,
    response_model=Batch,
    responses={
        202: openapi.json_answer(
            "Accepted: each scan that was not refused is a durable job.",
            examples.batch_examples(),
            "Location",
            "Idempotent-Replayed",
        ),
        **openapi.problem_answers(
            problems.MALFORMED_REQUEST,
            problems.REQUEST_TIMEOUT,
            problems.UPLOAD_TOO_LARGE,
            problems.UNSUPPORTED_CONTENT_TYPE,
            problems.INVALID_PARAMETERS,
            problems.IDEMPOTENCY_KEY_REUSED,
            problems.BROKER_UNAVAILABLE,
            problems.STORAGE_UNAVAILABLE,
        ),
    },
    openapi_extra={"requestBody": _BODY},
)
async def create_batch(
    request: Request,
    jobs: JobsDep,
    settings: SettingsDep,
    metrics: MetricsDep,
    addresses: AddressesDep,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Up to 1000 scans that workers fetch, or that came in parts; each becomes a job, by default of priority `batch`.

    A scan whose address is not allowed, or whose upload is not there, is refused in its item; the others go on. Once
    you have the 202, all of them survive restarts.
    """
    # First, so that a broker that is down costs the client no upload.
    await run_sync(jobs.monitoring.ping)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(problems.UNSUPPORTED_CONTENT_TYPE, "send application/json")
    require_length(request, MAX_BATCH_BYTES)
    submission = await read_json(body_chunks(request, MAX_BATCH_BYTES, settings.idle_seconds), BatchSubmission)
    record, is_replay = await run_sync(_accept, jobs, submission, idempotency_key, addresses)
    if not is_replay:
        for item, wanted in zip(record.items, submission.items, strict=True):
            if item.job_id is not None:
                metrics.accepted.labels(wanted.priority.value).inc()
    headers = {"Location": addresses.batch(record.id)} | ({"Idempotent-Replayed": "true"} if is_replay else {})
    return JSONResponse(await run_sync(_page, jobs, record, 0, FIRST_PAGE, addresses), 202, headers)


@router.get(
    "/v1/batches/{batch_id}",
    operation_id="get_batch",
    summary="Look at a batch",
    response_model=Batch,
    responses={
        200: openapi.json_answer("How many stand where, and a page of its jobs.", examples.batch_examples()),
        **openapi.problem_answers(problems.BATCH_NOT_FOUND, problems.INVALID_PARAMETERS, problems.STORAGE_UNAVAILABLE),
    },
)
def get_batch(
    batch_id: BatchId, query: Annotated[BatchQuery, Query()], jobs: JobsDep, addresses: AddressesDep
) -> JSONResponse:
    """All counts, and the items in the order in which they were sent, in pages."""
    record = jobs.batches.get(batch_id)
    return JSONResponse(_page(jobs, record, int(query.cursor or 0), query.limit, addresses))


@router.post(
    "/v1/batches/{batch_id}/cancel",
    operation_id="cancel_batch",
    summary="Stop a batch",
    status_code=202,
    response_model=Batch,
    responses={
        202: openapi.json_answer("All that was not finished is cancelled, or will be soon.", examples.batch_examples()),
        **openapi.problem_answers(problems.BATCH_NOT_FOUND, problems.STORAGE_UNAVAILABLE),
    },
)
def cancel_batch(batch_id: BatchId, jobs: JobsDep, addresses: AddressesDep) -> JSONResponse:
    """Stops each of its jobs that is not finished, as `cancel_job` does."""
    record = jobs.batches.cancel(batch_id, jobs.cancel)
    return JSONResponse(_page(jobs, record, 0, FIRST_PAGE, addresses), 202)


def _accept(
    jobs: JobService, submission: BatchSubmission, key: str | None, addresses: Addresses
) -> tuple[BatchRecord, bool]:
    """The batch, and whether an earlier request with this key made it."""
    fingerprint = hashlib.sha256(submission.model_dump_json().encode()).hexdigest()
    batch_id, earlier = jobs.batches.begin(key, fingerprint)
    if earlier is not None:
        return earlier, True
    records: list[JobRecord] = []
    items: list[BatchItem] = []
    for item in submission.items:
        try:
            records.append(_job_record(jobs, item, addresses))
            items.append(BatchItem(job_id=records[-1].id))
        # A storage that is down is no fault of this item: the whole batch is refused, and may be sent again.
        except UnavailableError:
            raise
        except (ApiError, JobsError) as error:
            items.append(BatchItem(error=JobError.of(problem_of(error), str(error), error.evidence)))
    # The batch is stored before its first job, so that a gateway that dies half way leaves all items on record.
    return jobs.batches.accept(BatchRecord(id=batch_id, created_at=states.now(), items=items), records), False


def _job_record(jobs: JobService, item: BatchItemSubmission, addresses: Addresses) -> JobRecord:
    """What the item will be. Raises ApiError and JobsError: the item is refused."""
    job_id = states.new_id()
    if item.callback_url is not None and not jobs.callbacks.is_allowed(item.callback_url):
        raise ApiError(problems.CALLBACK_NOT_ALLOWED, "the operator has not allowed this address")
    upload_id, created_at = None, states.now()
    if isinstance(item, BatchUploadedItem):
        upload_id = item.source.upload_id
        # Looked at before the upload is taken: one that is no scan stays, and can be aborted.
        require_scan(jobs.uploads.head(upload_id, HEAD_BYTES))
        scan = jobs.uploads.copy_input(upload_id, job_id)
    elif is_allowed(item.source.url, jobs.settings.source_allowlist):
        scan = InputInfo(source=item.source)
    else:
        raise ApiError(problems.SOURCE_NOT_ALLOWED, "the operator has not allowed this address")
    return JobRecord(
        id=job_id,
        created_at=created_at,
        priority=item.priority,
        input=scan,
        client_reference=item.client_reference,
        upload_id=upload_id,
        callback_url=item.callback_url,
        address=addresses.job(job_id),
        traceparent=tracing.branch("job of a batch", {tracing.JOB_ID: job_id}),
    )


def _page(jobs: JobService, record: BatchRecord, first: int, limit: int, addresses: Addresses) -> Any:
    items = record.items[first : first + limit]
    known = iter(jobs.batches.states([item.job_id for item in items if item.job_id is not None]))
    found = [next(known) if item.job_id is not None else None for item in items]
    view = batch_view(record, jobs.batches.counts(record), found, first, addresses)
    return view.model_dump(mode="json", by_alias=True)
