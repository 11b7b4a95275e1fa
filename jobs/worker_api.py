"""Jobs as workers see them: claim an attempt, fetch the scan, end the attempt in one of its ways, say who is ready."""

import hmac
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from opentelemetry.trace import SpanKind

from jobs import remote_sources, states, tracing
from jobs.attempts import Lease
from jobs.backends import Backends
from jobs.errors import (
    CancelRequestedError,
    JobPurgedError,
    LeaseLostError,
    UnavailableError,
    WrongStateError,
)
from jobs.models import (
    ImageBlob,
    ImageName,
    Inspection,
    JobError,
    Manifest,
    MaskBlob,
    MaskLabels,
    MaskName,
    Report,
    Stage,
)
from jobs.recovery import finalize
from jobs.store.inputs import Inputs
from jobs.store.job_store import Claim, Ending
from jobs.store.keys import attempt_key
from jobs.store.results import Results, results_prefix
from jobs.store.signed_urls import read_or_make_secret


class WorkerApi:
    """All calls are synchronous and thread-safe. StorageUnavailableError may come from every one about a job."""

    def __init__(self, backends: Backends) -> None:
        self._backends, self._store, self._live = backends, backends.store, backends.live
        self.settings = backends.settings
        self._results = Results(backends.store, backends.settings)
        self.workers, self.has_messages = backends.live.workers, backends.queue.has_messages

    def claim(self, job_id: str, worker: str) -> Lease:
        """Begin an attempt.

        Raises:
            JobNotFoundError, JobPurgedError: there is nothing to do.
            NewerSchemaError: there is, for a newer worker; this is no attempt.
            WrongStateError: the job is final, or has just become so: cancelled, attempted too often, or too late.
            LeaseLostError: another worker has it.
            BrokerUnavailableError: leases cannot be had now.
        """
        record = self._store.record(job_id)
        attempt = self._store.files(job_id).attempt + 1
        value = f"{attempt}:{secrets.token_hex(8)}"
        # The lease only keeps honest workers from the same work; what makes an attempt one worker's is `claim.json`.
        if not self._live.lease(job_id, value, self.settings.lease_seconds):
            raise LeaseLostError(f"another worker holds job {job_id}")
        about = {tracing.TENANT: self._backends.tenant, tracing.JOB_ID: job_id}
        span = tracing.entry(tracing.ATTEMPT_SPAN, record.traceparent, SpanKind.CONSUMER, about)
        claim = Claim(attempt=attempt, started_at=states.now(), worker=worker, traceparent=tracing.traceparent_of(span))
        lease = Lease(self._backends, record, claim, value, span)
        try:
            with tracing.active(span), tracing.step("claim"):
                self._begin_attempt(lease)
        except BaseException as error:
            span.update_name("claim refused")
            tracing.fail(span, type(error).__name__)
            tracing.end(span)
            lease.drop()
            raise
        span.set_attributes(finalize.attempt_attributes(self._backends, record, attempt))
        return lease

    def _begin_attempt(self, lease: Lease) -> None:
        """Under the lease: end what earlier attempts left, then make the new one durable before any work."""
        job_id, record, backends = lease.job_id, lease.record, self._backends
        files = self._store.files(job_id)
        manifest = self._store.manifest(job_id) if files.is_final else None
        if manifest is not None:
            finalize.show_end(backends, states.final(record, manifest))
            finalize.remove_traces_if_deleted(backends, job_id)
            raise WrongStateError(manifest.outcome, "there is nothing left to do")
        if files.cancel_requested:
            finalize.end_job(backends, record, finalize.cancelled(record, files.attempt))
            raise WrongStateError("cancelled", "the job was cancelled")
        # By the moment that the claim will name: a job that it shows begun before its deadline was begun in time.
        if finalize.end_if_too_late(backends, record, files, lease.claim.started_at):
            raise WrongStateError("failed", "the job was not begun in time")
        previous = self._store.attempts.last_claim(files)
        if previous is not None:
            # Its lease ran out, but its worker may live: from now on its fence finds the ending, and it publishes
            # nothing. This has to come before the new claim.
            lost = Ending(reason="worker-lost", ended_at=states.now())
            finalize.record_ending(backends, record, previous, lost)
            if finalize.fail_if_exhausted(backends, record, previous):
                raise WrongStateError("failed", "the job was attempted too often")
            reasons = {ending.reason for ending in self._store.attempts.endings(job_id, previous.attempt)}
            # A worker that the kernel kills for its memory cannot report it: so a lost one counts as out of memory.
            lease.low_memory = not reasons.isdisjoint({"out-of-memory", "worker-lost"})
        # Counted before the work: a scan that kills its worker is tried `max_attempts` times, however often Redis,
        # which has the messages, is wiped.
        if not self._store.attempts.create_claim(job_id, lease.claim):
            raise LeaseLostError(f"another worker holds job {job_id}")
        try:
            lease.fence()  # a cancel that came since the listing saw a queued job, and may have ended it
        except CancelRequestedError:
            self.confirm_cancel(lease)
            raise WrongStateError("cancelled", "the job was cancelled while it was claimed") from None
        # Only under the lease: after a wipe, what was read before it must not be shown.
        running = states.running(record, attempt=lease.attempt, started_at=lease.claim.started_at)
        self._live.put(running, guard=lease.value)

    def fetch_input(self, lease: Lease, folder: Path) -> Path:
        """Copy the scan into `folder`, checked against its sha256.

        Raises SourceError: the job should fail. SourceUnavailableError: another attempt may succeed.
        """
        path, accepted = folder / "scan", lease.record.input
        if accepted.source is not None:
            settings = self.settings
            limits = remote_sources.FetchLimits(
                max_bytes=settings.max_source_bytes,
                networks=settings.outbound_networks,
                # Below the soft limit, which counts as a fault of ours and would be tried again.
                seconds=min(settings.source_seconds, 0.8 * settings.soft_limit_seconds),
                bytes_per_second=settings.source_bytes_per_second,
            )
            allowed = settings.source_allowlist
            lease.scan = remote_sources.fetch(accepted.source, path, allowlist=allowed, limits=limits)
            return path
        lease.must_deidentify = Inputs(self._store.blobs).read(lease.record, path)
        return path

    @cached_property
    def deidentification_key(self) -> bytes:
        """Under which the tenant's UIDs are mapped. Raises StorageUnavailableError: no secret can be kept."""
        given = self.settings.deidentify_secret
        if given is not None:
            secret = given.get_secret_value()
        else:
            path = self.settings.data_dir / "deidentify-secret"
            secret = read_or_make_secret(path, lambda: secrets.token_hex(32))
        # Two tenants that have the same study shall not be able to tell.
        return hmac.digest(secret.encode(), self._backends.tenant.encode(), "sha256")

    def replace_input(self, lease: Lease, path: Path) -> None:
        """Keep the scan at `path`, which names no patient, in place of the one that came. Raises as `fence`."""
        with tracing.step("replace input"):
            lease.fence()
            Inputs(self._store.blobs).replace(lease.job_id, lease.attempt, path)
            lease.must_deidentify = False
            # Deleted meanwhile: what was just written goes, too.
            finalize.remove_traces_if_deleted(self._backends, lease.job_id)

    def reuse(self, lease: Lease, digest: str) -> bool:
        """Whether the job was given the result of an earlier one with the same bytes: then it has succeeded.

        Args:
            digest: of the software and weights that would score the scan.

        Raises as `succeed` does.
        """
        # Only what the gateway or the fetch has hashed itself: who knows no more than a hash gets no result for it.
        sha256 = lease.scan.sha256
        if sha256 is None or not self._results.may_serve(lease.record):
            return False
        with tracing.step("reuse"):
            lease.fence()
            found = self._results.copy(lease.record, sha256, digest, lease.attempt)
            if found is None:
                return False
            self._publish(lease, _succeeded(lease, **found.in_manifest()), None)
            return True

    def succeed(
        self,
        lease: Lease,
        report: Report,
        masks: Mapping[MaskName, Path],
        labels: MaskLabels | None = None,
        digest: str | None = None,
        images: Mapping[ImageName, Path] = MappingProxyType({}),
    ) -> None:
        """Store report and masks, then the manifest that makes the job succeeded; it has the masks' labels, too.

        Args:
            digest: of the software and weights; without it no other job is given this result.
            images: the scan and pictures to look at the result with; the names of their files are kept.

        Raises:
            LeaseLostError: this attempt may not publish; nothing of it will be seen.
            CancelRequestedError, JobPurgedError: it is no longer wanted.
        """
        begin = time.perf_counter()
        with tracing.step("publish"):
            lease.fence()  # before the upload, which takes seconds: most attempts that are too late stop here
            stored = []
            for name, path in masks.items():
                key = attempt_key(lease.job_id, lease.attempt, f"{name}.nii.gz")
                sha256 = self._store.blobs.write_file(key, path)
                of_mask = labels.masks[name] if labels is not None else []
                blob = MaskBlob(name=name, key=key, size_bytes=path.stat().st_size, sha256=sha256, labels=of_mask)
                stored.append(blob)
            kept = []
            for image, path in images.items():
                key = attempt_key(lease.job_id, lease.attempt, f"images/{path.name}")
                sha256 = self._store.blobs.write_file(key, path)
                kept.append(ImageBlob(name=image, key=key, size_bytes=path.stat().st_size, sha256=sha256))
            report_key = attempt_key(lease.job_id, lease.attempt, "report.json")
            self._store.blobs.write(report_key, report.model_dump_json().encode())
            index_key = None
            if digest is not None and lease.scan.sha256 is not None and self.settings.reuse_results:
                index_key = results_prefix(lease.record, lease.scan.sha256, digest) + lease.job_id
            manifest = _succeeded(
                lease, severity=report.severity, report_key=report_key, masks=stored, images=kept, index_key=index_key
            )
            # The report's seconds of `store` are those of writing the masks; uploading them belongs to the stage, too.
            seconds = dict(report.provenance.seconds)
            seconds[Stage.STORE] = seconds.get(Stage.STORE, 0.0) + time.perf_counter() - begin
            # All that the manifest names is in the store by now: success is whole.
            self._publish(lease, manifest, seconds)

    def succeed_inspected(self, lease: Lease, inspection: Inspection, seconds: Mapping[str, float]) -> None:
        """Store what was seen in a scan that was only to be validated. Raises as `succeed` does."""
        with tracing.step("publish"):
            lease.fence()
            key = attempt_key(lease.job_id, lease.attempt, "inspection.json")
            self._store.blobs.write(key, inspection.model_dump_json().encode())
            self._publish(lease, _succeeded(lease, inspection_key=key), seconds)

    def fail(self, lease: Lease, error: JobError, seconds: Mapping[str, float] | None = None) -> None:
        """The scan cannot be scored: the job ends here, with the seconds of its ended stages. Raises as `succeed`."""
        with tracing.step("publish"):
            self._publish(lease, finalize.failed(lease.record, lease.claim, error, lease.scan), seconds)
        lease.span.set_attributes({"lobewise.problem": error.type.rpartition("/")[2]})

    def _publish(self, lease: Lease, manifest: Manifest, seconds: Mapping[str, float] | None) -> None:
        lease.fence()
        if finalize.end_job(self._backends, lease.record, manifest, seconds):
            with suppress(UnavailableError):  # then another job will not find it, and is computed
                self._results.add(manifest)
            lease.span.set_attributes({tracing.OUTCOME: manifest.outcome})
            return
        if self._store.is_purged(lease.job_id):
            raise JobPurgedError(lease.job_id)
        raise LeaseLostError(f"job {lease.job_id} was ended by another")

    def confirm_cancel(self, lease: Lease) -> None:
        """The work has stopped as requested."""
        try:
            lease.fence()
        except (JobPurgedError, LeaseLostError):
            return
        except CancelRequestedError:
            manifest = finalize.cancelled(lease.record, lease.attempt, lease.claim.started_at)
            finalize.end_job(self._backends, lease.record, manifest)
            lease.span.set_attributes({tracing.OUTCOME: manifest.outcome})
        finally:
            lease.drop()

    def retry(self, lease: Lease, fault: BaseException) -> None:
        """The attempt failed for a reason that is not the scan's: try again later, or give up after the last."""
        self._end_attempt(lease, Ending(reason="fault", fault=type(fault).__name__, ended_at=states.now()))

    def fail_out_of_memory(self, lease: Lease, fault: BaseException) -> None:
        """The attempt needed more memory than there is: another process tries it in smaller pieces, once."""
        self._end_attempt(lease, Ending(reason="out-of-memory", fault=type(fault).__name__, ended_at=states.now()))

    def requeue(self, lease: Lease) -> None:
        """The worker has to stop before the work is done: another begins at once. Not counted as an attempt."""
        self._end_attempt(lease, Ending(reason="handed-back", ended_at=states.now()))

    def _end_attempt(self, lease: Lease, ending: Ending) -> None:
        lease.span.set_attributes({tracing.OUTCOME: ending.reason})
        if ending.fault is not None:
            tracing.fail(lease.span, ending.fault)
        try:
            finalize.end_attempt(self._backends, lease.record, lease.claim, ending, guard=lease.value)
        finally:
            lease.drop()


def _succeeded(lease: Lease, **result: Any) -> Manifest:
    return Manifest(
        job_id=lease.job_id,
        outcome="succeeded",
        attempt=lease.attempt,
        started_at=lease.claim.started_at,
        finished_at=states.now(),
        input_sha256=lease.scan.sha256,
        input_size_bytes=lease.scan.size_bytes,
        **result,
    )
