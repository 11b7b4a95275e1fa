"""How a job's state follows from its record, its outcome and the live view."""

import hashlib
import re
import secrets
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from jobs.access.caller import DEFAULT_TENANT
from jobs.models import JobRecord, JobState, JobStatus, Manifest, UploadCompletion, UploadRecord


def now() -> datetime:
    """Milliseconds, as everything that we write."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


#: What never changes, or only with the status, so that a version that does not know it has the same revisions; and what
#: changes with every look.
_NOT_REVISED: Final = {"revision", "batch_id", "not_after", "reused_from", "estimated_start_at"}


def make_state(**fields: Any) -> JobState:
    """A state with its revision, a hash of the other fields."""
    state = JobState(**{**fields, "revision": ""})
    digest = hashlib.sha256(state.model_dump_json(exclude=_NOT_REVISED).encode()).hexdigest()
    return state.model_copy(update={"revision": digest[:16]})


def changed(state: JobState, **fields: Any) -> JobState:
    """The state with some fields replaced and a new revision."""
    return make_state(**{**{name: getattr(state, name) for name in JobState.model_fields}, **fields})


def queued(record: JobRecord, *, attempt: int = 0, updated_at: datetime | None = None) -> JobState:
    return make_state(
        **_of_record(record), status=JobStatus.QUEUED, updated_at=updated_at or record.created_at, attempt=attempt
    )


def running(record: JobRecord, *, attempt: int, started_at: datetime, cancel_requested: bool = False) -> JobState:
    return make_state(
        **_of_record(record),
        status=JobStatus.RUNNING,
        updated_at=started_at,
        started_at=started_at,
        attempt=attempt,
        cancel_requested=cancel_requested,
    )


def final(record: JobRecord, manifest: Manifest) -> JobState:
    """The state that no longer changes."""
    fields = _of_record(record)
    if manifest.input_sha256 is not None:
        known = {"sha256": manifest.input_sha256, "size_bytes": manifest.input_size_bytes}
        fields["input"] = record.input.model_copy(update=known)
    return make_state(
        **fields,
        status=JobStatus(manifest.outcome),
        updated_at=manifest.finished_at,
        started_at=manifest.started_at,
        finished_at=manifest.finished_at,
        progress=1.0 if manifest.outcome == "succeeded" else 0.0,
        attempt=manifest.attempt,
        cancel_requested=manifest.outcome == "cancelled",
        error=manifest.error,
        severity=manifest.severity,
        reused_from=manifest.reused_from,
    )


def _of_record(record: JobRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "created_at": record.created_at,
        "task": record.task,
        "priority": record.priority,
        "input": record.input,
        "client_reference": record.client_reference,
        "callback_url": record.callback_url,
        "batch_id": record.batch_id,
        "not_after": record.not_after,
    }


def estimated_wait_seconds(position: int, ready: int, running: int, seconds_per_job: float | None) -> float | None:
    """How long the job at `position` (1 is next) waits for a worker, if `ready` ones take `seconds_per_job` each.

    As many wait for nothing as workers are idle. From then on one job is begun whenever one ends: `ready` workers end
    `ready` jobs in the time of one. None: nobody is ready, or nothing was measured yet.
    """
    if ready == 0 or seconds_per_job is None:
        return None
    return max(position - max(ready - running, 0), 0) * seconds_per_job / ready


JOB_ID: Final = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")


def new_id() -> str:
    """An id that sorts by time and cannot be guessed (UUIDv7): 48 bits of milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    version_and_variant = (7 << 76) | (2 << 62)
    random_high, random_low = secrets.randbits(12) << 64, secrets.randbits(62)
    return str(uuid.UUID(int=(milliseconds << 80) | version_and_variant | random_high | random_low))


def made_at(job_id: str) -> datetime:
    """The moment in an id."""
    return datetime.fromtimestamp((uuid.UUID(job_id).int >> 80) / 1000, UTC)


def first_id(milliseconds: float) -> str:
    """What sorts before every id that was made at this moment or later, and after all others."""
    digits = f"{min(max(int(milliseconds), 0), (1 << 48) - 1):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def is_id(text: str) -> bool:
    """Whether this could be an id of ours. Nothing else may become part of a key."""
    return JOB_ID.fullmatch(text) is not None


#: Bytes on their way; a view saves a copy.
Chunk = bytes | memoryview
Sort = Literal["-created_at", "created_at", "severity"]


@dataclass(frozen=True)
class JobPage:
    """Some jobs; `next_cursor` leads to the next ones, None after the last."""

    items: tuple[JobState, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class Readiness:
    """Which parts answer. `workers` have their models loaded."""

    broker: bool
    blobs: bool
    workers: int


@dataclass(frozen=True)
class QueueLength:
    """How many jobs of a priority wait, and how long the first of them has."""

    waiting: int
    oldest_seconds: float


@dataclass(frozen=True)
class ReceivedPart:
    """A part that has arrived. `tag` is what S3 wants to hear of it again."""

    size_bytes: int
    tag: str = ""


@dataclass(frozen=True)
class UrlSignature:
    """What makes an address of the gateway valid for one part of an upload. `expires` is in seconds since 1970."""

    expires: int
    signature: str
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True)
class PartState:
    """A part of an upload: it has arrived, or `url` says where it may be sent (a signature is one for the gateway)."""

    number: int
    size_bytes: int
    url: str | UrlSignature | None

    @property
    def is_received(self) -> bool:
        return self.url is None


@dataclass(frozen=True)
class MultipartUploadState:
    """An upload as it stands. `completion` is there once a job may take it."""

    record: UploadRecord
    completion: UploadCompletion | None
    parts: tuple[PartState, ...]
    #: None when there is nothing left to send.
    urls_expire_at: datetime | None
