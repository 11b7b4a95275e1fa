"""Creating jobs: POST /v1/jobs, POST /v1/validate, and the same from a source."""

from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Request, Response

from api import examples, openapi
from api.conditional import wait_seconds
from api.dependencies import (
    AddressesDep,
    ClientDep,
    JobsDep,
    LastingAddressesDep,
    MetricsDep,
    PaceDep,
    SettingsDep,
    UploadLimiterDep,
)
from api.errors import ApiError, invalid_parameter, unsupported_content_type
from api.quotas import AllowanceDep, add_headers
from api.request_body import (
    FORM_OVERHEAD_BYTES,
    HEAD_BYTES,
    MAX_JSON_BYTES,
    HashSink,
    Sink,
    body_chunks,
    boundary_of,
    media_type_of,
    read_form,
    read_submission,
    require_length,
    require_scan,
)
from api.routes.jobs import state_headers
from api.schemas import Job, JobOptions, Source, SourceSubmission
from api.upload_limits import UploadSlot
from api.views import job_view, json_response
from jobs import problems, states
from jobs.allowlist import is_allowed
from jobs.models import InputInfo, JobRecord, JobState, JobTask, ScanSource
from jobs.problems import ProblemType
from jobs.service import JobService
from jobs.tracing import step

router = APIRouter(tags=["jobs"])

#: A thread cannot be interrupted: after a client has gone, its wait ends within this time.
_WAIT_SLICE_SECONDS: Final = 1.0

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=128,
        pattern=r"^[\x21-\x7e]+$",
        description="Any string of yours, new for each new request; a UUID is best. Repeat the request with its key "
        "after a lost answer, and no second job is made. The requests are the same when the scan's sha256 (or the "
        "source, or the upload) and all options are. Keys are remembered as long as their jobs.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]
Prefer = Annotated[
    str | None,
    Header(
        alias="Prefer",
        description="`wait=N` (RFC 7240) holds the answer back for up to N seconds, until the job is finished",
        examples=["wait=20"],
    ),
]
_FORM: Final = {
    "callbacks": openapi.callbacks("job-ended"),
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"$ref": "#/components/schemas/UploadSubmission"},
                "encoding": {"file": {"contentType": "application/octet-stream"}},
            }
        },
    },
}
_SOURCE: Final = openapi.json_body(
    "SourceSubmission",
    {
        "source": {
            "summary": "a scan that the worker fetches",
            "value": {
                "source": {"url": "https://pacs.example/ct/1.nii.gz", "sha256": examples.SHA256},
                "priority": "stat",
            },
        },
        "upload": {
            "summary": "a scan that came in parts",
            "value": {"source": {"upload_id": examples.UPLOAD_ID}, "priority": "routine"},
        },
    },
) | {"callbacks": openapi.callbacks("job-ended")}
#: When the operations that take a form stopped to take JSON, in seconds since 1970 (RFC 9745). They still do, for one
#: version more and without a word in the document: of two kinds of bodies, generated clients have only the first.
#: No `Sunset`: when the next version comes to a hospital is for its operator to say.
_JSON_DEPRECATED_AT: Final = 1_795_824_000


#: Of a scan that is in the body, and of one that is named there.
_UPLOAD_PROBLEMS: Final = (problems.TOO_MANY_UPLOADS, problems.CLIENT_LIMIT)
_SOURCE_PROBLEMS: Final = (problems.UPLOAD_NOT_FOUND, problems.UPLOAD_INCOMPLETE, problems.SOURCE_NOT_ALLOWED)


def _answers(result: str, more: tuple[ProblemType, ...]) -> openapi.Responses:
    """Those of all ways to submit, with `more` problems; `result` reads what a succeeded job has."""
    return {
        200: openapi.json_answer(
            "Accepted, and finished within the time that `Prefer: wait` gave.",
            examples.job_examples(examples.SUCCEEDED, examples.FAILED),
            *("Location", "ETag", "Preference-Applied", "Idempotent-Replayed"),
        )
        | {"model": Job, "links": openapi.links("get_job", "delete_job", result)},
        202: openapi.json_answer(
            "Accepted: the job is durable and will be worked on.",
            examples.job_examples(examples.QUEUED) | examples.reused_example(),
            *("Location", "Retry-After", "ETag", "Preference-Applied", "Idempotent-Replayed"),
        )
        | {"links": openapi.links("get_job", "cancel_job", "delete_job", result)},
        **openapi.problem_answers(
            problems.MALFORMED_REQUEST,
            problems.REQUEST_TIMEOUT,
            problems.IDEMPOTENCY_IN_FLIGHT,
            problems.JOB_PURGED,
            problems.UPLOAD_TOO_LARGE,
            problems.UNSUPPORTED_CONTENT_TYPE,
            problems.UNSUPPORTED_FORMAT,
            problems.INVALID_PARAMETERS,
            problems.IDEMPOTENCY_KEY_REUSED,
            problems.CALLBACK_NOT_ALLOWED,
            problems.BROKER_UNAVAILABLE,
            problems.STORAGE_UNAVAILABLE,
            *more,
        ),
    }


@dataclass(frozen=True)
class Submission:
    """One request on its way to a job."""

    request: Request
    jobs: JobsDep
    settings: SettingsDep
    metrics: MetricsDep
    addresses: AddressesDep
    lasting_addresses: LastingAddressesDep
    upload_limiter: UploadLimiterDep
    client: ClientDep
    pace: PaceDep
    allowance: AllowanceDep
    idempotency_key: IdempotencyKey = None
    prefer: Prefer = None

    async def answer_form(self, task: JobTask, json_path: str) -> Response:
        """As `answer`, to a form. JSON, which belongs to `json_path`, is answered with `Deprecation`."""
        if not self.is_form:
            if media_type_of(self.request) != "application/json":
                detail = f"send the file as multipart/form-data; an address or an upload is JSON, to {json_path}"
                raise unsupported_content_type(detail)
            found = {
                "Deprecation": f"@{_JSON_DEPRECATED_AT}",
                "Link": f'<{self.addresses.at(json_path)}>; rel="successor-version"',
            }
            add_headers(self.request, found)
        return await self.answer(task)

    async def answer_json(self, task: JobTask, form_path: str) -> Response:
        """As `answer`, to JSON alone; a form belongs to `form_path`."""
        if media_type_of(self.request) != "application/json":
            detail = f"send application/json; a file goes to {form_path}, as multipart/form-data"
            raise unsupported_content_type(detail)
        return await self.answer(task)

    async def answer(self, task: JobTask) -> Response:
        """Make the job, or find the one of an earlier request, and wait for its end as long as the client asks for."""
        # JSON is small and takes no slot. For a form, too many at once is 503 before a byte of the body is read.
        with self.upload_limiter.take(self.client, self.pace) if self.is_form else nullcontext() as slot:
            state, is_replay = await self._submit(task, slot)
        wanted_seconds = wait_seconds(self.prefer, self.settings.max_wait_seconds)
        limiter, shares = self.request.app.state.waiting, self.request.app.state.waiting_of_clients
        # Each wait holds a thread. When too many do, this one is answered at once, and without Preference-Applied.
        waited = wanted_seconds > 0 and limiter.available_tokens >= 1 and shares.has_room(self.client)
        deadline = anyio.current_time() + wanted_seconds
        with shares.share(self.client) if waited else nullcontext():
            while waited and not state.status.is_final and (left := deadline - anyio.current_time()) > 0:
                state = await run_sync(self.jobs.wait, state.id, min(left, _WAIT_SLICE_SECONDS), limiter=limiter)
        headers = {"Location": self.addresses.job(state.id)} | state_headers(state, self.settings)
        if waited:
            headers["Preference-Applied"] = f"wait={wanted_seconds}"
        if is_replay:
            headers["Idempotent-Replayed"] = "true"
        if not self.jobs.ends.holds(state):
            state = await run_sync(self.jobs.ends.settled, state)
        view = job_view(state, self.addresses)
        return json_response(view, 200 if waited and state.status.is_final else 202, headers)

    async def _submit(self, task: JobTask, slot: UploadSlot | None) -> tuple[JobState, bool]:
        """The job, and whether an earlier request with its key made it. A form comes in the turns of its `slot`."""
        key = self.idempotency_key
        # First, so that a broker that is down (503) costs the client no upload: without it no job can be accepted.
        await run_sync(self.jobs.monitoring.ping)
        # Then all that can be refused by the headers, before a byte of the body is read: a scan may take minutes.
        limit_bytes = MAX_JSON_BYTES
        if self.is_form:
            boundary_of(self.request)
            limit_bytes = self.jobs.settings.max_upload_bytes + FORM_OVERHEAD_BYTES
        require_length(self.request, limit_bytes)
        chunks = body_chunks(self.request, limit_bytes, self.pace)
        if slot is not None:
            chunks = slot.in_turn(chunks)
        counted = CountedPieces(chunks)
        job_id = states.new_id()
        first = await run_sync(self.jobs.idempotency.begin, key, job_id) if key else None
        if first is not None:
            # Read and hashed but not stored: only its digest and options show whether it is the same request.
            record = await self._read("", task, HashSink(), counted.pieces())
            await run_sync(partial(self.allowance.count_bytes, counted.size_bytes, is_stored=False))
            await run_sync(first.require_same, record)
            return await run_sync(self.jobs.get, first.job_id), True
        with step("upload"):
            try:
                sent_bytes = int(self.request.headers.get("content-length", 0)) if self.is_form else 0
                await run_sync(self.allowance.require, 1, sent_bytes)
                sink = self.jobs.open_upload(job_id) if self.is_form else HashSink()
                record = await self._read(job_id, task, sink, counted.pieces())
            except BaseException:
                # What came and was refused has cost the line as much.
                with anyio.CancelScope(shield=True):
                    await run_sync(partial(self.allowance.count_bytes, counted.size_bytes, is_stored=False))
                # The key is free again at once, else a repetition would get 409 until the key's time in flight is over.
                # Shielded, because a client that went away cancels this task.
                if key:
                    with anyio.CancelScope(shield=True):
                        await run_sync(self.jobs.idempotency.abandon, key, job_id)
                raise
        # Of an upload in parts the bytes were counted when it was announced.
        await run_sync(partial(self.allowance.count_bytes, counted.size_bytes if self.is_form else 0, is_stored=True))
        record = record.model_copy(update={"address": self.lasting_addresses.job(job_id)})
        state = await run_sync(self.jobs.accept, record)
        self.metrics.accepted.labels(record.priority.value).inc()
        self.metrics.upload_bytes.inc(record.input.size_bytes or 0)
        return state, False

    @property
    def is_form(self) -> bool:
        return media_type_of(self.request) == "multipart/form-data"

    async def _read(self, job_id: str, task: JobTask, sink: Sink, chunks: AsyncIterator[bytes]) -> JobRecord:
        scan: InputInfo
        options: JobOptions
        if self.is_form:
            require = partial(require_options, self.jobs, is_repeated=not job_id)
            scan, options = await read_form(chunks, boundary_of(self.request), sink, require)
        else:
            options = submission = await read_submission(chunks)
            require_options(self.jobs, options, is_repeated=not job_id)
            # A repeated request has no `job_id`, and its upload is gone: its id is all that is compared.
            is_gone = submission.source.upload_id is not None and not job_id
            scan = InputInfo() if is_gone else await run_sync(open_input, self.jobs, submission.source, job_id)
        return job_record(job_id, scan, options).model_copy(update={"task": task})


@dataclass
class CountedPieces:
    """A body on its way in, and how many bytes of it came."""

    body: AsyncIterator[bytes]
    size_bytes: int = 0

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self.body:
            self.size_bytes += len(piece)
            yield piece


SubmissionDep = Annotated[Submission, Depends()]


@router.post(
    "/v1/jobs",
    operation_id="create_job",
    summary="Submit a scan",
    status_code=202,
    response_model=Job,
    responses=_answers("get_report", _UPLOAD_PROBLEMS),
    openapi_extra=_FORM,
)
async def create_job(submission: SubmissionDep) -> Response:
    """Upload a scan in one request; see `POST /v1/jobs/from-source` for one that is somewhere else or came in parts.

    The upload streams; nothing is kept of one that fails. Once you have the 202, the job survives restarts.
    `file` is checked here by its first bytes only; what is found to be damaged later ends the job as `failed`.
    """
    return await submission.answer_form(JobTask.SCORE, "/v1/jobs/from-source")


@router.post(
    "/v1/jobs/from-source",
    operation_id="create_job_from_source",
    summary="Submit a scan that is elsewhere",
    status_code=202,
    response_model=Job,
    responses=_answers("get_report", _SOURCE_PROBLEMS),
    openapi_extra=_SOURCE,
)
async def create_job_from_source(submission: SubmissionDep) -> Response:
    """Name an address where the worker fetches the scan, or take one that came in parts (`POST /v1/uploads`).

    Once you have the 202, the job survives restarts. What cannot be fetched ends the job as `failed`.
    """
    return await submission.answer_json(JobTask.SCORE, "/v1/jobs")


@router.post(
    "/v1/validate",
    operation_id="validate_scan",
    summary="Validate a scan",
    status_code=202,
    response_model=Job,
    responses=_answers("get_inspection", _UPLOAD_PROBLEMS),
    openapi_extra=_FORM,
)
async def validate_scan(submission: SubmissionDep) -> Response:
    """Have a scan read and not scored: takes what `POST /v1/jobs` takes, and makes a job whose `task` is `validate`.

    Once it has succeeded, `GET /v1/jobs/{job_id}/inspection` says what the reader saw: format, geometry and the fields
    it comes from, findings, histogram. A scan that cannot be read ends the job as `failed`, with the problem inside.
    """
    return await submission.answer_form(JobTask.VALIDATE, "/v1/validate/from-source")


@router.post(
    "/v1/validate/from-source",
    operation_id="validate_scan_from_source",
    summary="Validate a scan that is elsewhere",
    status_code=202,
    response_model=Job,
    responses=_answers("get_inspection", _SOURCE_PROBLEMS),
    openapi_extra=_SOURCE,
)
async def validate_scan_from_source(submission: SubmissionDep) -> Response:
    """Have a scan read and not scored, as `POST /v1/validate` does; takes what `POST /v1/jobs/from-source` takes."""
    return await submission.answer_json(JobTask.VALIDATE, "/v1/validate")


def require_options(jobs: JobService, options: JobOptions, *, is_repeated: bool = False) -> None:
    """Raises ApiError (callback-not-allowed; invalid-parameters: `not_after` is over)."""
    # A repeated request gets the first one's answer, though its time may be over by now.
    if options.not_after is not None and options.not_after <= states.now() and not is_repeated:
        raise invalid_parameter("/body/not_after", "this time is over: name one to come, or none")
    if options.callback_url is not None and not jobs.callbacks.is_allowed(options.callback_url):
        raise ApiError(problems.CALLBACK_NOT_ALLOWED, "the operator has not allowed this address")


def open_input(jobs: JobService, source: Source, job_id: str) -> InputInfo:
    """The scan that a worker will fetch, or the upload, which the job takes over.

    Raises:
        ApiError (source-not-allowed, unsupported-format), and JobsError for an upload that cannot be taken.
    """
    if source.upload_id is not None:
        # Looked at before the upload is taken: one that is no scan stays, and can be aborted.
        require_scan(jobs.uploads.head(source.upload_id, HEAD_BYTES))
        return jobs.uploads.copy_input(source.upload_id, job_id)
    fetched = ScanSource(url=source.url or "", sha256=source.sha256)
    if not is_allowed(fetched.url, jobs.settings.source_allowlist):
        raise ApiError(problems.SOURCE_NOT_ALLOWED, "the operator has not allowed this address")
    return InputInfo(source=fetched)


def job_record(job_id: str, scan: InputInfo, options: JobOptions) -> JobRecord:
    return JobRecord(
        id=job_id,
        created_at=states.now(),
        priority=options.priority,
        input=scan,
        client_reference=options.client_reference,
        callback_url=options.callback_url,
        not_after=options.not_after,
        reuse=options.reuse,
        upload_id=options.source.upload_id if isinstance(options, SourceSubmission) else None,
    )
