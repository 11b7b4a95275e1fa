"""How a job's state follows from its record, its outcome and the live view."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from jobs import ids
from jobs.models import InputInfo, JobRecord, JobState, JobStatus, Manifest


def now() -> datetime:
    """Milliseconds, as everything that we write."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def make_state(**fields: Any) -> JobState:
    """A state with its revision, a hash of all other fields."""
    state = JobState(**{**fields, "revision": ""})
    digest = hashlib.sha256(state.model_dump_json(exclude={"revision"}).encode()).hexdigest()
    return state.model_copy(update={"revision": digest[:16]})


def changed(state: JobState, **fields: Any) -> JobState:
    """The state with some fields replaced and a new revision."""
    return make_state(**{**{name: getattr(state, name) for name in JobState.model_fields}, **fields})


def queued(record: JobRecord, *, attempt: int = 0, updated_at: datetime | None = None) -> JobState:
    return make_state(
        **_of_record(record), status=JobStatus.QUEUED, updated_at=updated_at or record.created_at, attempt=attempt
    )


def coming(job_id: str) -> JobState:
    """A job of a batch whose record is about to be written."""
    made_at = ids.made_at(job_id)
    return make_state(
        id=job_id, created_at=made_at, updated_at=made_at, status=JobStatus.QUEUED, input=InputInfo(), attempt=0
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
    )


def _of_record(record: JobRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "created_at": record.created_at,
        "priority": record.priority,
        "input": record.input,
        "client_reference": record.client_reference,
        "callback_url": record.callback_url,
    }
