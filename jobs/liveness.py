"""A file that a process touches while it lives, for a liveness probe that depends on nothing else.

python -m jobs.liveness     the health check of a worker's image: 0 while the file is fresh
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FILE_VARIABLE: Final = "LOBEWISE_LIVENESS_FILE"
ALIVE_EVERY_SECONDS: Final = 5.0

#: A process that has not touched its file for longer hangs.
STALE_SECONDS: Final = 120.0


@contextmanager
def alive(path: Path | None) -> Iterator[None]:
    """Touch the file, if one is named, until the block ends."""
    if path is None:
        yield
        return
    stop = threading.Event()

    def touch() -> None:
        path.touch()
        while not stop.wait(ALIVE_EVERY_SECONDS):
            path.touch()

    thread = threading.Thread(target=touch, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def is_alive(path: Path) -> bool:
    """Whether the process that touches the file has done so of late."""
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False


def named_file() -> Path | None:
    """The file that the environment names. Read alone: a health check comes every few seconds and has to be cheap."""
    name = os.environ.get(FILE_VARIABLE)
    return Path(name) if name else None


def main() -> int:
    """The exit code of a health check."""
    path = named_file()
    if path is None:
        print(f"{FILE_VARIABLE} is not set", file=sys.stderr)
        return 1
    return 0 if is_alive(path) else 1


if __name__ == "__main__":
    sys.exit(main())
