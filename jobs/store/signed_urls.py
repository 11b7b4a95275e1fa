"""Signed addresses of the gateway for the parts of an upload, where no S3 server gives presigned ones.

The signature (HMAC-SHA256, RFC 2104) holds for one tenant, one upload, one part and until one second.
"""

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from jobs.access.caller import DEFAULT_TENANT
from jobs.errors import StorageUnavailableError, UrlNotValidError
from jobs.settings import JobsSettings
from jobs.states import UrlSignature


class UrlSigner:
    """Signs the addresses of parts and verifies them. The key is made when it is first needed."""

    def __init__(self, settings: JobsSettings, tenant: str = DEFAULT_TENANT) -> None:
        self._settings, self._tenant = settings, tenant

    def sign(self, upload_id: str, number: int, expires: int) -> UrlSignature:
        return UrlSignature(expires, self._hmac(upload_id, number, expires), self._tenant)

    def verify(self, signed: UrlSignature, upload_id: str, number: int) -> None:
        """Raises UrlNotValidError: the signature is of something else, changed, or expired."""
        expected = self._hmac(upload_id, number, signed.expires)
        # Compared as bytes, since compare_digest raises on text that is not ASCII, and clients may send any.
        if not hmac.compare_digest(expected.encode(), signed.signature.encode("utf-8", errors="replace")):
            raise UrlNotValidError("the signature is not one of this service")
        if signed.expires <= time.time():
            raise UrlNotValidError("this address has expired", expired_seconds_ago=int(time.time() - signed.expires))

    def _hmac(self, upload_id: str, number: int, expires: int) -> str:
        # As it always was for `default`: addresses that were given before an upgrade are good after it.
        of_tenant = "" if self._tenant == DEFAULT_TENANT else f" of {self._tenant}"
        message = f"PUT part{of_tenant}\n{upload_id}\n{number}\n{expires}"
        return hmac.new(self._key, message.encode(), hashlib.sha256).hexdigest()

    @cached_property
    def _key(self) -> bytes:
        given = self._settings.signing_key
        if given:
            return given.get_secret_value().encode()
        path = self._settings.data_dir / "signing-key"
        return read_or_make_secret(path, lambda: secrets.token_hex(32)).encode()


def read_or_make_secret(path: Path, make: Callable[[], str]) -> str:
    """A secret that nobody configured, from its file, which is made at the first call and readable by this user alone.

    Raises StorageUnavailableError: the file cannot be written or read.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # A whole file under another name first: a reader never sees half a secret.
            whole = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
            with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(make())
            with suppress(FileExistsError):
                os.link(whole, path)  # unlike a rename, never replaces the secret that another process made meanwhile
            whole.unlink()
        return path.read_text()
    except OSError as error:
        raise StorageUnavailableError(f"{path.name} cannot be kept: {type(error).__name__}") from error
