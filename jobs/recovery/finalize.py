"""How attempts and jobs end: first in the blobs, which decide, then in the live view, which shows it."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from jobs import problems, states, tracing
from jobs.errors import BrokerUnavailableError, UnavailableError
from jobs.live.redis_view import LiveView
from jobs.models import InputInfo, JobError, JobRecord, JobState, Manifest
from jobs.queue import JobQueue
from jobs.settings import JobsSettings
from jobs.store.job_store import Claim, Ending, JobStore

log = logging.getLogger(__name__)

SHOW_EVERY_SECONDS: Final = 0.5
SHOW_TRIES: Final = 240
"""For two minutes; after a longer outage the reaper compares the view with the blobs."""
MEMORY_RETRIES: Final = 1
"""A scan that needs too much memory is tried once more, by a fresh process and in smaller pieces."""


@dataclass(frozen=True)
class Backends:
    """What jobs are made of."""

    settings: JobsSettings
    store: JobStore
    live: LiveView
    queue: JobQueue


def conclude(
    parts: Backends, record: JobRecord, manifest: Manifest, stage_seconds: Mapping[str, float] | None = None
) -> bool:
    """End the job. Of all that try, one wins and gets True; the others show the winner's outcome.

    Nobody wins a job that was deleted, and nothing of it stays.

    Args:
        stage_seconds: what the winner's stages took, for the figures.
    """
    won = parts.store.create_manifest(manifest)
    winner = manifest if won else parts.store.manifest(record.id)
    if winner is not None:
        show(parts, states.final(record, winner), stage_seconds if won else None)
    return not remove_traces_if_deleted(parts, record.id) and won


def remove_traces_if_deleted(parts: Backends, job_id: str) -> bool:
    """Whether the job was deleted. Whoever has shown an end asks: a wiped view lets the end of a deleted job in."""
    is_deleted = parts.store.is_purged(job_id)
    if is_deleted:
        remove_traces(parts, job_id)
    return is_deleted


def remove_traces(parts: Backends, job_id: str) -> None:
    """Delete what is left of a job that has its tombstone."""
    try:
        parts.live.remove_traces(job_id)
    except BrokerUnavailableError:
        log.warning("job %s: the live view still shows what was deleted", job_id)
    parts.store.clean_up(job_id)


def show(parts: Backends, state: JobState, stage_seconds: Mapping[str, float] | None = None) -> None:
    """Update the live view, now or as soon as it can be reached; if we do not live to see it, the reaper does."""
    try:
        parts.live.put(state, stage_seconds=stage_seconds)
    except BrokerUnavailableError:
        log.warning("job %s: the live view is behind", state.id)
        _show_later(parts, state, stage_seconds)


def _show_later(parts: Backends, state: JobState, stage_seconds: Mapping[str, float] | None) -> None:
    threading.Thread(target=_keep_trying, args=(parts, state, stage_seconds), name="show", daemon=True).start()


def _keep_trying(parts: Backends, state: JobState, stage_seconds: Mapping[str, float] | None) -> None:
    for _ in range(SHOW_TRIES):
        time.sleep(SHOW_EVERY_SECONDS)
        with suppress(UnavailableError):
            parts.live.put(state, stage_seconds=stage_seconds)
            remove_traces_if_deleted(parts, state.id)
            return


def cancelled(record: JobRecord, attempt: int, started_at: datetime | None = None) -> Manifest:
    return Manifest(
        job_id=record.id, outcome="cancelled", attempt=attempt, started_at=started_at, finished_at=states.now()
    )


def failed(record: JobRecord, claim: Claim, error: JobError, scan: InputInfo | None = None) -> Manifest:
    return Manifest(
        job_id=record.id,
        outcome="failed",
        attempt=claim.attempt,
        started_at=claim.started_at,
        finished_at=states.now(),
        error=error,
        input_sha256=scan.sha256 if scan else None,
        input_size_bytes=scan.size_bytes if scan else None,
    )


def end_attempt(parts: Backends, record: JobRecord, claim: Claim, ending: Ending, *, guard: str) -> None:
    """An attempt came to nothing. Queue the job again, after a pause if it was a fault, or end it if that was enough.

    The ending is durable before anything else: from then on this attempt can publish nothing.
    """
    mark_ended(parts, record, claim, ending)
    if is_over(parts, record, claim) or settle(parts, record, claim):
        return
    is_fault = ending.reason == "fault"
    pause_seconds = parts.settings.retry_seconds * 2 ** (claim.attempt - 1) if is_fault else None
    state = states.queued(record, attempt=claim.attempt, updated_at=states.now())
    if parts.live.put(state, guard=guard, retry_after_seconds=pause_seconds) and not is_fault:
        with tracing.continued(record.traceparent):
            parts.queue.publish(record.id, record.priority)


def mark_ended(parts: Backends, record: JobRecord, claim: Claim, ending: Ending) -> None:
    """Durable: the attempt can publish nothing any more. The span of a lost one has nobody else to end it."""
    is_new = parts.store.create_ending(record.id, claim.attempt, ending)
    if is_new and ending.reason == "worker-lost":
        what = {**attempt_attributes(record, claim.attempt), tracing.OUTCOME: "worker-lost"}
        tracing.end_lost(claim.traceparent, tracing.ATTEMPT_SPAN, record.traceparent, claim.started_at, what)


def attempt_attributes(record: JobRecord, attempt: int) -> dict[str, str | int]:
    """What a span tells of an attempt."""
    return {tracing.JOB_ID: record.id, tracing.ATTEMPT: attempt, "lobewise.priority": record.priority.value}


def is_over(parts: Backends, record: JobRecord, claim: Claim) -> bool:
    """Whether the job needs no other attempt: it was deleted, has ended, or was cancelled, which ends it here."""
    files = parts.store.files(record.id)
    if files.is_purged:
        remove_traces(parts, record.id)
    elif files.is_final or files.cancel_requested:
        conclude(parts, record, cancelled(record, claim.attempt, claim.started_at))
    else:
        return False
    return True


def settle(parts: Backends, record: JobRecord, claim: Claim) -> bool:
    """Whether the attempts up to this one, which all ended, are enough: then the job has failed."""
    endings = parts.store.endings(record.id, claim.attempt)
    error = _verdict(endings, parts.settings.max_attempts)
    if error is None:
        return False
    conclude(parts, record, failed(record, claim, error))
    return True


def _verdict(endings: Sequence[Ending], max_attempts: int) -> JobError | None:
    """Why a job is given up after these endings; None while it may be tried again."""
    reasons = [ending.reason for ending in endings if ending.reason != "handed-back"]
    if reasons.count("out-of-memory") > MEMORY_RETRIES:
        problem, detail = problems.OUT_OF_MEMORY, "The memory did not suffice, and not in smaller pieces either."
    elif len(reasons) < max_attempts:
        return None
    elif set(reasons) == {"worker-lost"}:
        problem = problems.POISON
        detail = "No attempt came to an end. Either the scan ends workers, or they were lost for reasons of their own."
    else:
        problem = problems.ATTEMPTS_EXHAUSTED
        detail = "No attempt came to an end. This is a fault of the service, not of the scan."
    shown = [ending.model_dump(mode="json", exclude_none=True) for ending in endings]
    return JobError.of(problem, detail, {"attempts": len(endings), "endings": shown})
