"""Finds what was lost: jobs that run without a worker or wait without a message, and a live view that was wiped.

It also ends jobs that no worker began in time.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from functools import cache
from typing import Final

from jobs import states, tracing
from jobs.backends import Backends
from jobs.errors import JobNotFoundError, JobPurgedError, NewerSchemaError, UnavailableError
from jobs.live.keys import REBUILT
from jobs.live.redis_view import MAX_TOGETHER
from jobs.models import JobState, JobStatus
from jobs.quotas import Owner, Quota, quotas_of
from jobs.recovery import finalize
from jobs.recovery.cleanup import Cleanup
from jobs.store.job_store import Ending, JobFiles

log = logging.getLogger(__name__)

#: How often all blobs are compared with the live view; at the start too.
RECONCILE_SECONDS: Final = 600.0


class Reconciler:
    """One look (`reconcile`), or a thread that keeps looking, and cleans up. Of many one leads; the others wait.

    It has the jobs of one tenant. That of `default` leads for all, and has the others look after it.
    """

    def __init__(
        self,
        backends: Backends,
        cleanup: Cleanup,
        others: Callable[[], Iterable["Reconciler"]] = tuple,
    ) -> None:
        """`others` gives those of the other tenants that are known by now."""
        self._backends, self._cleanup, self._others = backends, cleanup, others
        self._who = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._rebuilt_at: float | None = None
        self._cleaned_up_at: float | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def reconcile(self) -> int:
        """Look once, if nobody else does; how many jobs, of all tenants, were put on their way again."""
        # To list all messages costs Redis much: it is asked at most once for all tenants, and only where it must be.
        present = cache(lambda: self._backends.queue.present(self._backends.settings.lease_seconds))
        found, faults = 0, list[Exception]()
        for reconciler in (self, *self._others()):
            # Three rounds of silence end the leadership, so that a leader that was killed is soon followed by another.
            # Asked for each tenant: to look at one may take longer than that.
            if not self._backends.live.recovery.lead(self._who, 3 * self._backends.settings.reap_seconds):
                return found
            try:
                found += reconciler.look(present)
            except UnavailableError:  # of what all share: the next would wait for it as long
                raise
            except Exception as fault:  # of one tenant: the others' jobs must be found
                faults.append(fault)
        if faults:
            raise faults[0]
        return found

    def look(self, present: Callable[[], Set[str]]) -> int:
        """Look at this tenant's jobs, without asking who leads; how many were put on their way again.

        Args:
            present: the jobs that have a message.
        """
        settings, recovery = self._backends.settings, self._backends.live.recovery
        now = time.monotonic()
        if self._cleaned_up_at is None or now - self._cleaned_up_at > settings.sweep_seconds:
            self._cleaned_up_at = now
            self._cleanup.clean_up()
            self._backends.live.messages.drop_lists()
            tenant = self._backends.tenant
            if quotas_of(settings).limit(Owner("tenant", tenant), Quota.STORAGE_BYTES):
                self._backends.live.usage.set_stored_bytes(tenant, self._cleanup.stored_bytes())
        found = self._rebuild_if_due()
        if not recovery.has_whole_lists():
            self._complete_lists()
        found += sum(self._recover(job_id) for job_id in recovery.running_without_lease())
        # Before messages are looked for: a job that is too late needs none.
        for job_id in recovery.past_deadline():
            self._end_if_too_late(job_id)
        waiting = recovery.waiting()
        due = [job.job_id for job in waiting if job.retry_in_ms == 0]
        # The message of a job that waits for longer than a look apart, if there is one, should have reached a worker.
        queued = [job for job in waiting if job.retry_in_ms is None]
        doubtful = [job.job_id for job in queued if job.silent_for_ms > 1000 * settings.reap_seconds]
        if doubtful:
            due += [job_id for job_id in doubtful if job_id not in present()]
        return found + sum(self._publish(job_id) for job_id in due)

    def rebuild(self) -> int:
        """Bring back into the live view, and the queue, every job that only the blobs know; remove those they do not.

        A job that was deleted while the broker was down, or by a gateway that was killed, is still shown until then.
        """
        backends = self._backends
        # The mark goes with a wipe: what was listed before one is older than what workers have shown since.
        mark = backends.live.recovery.begin_rebuild()
        was_wiped = not backends.live.recovery.is_whole()
        known = {files.job_id: files for files in backends.store.all_files()}
        shown = dict(zip(known, backends.live.statuses(list(known)), strict=True))
        restored = sum(self._restore(known[job_id], mark) for job_id, status in shown.items() if status is None)
        # A job that ended while the broker was away is still shown as open.
        behind = [job_id for job_id, status in shown.items() if status and not status.is_final]
        restored += sum(self._show_end(job_id) for job_id in behind if known[job_id].is_final)
        for job_id in backends.live.recovery.all_ids():
            if job_id not in known:
                self._remove_if_gone(job_id)
        self._complete_lists()
        # Before it counts as whole: who dies here leaves it to the next rebuild.
        if was_wiped:
            self._cleanup.batches.resume_callbacks()
        backends.live.recovery.declare_whole(mark)
        return restored

    def _run(self) -> None:
        while True:
            try:
                self.reconcile()
            except UnavailableError as error:
                log.warning("cannot look for lost jobs: %s", error)
                for reconciler in (self, *self._others()):
                    reconciler._rebuilt_at = None  # what happened meanwhile was not shown
            except Exception:  # a thread that dies unseen would lose jobs silently
                log.exception("the reconciler met a fault; it goes on")
            if self._stop.wait(self._backends.settings.reap_seconds):
                return

    def _rebuild_if_due(self) -> int:
        now = time.monotonic()
        is_due = self._rebuilt_at is None or now - self._rebuilt_at > RECONCILE_SECONDS
        is_due = is_due or self._backends.live.view_freshness.was_lost_after(self._rebuilt_at or 0.0)
        if not is_due and self._backends.live.recovery.is_whole():
            return 0
        restored = self.rebuild()
        self._rebuilt_at = now  # when it began: what happened meanwhile may be missing
        if restored:
            log.warning("%d jobs were missing in the live view and are back", restored)
        return restored

    def _complete_lists(self) -> None:
        """After an upgrade, and while processes of an earlier version show jobs: it does not know all lists."""
        live = self._backends.live
        unlisted = live.recovery.unlisted()
        for at in range(0, len(unlisted), MAX_TOGETHER):
            for state in live.get_many(unlisted[at : at + MAX_TOGETHER]):
                if state is not None:
                    live.list_again(state)
        if unlisted:
            log.info("%d jobs were not in all lists, and are now", len(unlisted))

    def _show_end(self, job_id: str) -> bool:
        """A job that ended while the broker was away."""
        with suppress(JobNotFoundError, JobPurgedError, NewerSchemaError):
            is_shown = self._backends.live.put(self._backends.store.state(job_id))
            return not finalize.remove_traces_if_deleted(self._backends, job_id) and is_shown
        return False

    def _restore(self, files: JobFiles, mark: str) -> bool:
        """A job that was running gets a lease that its worker, if it lives, makes its own.

        Not after another wipe: what we know is older than what others may have shown since.
        """
        backends = self._backends
        try:
            state = backends.store.state(files.job_id, files)
        except (JobNotFoundError, JobPurgedError):
            return False
        except NewerSchemaError as error:
            log.warning("job %s is left to newer processes: %s", files.job_id, error)
            return False
        if state.status == JobStatus.RUNNING:
            # Without a lease the next look would take the job from a worker that is alive and only was not asked yet.
            backends.live.lease(state.id, f"{state.attempt}:{REBUILT}", backends.settings.lease_seconds)
        if not backends.live.put(state, guard=f"rebuild:{mark}"):
            return False
        if not state.status.is_final and backends.store.is_final(state.id):
            return self._show_end(state.id)  # it ended between the listing and now
        if state.cancel_requested:
            backends.live.request_cancel(state.id)
        if state.status == JobStatus.QUEUED:
            self._send(state, backends.store.record(state.id).traceparent)
        return True

    def _recover(self, job_id: str) -> bool:
        """A job that the live view shows running though nobody holds it."""
        try:
            backends = self._backends
            files, record = backends.store.files(job_id), backends.store.record(job_id)
            claim = backends.store.attempts.last_claim(files)
            if claim is None:  # the blobs are older than the view, from a copy: they decide
                backends.live.remove(job_id)
                self._rebuilt_at = None
                return False
            if finalize.end_if_decided(backends, record, claim):
                return True
            log.warning("job %s: the worker of attempt %d was lost", job_id, claim.attempt)
            ending = Ending(reason="worker-lost", ended_at=states.now())
            # `free`: not if a worker made itself heard between the look and now.
            finalize.end_attempt(backends, record, claim, ending, guard="free")
            return True
        except (JobNotFoundError, JobPurgedError):
            self._remove_if_gone(job_id)
        except NewerSchemaError as error:
            log.warning("job %s is left to newer processes: %s", job_id, error)
        except UnavailableError:
            raise
        except Exception:  # one job that cannot be read must not keep all others from being found
            log.exception("job %s cannot be brought back", job_id)
        return False

    def _end_if_too_late(self, job_id: str) -> None:
        """A job that the live view shows as never begun though its `not_after` is over."""
        backends, value = self._backends, f"0:{self._who}"
        # As a worker that claims: either it begins the job now, or we end it.
        if not backends.live.lease(job_id, value, backends.settings.lease_seconds):
            return
        try:
            record, files = backends.store.record(job_id), backends.store.files(job_id)
            if finalize.end_if_too_late(backends, record, files, states.now()):
                log.info("job %s was not begun in time", job_id)
        except (JobNotFoundError, JobPurgedError):
            self._remove_if_gone(job_id)
        except NewerSchemaError as error:
            log.warning("job %s is left to newer processes: %s", job_id, error)
        finally:
            backends.live.drop_lease(job_id, value)

    def _publish(self, job_id: str) -> bool:
        state = self._backends.live.get(job_id)
        if state is None or state.status != JobStatus.QUEUED:
            return False
        traceparent = None
        try:
            with suppress(NewerSchemaError):  # a message holds the id alone: whoever can read the job takes it
                traceparent = self._backends.store.record(job_id).traceparent
        except (JobNotFoundError, JobPurgedError):
            self._remove_if_gone(job_id)
            return False
        log.info("job %s is sent again", job_id)
        self._send(state, traceparent)
        return True

    def _remove_if_gone(self, job_id: str) -> None:
        try:
            with suppress(NewerSchemaError):
                self._backends.store.record(job_id)  # it may have come after we looked
        except JobPurgedError:
            finalize.remove_traces(self._backends, job_id)
        except JobNotFoundError:
            self._backends.live.remove(job_id)

    def _send(self, state: JobState, traceparent: str | None) -> None:
        with tracing.continued(traceparent):
            self._backends.queue.publish(state.id, state.priority)
