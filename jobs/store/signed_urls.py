"""Signed leave to send one part of an upload to the gateway, where no S3 server gives presigned addresses.

A ticket names one upload, one part and the second at which it expires, signed with HMAC-SHA256 (RFC 2104).
"""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from functools import cached_property

from jobs.errors import TicketError
from jobs.settings import JobsSettings
from jobs.store.kept_secrets import kept_secret


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
        if given:
            return given.get_secret_value().encode()
        return kept_secret(self._settings.data_dir / "signing-key", lambda: secrets.token_hex(32)).encode()
