"""Runs the embedded server until nobody uses it: `python -m jobs.server_supervisor FOLDER SERVER`.

Users hold a shared lock on `users` for as long as they live. So the lock becomes free when the last one is gone,
killed or not, and no server is left behind.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_unused(users: int) -> bool:
    """Whether nobody else holds the lock of this descriptor, which then holds it exclusively."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def guard(folder: Path, binary: str) -> None:
    """Run the server until it ends or nobody uses it any more."""
    process = subprocess.Popen([binary, str(folder / "valkey.conf")])  # noqa: S603 (our own wheel's server)
    users = os.open(folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
    while process.poll() is None:
        fcntl.flock(users, fcntl.LOCK_EX)  # waits until all are gone
        fcntl.flock(users, fcntl.LOCK_UN)
        with locked(folder / "lock"):  # nobody can join now
            if is_unused(users):
                process.terminate()
                process.wait()


if __name__ == "__main__":
    guard(Path(sys.argv[1]), sys.argv[2])
