"""A worker's hold on a job: renewed by a heartbeat, lost when it falls silent.

The number of the attempt is the fencing token. It rises durably before the work, and no attempt publishes after it
ended or a later one began.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Final, Self

from opentelemetry.trace import INVALID_SPAN, Span

from jobs import states, tracing
from jobs.backends import Backends
from jobs.errors import (
    BrokerUnavailableError,
    CancelRequestedError,
    JobPurgedError,
    LeaseLostError,
    RequeueRequestedError,
    UnavailableError,
)
from jobs.models import InputInfo, JobRecord, Stage
from jobs.store.job_store import Claim

log = logging.getLogger(__name__)

_REPORT_EVERY_SECONDS: Final = 0.25

#: So often a worker looks whether its job was cancelled; the blobs, which decide, are asked at every heartbeat.
_LISTEN_EVERY_SECONDS: Final = 1.0


StopReason = type[CancelRequestedError | LeaseLostError | RequeueRequestedError]


class Lease:
    """Use it in a `with` statement: the heartbeat runs inside.

    Attributes:
        record: the job as it was accepted.
        claim: this attempt.
        scan: the input; complete once it was fetched.
        span: of the attempt; active inside the `with` statement, ended with it.
        must_deidentify: the input is stored as it came, and shall be replaced.
        is_deidentified: the input was replaced by one that names no patient.
        low_memory: an earlier attempt ran out of memory, or its worker was lost, as one is that the kernel kills for
            it: the work should be done in smaller pieces.
        on_overdue: called in the heartbeat's thread when the attempt must stop and its work does not end within
            `cancel_grace_seconds`.
    """

    def __init__(
        self, backends: Backends, record: JobRecord, claim: Claim, value: str, span: Span = INVALID_SPAN
    ) -> None:
        self.record, self.claim, self.value, self.span = record, claim, value, span
        self._inside = ExitStack()
        self.scan: InputInfo = record.input
        self.low_memory = False
        self.must_deidentify = False
        self.is_deidentified = False
        self.on_overdue: Callable[[Lease], None] | None = None
        self._backends = backends
        self._state = states.running(record, attempt=claim.attempt, started_at=claim.started_at)
        self._stop = threading.Event()
        self._stop_reason: StopReason | None = None
        self._reported_at = 0.0
        self._thread = threading.Thread(target=self._beat, name=f"lease-{record.id}", daemon=True)

    @property
    def job_id(self) -> str:
        return self.record.id

    @property
    def attempt(self) -> int:
        """Its number, which is the fencing token."""
        return self.claim.attempt

    def __enter__(self) -> Self:
        self._thread.start()
        self._inside.enter_context(tracing.ended(self.span))
        self._inside.enter_context(tracing.active(self.span))
        self._inside.callback(self.stop)
        return self

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)

    def stop(self) -> None:
        """End the heartbeat."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def is_requeue_requested(self) -> bool:
        return self._stop_reason is RequeueRequestedError

    def request_requeue(self) -> None:
        """Let the next `check` stop the work, so that another worker can do it."""
        self._stop_reason = self._stop_reason or RequeueRequestedError

    def check(self) -> None:
        """Raises LeaseLostError, CancelRequestedError or RequeueRequestedError once it is known."""
        if self._stop_reason is not None:
            raise self._stop_reason(f"job {self.job_id}: attempt {self.attempt} must stop")

    def report(self, stage: Stage, progress: float) -> None:
        """Show what the job is doing, and how much of it is done (0 to 1). Raises as `check`: stop working."""
        self.check()
        now = time.monotonic()
        if stage == self._state.stage and now - self._reported_at < _REPORT_EVERY_SECONDS:
            return
        self._reported_at = now
        self._state = states.changed(
            self._state,
            stage=stage,
            progress=min(max(progress, self._state.progress), 1.0),
            input=self.scan,
            updated_at=states.now(),
        )
        try:
            self._backends.live.put(self._state, guard=self.value)
        except BrokerUnavailableError:
            log.warning("job %s: progress cannot be shown", self.job_id)

    def fence(self) -> None:
        """The last question before an outcome is published, asked of the blobs, which alone decide.

        Raises:
            JobPurgedError: the job was deleted; what this attempt left is deleted too.
            LeaseLostError: the attempt has ended, another has begun, or the job is final.
            CancelRequestedError: someone asked to stop.
        """
        files = self._backends.store.files(self.job_id)
        if files.is_purged:
            self._backends.store.delete_all_but_tombstone(self.job_id)
            raise JobPurgedError(self.job_id)
        if files.is_final or files.has_ended(self.attempt) or files.attempt > self.attempt:
            raise LeaseLostError(f"job {self.job_id}: attempt {self.attempt} may publish nothing")
        if files.cancel_requested:
            raise CancelRequestedError(f"job {self.job_id}: cancelled")

    def drop(self) -> None:
        """Let others claim the job at once."""
        try:
            self._backends.live.drop_lease(self.job_id, self.value)
        except BrokerUnavailableError:
            log.warning("job %s: the lease stays until it expires", self.job_id)

    def _beat(self) -> None:
        settings = self._backends.settings
        stop_due_at: float | None = None
        while not self._pause():
            try:
                self._stop_reason = self._stop_reason or self._find_stop_reason()
            except UnavailableError as error:
                # Neither proof of loss nor of life: go on; nothing can be published unseen.
                log.warning("job %s: heartbeat missed: %s", self.job_id, error)
            if self._stop_reason is None:
                continue
            stop_due_at = stop_due_at or time.monotonic()
            if self.on_overdue and time.monotonic() - stop_due_at > settings.cancel_grace_seconds:
                self.on_overdue(self)
                return

    def _pause(self) -> bool:
        """Until the next beat, or until someone asked to stop, which Redis knows at once. True: the lease has ended."""
        beat_at = time.monotonic() + self._backends.settings.heartbeat_seconds
        while (left_seconds := beat_at - time.monotonic()) > 0:
            if self._stop.wait(min(left_seconds, _LISTEN_EVERY_SECONDS)):
                return True
            with suppress(BrokerUnavailableError):
                if self._stop_reason is None and self._backends.live.is_cancel_requested(self.job_id):
                    return False
        return self._stop.is_set()

    def _find_stop_reason(self) -> StopReason | None:
        files = self._backends.store.files(self.job_id)
        if files.is_purged or files.cancel_requested:
            return CancelRequestedError
        if files.is_final or files.has_ended(self.attempt):
            return LeaseLostError
        lease_seconds = self._backends.settings.lease_seconds
        is_ours = self._backends.live.renew_lease(self.job_id, self.value, self.attempt, lease_seconds)
        return None if is_ours else LeaseLostError
