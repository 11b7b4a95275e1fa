"""A worker that is told to stop finishes the job in hand, or hands it back when the time for that is over.

The parent gets the SIGTERM; it tells its processes by SIGUSR2 that the time is over.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

from jobs.attempts import Lease

REQUEUE_SIGNAL: Final = signal.SIGUSR2


class Drain:
    """In a worker process: whether its job shall be handed back, now or as soon as it has one."""

    def __init__(self) -> None:
        self._is_due = False
        self._lease: Lease | None = None

    def listen(self) -> None:
        """Hand back at the parent's word; to be called by the main thread."""
        signal.signal(REQUEUE_SIGNAL, self._heard)

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """While the job of this lease is in hand."""
        self._lease = lease
        if self._is_due:
            lease.requeue()
        try:
            yield
        finally:
            self._lease = None

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self._is_due = True
        if self._lease is not None:
            self._lease.requeue()


def requeue_after(seconds: float | None, pids: Callable[[], Iterable[int]]) -> Callable[..., None]:
    """In the parent: what to do when it is told to stop. None: the job in hand is finished, however long it takes."""

    def told_to_stop(**_signal: Any) -> None:
        if seconds is not None:
            timer = threading.Timer(seconds, _tell, args=(pids,))
            timer.daemon = True
            timer.start()

    return told_to_stop


def _tell(pids: Callable[[], Iterable[int]]) -> None:
    for pid in pids():
        with suppress(ProcessLookupError):
            os.kill(pid, REQUEUE_SIGNAL)
