"""Jobs as clients see them, through the gateway: accept, read, list, watch, cancel, delete."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final

from opentelemetry import trace

from jobs import states, tracing
from jobs.backends import Backends
from jobs.batches import Batches
from jobs.callbacks import Callbacks
from jobs.ends import Ends
from jobs.errors import (
    BrokerUnavailableError,
    IdempotencyInFlightError,
    ImageNotKeptError,
    JobNotFoundError,
    JobPurgedError,
    StorageUnavailableError,
    UnavailableError,
    WrongStateError,
)
from jobs.listing import Listing
from jobs.live.events import JobEvent
from jobs.live.feed import Changes
from jobs.live.pagination import ALL, Query
from jobs.live.status_batcher import StatusBatcher
from jobs.models import (
    ImageBlob,
    ImageName,
    Inspection,
    JobRecord,
    JobState,
    JobStatus,
    JobTask,
    Manifest,
    MaskBlob,
    MaskLabels,
    MaskName,
    Report,
)
from jobs.recovery import finalize
from jobs.states import JobPage, Readiness
from jobs.store.idempotency import Idempotency
from jobs.store.inputs import input_key
from jobs.store.multipart_uploads import MultipartUploads
from jobs.store.object_store import ObjectStore
from jobs.store.results import Results
from jobs.store.upload_stream import BlobUpload

log = logging.getLogger(__name__)

#: A status is one field in Redis: a client that waits is told soon. A read of the blobs costs several requests.
_POLL_SECONDS: Final = 0.1
_SLOW_POLL_SECONDS: Final = 1.0

#: Reports of an export that are in memory, and those that are read at once by all exports.
READ_TOGETHER: Final = 32
READ_AT_ONCE: Final = 8

#: Of a process, whatever the tenant.
_report_readers: Final = ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="report-reader")


@dataclass(frozen=True)
class StoredFile:
    """A mask or an image of a succeeded job."""

    blobs: ObjectStore
    key: str
    size_bytes: int
    sha256: str
    last_modified: datetime

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to, not including, `end`; in pieces."""
        return self.blobs.pieces(self.key, start, end)

    def signed_url(self, seconds: int) -> str | None:
        """Where it can be had without us for some seconds; None where the store gives no such addresses."""
        bucket = self.blobs.bucket
        return bucket.file_url(self.key, self.key.rpartition("/")[2], seconds) if bucket else None


class JobService:
    """The jobs of one tenant; those of another are not known here.

    All calls are synchronous and thread-safe; only the upload sink and the status batcher are async.

    What cannot be reached raises UnavailableError: StorageUnavailableError always, BrokerUnavailableError only
    where it says so, and always from `workers`, `monitoring` and `event_log`; all else works without the broker, if
    more slowly.
    """

    def __init__(self, backends: Backends) -> None:
        self._backends, self._store, self._live = backends, backends.store, backends.live
        self.settings = backends.settings
        self.workers, self.monitoring, self.event_log = self._live.workers, self._live.monitoring, self._live.events
        self._results = Results(backends.store, backends.settings)
        self.uploads = MultipartUploads(backends.store.blobs, backends.settings, backends.tenant)
        self.ends = Ends(backends.store.manifest)
        self.listing = Listing(backends.store, backends.live)
        self.batches = Batches(backends.store, backends.live, self.accept_once)
        self.callbacks = Callbacks(backends.store, backends.live, backends.settings, self.batches)
        self.idempotency = Idempotency(backends.store, backends.settings.in_flight_seconds)

    @property
    def tenant(self) -> str:
        """Whose jobs these are."""
        return self._backends.tenant

    @property
    def feed_name(self) -> str:
        """What `EventLog.changes` calls the feed of these jobs."""
        return self._live.keys.feed

    def readiness(self) -> Readiness:
        """Which parts answer. Never raises."""
        broker, blobs, workers = True, True, 0
        try:
            workers = self.workers.count()
        except BrokerUnavailableError:
            broker = False
        try:
            self._store.blobs.check()
        except StorageUnavailableError:
            blobs = False
        return Readiness(broker, blobs, workers)

    def open_upload(self, job_id: str) -> BlobUpload:
        """Where the scan of a job to come is written to."""
        return BlobUpload(self._store.blobs, input_key(job_id, self.settings), self.settings.max_upload_bytes)

    def accept(self, record: JobRecord) -> JobState:
        """Make the job durable, then queue it. Once this returns, the job is never lost, broker or not.

        Raises IdempotencyInFlightError: its idempotency key was taken over meanwhile; the job is not accepted.
        """
        record = record.model_copy(update={"traceparent": record.traceparent or tracing.traceparent_of()})
        trace.get_current_span().set_attributes({tracing.JOB_ID: record.id})
        with tracing.step("accept"):
            if not self._store.create_job(record):
                self._store.blobs.delete(input_key(record.id, self.settings))
                raise IdempotencyInFlightError("another request with this idempotency key came first")
            return self._enqueue(record)

    def accept_once(self, record: JobRecord) -> None:
        """Accept a job of a batch, unless that was done before."""
        with tracing.continued(record.traceparent), tracing.step("accept", {tracing.JOB_ID: record.id}):
            if self._store.is_purged(record.id) or not self._store.create_job(record):
                return
            # Another gateway may have accepted and a client deleted it between the two questions above: then
            # `job.json` was free again, and what was just created is of a deleted job.
            if not finalize.remove_traces_if_deleted(self._backends, record.id):
                self._enqueue(record)

    def _enqueue(self, record: JobRecord) -> JobState:
        if record.upload_id is not None:
            with suppress(StorageUnavailableError):  # the job has its copy; this one expires
                self.uploads.delete(record.upload_id)
        if (ended := self._reuse(record)) is not None:
            return ended
        state = states.queued(record)
        try:
            # Shown before it is sent: a worker may have the message, and show the job running, at once.
            self._live.put(state, guard="new")
            self._backends.queue.publish(record.id, record.priority)
            return self._live.get(record.id) or state
        except BrokerUnavailableError:
            # `job.json` is there, which is the promise of the 202: the reconciler will find the job and send it.
            log.warning("job %s is accepted but not queued yet", record.id)
            return state

    def _reuse(self, record: JobRecord) -> JobState | None:
        """The job as it has ended, if there is a result for its scan that every ready worker would compute."""
        sha256 = record.input.sha256
        if sha256 is None or not self._results.may_serve(record):
            return None
        # All of it may fail, or be overtaken by a worker: then the job goes its way, and a worker looks once more.
        with suppress(UnavailableError), tracing.step("reuse"):
            digest = self.workers.result_digest()
            found = self._results.copy(record, sha256, digest, attempt=0) if digest is not None else None
            if found is not None:
                manifest = Manifest(
                    job_id=record.id,
                    outcome="succeeded",
                    attempt=0,
                    finished_at=states.now(),
                    input_sha256=sha256,
                    input_size_bytes=record.input.size_bytes,
                    **found.in_manifest(),
                )
                if finalize.end_job(self._backends, record, manifest):
                    return states.final(record, manifest)
        return None

    def get(self, job_id: str) -> JobState:
        """Raises JobNotFoundError, JobPurgedError."""
        try:
            shown, is_fresh = self._live.get_with_freshness(job_id) if states.is_id(job_id) else (None, False)
        except BrokerUnavailableError:
            return self._store.state(job_id)
        # While the broker was away jobs may have ended unseen; nothing that is told may be taken back by an end.
        if shown is not None and (is_fresh or not self._store.is_final(job_id)):
            return shown
        state = self._store.state(job_id)
        if state.status.is_final:
            # An end that one client was told must be told to all, whatever the live view made of the job before.
            with suppress(BrokerUnavailableError):
                self._live.put(state)
                # After showing: a delete that came between reading and showing would leave the end of a deleted job.
                finalize.remove_traces_if_deleted(self._backends, job_id)
        return state

    def open_status_batcher(self, beside: StatusBatcher | None = None) -> StatusBatcher:
        """`get` for an event loop, which must close it; over the connections of another tenant's, if one is given."""
        tenants_own = (self.get, self._store.state, self.ends)
        opened = beside or StatusBatcher(self.settings, self._live.view_freshness, *tenants_own)
        return opened.of(self._live.keys, *tenants_own)

    def list(self, query: Query = ALL, *, limit: int, cursor: str | None = None) -> JobPage:
        """A page of jobs. Raises InvalidCursorError: not a cursor of this service, or one of another query."""
        after = query.decode(cursor) if cursor else None
        found = [*islice(self.listing.walk(query, after, limit + 1), limit + 1)]
        # All at once, since each that was not read before is a question to a store that may be far away.
        items = tuple(_report_readers.map(self.ends.settled, (state for _, state in found[:limit])))
        return JobPage(items, query.encode(found[limit - 1][0]) if len(found) > limit else None)

    def wait(self, job_id: str, timeout_seconds: float) -> JobState:
        """The job once it is final, or as it stands after the timeout."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            pause_seconds = _POLL_SECONDS
            try:
                status = self._live.status(job_id)
            except BrokerUnavailableError:
                pause_seconds, status = _SLOW_POLL_SECONDS, None
            status = status or self.get(job_id).status
            remaining_seconds = deadline - time.monotonic()
            if status.is_final or remaining_seconds <= 0:
                return self.get(job_id)
            time.sleep(min(pause_seconds, remaining_seconds))

    def events(self, job_id: str, after: str | None = None) -> Sequence[JobEvent]:
        """What the job was since the event `after`; its present state alone where that one is not known.

        Without the broker there is only the present state, and no id to go on from. Raises as `get`.
        """
        if states.is_id(job_id):
            with suppress(BrokerUnavailableError):
                known = self.event_log.after(job_id, after) if after else None
                if known is not None:
                    return [JobEvent(event.id, self.ends.settled(event.state)) for event in known]
                if latest := self.event_log.latest(job_id):
                    return [JobEvent(latest.id, self.ends.settled(latest.state))]
        return [JobEvent(None, self.get(job_id))]

    def changes(
        self, cursor: str | None, *, limit: int, from_oldest: bool = True
    ) -> tuple[Changes, Sequence[JobState | None]]:
        """Up to `limit` changes of all jobs that followed a cursor, and what is shown of each one's job now.

        Without a cursor they begin with the oldest that is kept; or there is none, and the cursor leads to those to
        come. A job that was deleted since is None.

        Raises:
            InvalidCursorError, CursorExpiredError: as `Feed.after`.
            BrokerUnavailableError: the feed is part of the live view.
        """
        feed = self._live.feed
        if cursor is not None:
            found = feed.after(cursor, limit)
        else:
            found = feed.oldest(limit) if from_oldest else feed.newest()
        job_ids = list(dict.fromkeys(change.job_id for change in found.items))
        states_shown = self._live.get_many(job_ids)
        settled = _report_readers.map(lambda state: state and self.ends.settled(state), states_shown)
        shown = dict(zip(job_ids, settled, strict=True))
        return found, [shown[change.job_id] for change in found.items]

    def cancel(self, job_id: str) -> JobState:
        """Queued: cancelled at once. Running: requested. Already requested: as it stands. Final: WrongStateError."""
        record = self._store.record(job_id)
        tracing.link(trace.get_current_span(), record.traceparent)
        self._require_open(job_id)
        # Durable first: whoever ends an attempt from now on finds it, also if this process dies here.
        self._store.request_cancel(job_id)
        state = self.get(job_id)
        if state.status == JobStatus.QUEUED:
            if not finalize.end_job(self._backends, record, finalize.cancelled(record, state.attempt)):
                self._require_open(job_id, but="cancelled")
        elif state.status == JobStatus.RUNNING:
            with suppress(BrokerUnavailableError):  # the worker reads the blob at its next heartbeat
                self._live.request_cancel(job_id)
        return self.get(job_id)

    def purge(self, job_id: str) -> None:
        """Delete the job and all that belongs to it, running or not; later reads raise JobPurgedError."""
        finalize.purge(self._backends, self.uploads, job_id)

    def report(self, job_id: str) -> Report:
        """Raises WrongStateError unless succeeded."""
        return Report.read(self._result(job_id, self._require_scored(job_id).report_key))

    def reports(
        self, query: Query, *, after: str | None, limit: int | None
    ) -> Iterator[Sequence[tuple[JobState, Report]]]:
        """The reports of succeeded jobs, some at a time; at most `limit`, of those that come after a member.

        Complete when it ends: what cannot be read raises, and only jobs that were deleted meanwhile are left out.
        """

        def read(state: JobState) -> Report | None:
            with suppress(JobNotFoundError, JobPurgedError):
                return self.report(state.id)
            return None

        walk = self.listing.walk(query, after, READ_TOGETHER)
        found = (state for _, state in walk if state.status is JobStatus.SUCCEEDED and state.task is JobTask.SCORE)
        left = limit
        while some := list(islice(found, READ_TOGETHER if left is None else min(left, READ_TOGETHER))):
            # All at once, since each is a question or two to a store that may be far away.
            reports = _report_readers.map(read, some)
            read_now = [(state, report) for state, report in zip(some, reports, strict=True) if report is not None]
            left = None if left is None else left - len(read_now)
            yield read_now

    def inspection(self, job_id: str) -> Inspection:
        """Raises WrongStateError unless the job validated its scan, and succeeded."""
        manifest = self._require_succeeded(job_id)
        if manifest.inspection_key is None:
            raise WrongStateError(manifest.outcome, "the job scored its scan: it has a report, and no inspection")
        return Inspection.read(self._result(job_id, manifest.inspection_key))

    def _result(self, job_id: str, key: str | None) -> bytes:
        data = self._store.blobs.read(key or "")
        if data is None:
            self._store.record(job_id)  # purged this very moment?
            raise StorageUnavailableError(f"the result of job {job_id} is missing")
        return data

    def mask(self, job_id: str, name: MaskName) -> StoredFile:
        """Raises WrongStateError unless succeeded."""
        return self._file(job_id, next(mask for mask in self._require_scored(job_id).masks if mask.name == name))

    def image(self, job_id: str, name: ImageName) -> StoredFile:
        """Raises WrongStateError unless succeeded, ImageNotKeptError: the worker stored none, or it is not shown."""
        for image in self._require_scored(job_id).images:
            if image.name == name and name.is_kept(self.settings.keep_images):
                return self._file(job_id, image)
        raise ImageNotKeptError(job_id, name)

    def _file(self, job_id: str, stored: MaskBlob | ImageBlob) -> StoredFile:
        info = self._store.blobs.info(stored.key)
        if info is None:
            self._store.record(job_id)
            raise StorageUnavailableError(f"a file of job {job_id} is missing")
        return StoredFile(self._store.blobs, stored.key, stored.size_bytes, stored.sha256, info.last_modified)

    def labels(self, job_id: str) -> MaskLabels:
        """Raises WrongStateError unless succeeded, and of a job whose worker stored no labels."""
        manifest = self._require_scored(job_id)
        if not all(mask.labels for mask in manifest.masks):
            raise WrongStateError(manifest.outcome, "the job was scored by a version that stored no labels")
        return MaskLabels(masks={mask.name: mask.labels for mask in manifest.masks})

    def _require_open(self, job_id: str, but: str | None = None) -> None:
        manifest = self._store.manifest(job_id)
        if manifest is not None and manifest.outcome != but:
            raise WrongStateError(manifest.outcome, f"the job is already {manifest.outcome}")

    def _require_scored(self, job_id: str) -> Manifest:
        manifest = self._require_succeeded(job_id)
        if manifest.inspection_key is not None:
            raise WrongStateError(manifest.outcome, "the job validated its scan: it has an inspection, and no scores")
        return manifest

    def _require_succeeded(self, job_id: str) -> Manifest:
        manifest = self._store.manifest(job_id)
        if manifest is None:
            status: str = self.get(job_id).status
            raise WrongStateError(status, f"the job is {status}")
        if manifest.outcome != "succeeded":
            raise WrongStateError(manifest.outcome, f"the job {manifest.outcome}")
        return manifest
