"""Sessions of the pages: a browser has a sealed key in a cookie that no script reads.

A session is the key itself, encrypted (JWE, RFC 7516) under a secret that all gateways read from the object store. So
there is no list of sessions to keep: what ends the key ends its sessions, and a cookie that somebody copies is good for
some hours and for no other client. The secret alone opens nothing.
"""

import json
import secrets
import time
from typing import Final

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from jobs.errors import StorageUnavailableError
from jobs.store.object_store import ObjectStore

SEALED_BY: Final = "access/session-secret"
_HEADER: Final = {"alg": "dir", "enc": "A256GCM"}
_SECRET_BYTES: Final = 32


class Sessions:
    """Thread-safe. Every method raises StorageUnavailableError until the secret was read once."""

    def __init__(self, blobs: ObjectStore) -> None:
        self._blobs = blobs
        self._secret: OctKey | None = None

    def seal(self, key: str, seconds: int) -> str:
        """What the cookie holds, for that long."""
        content = json.dumps({"key": key, "exp": int(time.time()) + seconds})
        return jwe.encrypt_compact(_HEADER, content.encode(), self._key())

    def open(self, sealed: str) -> str | None:
        """The key; None for what is over, changed, or not one of ours."""
        try:
            content = json.loads(jwe.decrypt_compact(sealed, self._key()).plaintext or b"")
            return str(content["key"]) if time.time() < content["exp"] else None
        except (JoseError, ValueError, KeyError, TypeError):
            return None

    @property
    def is_ready(self) -> bool:
        """Whether the others wait for no store."""
        return self._secret is not None

    def _key(self) -> OctKey:
        if self._secret is None:
            # Of several gateways that make one, one wins.
            self._blobs.create(SEALED_BY, secrets.token_bytes(_SECRET_BYTES))
            stored = self._blobs.read(SEALED_BY)
            if stored is None or len(stored) != _SECRET_BYTES:
                raise StorageUnavailableError("the secret of the sessions cannot be read")
            self._secret = OctKey.import_key(stored)
        return self._secret
