"""All reports in one answer, for a table or a database."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from api import examples, openapi
from api.dependencies import Addresses, AddressesDep, JobsDep, one_of_each
from api.report_csv import lines, row_of
from api.routes.jobs import JobFilters
from api.schemas import ExportedReport
from api.views import report_view
from jobs import problems
from jobs.models import JobState, JobStatus, Report
from jobs.service import JobService
from jobs.states import JOB_ID

router = APIRouter(tags=["results"])

_CSV: Final = "text/csv"
_NDJSON: Final = "application/x-ndjson"
_COLUMNS: Final = tuple(row_of(examples.SUCCEEDED, examples.REPORT))
_PROBLEMS: Final = openapi.problem_answers(problems.INVALID_PARAMETERS, problems.STORAGE_UNAVAILABLE)

Some = Sequence[tuple[JobState, Report]]


class ExportQuery(JobFilters):
    after: str | None = Field(
        default=None,
        pattern=JOB_ID.pattern,
        description="only jobs that come after this one: the last `job_id` that you have, to go on with an export",
        examples=[examples.JOB_ID],
    )
    limit: int | None = Field(default=None, ge=1, description="how many jobs at most; all without it")


def _ndjson(some: Some, addresses: Addresses) -> str:
    return "".join(
        ExportedReport(
            job_id=state.id,
            client_reference=state.client_reference,
            created_at=state.created_at,
            finished_at=state.finished_at or state.updated_at,
            report=report_view(report, addresses),
        ).model_dump_json(by_alias=True)
        + "\n"
        for state, report in some
    )


def _csv(some: Some, *, with_header: bool) -> str:
    return lines((row_of(*one) for one in some), _COLUMNS, with_header=with_header)


_ONE: Final[Some] = [(examples.SUCCEEDED, examples.REPORT)]
_LINES: Final[dict[str, Any]] = {
    "format": "binary",
    "description": "an `ExportedReport` a line",
    "contentSchema": {"$ref": "#/components/schemas/ExportedReport"},
}


@router.get(
    "/v1/reports.ndjson",
    operation_id="export_reports_ndjson",
    dependencies=[Depends(one_of_each)],
    summary="Export reports as lines of JSON",
    response_class=Response,
    responses={
        200: openapi.text_answer("All of them.", _NDJSON, _ndjson(_ONE, examples.ADDRESSES), _LINES),
        **_PROBLEMS,
    },
)
def export_reports_ndjson(
    query: Annotated[ExportQuery, Query()], jobs: JobsDep, addresses: AddressesDep
) -> StreamingResponse:
    """The reports of all succeeded jobs, oldest first, a line each, with the job's id, reference and times.

    An export that cannot go on breaks the connection off, so that no client takes it for a whole one. Go on with
    `after`, which is the last `job_id` that you have; an answer without lines is the end.
    """
    return _streamed(_NDJSON, (_ndjson(some, addresses) for some in _found(jobs, query)))


@router.get(
    "/v1/reports.csv",
    operation_id="export_reports_csv",
    dependencies=[Depends(one_of_each)],
    summary="Export reports as a table",
    response_class=Response,
    responses={200: openapi.text_answer("All of them.", _CSV, _csv(_ONE, with_header=True)), **_PROBLEMS},
)
def export_reports_csv(query: Annotated[ExportQuery, Query()], jobs: JobsDep) -> StreamingResponse:
    """The same as a table (RFC 4180, UTF-8) with one row a job; the first row has the names of the columns.

    Several findings or models are separated by `;`. A text that a spreadsheet would take for a formula, because it
    begins with `=`, `+`, `-` or `@`, has a `'` in front.
    """
    header = lines((), _COLUMNS, with_header=True)
    return _streamed(_CSV, chain([header], (_csv(some, with_header=False) for some in _found(jobs, query))))


def _found(jobs: JobService, query: ExportQuery) -> Iterator[Some]:
    wanted = query.query(sort="created_at", status=frozenset({JobStatus.SUCCEEDED}))
    return jobs.reports(wanted, after=query.after, limit=query.limit)


def _streamed(media_type: str, texts: Iterator[str]) -> StreamingResponse:
    # Read before the answer begins: what is wrong by then is a problem with a status of its own.
    begun = list(islice(texts, 2))
    name = "lobewise-reports." + ("csv" if media_type == _CSV else "ndjson")
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(chain(begun, texts), 200, headers, media_type)
