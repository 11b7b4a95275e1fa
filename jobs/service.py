"""Jobs, as the API and the workers see them: accept, look, cancel, purge; claim, report, finish."""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from jobs import ids, remote_sources, states, tracing
from jobs.answers import JobPage, QueueLength, Readiness, Sort, StoredMask, UploadSink
from jobs.attempts import Lease
from jobs.batches import Batches
from jobs.callbacks import Callbacks
from jobs.errors import (
    BrokerUnavailableError,
    CancelRequestedError,
    IdempotencyInFlightError,
    JobNotFoundError,
    JobPurgedError,
    LeaseLostError,
    NewerSchemaError,
    StorageUnavailableError,
    WrongStateError,
)
from jobs.live.events import JobEvent
from jobs.live.job_metrics import Figures, WorkerStats
from jobs.live.pagination import Query, id_of
from jobs.live.redis_view import broker_errors
from jobs.live.status_batcher import StatusBatcher
from jobs.models import (
    InputInfo,
    JobError,
    JobRecord,
    JobState,
    JobStatus,
    Manifest,
    MaskBlob,
    MaskName,
    ModelProvenance,
    Priority,
    Report,
    Stage,
)
from jobs.recovery import finalize
from jobs.recovery.cleanup import Cleanup
from jobs.recovery.finalize import Backends
from jobs.recovery.reconciler import Reconciler
from jobs.settings import JobsSettings
from jobs.store.idempotency import Idempotency
from jobs.store.job_store import Claim, Ending
from jobs.store.multipart_uploads import MultipartUploads
from jobs.store.object_store import ObjectStore
from jobs.store.upload_stream import BlobUpload

log = logging.getLogger(__name__)

_Found = list[tuple[str, JobState]]

_POLL_SECONDS: Final = 0.1
_SLOW_POLL_SECONDS: Final = 1.0


class Jobs:
    """All calls are synchronous and thread-safe; only the upload sink and the glance are async.

    What cannot be reached raises UnavailableError: StorageUnavailableError always, BrokerUnavailableError only
    where it says so; all else works without the broker, if more slowly.
    """

    def __init__(self, parts: Backends, on_close: Callable[[], None] = lambda: None) -> None:
        self._parts = parts
        self._store, self._live = parts.store, parts.live
        self.uploads = MultipartUploads(parts.store.blobs, parts.settings)
        self.callbacks = Callbacks(parts.store, parts.live, parts.settings)
        self.batches = Batches(parts.store, parts.live, self._ensure)
        self._cleanup = Cleanup(parts, self.uploads, self.batches)
        self._reconciler = Reconciler(parts, self._cleanup)
        self._on_close = on_close
        self.idempotency = Idempotency(parts.store, parts.settings.in_flight_seconds)

    @property
    def settings(self) -> JobsSettings:
        """With `redis_url` filled in, an embedded server's too."""
        return self._parts.settings

    # The gateway's side

    def new_id(self) -> str:
        """An id that sorts by time (UUIDv7) and cannot be guessed."""
        return ids.new_id()

    async def open_upload(self, job_id: str) -> UploadSink:
        """Where the scan of a job to come is written to."""
        return BlobUpload(self._store.blobs, self._store.key(job_id, "input"), self.settings.max_upload_bytes)

    def discard_upload(self, job_id: str) -> None:
        """Forget a finished upload that will not become a job, such as the body of a replayed request."""
        if not self._store.files(job_id).is_job:
            self._store.blobs.delete(self._store.key(job_id, "input"))

    def take_upload(self, upload_id: str, job_id: str) -> InputInfo:
        """Make the scan of a completed upload that of a job to come, whose record names the upload.

        Raises:
            UploadNotFoundError, UploadIncompleteError
        """
        return self.uploads.copy_input(upload_id, self._store.key(job_id, "input"))

    def accept(self, record: JobRecord) -> JobState:
        """Make the job durable, then queue it. Once this returns, the job is never lost, broker or not.

        Raises:
            IdempotencyInFlightError: its idempotency key was taken over meanwhile; the job is not accepted.
        """
        record = record.model_copy(update={"traceparent": record.traceparent or tracing.traceparent_of()})
        trace.get_current_span().set_attributes({tracing.JOB_ID: record.id})
        with tracing.step("accept"):
            if not self._store.create_job(record):
                self._store.blobs.delete(self._store.key(record.id, "input"))
                raise IdempotencyInFlightError("another request with this idempotency key came first")
            return self._queue_up(record)

    def _ensure(self, record: JobRecord) -> None:
        """Accept a job of a batch, unless that was done before."""
        with tracing.continued(record.traceparent), tracing.step("accept", {tracing.JOB_ID: record.id}):
            if self._store.is_purged(record.id) or not self._store.create_job(record):
                return
            # Another may have accepted it and deleted it, just now.
            if not finalize.remove_traces_if_deleted(self._parts, record.id):
                self._queue_up(record)

    def _queue_up(self, record: JobRecord) -> JobState:
        if record.upload_id is not None:
            with suppress(StorageUnavailableError):  # the job has its copy; this one expires
                self.uploads.delete(record.upload_id)
        state = states.queued(record)
        try:
            self._live.put(state, guard="new")
            self._parts.queue.publish(record.id, record.priority)
            return self._live.get(record.id) or state
        except BrokerUnavailableError:
            log.warning("job %s is accepted but not queued yet", record.id)
            return state

    def get(self, job_id: str) -> JobState:
        """Raises JobNotFoundError, JobPurgedError."""
        try:
            shown = self._shown_now(job_id) if ids.is_id(job_id) else None
        except BrokerUnavailableError:
            return self._store.state(job_id)
        return shown or self._get_from_blobs(job_id)

    def _get_from_blobs(self, job_id: str) -> JobState:
        """An end that was told once is shown from then on, to all, whatever the live view made of the job before."""
        state = self._store.state(job_id)
        if state.status.is_final:
            with suppress(BrokerUnavailableError):
                self._live.put(state)
                finalize.remove_traces_if_deleted(self._parts, job_id)
        return state

    def open_status_batcher(self) -> StatusBatcher:
        """`get` for an event loop, which must close it."""
        return StatusBatcher(self.settings, self._live.view_freshness, self.get, self._store.state)

    def list(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        status: JobStatus | None = None,
        sort: Sort = "-created_at",
        priority: Priority | None = None,
    ) -> JobPage:
        """A page of jobs. `severity` puts the highest percentage of opacity first and has succeeded jobs only.

        Raises:
            InvalidCursorError: not a cursor of this service, or one of another sort or filter.
        """
        query = Query(sort, status, priority)
        after = query.decode(cursor) if cursor else None
        found = self._page(query, after, limit + 1)
        items = tuple(state for _, state in found[:limit])
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

        Without the broker there is only the present state, and no id to go on from.

        Raises:
            JobNotFoundError, JobPurgedError
        """
        try:
            with broker_errors():
                known = self._live.events.after(job_id, after) if after and ids.is_id(job_id) else None
                if known is None:
                    latest = self._live.events.latest(job_id) if ids.is_id(job_id) else None
                    known = [latest] if latest else None
        except BrokerUnavailableError:
            known = None
        return [JobEvent(None, self.get(job_id))] if known is None else known

    def changes(self, is_wanted: Callable[[], bool]) -> Iterator[str | None]:
        """Ids of jobs as they change; None when any may have. Ends when no longer wanted.

        Raises:
            BrokerUnavailableError: ask again later.
        """
        with broker_errors():
            yield from self._live.events.changes(is_wanted)

    def cancel(self, job_id: str) -> JobState:
        """Queued: cancelled at once. Running: requested. Already requested: as it stands.

        Raises:
            WrongStateError: it is final already.
        """
        record = self._store.record(job_id)
        tracing.link(trace.get_current_span(), record.traceparent)
        self._require_open(job_id)
        self._store.request_cancel(job_id)
        state = self.get(job_id)
        if state.status == JobStatus.QUEUED:
            if not finalize.conclude(self._parts, record, finalize.cancelled(record, state.attempt)):
                self._require_open(job_id, but="cancelled")
        elif state.status == JobStatus.RUNNING:
            with suppress(BrokerUnavailableError):  # the worker reads the blob
                self._live.request_cancel(job_id)
        return self.get(job_id)

    def purge(self, job_id: str) -> None:
        """Delete the job and all that belongs to it, running or not; later reads raise JobPurgedError."""
        self._cleanup.purge(job_id)

    def report(self, job_id: str) -> Report:
        """Raises WrongStateError unless succeeded."""
        manifest = self._require_succeeded(job_id)
        data = self._store.blobs.read(manifest.report_key or "")
        if data is None:
            self._store.record(job_id)  # purged this very moment?
            raise StorageUnavailableError(f"the report of job {job_id} is missing")
        return Report.read(data)

    def mask(self, job_id: str, name: MaskName) -> StoredMask:
        """Raises WrongStateError unless succeeded."""
        stored = next(mask for mask in self._require_succeeded(job_id).masks if mask.name == name)
        info = self._store.blobs.info(stored.key)
        if info is None:
            self._store.record(job_id)
            raise StorageUnavailableError(f"a mask of job {job_id} is missing")
        return _Mask(self._store.blobs, stored.key, stored.size_bytes, stored.sha256, info.last_modified)

    def check_broker(self) -> None:
        """Raises BrokerUnavailableError within about a second when the broker does not answer."""
        self._live.ping()

    def readiness(self) -> Readiness:
        """Never raises."""
        try:
            workers, broker = self._live.ready_workers(), True
        except BrokerUnavailableError:
            workers, broker = 0, False
        try:
            self._store.blobs.check()
        except StorageUnavailableError:
            return Readiness(broker, blobs=False, workers=workers)
        return Readiness(broker, blobs=True, workers=workers)

    def models(self) -> Sequence[ModelProvenance]:
        """What the ready workers have loaded, each once. Raises BrokerUnavailableError."""
        return self._live.models()

    def counts(self) -> Mapping[JobStatus, int]:
        """How many jobs have each status. Raises BrokerUnavailableError."""
        return self._live.counts()

    def queues(self) -> Mapping[Priority, QueueLength]:
        """How many jobs wait, and how long. Raises BrokerUnavailableError."""
        return self._live.queues()

    def figures(self) -> Figures:
        """What workers did and how they are. Raises BrokerUnavailableError."""
        return self._live.figures()

    # Both sides

    def start_reconciler(self) -> None:
        """Look for lost jobs in a background thread until `close`; one process at a time does it."""
        self._reconciler.start()

    def reconcile(self) -> int:
        """Look for lost jobs once, unless another process does; how many were put on their way again.

        Raises:
            BrokerUnavailableError: nothing can be done without it.
        """
        return self._reconciler.reconcile()

    def clean_up(self) -> int:
        """Delete jobs past their retention and what never became a job; how many things that were.

        The reaper does so every `sweep_seconds`.
        """
        return self._cleanup.clean_up()

    def rebuild(self) -> int:
        """Bring the live view and the queue back from the blobs; how many jobs were missing.

        Raises:
            BrokerUnavailableError: nothing can be done without it.
        """
        return self._reconciler.rebuild()

    def close(self) -> None:
        """Stop threads and connections; the embedded server too, if nobody else uses it."""
        self._reconciler.stop()
        self._parts.queue.close()
        self._live.close()
        self._on_close()

    # The workers' side

    def announce(
        self,
        worker: str,
        seconds: float,
        models: Sequence[ModelProvenance] = (),
        worker_stats: WorkerStats | None = None,
    ) -> None:
        """`worker` can score with these; say so again before `seconds` have passed. Raises BrokerUnavailableError."""
        self._live.announce(worker, seconds, models, worker_stats)

    def any_ready(self, workers: Iterable[str]) -> bool:
        """Whether one of these has announced itself and not fallen silent. Raises BrokerUnavailableError."""
        return self._live.any_ready(workers)

    def messages_wait(self) -> bool:
        """Whether a message lies in a queue, for any worker to take. Raises BrokerUnavailableError."""
        return self._parts.queue.has_messages()

    def claim(self, job_id: str, worker: str) -> Lease:
        """Begin an attempt.

        Raises:
            JobNotFoundError, JobPurgedError: there is nothing to do.
            NewerSchemaError: there is, for a newer worker; this is no attempt.
            WrongStateError: the job is final, or has just become so: cancelled, or attempted too often.
            LeaseLostError: another worker has it.
            BrokerUnavailableError: leases cannot be had now.
        """
        record = self._store.record(job_id)
        attempt = self._store.files(job_id).attempt + 1
        value = f"{attempt}:{secrets.token_hex(8)}"
        if not self._live.lease(job_id, value, self.settings.lease_seconds):
            raise LeaseLostError(f"job {job_id} is in other hands")
        span = tracing.entry(tracing.ATTEMPT_SPAN, record.traceparent, SpanKind.CONSUMER, {tracing.JOB_ID: job_id})
        claim = Claim(attempt=attempt, started_at=states.now(), worker=worker, traceparent=tracing.traceparent_of(span))
        lease = Lease(self._parts, record, claim, value, span)
        try:
            with tracing.active(span), tracing.step("claim"):
                self._begin(lease)
        except BaseException as error:
            span.update_name("claim refused")
            tracing.fail(span, type(error).__name__)
            tracing.end(span)
            lease.drop()
            raise
        span.set_attributes(finalize.attempt_attributes(record, attempt))
        return lease

    def fetch_input(self, lease: Lease, folder: Path) -> Path:
        """Copy the scan into `folder`, checked against its sha256.

        Raises:
            SourceError: a `source` that cannot be had; the job should fail.
        """
        path = folder / "scan"
        if lease.record.input.source is not None:
            settings = self.settings
            lease.scan = remote_sources.fetch(
                lease.record.input.source,
                path,
                allowlist=settings.source_allowlist,
                limit_bytes=settings.max_source_bytes,
            )
        else:
            self._store.blobs.read_file(self._store.key(lease.job_id, "input"), path)
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if lease.record.input.sha256 not in (None, found):
                raise StorageUnavailableError("the blob store gave other bytes than it took")
        return path

    def succeed(self, lease: Lease, report: Report, masks: Mapping[MaskName, Path]) -> None:
        """Store report and masks, then the manifest that makes the job succeeded.

        Raises:
            LeaseLostError: this attempt may not publish; nothing of it will be seen.
            CancelRequestedError, JobPurgedError: it is no longer wanted.
        """
        begin = time.perf_counter()
        with tracing.step("publish"):
            # What will end the job: all that it names is in the store.
            lease.fence()
            stored = [self._store_mask(lease, name, path) for name, path in masks.items()]
            report_key = self._store.attempt_key(lease.job_id, lease.attempt, "report.json")
            self._store.blobs.write(report_key, report.model_dump_json().encode())
            manifest = Manifest(
                job_id=lease.job_id,
                outcome="succeeded",
                attempt=lease.attempt,
                started_at=lease.claim.started_at,
                finished_at=states.now(),
                severity=report.severity,
                report_key=report_key,
                masks=stored,
                input_sha256=lease.scan.sha256,
                input_size_bytes=lease.scan.size_bytes,
            )
            # The report's seconds of `store` are those of writing the masks; bringing them to the store belongs to it.
            seconds = dict(report.provenance.seconds)
            seconds[Stage.STORE] = seconds.get(Stage.STORE, 0.0) + time.perf_counter() - begin
            self._publish(lease, manifest, seconds)

    def fail(self, lease: Lease, error: JobError, seconds: Mapping[str, float] | None = None) -> None:
        """The scan cannot be scored: the job ends here. Raises as `succeed` does.

        Args:
            seconds: of the stages that came to an end before.
        """
        with tracing.step("publish"):
            self._publish(lease, finalize.failed(lease.record, lease.claim, error, lease.scan), seconds)
        lease.span.set_attributes({"lobewise.problem": error.type.rpartition("/")[2]})

    def confirm_cancel(self, lease: Lease) -> None:
        """The work has stopped as requested."""
        try:
            lease.fence()
        except (JobPurgedError, LeaseLostError):
            return
        except CancelRequestedError:
            manifest = finalize.cancelled(lease.record, lease.attempt, lease.claim.started_at)
            finalize.conclude(self._parts, lease.record, manifest)
            lease.span.set_attributes({tracing.OUTCOME: manifest.outcome})
        finally:
            lease.drop()

    def release(self, lease: Lease, fault: BaseException) -> None:
        """The attempt failed for a reason that is not the scan's: try again later, or give up after the last."""
        self._end(lease, Ending(reason="fault", fault=type(fault).__name__, ended_at=states.now()))

    def fail_out_of_memory(self, lease: Lease, fault: BaseException) -> None:
        """The attempt needed more memory than there is: another process tries it in smaller pieces, once."""
        self._end(lease, Ending(reason="out-of-memory", fault=type(fault).__name__, ended_at=states.now()))

    def requeue(self, lease: Lease) -> None:
        """The worker has to stop before the work is done: another begins at once. Counts for nothing."""
        self._end(lease, Ending(reason="handed-back", ended_at=states.now()))

    # Inside

    def _shown_now(self, job_id: str) -> JobState | None:
        """What the live view shows, unless the blobs know better."""
        shown, is_whole = self._live.look(job_id)
        if shown is None or self._live.view_freshness.holds(shown, is_whole=is_whole):
            return shown
        return None if self._store.is_final(job_id) else shown

    def _end(self, lease: Lease, ending: Ending) -> None:
        lease.span.set_attributes({tracing.OUTCOME: ending.reason})
        if ending.fault is not None:
            tracing.fail(lease.span, ending.fault)
        try:
            finalize.end_attempt(self._parts, lease.record, lease.claim, ending, guard=lease.value)
        finally:
            lease.drop()

    def _page(self, query: Query, after: str | None, limit: int) -> _Found:
        try:
            members = self._live.page(query, after, limit)
            if members is not None:
                states_shown = self._live.get_many([id_of(member) for member in members])
                return [
                    (member, state) for member, state in zip(members, states_shown, strict=True) if state is not None
                ]
        except BrokerUnavailableError:
            log.warning("jobs are listed from the blobs, which is slow")
        return self._scan(query, after, limit)

    def _scan(self, query: Query, after: str | None, limit: int) -> _Found:
        found = sorted(self._scanned(query), key=lambda item: item[0], reverse=query.is_descending)
        if after is not None:
            found = [item for item in found if (item[0] < after if query.is_descending else item[0] > after)]
        return found[:limit]

    def _scanned(self, query: Query) -> Iterator[tuple[str, JobState]]:
        for files in self._store.all_files():
            with suppress(JobNotFoundError, JobPurgedError, NewerSchemaError):  # deleted while we looked, or not for us
                state = self._store.state(files.job_id, files)
                member = query.member(state)
                if member is not None:
                    yield member, state

    def _require_open(self, job_id: str, but: str | None = None) -> None:
        manifest = self._store.manifest(job_id)
        if manifest is not None and manifest.outcome != but:
            raise WrongStateError(manifest.outcome, f"the job is already {manifest.outcome}")

    def _require_succeeded(self, job_id: str) -> Manifest:
        manifest = self._store.manifest(job_id)
        if manifest is None:
            status: str = self.get(job_id).status
            raise WrongStateError(status, f"the job is {status}")
        if manifest.outcome != "succeeded":
            raise WrongStateError(manifest.outcome, f"the job {manifest.outcome}")
        return manifest

    def _begin(self, lease: Lease) -> None:
        """Under the lease: settle what earlier attempts left, then make the new one durable before any work."""
        files = self._store.files(lease.job_id)
        manifest = self._store.manifest(lease.job_id) if files.is_final else None
        if manifest is not None:
            finalize.show(self._parts, states.final(lease.record, manifest))
            finalize.remove_traces_if_deleted(self._parts, lease.job_id)
            raise WrongStateError(manifest.outcome, "there is nothing left to do")
        if files.cancel_requested:
            finalize.conclude(self._parts, lease.record, finalize.cancelled(lease.record, files.attempt))
            raise WrongStateError("cancelled", "the job was cancelled")
        self._settle(lease, files.attempt)
        if not self._store.create_claim(lease.job_id, lease.claim):
            raise LeaseLostError(f"job {lease.job_id} is in other hands")
        try:
            lease.fence()
        except CancelRequestedError:
            self.confirm_cancel(lease)
            raise WrongStateError("cancelled", "the job was cancelled while it was claimed") from None
        self._live.put(
            states.running(lease.record, attempt=lease.attempt, started_at=lease.claim.started_at), guard=lease.value
        )

    def _settle(self, lease: Lease, attempt: int) -> None:
        """An attempt whose lease ran out can publish nothing from now on; the last one allowed ends the job."""
        previous = self._store.claim(lease.job_id, attempt) if attempt else None
        if previous is None:
            return
        ending = Ending(reason="worker-lost", ended_at=states.now())
        finalize.mark_ended(self._parts, lease.record, previous, ending)
        if finalize.settle(self._parts, lease.record, previous):
            raise WrongStateError("failed", "the job was attempted too often")
        reasons = {ending.reason for ending in self._store.endings(lease.job_id, previous.attempt)}
        lease.low_memory = not reasons.isdisjoint({"out-of-memory", "worker-lost"})

    def _store_mask(self, lease: Lease, name: MaskName, path: Path) -> MaskBlob:
        key = self._store.attempt_key(lease.job_id, lease.attempt, f"{name}.nii.gz")
        sha256 = self._store.blobs.write_file(key, path)
        return MaskBlob(name=name, key=key, size_bytes=path.stat().st_size, sha256=sha256)

    def _publish(self, lease: Lease, manifest: Manifest, seconds: Mapping[str, float] | None) -> None:
        lease.fence()
        if finalize.conclude(self._parts, lease.record, manifest, seconds):
            lease.span.set_attributes({tracing.OUTCOME: manifest.outcome})
            return
        if self._store.is_purged(lease.job_id):
            raise JobPurgedError(lease.job_id)
        raise LeaseLostError(f"job {lease.job_id} was ended by another")


@dataclass(frozen=True)
class _Mask:
    blobs: ObjectStore
    key: str
    size_bytes: int
    sha256: str
    last_modified: datetime

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        return self.blobs.pieces(self.key, start, end)

    def signed_url(self, seconds: int) -> str | None:
        bucket = self.blobs.bucket
        return bucket.file_url(self.key, self.key.rpartition("/")[2], seconds) if bucket else None
