"""Records who did what: one thread of each process stores what the others hand it (`entries` says how that looks).

Changes are stored before their request is answered; what is only read waits some seconds, so that one blob takes many
entries. A store that refuses them stops nobody at once, since deleting is what frees a full one: entries wait in
memory, the gauge and the log say so, and when those that may wait are too many, reads are refused before changes.
"""

import logging
import math
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from typing import Any, Final

import redis

from jobs import states
from jobs.audit.entries import (
    AUDIT,
    Act,
    AuditKey,
    Entry,
    Head,
    SegmentKey,
    TamperedError,
    chained,
    first_previous,
    read_segment,
    sealed,
)
from jobs.errors import StorageUnavailableError, UnavailableError
from jobs.live.audit_heads import AuditHeads
from jobs.settings import JobsSettings
from jobs.store.object_store import ObjectStore
from jobs.version import __version__

log = logging.getLogger("lobewise.audit")

#: Some 400 bytes each.
SEGMENT_ENTRIES: Final = 1000
#: Entries that may wait for a store that refuses them, about 10 MB; then reads are refused.
WAITING_LIMIT: Final = 20_000
#: So many more changes may wait, so that what is deleted to free a full store is recorded, too.
CHANGES_RESERVE: Final = 2_000
RETRY_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 0.05
#: How long a process that ends tries to store what waits.
CLOSE_SECONDS: Final = 5.0
#: A store that is down for a night fills no disk with complaints.
COMPLAIN_EVERY_SECONDS: Final = 60.0
#: Redis is not asked for so long after it did not answer.
TELL_AGAIN_SECONDS: Final = 5.0
#: Of the chains before it, as a chain's first entry names them.
HEADS_NAMED: Final = 200


@dataclass
class _Batch:
    """Entries that go into one segment. `stored` is done when they are in the store."""

    entries: list[Entry]
    stored: "Future[None]"


@dataclass
class _Chain:
    """A chain that is being written."""

    day: str
    id: str
    previous: str
    segments: int = 0
    n: int = 0

    def segment(self, entries: Sequence[Entry], sealed_by: AuditKey | None) -> "_Segment":
        """The next one, of these entries."""
        lines = []
        for entry in entries:
            self.n += 1
            line, self.previous = chained(entry.fields(), self.n, self.previous)
            lines.append(line)
        self.segments += 1
        key = SegmentKey(self.day, self.id, self.segments, f"{entries[0].at:%H%M%S}")
        head = Head(self.day, self.id, self.n, self.previous)
        return _Segment(key, sealed(lines, key, head, sealed_by), head)


@dataclass(frozen=True)
class _Segment:
    """Made and not yet stored: repeated as it is until the store has it, so that it is never there twice."""

    key: SegmentKey
    data: bytes
    head: Head


class AuditTrail:
    """What this process records; thread-safe. Nothing runs before the first entry."""

    def __init__(self, blobs: ObjectStore, settings: JobsSettings, heads: AuditHeads | None = None) -> None:
        self.level = settings.audit
        self.blobs = blobs
        #: How many entries of each act were recorded, and how many refusals were dropped while the trail was full.
        self.recorded: Counter[str] = Counter()
        self.dropped = 0
        self._heads = heads
        self._keys = audit_keys(settings)
        self._seconds = settings.audit_seconds
        self._changed = threading.Condition()
        self._waiting = _Batch([], Future())
        self._merged: dict[tuple[Any, ...], Entry] = {}
        self._waiting_since: float | None = None
        self._under_way = 0
        self._is_urgent = self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._chain: _Chain | None = None
        self._complained_at = -COMPLAIN_EVERY_SECONDS
        self._untold: Head | None = None
        self._tell_again_at = -math.inf

    def refuses(self, entry: Entry) -> bool:
        """Whether what this entry would record must not be done, since too many wait to be stored."""
        limit = WAITING_LIMIT + (CHANGES_RESERVE if entry.is_change else 0)
        return entry.is_wanted(self.level) and self.waiting >= limit

    @property
    def waiting(self) -> int:
        """Entries that are not stored yet."""
        return len(self._waiting.entries) + self._under_way

    @property
    def is_full(self) -> bool:
        """Whether reads are refused."""
        return self.waiting >= WAITING_LIMIT

    def behind_seconds(self) -> float:
        """For how long the oldest entry that is not stored has waited."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since

    def record(self, entry: Entry) -> "Future[None] | None":
        """Take it, to be stored in some seconds, or at once where it is a change; None where the level leaves it out.

        The future is done when the store has it. It is shared with others: wait for it, and do not cancel it.
        """
        if not entry.is_wanted(self.level):
            return None
        with self._changed:
            merge_key = entry.merge_key
            if merge_key is not None:
                if (earlier := self._merged.get(merge_key)) is not None:
                    earlier.times += 1
                    return self._waiting.stored
                # A refusal, or a look that somebody who asked before the trail was full waited for.
                if self.is_full:
                    self.dropped += 1
                    return None
                self._merged[merge_key] = entry
            self.recorded[entry.act.value] += 1
            self._waiting.entries.append(entry)
            if self._waiting_since is None:
                self._waiting_since = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                self._thread.start()
            is_first, self._is_urgent = not self._is_urgent, self._is_urgent or entry.is_change
            if (self._is_urgent and is_first) or len(self._waiting.entries) in (1, SEGMENT_ENTRIES):
                self._changed.notify()
            return self._waiting.stored

    def record_stored(self, entry: Entry, seconds: float = CLOSE_SECONDS) -> None:
        """The same, and wait until it is stored. Raises StorageUnavailableError: it is not, in that time."""
        stored = self.record(entry)
        try:
            if stored is not None:
                stored.result(seconds)
        except TimeoutError as error:
            raise StorageUnavailableError("the audit trail cannot be stored") from error

    def forget(self, day: str) -> None:
        """A day whose chains are deleted needs no heads in Redis; if they stay there, they do no harm."""
        if self._heads is not None:
            with suppress(UnavailableError):
                self._heads.forget(day)

    def close(self) -> None:
        """Store what waits, and end the chain; the log says what could not be stored."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS + RETRY_SECONDS)
            if self.waiting:
                log.error("%d entries of the audit trail are lost: the store did not take them", self.waiting)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopping or self._waiting.entries)
                # Others of the same seconds go into the same blob.
                self._changed.wait_for(
                    lambda: self._is_stopping or self._is_urgent or len(self._waiting.entries) >= SEGMENT_ENTRIES,
                    self._seconds,
                )
                batch = self._waiting
                self._waiting, self._merged, self._is_urgent = _Batch([], Future()), {}, False
                self._under_way = len(batch.entries)
            if not self._store(batch.entries):
                return
            with self._changed:
                self._under_way = 0
                self._waiting_since = time.monotonic() if self._waiting.entries else None
                is_over = self._is_stopping and not self._waiting.entries
            batch.stored.set_result(None)
            if is_over and self._chain is not None:
                self._append([Entry(Act.END)])
            self._tell_redis()
            if is_over:
                return

    def _store(self, entries: Sequence[Entry]) -> bool:
        """Until the store has them all; False where the process ends before."""
        for day, found in groupby(entries, key=lambda entry: entry.at.date().isoformat()):
            # A clock that is set back changes no chain.
            if self._chain is not None and day > self._chain.day:
                if not self._append([Entry(Act.END)]):
                    return False
                self._tell_redis()
                self._chain = None
            some = list(found)
            for at in range(0, len(some), SEGMENT_ENTRIES):
                if not self._append(some[at : at + SEGMENT_ENTRIES]):
                    return False
        return True

    def _append(self, entries: Sequence[Entry]) -> bool:
        """Store them as one segment, however often that has to be tried; False where the process ends before."""
        segment: _Segment | None = None
        stopping_since: float | None = None
        while True:
            try:
                segment = segment or self._next_segment(entries)
                name = str(segment.key)
                # It may be there because the store took it the time before, and only the answer was lost.
                if self.blobs.create(name, segment.data) or self.blobs.read(name) == segment.data:
                    head = self._untold = segment.head
                    # The log is out of the store's reach, too.
                    said = f"{head.day} {head.chain} {head.n} {head.hash}"
                    log.info("audit segment stored", extra={"audit_head": said})
                    return True
                # What cannot go on in this chain goes into another, which names the head of this one as it is stored.
                log.error("audit segment %s was stored by somebody else: a new chain begins", segment.key)
                self._chain = segment = None
                continue
            except StorageUnavailableError as error:
                if time.monotonic() - self._complained_at >= COMPLAIN_EVERY_SECONDS:
                    self._complained_at = time.monotonic()
                    log.error("%d entries of the audit trail wait to be stored: %s", self.waiting, error)
            with self._changed:
                if self._is_stopping:
                    stopping_since = stopping_since or time.monotonic()
                    if time.monotonic() - stopping_since > CLOSE_SECONDS:
                        return False
                self._changed.wait_for(lambda: self._is_stopping, RETRY_SECONDS)
            time.sleep(PAUSE_SECONDS)

    def _next_segment(self, entries: Sequence[Entry]) -> _Segment:
        if self._chain is None:
            day = entries[0].at.date().isoformat()
            chain = _Chain(day, chain_id := states.new_id(), first_previous(day, chain_id))
            # A chain begins with where the others of its day and of the last day before it stand. So an end that is
            # cut off later is missed by every chain that began after it.
            days = [*[earlier for earlier in sorted(self.blobs.folders(AUDIT)) if earlier < day][-1:], day]
            more: dict[str, Any] = {
                "heads": [head.fields() for head in stored_heads(self.blobs, days)[-HEADS_NAMED:]],
                "host": socket.gethostname(),
                "process": os.getpid(),
                "software": __version__,
            }
            entries = [Entry(Act.BEGIN, at=entries[0].at, more=more), *entries]
            self._chain = chain
        return self._chain.segment(entries, self._keys[0] if self._keys else None)

    def _tell_redis(self) -> None:
        """Where the chain stands, to whom a change of the store does not reach."""
        head, now = self._untold, time.monotonic()
        # After the entry is known to be stored, and not again and again where Redis is silent: others wait for us.
        if head is None or self._heads is None or now < self._tell_again_at:
            return
        try:
            self._heads.show(head)
            self._untold = None
        except (UnavailableError, redis.RedisError) as error:
            self._tell_again_at = now + TELL_AGAIN_SECONDS
            log.debug("Redis was not told of an audit head: %s", error)


def audit_keys(settings: JobsSettings) -> list[AuditKey]:
    """The keys that seal and verify segments; the first one seals."""
    given = settings.audit_keys.get_secret_value().split() if settings.audit_keys is not None else []
    return [AuditKey(text.encode()) for text in given]


def record_at_once(blobs: ObjectStore, settings: JobsSettings, *entries: Entry) -> None:
    """What a command did, in a chain of its own. Raises StorageUnavailableError: it is not stored."""
    trail = AuditTrail(blobs, settings)
    try:
        for entry in entries:
            trail.record_stored(entry)
    finally:
        trail.close()


def stored_heads(blobs: ObjectStore, days: Iterable[str]) -> list[Head]:
    """Where each chain of these days stands in the store; segments that are no good are left to `verify`."""
    last: dict[tuple[str, str], SegmentKey] = {}
    for day in days:
        for key in filter(None, map(SegmentKey.parse, blobs.keys(f"{AUDIT}{day}/"))):
            last[key.day, key.chain] = max(key, last.get((key.day, key.chain), key))
    heads = []
    for key in sorted(last.values()):
        with suppress(TamperedError):
            heads.append(read_segment(key, blobs.read(str(key)) or b"").head)
    return heads


def delete_expired(trail: AuditTrail, retention_days: int, today: date) -> int:
    """Delete the days of the trail that are past its retention, and record that; how many there were.

    Raises StorageUnavailableError.
    """
    oldest = (today - timedelta(days=retention_days)).isoformat()
    expired = [day for day in sorted(trail.blobs.folders(AUDIT)) if day < oldest]
    for day in expired:
        # Recorded first: what is gone without a word was taken away by somebody else.
        trail.record_stored(Entry(Act.EXPIRE, subject="retention", kind="trail", id=day))
        trail.blobs.delete_all(f"{AUDIT}{day}/")
        trail.forget(day)
    return len(expired)
