"""Whom a job tells how it ended, and how that went."""

from typing import Annotated

from fastapi import APIRouter, Header, Request

from api import examples, openapi
from api.dependencies import JobsDep
from api.routes.jobs import READ_PROBLEMS, JobId
from api.schemas import BatchEnded, JobEnded
from jobs import problems
from jobs.models import Callback

router = APIRouter(tags=["callbacks"])
webhooks = APIRouter(tags=["callbacks"])


@router.get(
    "/v1/jobs/{job_id}/callback",
    operation_id="get_callback",
    summary="Look at a callback",
    response_model=Callback,
    responses={
        200: openapi.json_answer("Each attempt, and what follows.", examples.callback_examples("pending", "delivered")),
        **openapi.problem_answers(*READ_PROBLEMS, problems.NO_CALLBACK),
    },
)
def get_callback(job_id: JobId, jobs: JobsDep) -> Callback:
    """The log of what was sent to the job's `callback_url`.

    An attempt is good when the receiver answers 2xx. After 410 nothing more is sent to that address, for any job; after
    anything else it is tried again, at growing intervals, for some days.
    """
    return jobs.callbacks.get(job_id)


@router.post(
    "/v1/jobs/{job_id}/callback/redeliver",
    operation_id="redeliver_callback",
    summary="Call back again",
    status_code=202,
    response_model=Callback,
    responses={
        202: openapi.json_answer("It is sent at once.", examples.callback_examples("pending")),
        **openapi.problem_answers(
            *READ_PROBLEMS, problems.NO_CALLBACK, problems.WRONG_STATE, problems.BROKER_UNAVAILABLE
        ),
    },
)
def redeliver_callback(job_id: JobId, jobs: JobsDep) -> Callback:
    """Send the same message, with the same `webhook-id`, again: at once, then as often as at first if need be.

    An address that was disabled by a 410 is tried too; if it answers 2xx, it is enabled again.
    """
    return jobs.callbacks.redeliver(job_id)


WebhookId = Annotated[str, Header(description="the same however often the message is sent: keep it, to know repeats")]
WebhookTimestamp = Annotated[str, Header(description="seconds since 1970; refuse what is older than five minutes")]
WebhookSignature = Annotated[
    str, Header(description="`v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`; one a secret, with spaces")
]


@webhooks.post("job-ended", operation_id="job_ended", summary="A job has ended", status_code=204)
def job_ended(
    request: Request,
    body: JobEnded,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """Sent to a `callback_url`, as Standard Webhooks (1.0) say; answer 2xx within seconds, 410 to get nothing more."""


@webhooks.post("batch-ended", operation_id="batch_ended", summary="All jobs of a batch have ended", status_code=204)
def batch_ended(
    request: Request,
    body: BatchEnded,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """Sent to the `callback_url` of a batch, in the same way as those of jobs."""
