"""Finds what was lost: jobs that run without a worker or wait without a message, and a live view that was wiped.

Has what nobody needs any more swept, too.
"""

import logging
import secrets
import threading
import time
from typing import Final

from lobewise.jobs import outcomes, states, tracing
from lobewise.jobs.errors import JobNotFoundError, JobPurgedError, UnavailableError
from lobewise.jobs.live import REBUILT, Waiting
from lobewise.jobs.models import JobRecord, JobStatus
from lobewise.jobs.outcomes import Parts
from lobewise.jobs.records import Ending, JobFiles
from lobewise.jobs.sweeper import Sweeper

log = logging.getLogger(__name__)

RECONCILE_SECONDS: Final = 600.0
"""How often all blobs are compared with the live view; at the start too."""


class Reaper:
    """One look (`reap`), or a thread that keeps looking. Of many reapers one leads; the others wait for its silence."""

    def __init__(self, parts: Parts, sweeper: Sweeper) -> None:
        self._parts = parts
        self._sweeper = sweeper
        self._who = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._reconciled_at: float | None = None
        self._swept_at: float | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def reap(self) -> int:
        """Look once, if nobody else does; how many jobs were put on their way again."""
        if not self._parts.live.lead(self._who, 3 * self._parts.settings.reap_seconds):
            return 0
        self._sweep_if_due()
        found = self._reconcile_if_due()
        found += sum(self._recover(job_id) for job_id in self._parts.live.running_without_lease())
        return found + self._publish_unheard()

    def rebuild(self) -> int:
        """Bring back into the live view, and the queue, every job that only the blobs know."""
        parts = self._parts
        mark = parts.live.begin_rebuild()
        known = {files.job_id: files for files in parts.records.all_files()}
        missing = parts.live.unknown(known)
        restored = sum(self._restore(known[job_id]) for job_id in missing)
        parts.live.declare_whole(mark)
        return restored

    def _run(self) -> None:
        while True:
            try:
                self.reap()
            except UnavailableError as error:
                log.warning("cannot look for lost jobs: %s", error)
            except Exception:  # a thread that dies unseen would lose jobs silently
                log.exception("the reaper stumbled; it goes on")
            if self._stop.wait(self._parts.settings.reap_seconds):
                return

    def _sweep_if_due(self) -> None:
        now = time.monotonic()
        if self._swept_at is None or now - self._swept_at > self._parts.settings.sweep_seconds:
            self._swept_at = now
            self._sweeper.sweep()

    def _reconcile_if_due(self) -> int:
        now = time.monotonic()
        is_due = self._reconciled_at is None or now - self._reconciled_at > RECONCILE_SECONDS
        if not is_due and self._parts.live.is_whole():
            return 0
        restored = self.rebuild()
        self._reconciled_at = now
        if restored:
            log.warning("%d jobs were missing in the live view and are back", restored)
        return restored

    def _restore(self, files: JobFiles) -> bool:
        """A job that was running gets a lease that its worker, if it lives, makes its own."""
        parts = self._parts
        try:
            state = parts.records.state(files.job_id, files)
        except (JobNotFoundError, JobPurgedError):
            return False
        if state.status == JobStatus.RUNNING:
            parts.live.lease(state.id, f"{state.attempt}:{REBUILT}", parts.settings.lease_seconds)
        if not parts.live.put(state, guard="new"):
            return False
        if not state.status.is_final and parts.records.is_final(state.id):
            return parts.live.put(parts.records.state(state.id))  # it ended between the listing and now
        if state.cancel_requested:
            parts.live.request_cancel(state.id)
        if state.status == JobStatus.QUEUED:
            self._send(parts.records.record(state.id))
        return True

    def _recover(self, job_id: str) -> bool:
        """A job that the live view shows running though nobody holds it."""
        parts = self._parts
        try:
            files = parts.records.files(job_id)
            record = parts.records.record(job_id)
        except (JobNotFoundError, JobPurgedError):
            self._forget(job_id)
            return False
        manifest = parts.records.manifest(job_id)
        if manifest is not None:
            return parts.live.put(states.final(record, manifest))
        claim = parts.records.claim(job_id, files.attempt) if files.attempt else None
        if files.cancel_requested:
            started_at = claim.started_at if claim else None
            return outcomes.conclude(parts, record, outcomes.cancelled(record, files.attempt, started_at))
        if claim is None:
            return False
        log.warning("job %s: the worker of attempt %d was lost", job_id, claim.attempt)
        ending = Ending(reason="worker-lost", ended_at=states.now())
        outcomes.end_attempt(parts, record, claim, ending, guard="free")
        return True

    def _publish_unheard(self) -> int:
        waiting = self._parts.live.waiting()
        patience_ms = 1000 * self._parts.settings.reap_seconds
        due = [job for job in waiting if job.retry_in_ms == 0]
        doubtful = [job for job in waiting if _is_doubtful(job, patience_ms)]
        if doubtful:
            present = self._parts.queue.present(self._parts.settings.lease_seconds)
            due += [job for job in doubtful if job.job_id not in present]
        return sum(self._publish(job.job_id) for job in due)

    def _publish(self, job_id: str) -> bool:
        state = self._parts.live.get(job_id)
        if state is None or state.status != JobStatus.QUEUED:
            return False
        try:
            record = self._parts.records.record(job_id)
        except (JobNotFoundError, JobPurgedError):
            self._forget(job_id)
            return False
        log.info("job %s is sent again", job_id)
        self._send(record)
        return True

    def _send(self, record: JobRecord) -> None:
        with tracing.continued(record.traceparent):
            self._parts.queue.publish(record.id, record.priority)

    def _forget(self, job_id: str) -> None:
        state = self._parts.live.get(job_id)
        if state is not None:
            self._parts.live.remove(state)


def _is_doubtful(job: Waiting, patience_ms: float) -> bool:
    """Whether its message, if there is one, should have been seen by now."""
    if job.retry_in_ms is not None:
        return False
    since_ms = job.queued_for_ms if job.published_ms_ago is None else job.published_ms_ago
    return since_ms > patience_ms
