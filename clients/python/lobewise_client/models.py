"""What the service answers, as this version knows it.

A newer service may say more: fields that are not known here are kept in `model_extra`, and names that are not known
(a new status, a new stage) stay text.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)


class JobStatus(StrEnum):
    """`queued`, `running`, then finally one of the others."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Priority(StrEnum):
    """Which jobs go first."""

    STAT = "stat"
    ROUTINE = "routine"
    BATCH = "batch"


class MaskName(StrEnum):
    """The masks of a scored scan."""

    LUNGS = "lungs"
    LOBES = "lobes"
    LESIONS = "lesions"
    HIGH_OPACITY = "high-opacity"


# The member where the name is known, else the name itself. A member is a str, too: comparisons hold for both.
_LEFT_FIRST = Field(union_mode="left_to_right")
OpenJobStatus = Annotated[JobStatus | str, _LEFT_FIRST]
OpenPriority = Annotated[Priority | str, _LEFT_FIRST]
OpenMaskName = Annotated[MaskName | str, _LEFT_FIRST]


class FieldError(Model):
    """What is wrong with one parameter; `pointer` is a JSON pointer into the request."""

    pointer: str = ""
    detail: str = ""


class JobProblem(Model):
    """Why a job failed, or a scan of a batch was refused."""

    type: str
    title: str = ""
    detail: str = ""
    retryable: bool = False
    evidence: dict[str, Any] = Field(default_factory=dict)


class Source(Model):
    """Where the service's worker fetches a scan."""

    url: str
    sha256: str | None = None


class InputInfo(Model):
    """The scan as it was accepted."""

    size_bytes: int | None = None
    sha256: str | None = None
    source: Source | None = None


class PercentRange(Model):
    low: float
    high: float


class SeverityScores(Model):
    """Of both lungs. Percent of their volume; scores 0 to 20."""

    percent_opacity: float
    percent_opacity_range: PercentRange | None = None
    percent_high_opacity: float
    lung_severity_score: int
    lung_high_opacity_score: int


class JobLinks(Model):
    """Addresses of what belongs to the job; None while there is nothing at them."""

    self_: str = Field(alias="self")
    cancel: str | None = None
    callback: str | None = None
    events: str | None = None
    report: str | None = None
    masks: dict[OpenMaskName, str] | None = None
    inspection: str | None = None


class Job(Model):
    """A scan on its way to its scores."""

    id: str
    status: OpenJobStatus
    created_at: datetime
    updated_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    task: str = "score"
    priority: OpenPriority = Priority.ROUTINE
    input: InputInfo = InputInfo()
    client_reference: str | None = None
    callback_url: str | None = None
    stage: str | None = None
    #: Share of the whole work that is done, 0 to 1.
    progress: float = 0.0
    #: 1 is next; None when it does not wait, or is not known.
    queue_position: int | None = None
    attempt: int = 0
    cancel_requested: bool = False
    #: Not begun by then, it fails and is never computed.
    not_after: datetime | None = None
    #: When it will begin, as far as the service can tell.
    estimated_start_at: datetime | None = None
    error: JobProblem | None = None
    severity: SeverityScores | None = None
    #: The batch that it came in.
    batch_id: str | None = None
    #: The job that computed this result for the same scan; None where this one did.
    reused_from: str | None = None
    links: JobLinks

    @property
    def is_final(self) -> bool:
        """Whether nothing of it changes any more."""
        return self.status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class JobPage(Model):
    items: list[Job]
    next_cursor: str | None = None


class LungVolumes(Model):
    volume_ml: float
    opacity_ml: float
    high_opacity_ml: float


class LobeScores(Model):
    #: left_upper, left_lower, right_upper, right_middle or right_lower.
    lobe: str
    #: Value in the mask `lobes`.
    label: int
    volume_ml: float
    percent_opacity: float
    percent_opacity_range: PercentRange | None = None
    percent_high_opacity: float
    severity_score: int
    high_opacity_score: int


class Landmark(Model):
    name: str
    found: bool
    #: LPS x, y, z; None when not in this scan.
    position_mm: tuple[float, float, float] | None = None


class Finding(Model):
    """What a reader of the scores should know."""

    code: str
    #: info, warning or error.
    severity: str
    message: str
    evidence: dict[str, Any] = Field(default_factory=dict)
    lobe: str | None = None


class NetworkInfo(Model):
    """A network, as it marks scans."""

    name: str
    version: str
    sha256: str


class ScanGeometry(Model):
    """Which fields of the file say where its voxels lie."""

    file_format: str
    used: list[str]
    ignored: dict[str, str] = Field(default_factory=dict)


class Provenance(Model):
    input_sha256: str
    software: str
    models: list[NetworkInfo]
    device: str
    seconds: dict[str, float]
    geometry: ScanGeometry | None = None


class Report(Model):
    """The scores of a scan."""

    schema_version: str
    job_id: str
    severity: SeverityScores
    lungs: LungVolumes
    lobes: list[LobeScores]
    landmarks: list[Landmark]
    quality: list[Finding]
    #: The address of each.
    masks: dict[OpenMaskName, str] = Field(default_factory=dict)
    provenance: Provenance


class MaskLabel(Model):
    """What a number in a mask stands for."""

    number: int
    #: For programs; of a lobe as in the report.
    name: str
    display_name: str = ""
    #: `#rrggbb`.
    colour: str = ""
    snomed_ct: str | None = None


class MaskLabels(Model):
    """What the numbers in each mask stand for."""

    masks: dict[OpenMaskName, list[MaskLabel]]


class ValueHistogram(Model):
    """How the Hounsfield units of a scan are spread."""

    lowest_hu: int
    highest_hu: int
    bin_hu: int
    first_hu: int
    voxels: list[int]


class Inspection(Model):
    """What was seen in a scan that was validated and not scored."""

    schema_version: str
    software: str
    input_size_bytes: int
    geometry: ScanGeometry | None = None
    #: Voxels z, y, x.
    shape: tuple[int, int, int] | None = None
    #: z, y, x.
    spacing_mm: tuple[float, float, float] | None = None
    #: LPS x, y, z of the first voxel.
    origin_mm: tuple[float, float, float] | None = None
    direction: list[tuple[float, float, float]] | None = None
    axes: str | None = None
    histogram: ValueHistogram | None = None
    picture_png_base64: str | None = None
    quality: list[Finding] = Field(default_factory=list)
    refused: JobProblem | None = None


class UploadPart(Model):
    number: int
    size_bytes: int
    received: bool
    #: Where its bytes go; None once they have arrived.
    url: str | None = None


class Upload(Model):
    """A scan that comes in parts."""

    id: str
    #: open or complete.
    status: str
    created_at: datetime
    expires_at: datetime
    size_bytes: int
    sha256: str | None = None
    #: Size of every part but the last.
    part_bytes: int
    parts: list[UploadPart]
    urls_expire_at: datetime | None = None


class BatchCounts(Model):
    """How many scans of a batch stand where."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    purged: int = 0
    refused: int = 0

    @property
    def unfinished(self) -> int:
        return self.queued + self.running


class BatchItem(Model):
    """One scan of a batch."""

    index: int
    #: None if it was refused, or deleted since.
    job: Job | None = None
    #: Why it was refused.
    error: JobProblem | None = None


class Batch(Model):
    """Many scans that came in one call. `items` is one page of them; in a list of batches there are none."""

    id: str
    created_at: datetime
    counts: BatchCounts
    #: Who is told that all its jobs have ended.
    callback_url: str | None = None
    items: list[BatchItem] = Field(default_factory=list)
    next_cursor: str | None = None


class BatchPage(Model):
    items: list[Batch]
    next_cursor: str | None = None


class ExportedReport(Model):
    """One report of an export."""

    job_id: str
    client_reference: str | None = None
    created_at: datetime
    finished_at: datetime
    report: Report


class JobChange(Model):
    """One change of one job, of the feed of all changes."""

    id: str
    time: datetime
    #: lobewise.job.created, queued (again), running, succeeded, failed, cancelled or purged (deleted).
    type: str
    job_id: str
    status: OpenJobStatus | None = None
    client_reference: str | None = None
    batch_id: str | None = None
    severity: SeverityScores | None = None


class ChangePage(Model):
    """Some changes, oldest first. Keep `next_cursor` once you are done with them."""

    items: list[JobChange]
    next_cursor: str
    #: More is there already.
    has_more: bool = False


class CallbackAttempt(Model):
    """One try to tell a receiver how a job ended."""

    round: int
    number: int
    started_at: datetime
    seconds: float
    #: delivered, retry, failed or disabled.
    outcome: str
    http_status: int | None = None
    fault: str | None = None
    next_attempt_at: datetime | None = None


class Callback(Model):
    """Whom a job tells how it ended, and how that went."""

    job_id: str
    url: str
    #: waiting, pending, delivered, failed or disabled.
    status: str
    next_attempt_at: datetime | None = None
    attempts: list[CallbackAttempt] = Field(default_factory=list)


class NetworkList(Model):
    items: list[NetworkInfo]


class Ready(Model):
    """Which parts of the service answer."""

    broker: bool
    blobs: bool
    #: How many have their networks loaded.
    workers: int


class JobEndedData(Model):
    """How a job ended."""

    id: str
    status: OpenJobStatus
    client_reference: str | None = None
    finished_at: datetime
    severity: SeverityScores | None = None
    error: JobProblem | None = None
    links: dict[str, str | None] = Field(default_factory=dict)


class BatchEndedData(Model):
    """How a batch ended."""

    id: str
    ended_at: datetime
    counts: BatchCounts
    links: dict[str, str | None] = Field(default_factory=dict)


class BatchEnded(Model):
    """What a batch's receiver of callbacks gets: a CloudEvent.

    Attributes:
        id: the same however often it is sent.
    """

    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: BatchEndedData


class JobEnded(Model):
    """What a receiver of callbacks gets: a CloudEvent.

    Attributes:
        id: the same however often it is sent.
    """

    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: JobEndedData
