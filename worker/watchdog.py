"""Restarts a worker that gets no messages: it is ready and idle, while jobs wait.

After some losses of its connection a Celery worker stays connected and gets no message ever again. Nobody else can
tell: its processes live, and go on announcing that they are ready.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from jobs.errors import UnavailableError
from jobs.tracing import stop_tracing
from jobs.worker_api import WorkerApi

log = logging.getLogger(__name__)

#: So often it looks within `deaf_seconds`: a restart is late by a tenth of that time at most.
LOOKS: Final = 10


@dataclass(frozen=True)
class WorkerStatus:
    """What a look at the worker shows.

    Attributes:
        is_idle: it is ready and has no job.
        received: how many messages it ever got.
    """

    is_idle: bool
    received: int


class Watchdog:
    """Restarts a worker that stays idle for `deaf_seconds` while messages lie in the queues.

    Args:
        worker_status: looks at the worker.
        restart: what to do then.
    """

    def __init__(self, jobs: WorkerApi, worker_status: Callable[[], WorkerStatus], restart: Callable[[], None]) -> None:
        self._jobs, self._worker_status, self._restart = jobs, worker_status, restart
        self._seconds = jobs.settings.deaf_seconds
        self._idle_since: float | None = None
        self._received = 0

    def start(self) -> None:
        def run() -> None:
            pause = threading.Event()
            while not self.look(time.monotonic()):
                pause.wait(self._seconds / LOOKS)
            log.error("jobs wait, and this worker, which is idle, gets none: it starts anew")
            self._restart()

        threading.Thread(target=run, name="watchdog", daemon=True).start()

    def look(self, now: float) -> bool:
        """Whether the worker has got no messages for too long, at this monotonic time."""
        try:
            status = self._worker_status()
            is_passed_by = status.is_idle and status.received == self._received and self._jobs.has_messages()
            self._received = status.received
        except UnavailableError:
            # Without the broker nobody gets messages, and a restart would not help.
            is_passed_by = False
        if not is_passed_by:
            self._idle_since = None
            return False
        self._idle_since = now if self._idle_since is None else self._idle_since
        return now - self._idle_since > self._seconds


def start_anew(children: Iterable[int]) -> None:
    """Replace this process by a fresh one that was called as it was; its children, which are idle, end."""
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    stop_tracing()
    # The same process id goes on, so that neither Kubernetes nor `lobewise serve` sees a worker that ended.
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 (our own command line, no shell)
