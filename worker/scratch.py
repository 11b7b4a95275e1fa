"""Where a worker process keeps scans while it works on them.

A process that is killed cannot clean up, and patients' scans must not pile up in the temporary folder. So each
process has a folder of its own, marked by a lock that ends with it, and deletes those whose process is gone.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

PREFIX: Final = "lobewise-worker-"


def open_scratch() -> Path:
    """Delete what dead processes left, then make this process' own folder and let `tempfile` use it."""
    parent = Path(tempfile.gettempdir())
    clean_up(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    _lock(folder)  # held until the process ends
    tempfile.tempdir = str(folder)
    return folder


def clean_up(parent: Path) -> int:
    """Delete the folders of processes that are gone; how many there were."""
    deleted = 0
    for folder in parent.glob(PREFIX + "*"):
        if folder.stat().st_uid != os.getuid():
            continue
        # A lock is free exactly if its process has ended, whereas its process id may be another process by now.
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
            deleted += 1
    return deleted


def _lock(folder: Path) -> int | None:
    """The descriptor that holds the folder's lock; None if another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
