"""Looking at jobs, stopping and deleting them."""

from collections.abc import Callable
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from pydantic import BaseModel, Field

from api import examples, openapi
from api.conditional import is_known, quoted
from api.dependencies import AddressesDep, JobsDep, SettingsDep, StatusBatcherDep, one_of_each
from api.errors import invalid_parameter
from api.schemas import ClientReference, Job, JobList, QueryMoment, Schema
from api.views import job_view, json_response
from jobs import problems, states
from jobs.live.pagination import Query as JobQuery
from jobs.models import JobState, JobStatus, Priority
from jobs.settings import ApiSettings
from jobs.states import Sort

router = APIRouter(tags=["jobs"])

JobId = Annotated[str, Path(description="`id` of the job", examples=[examples.JOB_ID])]
IfNoneMatch = Annotated[
    str | None,
    Header(
        alias="If-None-Match",
        description="the ETag that you have: 304 if nothing changed",
        examples=[quoted(examples.REVISION)],
    ),
]
#: Retry-After of a job that will wait for long, in those of one that runs.
LONGEST_POLLS: Final = 10
READ_PROBLEMS: Final = (problems.JOB_NOT_FOUND, problems.JOB_PURGED, problems.STORAGE_UNAVAILABLE)


CURSOR: Final = Field(
    default=None,
    max_length=512,
    description="`next_cursor` of the page before; keep all other parameters as they were",
)


class CreatedBetween(Schema):
    created_after: QueryMoment | None = Field(
        default=None,
        description="only what has its `created_at` at this time (RFC 3339) or later",
        examples=["2026-03-02T00:00:00Z"],
    )
    created_before: QueryMoment | None = Field(
        default=None,
        description="only what has its `created_at` before this time (RFC 3339)",
        examples=["2026-03-03T00:00:00Z"],
    )

    def query(self, **more: Any) -> JobQuery:
        """Raises ApiError (invalid-parameters)."""
        if self.created_after and self.created_before and self.created_after >= self.created_before:
            raise invalid_parameter("/query/created_before", "send a time that is later than `created_after`")
        return JobQuery(created_after=self.created_after, created_before=self.created_before, **more)


class JobFilters(CreatedBetween):
    """What narrows a list of jobs. All may be given together."""

    client_reference: ClientReference | None = Field(default=None, description="only jobs with exactly this reference")
    priority: Priority | None = Field(default=None, description="only jobs with this priority")

    def query(self, **more: Any) -> JobQuery:
        return super().query(client_reference=self.client_reference, priority=self.priority, **more)


class ListQuery(JobFilters):
    limit: int = Field(default=50, ge=1, le=200, description="how many jobs a page has at most")
    cursor: str | None = CURSOR
    status: list[JobStatus] = Field(
        default_factory=list, description="only jobs with this status; several: with any of them"
    )
    sort: Sort = Field(
        default="-created_at",
        description="`-created_at`: newest first; `created_at`: oldest first; `severity`: succeeded jobs, "
        "those with the highest percentage of opacity first",
        # Generators of clients make the same name of the first two, or a number.
        json_schema_extra={"x-enum-varnames": ["NEWEST_FIRST", "OLDEST_FIRST", "SEVERITY"]},
    )


@router.get(
    "/v1/jobs",
    operation_id="list_jobs",
    dependencies=[Depends(one_of_each)],
    summary="List jobs",
    response_model=JobList,
    responses={
        200: openapi.json_answer(
            "One page of jobs.", {"page": {"summary": "the first of more", "value": examples.list_example()}}, "Link"
        ),
        **openapi.problem_answers(problems.INVALID_PARAMETERS, problems.STORAGE_UNAVAILABLE),
    },
)
def list_jobs(query: Annotated[ListQuery, Query()], jobs: JobsDep, addresses: AddressesDep) -> Response:
    """Jobs in pages. Follow `Link: rel="next"`, or give `next_cursor` back as `cursor`.

    `sort=severity` makes a worklist for triage: the scans with most opacity come first. All filters may be given
    together, with every `sort`.
    """
    page = jobs.list(
        query.query(sort=query.sort, status=frozenset(query.status)), limit=query.limit, cursor=query.cursor
    )
    items = [job_view(state, addresses) for state in page.items]
    return json_response(
        JobList(items=items, next_cursor=page.next_cursor), headers=next_page(query, page.next_cursor, addresses.jobs)
    )


@router.get(
    "/v1/jobs/{job_id}",
    operation_id="get_job",
    summary="Look at a job",
    response_model=Job,
    responses={
        200: openapi.json_answer(
            "The job as it stands.",
            examples.job_examples(examples.RUNNING, examples.SUCCEEDED, examples.FAILED),
            "ETag",
            "Retry-After",
        ),
        304: openapi.not_modified("Retry-After"),
        **openapi.problem_answers(*READ_PROBLEMS),
    },
)
async def get_job(
    job_id: JobId,
    status_batcher: StatusBatcherDep,
    settings: SettingsDep,
    addresses: AddressesDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Status, progress and, at the end, the scores of the whole lungs or the problem that stopped it.

    Poll as often as `Retry-After` says, with `If-None-Match`, until the status is final.
    """
    # In the event loop and without a thread, since uploads may hold them all; who asks meanwhile shares one question.
    state = await status_batcher.get(job_id)
    headers = state_headers(state, settings)
    if is_known(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    return json_response(job_view(state, addresses), 200, headers)


@router.post(
    "/v1/jobs/{job_id}/cancel",
    operation_id="cancel_job",
    summary="Stop a job",
    status_code=202,
    response_model=Job,
    responses={
        202: openapi.json_answer(
            "It is cancelled, or will be soon.", examples.job_examples(examples.CANCELLING), "ETag", "Retry-After"
        ),
        **openapi.problem_answers(*READ_PROBLEMS, problems.WRONG_STATE),
    },
)
def cancel_job(job_id: JobId, jobs: JobsDep, settings: SettingsDep, addresses: AddressesDep) -> Response:
    """A queued job is cancelled at once, a running one within seconds. Asking again changes nothing."""
    state = jobs.cancel(job_id)
    return json_response(job_view(state, addresses), 202, state_headers(state, settings))


@router.delete(
    "/v1/jobs/{job_id}",
    operation_id="delete_job",
    summary="Delete a job and its scan",
    status_code=204,
    responses={
        204: {"description": "Scan, report and masks are gone."},
        **openapi.problem_answers(*READ_PROBLEMS),
    },
)
def delete_job(job_id: JobId, jobs: JobsDep) -> Response:
    """Purges the scan, the report and the masks, whatever the status is. Later calls answer 410."""
    jobs.purge(job_id)
    return Response(status_code=204)


def state_headers(state: JobState, settings: ApiSettings) -> dict[str, str]:
    """Which version this is, and when to ask for the next one."""
    headers, seconds = {"ETag": quoted(state.revision)}, settings.poll_seconds
    if state.status.is_final:
        return headers
    if state.estimated_start_at is not None:
        # Half of the wait, for it is an estimate; and not for long, for others may leave the queue.
        left_seconds = (state.estimated_start_at - states.now()).total_seconds()
        seconds = max(seconds, min(int(left_seconds / 2), LONGEST_POLLS * seconds))
    return headers | {"Retry-After": str(seconds)}


def next_page(query: BaseModel, next_cursor: str | None, address: Callable[[str], str]) -> dict[str, str]:
    """The header that leads to the next page, with the parameters as they were given; none on the last page."""
    if next_cursor is None:
        return {}
    given = query.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    return {"Link": f'<{address(urlencode({**given, "cursor": next_cursor}, doseq=True))}>; rel="next"'}
