"""How attempts and jobs end: first in the blobs, which decide, then in the live view, which shows it."""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Final

from jobs import problems, states, tracing
from jobs.backends import Backends
from jobs.errors import (
    BrokerUnavailableError,
    JobPurgedError,
    NewerSchemaError,
    SourceUnavailableError,
    UnavailableError,
)
from jobs.models import InputInfo, JobError, JobRecord, JobState, Manifest
from jobs.store.inputs import Inputs
from jobs.store.job_store import Claim, Ending, JobFiles
from jobs.store.multipart_uploads import MultipartUploads

log = logging.getLogger(__name__)

SHOW_EVERY_SECONDS: Final = 0.5
#: For two minutes; after a longer outage the reconciler compares the view with the blobs.
SHOW_TRIES: Final = 240
#: A scan that needs too much memory is tried once more, by a fresh process and in smaller pieces. A third try would
#: need as much as the second.
MEMORY_RETRIES: Final = 1


def end_job(
    backends: Backends, record: JobRecord, manifest: Manifest, stage_seconds: Mapping[str, float] | None = None
) -> bool:
    """End the job. Of all that try, one wins and gets True; the others show the winner's outcome.

    Nobody wins a job that was deleted, and nothing of it stays. `stage_seconds` of the winner go into the job metrics.
    """
    won = backends.store.create_manifest(manifest)
    # Nobody reads the scan any more, and it was not to be kept as it came. The cleanup does it after a crash here.
    if backends.settings.deidentify == "basic":
        Inputs(backends.store.blobs).delete_received(record.id)
    winner = manifest if won else backends.store.manifest(record.id)
    if winner is not None:
        show_end(backends, states.final(record, winner), stage_seconds if won else None)
    # After showing, not before: a delete in between would leave the end of a deleted job shown for good.
    return not remove_traces_if_deleted(backends, record.id) and won


def show_end(backends: Backends, state: JobState, stage_seconds: Mapping[str, float] | None = None) -> None:
    """Update the live view, now or as soon as it can be reached; if this process dies first, the reconciler does."""
    try:
        backends.live.put(state, stage_seconds=stage_seconds)
    except BrokerUnavailableError:
        log.warning("job %s: the live view is behind", state.id)
        # Not left to the reconciler alone: until its next comparison clients would see an ended job as queued.
        args = (backends, state, stage_seconds)
        threading.Thread(target=_keep_showing, args=args, name="show-end", daemon=True).start()


def _keep_showing(backends: Backends, state: JobState, stage_seconds: Mapping[str, float] | None) -> None:
    for _ in range(SHOW_TRIES):
        time.sleep(SHOW_EVERY_SECONDS)
        with suppress(UnavailableError):
            backends.live.put(state, stage_seconds=stage_seconds)
            remove_traces_if_deleted(backends, state.id)
            return


def purge(backends: Backends, uploads: MultipartUploads, job_id: str) -> None:
    """Delete the job and all that belongs to it, running or not. Raises JobNotFoundError, JobPurgedError."""
    if remove_traces_if_deleted(backends, job_id):  # who deleted it may have been killed half way
        raise JobPurgedError(job_id)
    upload_id = backends.store.record(job_id).upload_id
    # The tombstone comes first: nobody takes a half-deleted job for a whole one, and workers stop at their fence.
    backends.store.mark_purged(job_id)
    if upload_id is not None:
        uploads.delete(upload_id)  # a crash may have left the scan there too
    remove_traces(backends, job_id)


def remove_traces_if_deleted(backends: Backends, job_id: str) -> bool:
    """Whether the job was deleted. Whoever has shown an end asks: a wiped view lets the end of a deleted job in."""
    is_deleted = backends.store.is_purged(job_id)
    if is_deleted:
        remove_traces(backends, job_id)
    return is_deleted


def remove_traces(backends: Backends, job_id: str) -> None:
    """Delete what is left of a job that has its tombstone."""
    try:
        backends.live.remove_traces(job_id)
    except BrokerUnavailableError:
        log.warning("job %s: the live view still shows what was deleted", job_id)
    with suppress(NewerSchemaError):  # the cleanup finds it then
        manifest = backends.store.manifest(job_id)
        if manifest is not None and manifest.index_key is not None:
            backends.store.blobs.delete(manifest.index_key)
    backends.store.delete_all_but_tombstone(job_id)


def cancelled(record: JobRecord, attempt: int, started_at: datetime | None = None) -> Manifest:
    return Manifest(
        job_id=record.id, outcome="cancelled", attempt=attempt, started_at=started_at, finished_at=states.now()
    )


def failed(record: JobRecord, claim: Claim | None, error: JobError, scan: InputInfo | None = None) -> Manifest:
    """Without a claim: before any worker began it."""
    return Manifest(
        job_id=record.id,
        outcome="failed",
        attempt=claim.attempt if claim else 0,
        started_at=claim.started_at if claim else None,
        finished_at=states.now(),
        error=error,
        input_sha256=scan.sha256 if scan else None,
        input_size_bytes=scan.size_bytes if scan else None,
    )


def end_attempt(backends: Backends, record: JobRecord, claim: Claim, ending: Ending, *, guard: str) -> None:
    """An attempt came to nothing. Queue the job again, after a pause if it was a fault, or end it if that was enough.

    `guard` is that of `LiveView.put`, for showing the job queued.
    """
    # Durable before anything else: from now on this attempt can publish nothing.
    record_ending(backends, record, claim, ending)
    if end_if_decided(backends, record, claim) or fail_if_exhausted(backends, record, claim):
        return
    is_fault = ending.reason == "fault"
    # Only a fault waits, longer each time: what broke may need a while. A lost or stopped worker says nothing of the
    # job, and the reconciler sends what waits once the pause is over.
    pause_seconds = backends.settings.retry_seconds * 2 ** (claim.attempt - 1) if is_fault else None
    state = states.queued(record, attempt=claim.attempt, updated_at=states.now())
    if backends.live.put(state, guard=guard, retry_after_seconds=pause_seconds) and not is_fault:
        with tracing.continued(record.traceparent):
            backends.queue.publish(record.id, record.priority)


def record_ending(backends: Backends, record: JobRecord, claim: Claim, ending: Ending) -> None:
    """Durable: the attempt can publish nothing any more. The span of a lost one has nobody else to end it."""
    is_new = backends.store.attempts.create_ending(record.id, claim.attempt, ending)
    if is_new and ending.reason == "worker-lost":
        what = {**attempt_attributes(backends, record, claim.attempt), tracing.OUTCOME: "worker-lost"}
        tracing.end_lost(claim.traceparent, tracing.ATTEMPT_SPAN, record.traceparent, claim.started_at, what)


def attempt_attributes(backends: Backends, record: JobRecord, attempt: int) -> dict[str, str | int]:
    """The attributes of an attempt's span."""
    about = {tracing.TENANT: backends.tenant, tracing.JOB_ID: record.id, "lobewise.priority": record.priority.value}
    return {**about, tracing.ATTEMPT: attempt}


def end_if_decided(backends: Backends, record: JobRecord, claim: Claim) -> bool:
    """Whether the job needs no other attempt: it was deleted, has ended, or was cancelled, which ends it here."""
    files = backends.store.files(record.id)
    if files.is_purged:
        remove_traces(backends, record.id)
    elif files.is_final or files.cancel_requested:
        end_job(backends, record, cancelled(record, claim.attempt, claim.started_at))
    else:
        return False
    return True


def end_if_too_late(backends: Backends, record: JobRecord, files: JobFiles, now: datetime) -> bool:
    """Whether the job's `not_after` was over by `now` and no worker had begun it: then it ends here, uncomputed.

    Whoever calls holds the lease, so that no worker begins it meanwhile. A job that was begun once runs on, also where
    its worker was lost: what was spent on it is not thrown away, and clients have seen it running.
    """
    if record.not_after is None or now < record.not_after or files.attempt:
        return False
    detail = f"No worker had begun the job by {record.not_after.isoformat()}."
    error = JobError.of(problems.DEADLINE_PASSED, detail, {"not_after": record.not_after.isoformat()})
    end_job(backends, record, cancelled(record, 0) if files.cancel_requested else failed(record, None, error))
    return True


def fail_if_exhausted(backends: Backends, record: JobRecord, claim: Claim) -> bool:
    """Whether the attempts up to this one, which all ended, are enough: then the job fails here."""
    endings = backends.store.attempts.endings(record.id, claim.attempt)
    # A worker that was told to stop has requeued the job, which is nobody's fault: deployments may do so all day.
    reasons = [ending.reason for ending in endings if ending.reason != "handed-back"]
    if reasons.count("out-of-memory") > MEMORY_RETRIES:
        problem, detail = problems.OUT_OF_MEMORY, "The memory did not suffice, and not in smaller pieces either."
    elif len(reasons) < backends.settings.max_attempts:
        return False
    elif set(reasons) == {"worker-lost"}:
        problem = problems.POISON
        detail = "No attempt came to an end. Either the scan ends workers, or they were lost for reasons of their own."
    elif {ending.fault for ending in endings if ending.reason != "handed-back"} == {SourceUnavailableError.__name__}:
        problem = problems.SOURCE_UNAVAILABLE
        detail = "No attempt got the scan from its server. This is a fault of that server, or of the way to it."
    else:
        problem = problems.ATTEMPTS_EXHAUSTED
        detail = "No attempt came to an end. This is a fault of the service, not of the scan."
    shown = [ending.model_dump(mode="json", exclude_none=True) for ending in endings]
    error = JobError.of(problem, detail, {"attempts": len(endings), "endings": shown})
    end_job(backends, record, failed(record, claim, error))
    return True
