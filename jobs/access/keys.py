"""Keys to the API: random, shown once, stored hashed. `Keys` makes and ends them, `KeyRing` knows them all.

A key's document is created once and never changed; what ends it is a blob beside it. So nobody overwrites what another
writes at the same time, and of several ends the earliest holds: what is revoked stays revoked.
"""

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import AwareDatetime, Field, ValidationError

from jobs import states
from jobs.access.caller import DEFAULT_TENANT, TENANT_NAME, Caller, Role
from jobs.errors import JobsError, NewerSchemaError, StorageUnavailableError
from jobs.models import SCHEMA_VERSION, Model, SchemaVersion, Sha256
from jobs.store.keys import ACCESS_KEYS
from jobs.store.object_store import ObjectStore

log = logging.getLogger(__name__)

#: So that scanners for secrets, and people, see what it is.
PREFIX: Final = "lobewise"
KEY: Final = re.compile(rf"{PREFIX}_([0-9a-f]{{16}})_[A-Za-z0-9_-]{{43}}")
#: A gateway looks for new keys, and for what has ended, that often: one listing of a short prefix.
REFRESH_SECONDS: Final = 2.0
#: How long a start waits for the first listing.
FIRST_SECONDS: Final = 3.0
#: How long it trusts what it knows while the store does not answer; polls go on without the store, too.
STALE_SECONDS: Final = 300.0
#: Compared with where no key has the id, so that the answer takes as long.
_NO_DIGEST: Final = hashlib.sha256(b"").hexdigest()


class StoredKey(Model):
    """`key.json`: who has the key, and what for. The key itself cannot be found again from it."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    id: str
    #: Of the whole key. It has 256 random bits: nobody guesses it, so that a slow hash would slow down callers alone.
    sha256: Sha256
    name: str = Field(max_length=200)
    tenant: str = Field(pattern=f"^{TENANT_NAME}$")
    roles: frozenset[Role]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    replaces: str | None = Field(default=None, description="id of the key in whose place it came")


@dataclass(frozen=True)
class KeyState:
    """A key as it stands."""

    key: StoredKey
    #: By its own date or by what ended it, whichever is earlier; None: never.
    ends_at: datetime | None
    is_revoked: bool

    def is_valid_at(self, moment: datetime) -> bool:
        return not self.is_revoked and (self.ends_at is None or moment < self.ends_at)

    def status(self) -> str:
        if self.is_revoked:
            return "revoked"
        return "valid" if self.is_valid_at(states.now()) else "expired"


class NoSuchKeyError(JobsError):
    pass


class Keys:
    """All keys of a service, in its object store. Every method raises StorageUnavailableError."""

    def __init__(self, blobs: ObjectStore) -> None:
        self._blobs = blobs

    def create(
        self,
        name: str,
        roles: frozenset[Role],
        tenant: str = DEFAULT_TENANT,
        expires_at: datetime | None = None,
        replaces: str | None = None,
    ) -> tuple[str, StoredKey]:
        """A new key, which is nowhere but in this answer, and its document."""
        key_id = secrets.token_hex(8)
        key = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
        stored = StoredKey(
            id=key_id,
            sha256=_digest(key),
            name=name,
            tenant=tenant,
            roles=roles,
            created_at=states.now(),
            expires_at=expires_at,
            replaces=replaces,
        )
        if not self._blobs.create(f"{ACCESS_KEYS}{key_id}/key.json", stored.stored()):
            raise RuntimeError("a random id was taken already")
        return key, stored

    def revoke(self, key_id: str) -> KeyState:
        """End a key at once, and for good. Raises NoSuchKeyError."""
        self.get(key_id)
        # No time: a clock that goes wrong where this is called must not put it off.
        self._blobs.create(f"{ACCESS_KEYS}{key_id}/ends/0", b"{}")
        return self.get(key_id)

    def rotate(self, key_id: str, overlap: timedelta) -> tuple[str, StoredKey]:
        """A key in the place of another, which is good for `overlap` more; it has the same life before it.

        Raises:
            NoSuchKeyError: there is none, or it has ended.
        """
        now, before = states.now(), self.get(key_id)
        if not before.is_valid_at(now):
            raise NoSuchKeyError(f"the key {key_id} has ended: create a new one")
        old = before.key
        expires_at = None if old.expires_at is None else now + (old.expires_at - old.created_at)
        made = self.create(old.name, old.roles, old.tenant, expires_at, replaces=key_id)
        if overlap <= timedelta(0):
            self.revoke(key_id)
        else:
            ends_at = int((now + overlap).timestamp() * 1000)
            self._blobs.create(f"{ACCESS_KEYS}{key_id}/ends/{ends_at}", b"{}")
        return made

    def get(self, key_id: str) -> KeyState:
        """Raises NoSuchKeyError."""
        # Whole ids alone: what a person typed becomes a part of a path.
        if re.fullmatch(r"[0-9a-f]{16}", key_id):
            for state in self._read({}, f"{ACCESS_KEYS}{key_id}/"):
                return state
        raise NoSuchKeyError(f"there is no key {key_id}")

    def all(self, known: dict[str, StoredKey] | None = None) -> list[KeyState]:
        """Oldest first. `known` are read already: they never change."""
        found = sorted(self._read(known or {}, ACCESS_KEYS), key=lambda state: state.key.created_at)
        if not found:
            self._blobs.check()  # of a folder that is gone the list is empty, too
        return found

    def _read(self, known: dict[str, StoredKey], prefix: str) -> Iterator[KeyState]:
        ids, ends = set(), dict[str, list[int]]()
        for name in self._blobs.keys(prefix):
            key_id, _, rest = name.removeprefix(ACCESS_KEYS).partition("/")
            if rest == "key.json":
                ids.add(key_id)
            elif rest.startswith("ends/") and rest[5:].isdigit():
                ends.setdefault(key_id, []).append(int(rest[5:]))
        for key_id in ids:
            try:
                key = known.get(key_id) or self._blobs.read_document(StoredKey, f"{ACCESS_KEYS}{key_id}/key.json")
            except (NewerSchemaError, ValidationError, ValueError) as error:
                # One that cannot be understood opens nothing, and does not shut the others out.
                log.warning("the key %s cannot be read: %s", key_id, type(error).__name__)
                continue
            if key is None or key.id != key_id:
                continue
            moments = [datetime.fromtimestamp(end / 1000, UTC) for end in ends.get(key_id, ()) if end]
            moments += [key.expires_at] if key.expires_at else []
            yield KeyState(key, min(moments, default=None), 0 in ends.get(key_id, ()))


class KeyRing:
    """What a gateway knows of the keys, in memory, so that no call waits for the store.

    A thread reads the store's list every `REFRESH_SECONDS`: by then, and the time that a listing takes, a key that was
    revoked anywhere opens nothing here.
    """

    def __init__(self, blobs: ObjectStore) -> None:
        self._keys = Keys(blobs)
        self._documents: dict[str, StoredKey] = {}
        self._held: dict[str, tuple[KeyState, Caller]] = {}
        self._read_at: float | None = None
        self._ever = False
        self._tried, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def has_keys(self) -> bool:
        """Whether there was a key at any time, valid or not: who ends all keys does not open the doors."""
        return self._ever

    @property
    def states(self) -> list[KeyState]:
        """All that are known."""
        return [state for state, _ in self._held.values()]

    @property
    def is_known(self) -> bool:
        """Whether the keys were read at all."""
        return self._read_at is not None

    def start(self) -> None:
        """Read the keys, again and again, in a thread; returns once it has, or when the store seems not to answer."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
            self._thread.start()
        self._tried.wait(FIRST_SECONDS)

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def find(self, given: str) -> Caller | None:
        """Whose key it is; None for one that is wrong, expired or revoked.

        Raises:
            StorageUnavailableError: the keys have not been read for too long.
        """
        if self._read_at is None or time.monotonic() - self._read_at > STALE_SECONDS:
            raise StorageUnavailableError("the keys have not been read for too long")
        match = KEY.fullmatch(given)
        held = self._held.get(match[1]) if match else None
        is_right = hmac.compare_digest(_digest(given), held[0].key.sha256 if held else _NO_DIGEST)
        return held[1] if held and is_right and held[0].is_valid_at(states.now()) else None

    def refresh(self) -> None:
        """Raises StorageUnavailableError: what was known stays."""
        began = time.monotonic()
        found = self._keys.all(self._documents)
        self._documents = {state.key.id: state.key for state in found}
        self._held = {state.key.id: (state, Caller(state.key.tenant, state.key.id, state.key.roles)) for state in found}
        self._ever = self._ever or bool(found)
        self._read_at = began

    def _run(self) -> None:
        while True:
            try:
                self.refresh()
            except StorageUnavailableError as error:
                log.warning("the keys cannot be read: %s", error)
            # A thread that dies unseen would keep revoked keys alive until they are stale.
            except Exception:
                log.exception("reading the keys failed; it is tried again")
            self._tried.set()
            if self._stop.wait(REFRESH_SECONDS):
                return


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
