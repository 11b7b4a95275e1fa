"""Who may read what a process of the service writes."""

import os
import stat
from pathlib import Path

from jobs.settings import JobsSettings


def keep_private(settings: JobsSettings) -> None:
    """From now on all files and folders of this process, and of those that it starts, are as `umask` says."""
    os.umask(int(settings.umask, 8))


def open_to_others(folder: Path, umask: str) -> list[Path]:
    """Of a folder and the files and folders in it those that others may read or enter, though `umask` forbids it.

    Not below them: one that is open is enough to be told of, and there may be millions.
    """
    forbidden = int(umask, 8)
    found = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    return [path for path in found if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & forbidden]
