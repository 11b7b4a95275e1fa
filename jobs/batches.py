"""Many scans in one call: one batch, of which each scan becomes a job of its own.

First its pending jobs are stored, then `batch.json`, and then the jobs are accepted. Before the last step a gateway may
die: then `clean_up` accepts what is left. `batch.json` holds ids and refusals alone, so that a deleted job leaves
nothing behind in it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from pydantic import Field

from jobs import states
from jobs.errors import (
    BatchNotFoundError,
    BrokerUnavailableError,
    IdempotencyMismatchError,
    JobNotFoundError,
    JobPurgedError,
    NewerSchemaError,
    WrongStateError,
)
from jobs.live.callback_schedule import batch_name
from jobs.live.pagination import Query
from jobs.live.redis_view import LiveView
from jobs.models import SCHEMA_VERSION, InputInfo, JobError, JobRecord, JobState, JobStatus, Model, SchemaVersion
from jobs.store.job_store import JobStore
from jobs.store.keys import BATCHES, batch_key, hashed

log = logging.getLogger(__name__)

ACCEPTED_AT_ONCE: Final = 8

#: A batch that is not whole by then was left by its gateway.
RESUMED_AFTER: Final = timedelta(seconds=60)


Thing = TypeVar("Thing")
Answer = TypeVar("Answer")


class BatchItem(Model):
    """One scan of a batch: the job that it became, or why it became none."""

    job_id: str | None = None
    error: JobError | None = None


class BatchRecord(Model):
    """`batch.json`."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    id: str
    created_at: datetime
    items: list[BatchItem]
    callback_url: str | None = Field(default=None, description="who is told that all its jobs have ended")
    address: str | None = Field(default=None, description="of the batch, as its client reaches the gateway")
    traceparent: str | None = Field(default=None, description="the trace that its callback belongs to")

    @property
    def job_ids(self) -> list[str]:
        return [item.job_id for item in self.items if item.job_id is not None]


class BatchEnd(Model):
    """`ended.json`: created once, when no job of the batch was open any more; what its callback tells."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    ended_at: datetime
    by_status: dict[JobStatus, int]
    purged: int = Field(description="deleted before the last one ended")
    refused: int


class Pending(Model):
    """`pending.json`."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    jobs: list[JobRecord]


class _Mark(Model):
    schema_version: SchemaVersion = SCHEMA_VERSION
    batch_id: str
    fingerprint: str = Field(description="sha256 of the request")


@dataclass(frozen=True)
class BatchCounts:
    """How many of a batch's scans stand where."""

    by_status: Mapping[JobStatus, int]
    purged: int
    refused: int

    @property
    def open(self) -> int:
        """How many may still change."""
        return sum(count for status, count in self.by_status.items() if not status.is_final)


class Batches:
    """Raises StorageUnavailableError; the broker is needed for callbacks alone."""

    def __init__(self, store: JobStore, live: LiveView, ensure: Callable[[JobRecord], None]) -> None:
        """`ensure` accepts a job unless it was accepted before."""
        self._store, self._blobs, self._live, self._ensure = store, store.blobs, live, ensure

    def begin(self, key: str | None, fingerprint: str) -> tuple[str, BatchRecord | None]:
        """The id of a batch to come; and the batch, if an earlier request with `key` has made it.

        Raises IdempotencyMismatchError: the key came with another request.
        """
        batch_id = states.new_id()
        if key is None:
            return batch_id, None
        name = f"idempotency-batches/{hashed(key)}.json"
        mark = _Mark(batch_id=batch_id, fingerprint=fingerprint)
        # Created, not written: of two requests with the same key one makes the batch, and both get it.
        if self._blobs.create(name, mark.stored()):
            return batch_id, None
        mark = _Mark.read(self._blobs.read(name) or b"")
        if mark.fingerprint != fingerprint:
            raise IdempotencyMismatchError("this idempotency key was used with another request")
        return mark.batch_id, self._read(mark.batch_id)

    def accept(self, record: BatchRecord, jobs: Sequence[JobRecord]) -> BatchRecord:
        """Make the batch durable, then accept its jobs. Of two that make the same batch, one wins; both get it."""
        batch, pending = batch_key(record.id, "batch.json"), batch_key(record.id, f"pending-{states.new_id()}.json")
        if not jobs:
            self._blobs.create(batch, record.stored())
            self._watch(record)
            return record
        # The jobs to come are durable before the batch: whoever finds the batch can accept what its gateway left.
        self._blobs.create(pending, Pending(jobs=list(jobs)).stored())
        if not self._blobs.create(batch, record.stored()):
            self._blobs.delete(pending)
            return self.get(record.id)
        self._watch(record)
        self._accept_jobs(pending, record, jobs)
        return record

    def get(self, batch_id: str) -> BatchRecord:
        """Raises BatchNotFoundError."""
        record = self._read(batch_id) if states.is_id(batch_id) else None
        if record is None:
            raise BatchNotFoundError(batch_id)
        return record

    def list(self, query: Query, *, limit: int, cursor: str | None) -> tuple[Sequence[BatchRecord], str | None]:
        """A page of batches in the times of a query, newest first, and a cursor to the next one.

        Raises InvalidCursorError.
        """
        after = query.decode(cursor) if cursor else None
        wanted = (i for i in self._all_ids() if query.has_time(states.made_at(i)) and (after is None or i < after))
        found = []
        for batch_id in sorted(wanted, reverse=True):
            with suppress(NewerSchemaError):
                record = self._read(batch_id)
                if record is not None:
                    found.append(record)
            if len(found) > limit:
                return found[:limit], query.encode(found[limit - 1].id)
        return found, None

    def states(self, job_ids: Sequence[str]) -> Sequence[JobState | None]:
        """Each job as it stands; None for one that was deleted."""
        try:
            shown = self._live.get_many(job_ids)
        except BrokerUnavailableError:
            shown = [None] * len(job_ids)
        return [state or self._from_blobs(job_id) for job_id, state in zip(job_ids, shown, strict=True)]

    def counts(self, record: BatchRecord) -> BatchCounts:
        """Of all its scans."""
        try:
            shown = self._live.statuses(record.job_ids)
        except BrokerUnavailableError:
            shown = [None] * len(record.job_ids)
        found: Counter[JobStatus | None] = Counter(status for status in shown if status)
        unknown = [job_id for job_id, status in zip(record.job_ids, shown, strict=True) if not status]
        # Several at once: of an old batch all jobs may be deleted, and each is a question to the store.
        found.update(state.status if state else None for state in _for_all(self._from_blobs, unknown))
        by_status = {status: found[status] for status in JobStatus}
        return BatchCounts(by_status, found[None], len(record.items) - len(record.job_ids))

    def names(self, batch_id: str) -> frozenset[str]:
        """Which documents it has."""
        folder = batch_key(batch_id, "")
        return frozenset(key.removeprefix(folder) for key in self._blobs.keys(folder))

    def end(self, record: BatchRecord) -> BatchEnd | None:
        """How it ended, once that was found; None before."""
        return self._blobs.read_document(BatchEnd, batch_key(record.id, "ended.json"))

    def end_or_watch(self, record: BatchRecord) -> BatchEnd | None:
        """How it ended, if all its jobs have; else its callback is due once they have. Needs the broker."""
        if (end := self.end(record)) is not None:
            return end
        shown = list(zip(record.job_ids, self._live.statuses(record.job_ids), strict=True))
        # What is shown as open and is not will be shown as it is, and noticed then.
        unknown = [job_id for job_id, status in shown if status is None]
        open_jobs = [job_id for job_id, status in shown if status is not None and not status.is_final]
        open_jobs += [id_ for id_ in unknown if (state := self._from_blobs(id_)) and not state.status.is_final]
        # Of these some may have ended by now; none is left if all have.
        if open_jobs and self._live.callbacks.watch_batch(record.id, open_jobs):
            return None
        counts = self.counts(record)
        if counts.open:
            return None
        found = BatchEnd(
            ended_at=states.now(), by_status=dict(counts.by_status), purged=counts.purged, refused=counts.refused
        )
        # Of two that find the end one says what it was: the message is the same however often it is sent.
        self._blobs.create(batch_key(record.id, "ended.json"), found.stored())
        return self.end(record) or found

    def resume_callbacks(self) -> None:
        """After a wipe of the live view: look at every batch that wants to tell of its end."""
        for batch_id in self._all_ids():
            with suppress(NewerSchemaError):
                record = self._read(batch_id)
                if record is not None and record.callback_url is not None:
                    self._live.callbacks.set_due(batch_name(batch_id), 0)

    def cancel(self, batch_id: str, cancel: Callable[[str], object]) -> BatchRecord:
        """Stop all its jobs that are not finished, each by `cancel`. Raises BatchNotFoundError."""
        record = self.get(batch_id)

        def stop(job_id: str) -> None:
            with suppress(WrongStateError, JobNotFoundError, JobPurgedError):
                cancel(job_id)

        _for_all(stop, record.job_ids)
        return record

    def clean_up(self, now: datetime, delete_before: datetime | None) -> int:
        """Accept what a gateway left, and delete what nobody needs; how many things were deleted.

        Batches from before `delete_before` are deleted once all their jobs are; None keeps them.
        """
        # The gateway of a younger one may still be at it; two that accept the same jobs do no harm, but twice the work.
        old = (batch_id for batch_id in self._all_ids() if states.made_at(batch_id) + RESUMED_AFTER <= now)
        return sum(self._clean_up_one(batch_id, delete_before) for batch_id in old)

    def _clean_up_one(self, batch_id: str, delete_before: datetime | None) -> int:
        try:
            record = self._read(batch_id)
            names = self.names(batch_id)
            pending = [batch_key(batch_id, name) for name in names if name.startswith("pending-")]
            if record is not None and record.callback_url is not None and "ended.json" not in names:
                # Whatever was missed of its jobs' ends: the sender looks at it, and forgets it if it goes on.
                with suppress(BrokerUnavailableError):
                    self._live.callbacks.set_due(batch_name(batch_id), 0)
            for key in pending:
                if record is None:  # its request failed, and nobody was told of the batch
                    self._blobs.delete(key)
                elif left := self._blobs.read_document(Pending, key):
                    jobs = [job for job in left.jobs if job.id in record.job_ids]
                    log.warning("batch %s was left by its gateway; its %d jobs are accepted now", batch_id, len(jobs))
                    self._accept_jobs(key, record, jobs)
            if record is None or delete_before is None or states.made_at(batch_id) > delete_before:
                return len(pending) if record is None else 0
            if any(state is not None for state in self.states(record.job_ids)):
                return 0
            self._blobs.delete_all(batch_key(batch_id, ""))
            return 1
        except NewerSchemaError:
            return 0

    def _all_ids(self) -> Iterator[str]:
        return filter(states.is_id, {key.removeprefix(BATCHES).partition("/")[0] for key in self._blobs.keys(BATCHES)})

    def _accept_jobs(self, pending: str, record: BatchRecord, jobs: Sequence[JobRecord]) -> None:
        _for_all(self._ensure, [job for job in jobs if job.id in set(record.job_ids)])
        self._blobs.delete(pending)

    def _watch(self, record: BatchRecord) -> None:
        """Before its first job is accepted: so that the end of none is missed."""
        if record.callback_url is None:
            return
        with suppress(BrokerUnavailableError):  # the cleanup looks for it
            if not self._live.callbacks.watch_batch(record.id, record.job_ids):
                self._live.callbacks.set_due(batch_name(record.id), 0)

    def _from_blobs(self, job_id: str) -> JobState | None:
        try:
            return self._store.state(job_id)
        except JobPurgedError:
            return None
        except JobNotFoundError:  # accepted by the batch, and its record is about to be written
            return states.queued(JobRecord(id=job_id, created_at=states.made_at(job_id), input=InputInfo()))

    def _read(self, batch_id: str) -> BatchRecord | None:
        return self._blobs.read_document(BatchRecord, batch_key(batch_id, "batch.json"))


def _for_all(act: Callable[[Thing], Answer], things: Sequence[Thing]) -> Sequence[Answer]:
    """Several at once; the first fault is raised once all have ended."""
    with ThreadPoolExecutor(ACCEPTED_AT_ONCE) as pool:
        return [done.result() for done in [pool.submit(act, thing) for thing in things]]
