"""Signed leave to send one part of an upload to the gateway, where no S3 server gives presigned addresses.

A ticket names one upload, one part and the second at which it expires, signed with HMAC-SHA256 (RFC 2104).
"""

import hashlib
import hmac
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lobewise.jobs.errors import BlobStoreUnavailableError, TicketError
from lobewise.jobs.settings import JobsSettings


@dataclass(frozen=True)
class Ticket:
    """`expires` is in seconds since 1970."""

    expires: int
    signature: str


class TicketOffice:
    """Gives tickets and checks them. The key is made when it is first needed."""

    def __init__(self, settings: JobsSettings) -> None:
        self._settings = settings

    def issue(self, upload_id: str, number: int, expires: int) -> Ticket:
        return Ticket(expires, self._sign(upload_id, number, expires))

    def check(self, ticket: Ticket, upload_id: str, number: int) -> None:
        """Raises TicketError: it is for something else, changed, or expired."""
        expected = self._sign(upload_id, number, ticket.expires)
        if not hmac.compare_digest(expected.encode(), ticket.signature.encode("utf-8", errors="replace")):
            raise TicketError("the signature is not one of this service")
        if ticket.expires <= time.time():
            raise TicketError("this address has expired", expired_seconds_ago=int(time.time() - ticket.expires))

    def _sign(self, upload_id: str, number: int, expires: int) -> str:
        message = f"PUT part\n{upload_id}\n{number}\n{expires}"
        return hmac.new(self._key, message.encode(), hashlib.sha256).hexdigest()

    @cached_property
    def _key(self) -> bytes:
        given = self._settings.signing_key
        return given.get_secret_value().encode() if given else _kept(self._settings.data_dir / "signing-key")


def _kept(path: Path) -> bytes:
    """The key in a file that this user alone can read; of many processes that make one, one wins."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        return path.read_bytes()
    except OSError as error:
        raise BlobStoreUnavailableError(f"the signing key cannot be kept: {type(error).__name__}") from error


def _make(path: Path) -> None:
    whole = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_hex(32).encode())
    with suppress(FileExistsError):
        os.link(whole, path)  # unlike a rename, never replaces the key of another
    whole.unlink()
