"""What travels over HTTP, version 1. Reports are `jobs.models.Report`; everything else is here."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from jobs.models import (
    GivenSha256,
    InputInfo,
    JobError,
    JobStatus,
    JobTask,
    MaskName,
    ModelProvenance,
    Priority,
    Report,
    SeverityScores,
    Stage,
)
from jobs.quotas import Quota

#: Characters that turn the order of a line or break it, so that a page would show another text than it was given.
_TURNING: Final = r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"

ClientReference = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        pattern=rf"^[^\x00-\x1f\x7f{_TURNING}]*$",
        description="your own name for the scan, given back with the job. Opaque to the service; "
        "never put patient data in it",
        examples=["worklist-4711"],
    ),
]
CallbackUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=2048,
        description="an address that the operator allows; told how the job ended by a signed POST. "
        "Never put patient data in it",
        examples=["https://pacs.example/lobewise/finished"],
    ),
]
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _require_rfc3339(value: object) -> object:
    # pydantic takes seconds since 1970 too, and times without a zone, which would be anybody's.
    if isinstance(value, datetime) or (isinstance(value, str) and _RFC3339.fullmatch(value)):
        return value
    raise ValueError("a time as RFC 3339 has it, with its zone, such as 2026-03-02T09:30:00Z")


def _require_boolean(value: object) -> object:
    # A form has text only; pydantic takes numbers and other words too, which the document does not.
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _as_utc(moment: datetime) -> datetime:
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:  # its zone would make it a year before 1 or after 9999
        raise ValueError("a time that no calendar has") from None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


Moment = Annotated[AwareDatetime, BeforeValidator(_require_rfc3339), AfterValidator(_as_utc)]


def _with_plus(value: object) -> object:
    # Many clients send the + of an offset as it is, and a query has it for a blank.
    return re.sub(r" (\d\d:\d\d)$", r"+\1", value) if isinstance(value, str) else value


QueryMoment = Annotated[Moment, BeforeValidator(_with_plus)]
Url = Annotated[str, Field(json_schema_extra={"format": "uri"})]


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class JobOptions(Schema):
    """What can be said about a scan, however it comes."""

    priority: Priority = Field(
        default=Priority.ROUTINE, description="workers take all `stat` jobs first, then `routine`, then `batch`"
    )
    client_reference: ClientReference | None = None
    callback_url: CallbackUrl | None = None
    not_after: Moment | None = Field(
        default=None,
        description="a time to come (RFC 3339, with its zone): a job that no worker has begun by then fails with "
        "`deadline-passed` and is never computed. One that has been begun runs on",
        examples=["2030-03-02T18:00:00Z"],
    )
    reuse: Annotated[bool, BeforeValidator(_require_boolean)] = Field(
        default=True,
        description="whether a scan that was scored before, by the same software and weights, may be given that "
        "result; `false` has it computed",
    )

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As it was before there were these options: the key of a batch remembers a hash of this.
        later = {"not_after": None, "reuse": True}
        return {name: value for name, value in handler(self).items() if value != later.get(name, ...)}


# One type with optional fields, and no union, of which most generators of clients make something that cannot be used.
class Source(Schema):
    """Where the scan is: either at `url`, where the worker fetches it, or in parts that came as `upload_id`."""

    url: str | None = Field(
        default=None,
        min_length=1,
        description="an https or s3 address that this service's operator allows",
        examples=["https://pacs.example/ct/1.nii.gz"],
    )
    sha256: GivenSha256 | None = Field(default=None, description="of what is at `url`; checked after fetching")
    upload_id: str | None = Field(
        default=None,
        min_length=1,
        description="`id` of a completed upload. The job takes it over: the upload is gone then",
        examples=["01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b99"],
    )

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.url is None) == (self.upload_id is None):
            raise PydanticCustomError("one_source", "send either `url` or `upload_id`")
        if self.upload_id is not None and self.sha256 is not None:
            raise PydanticCustomError("one_source", "`sha256` belongs to `url`: send it when the upload is created")
        return self

    @model_serializer(mode="wrap")
    def _chosen(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As it was before there was one type for both: the key of a batch remembers a hash of this.
        chosen = {"upload_id"} if self.upload_id is not None else {"url", "sha256"}
        return {name: value for name, value in handler(self).items() if name in chosen}


class SourceSubmission(JobOptions):
    """A scan that the worker fetches, or that came in parts."""

    source: Source


class BatchItemSubmission(SourceSubmission):
    """A scan of a batch."""

    priority: Priority = Field(default=Priority.BATCH, description="workers take `batch` last")


class BatchSubmission(Schema):
    """Many scans in one call."""

    items: list[BatchItemSubmission] = Field(min_length=1, max_length=1000)
    callback_url: CallbackUrl | None = Field(
        default=None,
        description="an address that the operator allows; told by one signed POST that all jobs of the batch have "
        "ended, besides what its jobs tell by their own",
    )


class UploadRequest(Schema):
    """A scan to come in parts."""

    size_bytes: int = Field(ge=1, description="of the whole file")
    sha256: GivenSha256 | None = Field(default=None, description="of the whole file; checked when all parts are there")


class UploadPart(Schema):
    number: int = Field(ge=1)
    size_bytes: int = Field(ge=1, description="exactly so many bytes must be sent")
    received: bool
    url: Url | None = Field(description="PUT the bytes here; for this part alone and a short time. Null once received")


class UploadLinks(Schema):
    self_: Url = Field(alias="self")
    complete: Url | None = Field(description="POST here once all parts are sent; null once the upload is complete")


class Upload(Schema):
    """A scan that comes in parts."""

    id: str
    status: Literal["open", "complete"] = Field(description="once `complete`, a job can be created from it")
    created_at: datetime
    expires_at: datetime = Field(description="it is deleted then, if no job has taken it")
    size_bytes: int
    sha256: str | None = Field(description="as announced, or as found when it was completed")
    part_bytes: int = Field(description="size of every part but the last")
    parts: list[UploadPart]
    urls_expire_at: datetime | None = Field(
        description="ask for the upload again to get new ones; null if there are none"
    )
    links: UploadLinks


class MaskAddress(Schema):
    """Where one mask can be had without asking this service for each byte."""

    url: Url = Field(description="GET it here; `Range` works")
    expires_at: datetime | None = Field(description="null where the address is this service's own and does not expire")
    size_bytes: int
    sha256: str


class JobLinks(Schema):
    """Addresses of what belongs to the job; null while there is nothing at them."""

    self_: Url = Field(alias="self")
    cancel: Url | None = Field(default=None, description="POST here to stop the job; null once it is finished")
    callback: Url | None = Field(default=None, description="whom it tells how it ended; null without `callback_url`")
    events: Url = Field(description="a stream of server-sent events: the job, whenever it changes")
    report: Url | None = Field(default=None, description="null until the job has succeeded")
    masks: dict[MaskName, Url] | None = Field(default=None, description="null until the job has succeeded")
    labels: Url | None = Field(default=None, description="what the masks' numbers stand for; null until it succeeded")
    inspection: Url | None = Field(default=None, description="null until a job that validates has succeeded")


class Job(Schema):
    """A scan on its way to its scores."""

    id: str = Field(description="sorts by time of creation")
    status: JobStatus = Field(description="`queued`, `running`, then finally `succeeded`, `failed` or `cancelled`")
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = Field(description="when a worker first began it")
    finished_at: datetime | None
    task: JobTask = Field(description="`score`, or `validate`: the scan is read and inspected, and not scored")
    priority: Priority
    input: InputInfo
    client_reference: str | None
    callback_url: str | None = Field(description="who is told how it ended, without the address's query and user")
    batch_id: str | None = Field(description="the batch that it came in")
    not_after: datetime | None = Field(
        description="if no worker has begun it by then, it fails; null: it waits for as long as it takes"
    )
    stage: Stage | None = Field(description="what the worker is doing; null unless running")
    progress: float = Field(ge=0, le=1, description="share of the whole work that is done")
    queue_position: int | None = Field(ge=1, description="1 is next; null when not queued or not known")
    estimated_start_at: datetime | None = Field(
        description="when a worker may begin it, from its position, the ready workers and how long they took for the "
        "last jobs; null when not queued, or not known. It alone does not change the `ETag`"
    )
    attempt: int = Field(ge=0, description="how many times a worker has begun it")
    cancel_requested: bool
    error: JobError | None = Field(description="why it failed; null unless failed")
    severity: SeverityScores | None = Field(description="the scores of the whole lungs; null unless succeeded")
    reused_from: str | None = Field(
        description="the job that computed this result for the same scan; null where this job did, or has none"
    )
    links: JobLinks


class JobList(Schema):
    """One page of jobs."""

    items: list[Job]
    next_cursor: str | None = Field(description="give it as `cursor` to get the next page; null on the last")


class FeedEvent(Schema):
    """One change of one job. There is nothing about the patient in it."""

    id: str = Field(description="rises from change to change", examples=["1772444712000-0"])
    time: datetime
    type: Literal[
        "lobewise.job.created",
        "lobewise.job.queued",
        "lobewise.job.running",
        "lobewise.job.succeeded",
        "lobewise.job.failed",
        "lobewise.job.cancelled",
        "lobewise.job.purged",
    ] = Field(description="`queued`: again, since its worker was lost or stopped; `purged`: it was deleted")
    job_id: str
    status: JobStatus | None = Field(description="that the job came to; null once it was deleted")
    client_reference: str | None = Field(description="null also of a job that was deleted since")
    batch_id: str | None = Field(description="that the job came in; null also of a job that was deleted since")
    severity: SeverityScores | None = Field(
        description="of `succeeded`, the scores of the whole lungs; null also of a job that was deleted since, or that "
        "only validated its scan"
    )


class FeedPage(Schema):
    """Some changes, oldest first."""

    items: list[FeedEvent]
    next_cursor: str = Field(description="keep it, and give it as `cursor` to get what comes after these")
    has_more: bool = Field(description="more is there already: ask again at once")


class BatchItemView(Schema):
    """One scan of a batch, in the order in which they were sent."""

    index: int = Field(ge=0)
    job: Job | None = Field(description="null if it was refused, or deleted since")
    error: JobError | None = Field(description="why it was refused; null if it was not")


class BatchCountsView(Schema):
    """How many scans of the batch stand where."""

    queued: int = Field(ge=0)
    running: int = Field(ge=0)
    succeeded: int = Field(ge=0)
    failed: int = Field(ge=0)
    cancelled: int = Field(ge=0)
    purged: int = Field(ge=0, description="deleted since")
    refused: int = Field(ge=0, description="never became a job")


class BatchLinks(Schema):
    self_: Url = Field(alias="self")
    cancel: Url = Field(description="POST here to stop all that is not finished")
    callback: Url | None = Field(description="whom it tells that all have ended; null without `callback_url`")


class BatchSummary(Schema):
    """Many scans that came in one call, and how many of them stand where."""

    id: str
    created_at: datetime = Field(description="when its request came")
    callback_url: str | None = Field(
        description="who is told that all its jobs have ended, without the address's query and user"
    )
    counts: BatchCountsView
    links: BatchLinks


class Batch(BatchSummary):
    """Many scans that came in one call, each with a job of its own."""

    items: list[BatchItemView] = Field(description="one page of them")
    next_cursor: str | None = Field(description="give it as `cursor` to get the next page; null on the last")


class BatchList(Schema):
    """One page of batches."""

    items: list[BatchSummary]
    next_cursor: str | None = Field(description="give it as `cursor` to get the next page; null on the last")


class JobEndedData(Schema):
    """How a job ended. There is nothing about the patient in it."""

    id: str
    status: Literal["succeeded", "failed", "cancelled"]
    client_reference: str | None
    finished_at: datetime
    severity: SeverityScores | None = Field(description="the scores of the whole lungs; null unless succeeded")
    error: JobError | None = Field(description="why it failed; null unless failed")
    links: dict[Literal["self", "report"], str | None]


class JobEnded(Schema):
    """What is sent to a `callback_url`: a CloudEvent (1.0, structured JSON)."""

    specversion: Literal["1.0"]
    id: str = Field(
        description="the same however often it is sent", examples=["msg_01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b11"]
    )
    source: str
    type: Literal["lobewise.job.succeeded", "lobewise.job.failed", "lobewise.job.cancelled"]
    subject: str = Field(description="`id` of the job")
    time: datetime
    datacontenttype: Literal["application/json"]
    data: JobEndedData


class BatchEndedData(Schema):
    """How a batch ended. There is nothing about the patients in it."""

    id: str
    ended_at: datetime = Field(description="when it was found that none of its jobs is open any more")
    counts: BatchCountsView
    links: dict[Literal["self"], str]


class BatchEnded(Schema):
    """What is sent to a batch's `callback_url`: a CloudEvent (1.0, structured JSON)."""

    specversion: Literal["1.0"]
    id: str = Field(
        description="the same however often it is sent", examples=["msg_01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b77"]
    )
    source: str
    type: Literal["lobewise.batch.ended"]
    subject: str = Field(description="`id` of the batch")
    time: datetime
    datacontenttype: Literal["application/json"]
    data: BatchEndedData


class ExportedReport(Schema):
    """A line of an export."""

    job_id: str
    client_reference: str | None
    created_at: datetime
    finished_at: datetime
    report: Report


class ModelList(Schema):
    """The networks that the workers have loaded."""

    items: list[ModelProvenance]


class Health(Schema):
    status: Literal["ok"] = "ok"


class Ready(Schema):
    """All parts that jobs need are there."""

    broker: bool
    blobs: bool
    workers: int = Field(ge=1, description="workers that have their models loaded")


class QuotaUse(Schema):
    """A limit, and what is used of it."""

    quota: Quota = Field(description="what is limited")
    of: Literal["tenant", "key"] = Field(description="whether all keys of the tenant share it")
    limit: int = Field(ge=1, json_schema_extra={"format": "int64"})
    used: int = Field(ge=0, json_schema_extra={"format": "int64"})
    remaining: int = Field(ge=0, json_schema_extra={"format": "int64"})
    window_seconds: int | None = Field(
        description="of what is counted over a time: for how long; null for what there is at this moment"
    )
    resets_in_seconds: int | None = Field(
        ge=0, description="when the present window ends; 0 if none has begun, null where there are no windows"
    )


class QuotaUses(Schema):
    tenant: str = Field(description="whose jobs you see", examples=["default"])
    items: list[QuotaUse] = Field(description="none of what nobody limits")


class FieldError(Schema):
    pointer: str = Field(
        description="JSON pointer into the request: `/body/…`, `/query/…` or `/header/…`", examples=["/body/priority"]
    )
    detail: str


class Problem(Schema):
    """What went wrong with a call (RFC 9457)."""

    type: str = Field(description="stable name of the kind of problem, and the address of the page that explains it")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    instance: str = Field(description="the path that was called")
    retryable: bool = Field(description="whether the same call may succeed later")
    evidence: dict[str, Any] = Field(default_factory=dict, description="what was seen, as data")
    errors: list[FieldError] = Field(default_factory=list, description="what is wrong with each parameter")
