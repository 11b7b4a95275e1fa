"""Processes that tests start, their ports, and waiting for them."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path

#: A process that does not end so long after SIGTERM is killed.
STOP_SECONDS = 20.0


def until(is_so: Callable[[], bool], seconds: float = math.inf, every_seconds: float = 0.05) -> bool:
    """Whether it came to be so in time; without a limit the test's own ends the wait."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_seconds)
    return True


def answers(address: str) -> bool:
    """Whether a GET of this address is answered 200."""
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 (the tests' own servers)
            return bool(answer.status == 200)
    except (OSError, HTTPException):  # no connection, half an answer, or a status that is an error
        return False


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [taken.getsockname()[1] for taken in sockets]


@contextmanager
def running(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path, folder: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """The process, with this added to our environment and its output in `log`; stopped at the end of the block."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=stream, stderr=stream, cwd=folder)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception does, so that blocks stop what they started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
