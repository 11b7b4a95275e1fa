"""A file that a process touches while it lives, for a liveness probe that depends on nothing else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ALIVE_EVERY_SECONDS: Final = 5.0


@contextmanager
def alive(path: Path | None) -> Iterator[None]:
    """Touch the file, if one is named, until the block ends."""
    if path is None:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_touch, args=(path, stop), name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _touch(path: Path, stop: threading.Event) -> None:
    while True:
        path.touch()
        if stop.wait(ALIVE_EVERY_SECONDS):
            return
