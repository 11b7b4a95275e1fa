"""Many scans in one call: POST /v1/batches and what follows."""

import hashlib
from typing import Annotated, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from api import examples, openapi
from api.dependencies import Addresses, AddressesDep, JobsDep, LastingAddressesDep, MetricsDep, PaceDep, one_of_each
from api.errors import ApiError, problem_of
from api.quotas import Allowance, AllowanceDep
from api.request_body import MAX_BATCH_BYTES, read_json
from api.routes.jobs import CURSOR, CreatedBetween, next_page
from api.routes.submission import IdempotencyKey, job_record, open_input, require_options
from api.schemas import Batch, BatchList, BatchSubmission, Schema
from api.views import batch_summary, batch_view, json_response
from jobs import problems, states, tracing
from jobs.batches import BatchItem, BatchRecord
from jobs.errors import JobsError, UnavailableError
from jobs.models import BatchCallback, JobError, JobRecord
from jobs.service import JobService

router = APIRouter(tags=["batches"])

FIRST_PAGE: Final = 100
BatchId = Annotated[str, Path(description="`id` of the batch", examples=[examples.BATCH_ID])]
_TWO_SCANS: Final = {"two": {"summary": "one to fetch, one that came in parts", "value": examples.BATCH_REQUEST}}


class BatchQuery(Schema):
    limit: int = Field(default=FIRST_PAGE, ge=1, le=200, description="how many items a page has at most")
    cursor: str | None = Field(
        default=None, pattern=r"^[0-9]{1,4}$", description="`next_cursor` of the page before", examples=["100"]
    )


class BatchesQuery(CreatedBetween):
    limit: int = Field(default=20, ge=1, le=100, description="how many batches a page has at most")
    cursor: str | None = CURSOR


@router.get(
    "/v1/batches",
    operation_id="list_batches",
    dependencies=[Depends(one_of_each)],
    summary="List batches",
    response_model=BatchList,
    responses={
        200: openapi.json_answer(
            "One page of batches.",
            {"page": {"summary": "the first of more", "value": examples.batch_list_example()}},
            "Link",
        ),
        **openapi.problem_answers(problems.INVALID_PARAMETERS, problems.STORAGE_UNAVAILABLE),
    },
)
def list_batches(query: Annotated[BatchesQuery, Query()], jobs: JobsDep, addresses: AddressesDep) -> JSONResponse:
    """Batches in pages, newest first, with their counts; their items are in `get_batch`.

    Follow `Link: rel="next"`, or give `next_cursor` back as `cursor`.
    """
    records, next_cursor = jobs.batches.list(query.query(), limit=query.limit, cursor=query.cursor)
    items = [batch_summary(record, jobs.batches.counts(record), addresses) for record in records]
    headers = next_page(query, next_cursor, addresses.batches)
    return json_response(BatchList(items=items, next_cursor=next_cursor), headers=headers)


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
            *openapi.JSON_BODY_PROBLEMS,
            problems.IDEMPOTENCY_KEY_REUSED,
            problems.CALLBACK_NOT_ALLOWED,
            problems.BROKER_UNAVAILABLE,
            problems.STORAGE_UNAVAILABLE,
        ),
    },
    openapi_extra=openapi.json_body("BatchSubmission", _TWO_SCANS) | {"callbacks": openapi.callbacks("batch-ended")},
)
async def create_batch(
    request: Request,
    jobs: JobsDep,
    pace: PaceDep,
    metrics: MetricsDep,
    addresses: AddressesDep,
    lasting_addresses: LastingAddressesDep,
    allowance: AllowanceDep,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Up to 1000 scans that workers fetch, or that came in parts; each becomes a job, by default of priority `batch`.

    A scan whose address is not allowed, or whose upload is not there, is refused in its item; the others go on. Once
    you have the 202, all of them survive restarts.
    """
    # First, so that a broker that is down costs the client no upload.
    await run_sync(jobs.monitoring.ping)
    submission = await read_json(request, BatchSubmission, MAX_BATCH_BYTES, pace)
    record, is_replay = await run_sync(_accept, jobs, submission, idempotency_key, lasting_addresses, allowance)
    if not is_replay:
        for item, wanted in zip(record.items, submission.items, strict=True):
            if item.job_id is not None:
                metrics.accepted.labels(wanted.priority.value).inc()
    headers = {"Location": addresses.batch(record.id)} | ({"Idempotent-Replayed": "true"} if is_replay else {})
    return json_response(await run_sync(_page, jobs, record, 0, FIRST_PAGE, addresses), 202, headers)


@router.get(
    "/v1/batches/{batch_id}",
    operation_id="get_batch",
    dependencies=[Depends(one_of_each)],
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
    return json_response(_page(jobs, record, int(query.cursor or 0), query.limit, addresses))


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
    return json_response(_page(jobs, record, 0, FIRST_PAGE, addresses), 202)


@router.get(
    "/v1/batches/{batch_id}/callback",
    operation_id="get_batch_callback",
    summary="Look at a batch's callback",
    response_model=BatchCallback,
    responses={
        200: openapi.json_answer(
            "Each attempt, and what follows.", examples.batch_callback_examples("pending", "delivered")
        ),
        **openapi.problem_answers(problems.BATCH_NOT_FOUND, problems.NO_CALLBACK, problems.STORAGE_UNAVAILABLE),
    },
)
def get_batch_callback(batch_id: BatchId, jobs: JobsDep) -> BatchCallback:
    """The log of what was sent to the batch's `callback_url`, as `get_callback` has it for a job."""
    return jobs.callbacks.get_of_batch(batch_id)


@router.post(
    "/v1/batches/{batch_id}/callback/redeliver",
    operation_id="redeliver_batch_callback",
    summary="Call back again for a batch",
    status_code=202,
    response_model=BatchCallback,
    responses={
        202: openapi.json_answer("It is sent at once.", examples.batch_callback_examples("pending")),
        **openapi.problem_answers(
            problems.BATCH_NOT_FOUND,
            problems.NO_CALLBACK,
            problems.WRONG_STATE,
            problems.BROKER_UNAVAILABLE,
            problems.STORAGE_UNAVAILABLE,
        ),
    },
)
def redeliver_batch_callback(batch_id: BatchId, jobs: JobsDep) -> BatchCallback:
    """Send the same message, with the same `webhook-id`, again, as `redeliver_callback` does for a job."""
    return jobs.callbacks.redeliver_of_batch(batch_id)


def _accept(
    jobs: JobService, submission: BatchSubmission, key: str | None, addresses: Addresses, allowance: Allowance
) -> tuple[BatchRecord, bool]:
    """The batch, and whether an earlier request with this key made it."""
    if submission.callback_url is not None and not jobs.callbacks.is_allowed(submission.callback_url):
        raise ApiError(problems.CALLBACK_NOT_ALLOWED, "the operator has not allowed this address")
    # Left out where it is not given, as it was before there was such a field: keys live longer than versions.
    unset = {"callback_url"} if submission.callback_url is None else None
    fingerprint = hashlib.sha256(submission.model_dump_json(exclude=unset).encode()).hexdigest()
    batch_id, earlier = jobs.batches.begin(key, fingerprint)
    if earlier is not None:
        return earlier, True
    # All of them or none: a batch is not repeated in part.
    allowance.require(jobs=len(submission.items))
    records: list[JobRecord] = []
    items: list[BatchItem] = []
    for item in submission.items:
        job_id = states.new_id()
        try:
            require_options(jobs, item)
            record = job_record(job_id, open_input(jobs, item.source, job_id), item)
            traceparent = tracing.branch("job of a batch", {tracing.JOB_ID: job_id})
            address = addresses.job(job_id)
            known = {"address": address, "traceparent": traceparent, "batch_id": batch_id}
            records.append(record.model_copy(update=known))
            items.append(BatchItem(job_id=job_id))
        # A storage that is down is no fault of this item: the whole batch is refused, and may be sent again.
        except UnavailableError:
            raise
        except (ApiError, JobsError) as error:
            items.append(BatchItem(error=JobError.of(problem_of(error), str(error), error.evidence)))
    # The batch is stored before its first job, so that a gateway that dies half way leaves all items on record.
    batch = BatchRecord(
        id=batch_id,
        created_at=states.made_at(batch_id),
        items=items,
        callback_url=submission.callback_url,
        address=addresses.batch(batch_id) if submission.callback_url else None,
        traceparent=tracing.traceparent_of() if submission.callback_url else None,
    )
    return jobs.batches.accept(batch, records), False


def _page(jobs: JobService, record: BatchRecord, first: int, limit: int, addresses: Addresses) -> Batch:
    items = record.items[first : first + limit]
    known = iter(jobs.batches.states([item.job_id for item in items if item.job_id is not None]))
    found = [next(known) if item.job_id is not None else None for item in items]
    return batch_view(record, jobs.batches.counts(record), found, first, addresses)
