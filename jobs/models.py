"""The words both sides share: what a job is and what its report says.

Versioned; the science may change freely behind it.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import from_json

from jobs.errors import NewerSchemaError
from jobs.problems import ProblemType

#: Of all that is stored. A field that may be left out does not change it; what an old reader must not miss raises the
#: first number (docs/decisions/0019).
SCHEMA_VERSION: Final = "1.0"


class JobStatus(StrEnum):
    """The life of a job: queued -> running -> succeeded | failed | cancelled. The last three never change again."""

    #: Accepted and durable; no worker has it. A job goes back here when its worker is lost.
    QUEUED = "queued"
    #: One worker holds its lease.
    RUNNING = "running"
    #: Report and masks are stored.
    SUCCEEDED = "succeeded"
    #: It cannot be scored; `error` says why.
    FAILED = "failed"
    #: Stopped on request.
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class Stage(StrEnum):
    """What a running job is doing, in order."""

    FETCH = "fetch"
    READ = "read"
    LANDMARKS = "landmarks"
    LUNGS = "lungs"
    LESIONS = "lesions"
    SEVERITY = "severity"
    STORE = "store"


class Priority(StrEnum):
    """Which queue a job waits in; a worker empties them in this order."""

    STAT = "stat"
    ROUTINE = "routine"
    BATCH = "batch"


class JobTask(StrEnum):
    """What a job is for."""

    #: Masks and scores.
    SCORE = "score"
    #: The scan is read and inspected, not scored.
    VALIDATE = "validate"


class MaskName(StrEnum):
    """The masks of a succeeded job, each a gzipped NIfTI on the input's own grid."""

    LUNGS = "lungs"
    LOBES = "lobes"
    LESIONS = "lesions"
    HIGH_OPACITY = "high-opacity"


class ImageName(StrEnum):
    """What a result is looked at with, beside the masks. An earlier job, or one whose operator keeps none, has none."""

    #: The CT itself in Hounsfield units, a gzipped NIfTI on the masks' grid.
    SCAN = "scan"
    #: The same, coarse, for a first look.
    PREVIEW = "preview"
    #: Slices in the lung window with the lobes' contours and the opacities, PNG, as radiologists look at them.
    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"
    #: The opacities projected from the front onto the lungs, PNG.
    GLASS = "glass"

    def is_kept(self, keep_images: Literal["all", "preview", "none"]) -> bool:
        """Whether the setting of this name has it stored and answered."""
        return keep_images == "all" or (keep_images == "preview" and self is not ImageName.SCAN)


class CallbackOutcome(StrEnum):
    """How one attempt at a callback ended."""

    #: The receiver answered 2xx.
    DELIVERED = "delivered"
    #: It did not; it is tried again later.
    RETRY = "retry"
    #: It did not, and that was the last attempt.
    FAILED = "failed"
    #: It answered 410, now or to another job: nothing more is sent to this address.
    DISABLED = "disabled"


class CallbackFault(StrEnum):
    """Why an attempt has no answer."""

    TIMEOUT = "timeout"
    #: No such host, none at an address that may be connected to, nobody there, a certificate that is not trusted, or a
    #: connection that broke.
    CONNECTION = "connection"
    #: The operator no longer allows the address.
    NOT_ALLOWED = "not-allowed"
    #: The address had answered 410 to another job.
    DISABLED = "disabled"


class CallbackStatus(StrEnum):
    """Where a callback stands."""

    #: The job is not finished.
    WAITING = "waiting"
    #: An attempt is due, now or later.
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    DISABLED = "disabled"


class Model(BaseModel):
    """Unknown fields are refused in what clients send, and passed over in what other versions of us have stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, data: bytes | str) -> Self:
        """A document as this or another version of this software stored it, as far as this one knows it.

        Raises NewerSchemaError: its schema has a higher first number than ours.
        """
        content = from_json(data)
        version = content.get("schema_version", SCHEMA_VERSION)
        if _major(version) > _major(SCHEMA_VERSION):
            raise NewerSchemaError(cls.__name__, version)
        return cls.model_validate(content, extra="ignore")

    def stored(self) -> bytes:
        """The document as it is stored."""
        return self.model_dump_json(exclude_none=True).encode()


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _as_ours(version: str) -> str:
    """What is left once unknown fields were passed over is a document of our own version."""
    return SCHEMA_VERSION if _major(version) == _major(SCHEMA_VERSION) else version


SchemaVersion = Annotated[Literal["1.0"], BeforeValidator(_as_ours)]


class JobError(Model):
    """Why a job failed: the `problem+json` members that hold without an HTTP response."""

    type: str = Field(
        description="URI of the problem type, documented at that address", examples=["/problems/lungs-not-found"]
    )
    title: str
    detail: str
    retryable: bool = Field(description="whether the same scan may succeed when it is submitted again")
    evidence: dict[str, Any] = Field(default_factory=dict, description="what was seen, as data")

    @classmethod
    def of(cls, problem: ProblemType, detail: str, evidence: Mapping[str, Any]) -> Self:
        return cls(
            type=problem.uri, title=problem.title, detail=detail, retryable=problem.retryable, evidence=dict(evidence)
        )


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: As clients send it: some tools print capitals. Kept in small letters, for it is compared as a text.
GivenSha256 = Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{64}$"), AfterValidator(str.lower)]


class ScanSource(Model):
    """Where the worker fetches a scan that was not uploaded."""

    url: str = Field(
        description="an https or s3 address that this service's operator allows",
        examples=["https://pacs.example/ct/1.nii.gz"],
    )
    sha256: GivenSha256 | None = Field(default=None, description="checked after fetching")


class UploadRecord(Model):
    """`upload.json`: a large scan that is sent in parts before there is a job. Written once, before the first part."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    id: str
    created_at: datetime
    expires_at: datetime
    size_bytes: int
    sha256: Sha256 | None = None
    part_bytes: int
    #: Of S3, which needs it in every call about a part; a local folder has none.
    multipart_id: str | None = None

    @property
    def part_sizes_bytes(self) -> dict[int, int]:
        """By number, from 1. All parts are of one size but the last, which has what is left."""
        starts = range(0, self.size_bytes, self.part_bytes)
        return {n: min(self.part_bytes, self.size_bytes - start) for n, start in enumerate(starts, 1)}


class UploadCompletion(Model):
    """`completed.json`: created once; from then on the upload is a scan that a job may take."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    key: str
    size_bytes: int
    sha256: Sha256


class InputInfo(Model):
    """The scan as it was accepted. File names are not kept: they carry patient names."""

    size_bytes: int | None = Field(default=None, description="null until a `source` was fetched")
    sha256: str | None = Field(default=None, description="null until a `source` was fetched")
    source: ScanSource | None = None


class JobRecord(Model):
    """`job.json`: what is written once, before the 202. All else about a job follows from other blobs."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    id: str
    created_at: datetime
    task: JobTask = JobTask.SCORE
    priority: Priority = Priority.ROUTINE
    input: InputInfo
    client_reference: str | None = None
    upload_id: str | None = Field(default=None, description="the upload that became its scan")
    callback_url: str | None = Field(default=None, description="who is told how it ended")
    batch_id: str | None = Field(default=None, description="the batch that it came in")
    address: str | None = Field(default=None, description="of the job, as its client reaches the gateway")
    not_after: datetime | None = Field(default=None, description="no worker begins it from then on")
    reuse: bool = Field(default=True, description="whether it may be given the result of an earlier job")
    traceparent: str | None = Field(default=None, description="the trace that the job belongs to, where there are any")


LobeName = Literal["left_upper", "left_lower", "right_upper", "right_middle", "right_lower"]


class PercentRange(Model):
    """What a percentage is if only what is very likely a lesion counts, and if all that may be one does."""

    low: float = Field(ge=0, le=100)
    high: float = Field(ge=0, le=100)


class SeverityScores(Model):
    percent_opacity: float = Field(ge=0, le=100)
    percent_opacity_range: PercentRange | None = None
    percent_high_opacity: float = Field(ge=0, le=100)
    lung_severity_score: int = Field(ge=0, le=20)
    lung_high_opacity_score: int = Field(ge=0, le=20)


class JobState(Model):
    """A job as it stands now, the record and the live view merged."""

    id: str
    status: JobStatus
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    task: JobTask = Field(
        default=JobTask.SCORE, description="`validate` reads and inspects the scan, and scores nothing"
    )
    priority: Priority = Priority.ROUTINE
    input: InputInfo
    client_reference: str | None = None
    callback_url: str | None = None
    batch_id: str | None = None
    not_after: datetime | None = None
    stage: Stage | None = None
    progress: float = Field(default=0.0, ge=0.0, le=1.0, description="share of the whole work that is done")
    queue_position: int | None = Field(
        default=None,
        ge=1,
        description="1 is next, give or take a turn that less urgent jobs are given; null when not queued or not known",
    )
    estimated_start_at: datetime | None = Field(
        default=None, description="when a worker may begin it, as things stand; null when not queued or not known"
    )
    attempt: int = Field(default=0, ge=0, description="how many times a worker has begun it")
    cancel_requested: bool = False
    error: JobError | None = None
    severity: SeverityScores | None = Field(
        default=None, description="present once succeeded, unless `task` is `validate`"
    )
    reused_from: str | None = Field(
        default=None, description="the job whose result this is, where it was not computed again"
    )
    revision: str = Field(description="changes whenever any other field does")


class LungVolumes(Model):
    volume_ml: float = Field(ge=0)
    opacity_ml: float = Field(ge=0)
    high_opacity_ml: float = Field(ge=0)


class LobeScores(Model):
    lobe: LobeName
    label: int = Field(ge=1, le=5, description="value in the lobes mask")
    volume_ml: float = Field(ge=0)
    percent_opacity: float = Field(ge=0, le=100)
    percent_opacity_range: PercentRange | None = None
    percent_high_opacity: float = Field(ge=0, le=100)
    severity_score: int = Field(ge=0, le=4)
    high_opacity_score: int = Field(ge=0, le=4)


class LandmarkPoint(Model):
    name: Literal["carina", "sternum_tip"]
    found: bool
    position_mm: tuple[float, float, float] | None = Field(description="LPS x, y, z; null when not in this scan")


class QualityFinding(Model):
    code: str = Field(examples=["thick-slices"])
    severity: Literal["info", "warning", "error"]
    message: str
    evidence: dict[str, Any] = Field(default_factory=dict)
    lobe: LobeName | None = Field(default=None, description="null where it is about the scan or the whole result")


class ModelProvenance(Model):
    name: str
    version: str
    sha256: str


class ScanGeometry(Model):
    """Which fields of the file say where its voxels lie; every mask lies there too."""

    file_format: str = Field(examples=["NIfTI-1"])
    used: list[str] = Field(description="fields that the geometry was made of", examples=[["sform"]])
    ignored: dict[str, str] = Field(default_factory=dict, description="fields that were not used, each with the reason")


class Provenance(Model):
    input_sha256: str
    software: str
    models: list[ModelProvenance]
    device: str
    seconds: dict[str, float] = Field(description="by stage")
    geometry: ScanGeometry | None = Field(default=None, description="null in reports of earlier versions")
    reused_from: str | None = Field(
        default=None,
        description="`id` of the job that computed this result for the same scan; null where this job did",
    )


class ValueHistogram(Model):
    """How the Hounsfield units of a scan are spread."""

    lowest_hu: int
    highest_hu: int
    bin_hu: int = Field(description="width of a bin")
    first_hu: int = Field(description="where the first bin begins; what lies outside is in the outermost ones")
    voxels: list[int] = Field(description="by bin")


class Inspection(Model):
    """What the reader saw in a file, unscored, and nothing about the patient: to be sent with a report of a fault."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    software: str
    input_size_bytes: int
    geometry: ScanGeometry | None = Field(default=None, description="null where the file was refused")
    shape: tuple[int, int, int] | None = Field(default=None, description="voxels z, y, x")
    spacing_mm: tuple[float, float, float] | None = Field(default=None, description="z, y, x")
    origin_mm: tuple[float, float, float] | None = Field(default=None, description="LPS x, y, z of the first voxel")
    direction: list[tuple[float, float, float]] | None = Field(
        default=None, description="rows LPS x, y, z; columns the axes x, y, z of the array"
    )
    axes: str | None = Field(
        default=None, description="where the array's x, y and z axis lead: L or R, P or A, S or I", examples=["LPS"]
    )
    histogram: ValueHistogram | None = None
    picture_png_base64: str | None = Field(
        default=None, description="the middle coronal, axial and sagittal slice side by side; null where none was drawn"
    )
    quality: list[QualityFinding] = Field(default_factory=list)
    refused: JobError | None = Field(default=None, description="why the file cannot be read; null where it can")


class Report(Model):
    """What the scan's scores are, schema 1. `masks` are filled with addresses by the API."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    job_id: str
    severity: SeverityScores
    lungs: LungVolumes
    lobes: list[LobeScores] = Field(min_length=5, max_length=5)
    landmarks: list[LandmarkPoint]
    quality: list[QualityFinding]
    masks: dict[MaskName, str] = Field(default_factory=dict, description="address of each mask")
    provenance: Provenance


class MaskLabel(Model):
    """What one number in a mask stands for; 0 is the background."""

    number: int = Field(ge=1, le=255)
    name: str = Field(description="for programs; of a lobe as in the report", examples=["left_upper"])
    display_name: str = Field(description="for people", examples=["Left upper lobe"])
    colour: str = Field(pattern=r"^#[0-9a-f]{6}$", description="red, green and blue", examples=["#56b4e9"])
    snomed_ct: str | None = Field(
        default=None, description="concept of SNOMED CT; null where no single one fits", examples=["44714003"]
    )


class MaskLabels(Model):
    """`labels.json`: what the numbers in each mask stand for. The masks' own headers have names and colours, too."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    masks: dict[MaskName, list[MaskLabel]]


class MaskBlob(Model):
    """A stored mask."""

    name: MaskName
    key: str
    size_bytes: int
    sha256: str
    labels: list[MaskLabel] = Field(default_factory=list, description="none in what earlier versions stored")


class ImageBlob(Model):
    """A stored scan or picture."""

    #: Of `ImageName`, or one that a later version knows.
    name: str
    key: str
    size_bytes: int
    sha256: str


class Manifest(Model):
    """`manifest.json`: created once, never replaced; its existence ends the job. The winner of all attempts."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    job_id: str
    outcome: Literal["succeeded", "failed", "cancelled"]
    attempt: int
    started_at: datetime | None = None
    finished_at: datetime
    severity: SeverityScores | None = None
    report_key: str | None = None
    inspection_key: str | None = None
    masks: list[MaskBlob] = Field(default_factory=list)
    images: list[ImageBlob] = Field(default_factory=list, description="none in what earlier versions stored")
    error: JobError | None = None
    reused_from: str | None = Field(default=None, description="the job that was computed, if not this one")
    index_key: str | None = Field(default=None, description="of the blob by which others find this result")
    input_sha256: str | None = None
    input_size_bytes: int | None = None


class CallbackAttempt(Model):
    """`callbacks/{round}/{number}.json`: one try to tell a receiver how a job or a batch ended."""

    round: int = Field(ge=1, description="1 at first; one more each time that a redelivery is asked for")
    number: int = Field(ge=1, description="of the attempt within its round")
    started_at: datetime
    seconds: float = Field(ge=0, description="until the answer, or until it was given up")
    outcome: CallbackOutcome
    http_status: int | None = Field(default=None, description="what the receiver answered; null if it did not")
    fault: CallbackFault | None = Field(default=None, description="why there is no answer")
    next_attempt_at: datetime | None = Field(default=None, description="null unless it will be tried again")


class _CallbackLog(Model):
    url: str
    status: CallbackStatus
    next_attempt_at: datetime | None = Field(default=None, description="null unless an attempt is due")
    attempts: list[CallbackAttempt] = Field(default_factory=list, description="oldest first")


class Callback(_CallbackLog):
    """Whom a job tells how it ended, and how that went."""

    job_id: str


class BatchCallback(_CallbackLog):
    """Whom a batch tells that all its jobs have ended, and how that went."""

    batch_id: str
