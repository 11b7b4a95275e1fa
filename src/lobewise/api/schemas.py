"""What travels over HTTP, version 1. Reports are `jobs.models.Report`; everything else is here."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lobewise.jobs.models import (
    InputInfo,
    JobError,
    JobStatus,
    MaskName,
    ModelProvenance,
    Priority,
    ScanSource,
    SeverityScores,
    Stage,
)

ClientReference = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="your own name for the scan, given back with the job. Opaque to the service; "
        "never put patient data in it",
        examples=["worklist-4711"],
    ),
]
Url = Annotated[str, Field(json_schema_extra={"format": "uri"})]


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class JobOptions(Schema):
    """What can be said about a scan, however it comes."""

    priority: Priority = Field(
        default=Priority.ROUTINE, description="workers take all `stat` jobs first, then `routine`, then `batch`"
    )
    client_reference: ClientReference | None = None


class SourceSubmission(JobOptions):
    """A scan that the worker fetches."""

    source: ScanSource


class JobLinks(Schema):
    """Addresses of what belongs to the job; null while there is nothing at them."""

    self_: Url = Field(alias="self")
    cancel: Url | None = Field(default=None, description="POST here to stop the job; null once it is finished")
    report: Url | None = Field(default=None, description="null until the job has succeeded")
    masks: dict[MaskName, Url] | None = Field(default=None, description="null until the job has succeeded")


class Job(Schema):
    """A scan on its way to its scores."""

    id: str = Field(description="sorts by time of creation")
    status: JobStatus = Field(description="`queued`, `running`, then finally `succeeded`, `failed` or `cancelled`")
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = Field(description="when a worker first began it")
    finished_at: datetime | None
    priority: Priority
    input: InputInfo
    client_reference: str | None
    stage: Stage | None = Field(description="what the worker is doing; null unless running")
    progress: float = Field(ge=0, le=1, description="share of the whole work that is done")
    queue_position: int | None = Field(ge=1, description="1 is next; null when not queued or not known")
    attempt: int = Field(ge=0, description="how many times a worker has begun it")
    cancel_requested: bool
    error: JobError | None = Field(description="why it failed; null unless failed")
    severity: SeverityScores | None = Field(description="the scores of the whole lungs; null unless succeeded")
    links: JobLinks


class JobList(Schema):
    """One page of jobs."""

    items: list[Job]
    next_cursor: str | None = Field(description="give it as `cursor` to get the next page; null on the last")


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
