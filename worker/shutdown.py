"""A worker that gets SIGTERM finishes its running job, or requeues it when the time for that is over.

The parent gets the SIGTERM and sends SIGUSR2 to its processes when the time is over.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

from jobs.attempts import Lease

#: Not SIGTERM, SIGINT or SIGQUIT, which Celery's pool handles itself, nor SIGUSR1, its soft time limit.
REQUEUE_SIGNAL: Final = signal.SIGUSR2


class Drain:
    """In a worker process: whether its job shall be requeued, now or as soon as it has one."""

    def __init__(self) -> None:
        self._is_due = False
        self._lease: Lease | None = None

    def listen(self) -> None:
        """Requeue at the parent's signal; to be called by the main thread."""

        def requeue(_number: int, _frame: FrameType | None) -> None:
            self._is_due = True
            if self._lease is not None:
                self._lease.request_requeue()

        signal.signal(REQUEUE_SIGNAL, requeue)

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """While the job of this lease runs."""
        self._lease = lease
        # The signal may have come while the process had no job, and comes only once.
        if self._is_due:
            lease.request_requeue()
        try:
            yield
        finally:
            self._lease = None


def requeue_after(seconds: float | None, pids: Callable[[], Iterable[int]]) -> Callable[..., None]:
    """In the parent: what to do on SIGTERM. With `seconds` None the running job is finished, however long it takes."""

    def send_requeue() -> None:
        for pid in pids():
            with suppress(ProcessLookupError):
                os.kill(pid, REQUEUE_SIGNAL)

    def on_stop(**_signal: Any) -> None:
        if seconds is not None:
            timer = threading.Timer(seconds, send_requeue)
            # A worker that is done earlier must not wait for the timer.
            timer.daemon = True
            timer.start()

    return on_stop
