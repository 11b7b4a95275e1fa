"""The durable record of each job: documents that are created once, and what follows from them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from pydantic import Field

from jobs import states
from jobs.errors import JobNotFoundError, JobPurgedError
from jobs.models import SCHEMA_VERSION, JobRecord, JobState, Manifest, Model, SchemaVersion
from jobs.states import is_id
from jobs.store.keys import JOBS, attempt_key, job_key
from jobs.store.object_store import ObjectStore

_CLAIM: Final = re.compile(r"attempts/(\d+)/claim\.json")
_VOID: Final = b'{"void":true}'


class Claim(Model):
    """`claim.json`: attempt `attempt` has begun."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    attempt: int
    started_at: datetime
    worker: str
    traceparent: str | None = Field(default=None, description="of its span, which another ends if the worker is lost")


class Ending(Model):
    """`ended.json`: why an attempt ended without an outcome. Only the class of an exception is kept."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    #: Its worker fell silent; a fault of ours; it needed more memory than there was; or its worker was told to stop and
    #: requeued the job (stored under its first name), which is nobody's fault and counts for nothing.
    reason: Literal["worker-lost", "fault", "out-of-memory", "handed-back"]
    fault: str | None = Field(default=None, description="class of the exception")
    ended_at: datetime


@dataclass(frozen=True)
class JobFiles:
    """Which blobs a job has; names are relative to `jobs/{id}/`."""

    job_id: str
    names: frozenset[str]

    @property
    def is_job(self) -> bool:
        return "job.json" in self.names

    @property
    def is_purged(self) -> bool:
        return "purged.json" in self.names

    @property
    def is_final(self) -> bool:
        return "manifest.json" in self.names

    @property
    def cancel_requested(self) -> bool:
        return "cancel.json" in self.names

    @property
    def attempt(self) -> int:
        """The last attempt that began; 0 for none."""
        return max((int(m[1]) for m in map(_CLAIM.fullmatch, self.names) if m), default=0)

    def has_ended(self, attempt: int) -> bool:
        return f"attempts/{attempt}/ended.json" in self.names


class JobStore:
    """Reads and writes the documents of jobs.

    Raises StorageUnavailableError when the store does not answer, NewerSchemaError for what it cannot read, and
    JobNotFoundError for what is no id.
    """

    def __init__(self, blobs: ObjectStore) -> None:
        self.blobs, self.attempts = blobs, AttemptStore(blobs)

    # What is there

    def files(self, job_id: str) -> JobFiles:
        folder = job_key(job_id, "")
        return JobFiles(job_id, frozenset(key.removeprefix(folder) for key in self.blobs.keys(folder)))

    def all_files(self) -> Iterator[JobFiles]:
        """Every job that was accepted and not purged; one listing of the whole store."""
        return (files for files in self.listed() if files.is_job and not files.is_purged)

    def listed(self) -> Iterator[JobFiles]:
        """The same, with what was purged and what is no job, at least not yet."""
        # All at once, since a store lists its keys in no order.
        names: dict[str, set[str]] = {}
        for key in self.blobs.keys(JOBS):
            job_id, _, name = key.removeprefix(JOBS).partition("/")
            names.setdefault(job_id, set()).add(name)
        return (JobFiles(job_id, frozenset(found)) for job_id, found in names.items() if is_id(job_id))

    def record(self, job_id: str) -> JobRecord:
        """Raises JobNotFoundError, JobPurgedError."""
        data = self.blobs.read(job_key(job_id, "job.json"))
        if data is not None and data != _VOID:
            return JobRecord.read(data)
        if self.is_purged(job_id):
            raise JobPurgedError(job_id)
        raise JobNotFoundError(job_id)

    def manifest(self, job_id: str) -> Manifest | None:
        return self.blobs.read_document(Manifest, job_key(job_id, "manifest.json"))

    def is_final(self, job_id: str) -> bool:
        return self.blobs.exists(job_key(job_id, "manifest.json"))

    def is_purged(self, job_id: str) -> bool:
        return self.blobs.exists(job_key(job_id, "purged.json"))

    def is_void(self, job_id: str) -> bool:
        return self.blobs.read(job_key(job_id, "job.json")) == _VOID

    def state(self, job_id: str, files: JobFiles | None = None) -> JobState:
        """The state as the blobs alone tell it. Raises JobNotFoundError, JobPurgedError."""
        files = files or self.files(job_id)
        if files.is_purged:
            raise JobPurgedError(job_id)
        record = self.record(job_id)
        manifest = self.manifest(job_id) if files.is_final else None
        if manifest is not None:
            return states.final(record, manifest)
        claim = self.attempts.last_claim(files)
        if claim is None or files.has_ended(claim.attempt):
            updated_at = claim.started_at if claim else None
            return states.queued(record, attempt=files.attempt, updated_at=updated_at)
        return states.running(
            record, attempt=claim.attempt, started_at=claim.started_at, cancel_requested=files.cancel_requested
        )

    # What happens, each at most once

    def create_job(self, record: JobRecord) -> bool:
        return self.blobs.create(job_key(record.id, "job.json"), record.stored())

    def void(self, job_id: str) -> bool:
        """Make sure that no job with this id is ever accepted; False if one was."""
        key = job_key(job_id, "job.json")
        if self.blobs.create(key, _VOID):
            return True
        found = self.blobs.read(key)
        # Gone: another call voided the id and cleaned it up in between. Void it again, so that the result holds.
        return found == _VOID or (found is None and self.void(job_id))

    def create_manifest(self, manifest: Manifest) -> bool:
        """True for the one that ends the job."""
        # Who has no more space has to be able to stop what would need some.
        is_cancelled = manifest.outcome == "cancelled"
        key = job_key(manifest.job_id, "manifest.json")
        return self.blobs.create(key, manifest.stored(), leads_to_space=is_cancelled)

    def request_cancel(self, job_id: str) -> None:
        self.blobs.create(job_key(job_id, "cancel.json"), _moment(), leads_to_space=True)

    def mark_purged(self, job_id: str) -> None:
        """The tombstone."""
        # Before anything is deleted: so nobody takes a half-deleted job for a whole one.
        self.blobs.create(job_key(job_id, "purged.json"), _moment(), leads_to_space=True)

    def delete_all_but_record(self, job_id: str) -> None:
        """Delete all but the tombstone and the record, or what stands in its place."""
        self.blobs.delete_all(job_key(job_id, ""), keep=lambda key: key.endswith(("/purged.json", "/job.json")))

    def delete_all_but_tombstone(self, job_id: str) -> None:
        # The record last: a worker may still look for it, and a crash in between leaves something to find again.
        self.delete_all_but_record(job_id)
        self.blobs.delete_unfinished(job_key(job_id, ""))
        self.blobs.delete(job_key(job_id, "job.json"))
        self.blobs.keep_reserve()

    def delete_tombstone(self, job_id: str, oldest: datetime) -> bool:
        """Whether there was one older than that."""
        key = job_key(job_id, "purged.json")
        info = self.blobs.info(key)
        if info is None or info.last_modified >= oldest:
            return False
        self.blobs.delete(key)
        return True


def _moment() -> bytes:
    return json.dumps({"at": states.now().isoformat()}).encode()


class AttemptStore:
    """Reads and writes the documents of a job's attempts. Raises as `JobStore`."""

    def __init__(self, blobs: ObjectStore) -> None:
        self._blobs = blobs

    def claim(self, job_id: str, attempt: int) -> Claim | None:
        return self._blobs.read_document(Claim, attempt_key(job_id, attempt, "claim.json"))

    def last_claim(self, files: JobFiles) -> Claim | None:
        """Of the last attempt that began; None for none."""
        return self.claim(files.job_id, files.attempt) if files.attempt else None

    def endings(self, job_id: str, attempts: int) -> list[Ending]:
        """Why earlier attempts ended, oldest first."""
        # A claim without an ending is one whose worker went on to an outcome, or is working still.
        keys = [attempt_key(job_id, n, "ended.json") for n in range(1, attempts + 1)]
        return [ending for key in keys if (ending := self._blobs.read_document(Ending, key)) is not None]

    def create_claim(self, job_id: str, claim: Claim) -> bool:
        return self._blobs.create(attempt_key(job_id, claim.attempt, "claim.json"), claim.stored())

    def create_ending(self, job_id: str, attempt: int, ending: Ending) -> bool:
        return self._blobs.create(attempt_key(job_id, attempt, "ended.json"), ending.stored())
