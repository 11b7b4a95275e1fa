"""Secrets that nobody configured: made once, kept in the data folder for this user alone."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobs.errors import BlobStoreUnavailableError


def kept_secret(path: Path, make: Callable[[], str]) -> str:
    """The secret in a file; of many processes that make one, one wins.

    Raises:
        BlobStoreUnavailableError: the file cannot be written or read.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            secret = make()
            whole = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
            descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secret)
            with suppress(FileExistsError):
                os.link(whole, path)  # unlike a rename, never replaces the key of another
            whole.unlink()
        return path.read_text()
    except OSError as error:
        raise BlobStoreUnavailableError(f"{path.name} cannot be kept: {type(error).__name__}") from error
