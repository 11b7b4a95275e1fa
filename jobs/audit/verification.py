"""Finds what was changed in a stored audit trail, and reads it in the order of its times."""

import heapq
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from jobs.audit.entries import (
    AUDIT,
    Act,
    AuditKey,
    Fields,
    Head,
    Segment,
    SegmentKey,
    TamperedError,
    first_previous,
    read_segment,
)
from jobs.store.object_store import ObjectStore

#: Segments that are read at once: a store may be far away.
READ_AT_ONCE: Final = 8
#: And those that are in memory: 400 KB each at most.
READ_TOGETHER: Final = 64


@dataclass(frozen=True)
class Fault:
    """What is wrong, and where: at entry `n` of a chain, or 0 where no entry can be named."""

    where: str
    n: int
    why: str

    def __str__(self) -> str:
        return f"{self.where}{f' entry {self.n}' if self.n else ''}: {self.why}"


@dataclass
class Verification:
    """What was looked at. Any of `faults` means that the trail is not as it was written; `notes` may be harmless."""

    days: int = 0
    chains: int = 0
    segments: int = 0
    entries: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    heads: list[Head] = field(default_factory=list)


def verify(
    blobs: ObjectStore, keys: Sequence[AuditKey] = (), known: Iterable[tuple[str, Head]] = (), since: str = ""
) -> Verification:
    """Read all segments of the days from `since` on, and compare them with each other and with what is known of them.

    Args:
        keys: those that sealed. With any, a segment without a right HMAC is a fault from the first one on that has one.
        known: where chains stood, each with who says so.
        since: a day; earlier ones may be missing.

    Raises StorageUnavailableError.
    """
    found = Verification()
    chains: dict[tuple[str, str], list[SegmentKey]] = defaultdict(list)
    for name in blobs.keys(AUDIT):
        if (key := SegmentKey.parse(name)) is None:
            found.faults.append(Fault(name, 0, "it is no segment of the trail"))
        elif key.day >= since:
            chains[key.day, key.chain].append(key)
    found.days = len({day for day, _ in chains})
    ends: dict[tuple[str, str], dict[int, str]] = {}
    claims = [(f"{who}, which is not in the store,", head) for who, head in known]
    expired: set[str] = set()
    is_sealed = False
    # In the order in which the chains began, since ids sort so.
    for (day, chain), segment_keys in sorted(chains.items(), key=lambda item: item[0][1]):
        found.chains += 1
        reader = _ChainReader(blobs, day, chain, found)
        ends[day, chain] = reader.ends
        for segment in reader.read(sorted(segment_keys)):
            is_sealed = is_sealed or segment.sealed_by is not None
            reader.check_seal(segment, keys, is_needed=bool(keys) and is_sealed)
            for entry in segment.entries:
                if entry.get("act") == Act.BEGIN:
                    claims += [(f"chain {chain}", head) for head in reader.named(entry)]
                elif entry.get("act") == Act.EXPIRE:
                    expired.add(str(entry.get("id")))
    if is_sealed and not keys:
        found.notes.append(Fault("trail", 0, "its HMACs were not checked: LOBEWISE_AUDIT_KEYS is not set"))
    for who, head in sorted(claims, key=lambda claim: claim[1]):
        # Of a day that retention took away only this is left.
        if head.day < since or (head.day in expired and (head.day, head.chain) not in ends):
            continue
        stands = ends.get((head.day, head.chain))
        if stands is None or head.n not in stands:
            # It may have been written, and told, since this began to list.
            again = _ChainReader(blobs, head.day, head.chain, Verification())
            found_now = map(SegmentKey.parse, blobs.keys(f"{AUDIT}{head.day}/{head.chain}/"))
            for _ in again.read(sorted(filter(None, found_now))):
                stands = again.ends
        where = f"{head.day} {head.chain}"
        if stands is None:
            found.faults.append(Fault(where, head.n, f"the chain is missing: {who} knew its entry {head.n}"))
        elif stands.get(head.n) != head.hash:
            why = "its end was cut off" if head.n > max(stands, default=0) else "it is another one"
            found.faults.append(Fault(where, head.n, f"{why}: {who} knew it otherwise"))
    found.faults = list(dict.fromkeys(found.faults))
    return found


@dataclass
class _ChainReader:
    blobs: ObjectStore
    day: str
    chain: str
    found: Verification
    #: The hash of each entry that ends a segment.
    ends: dict[int, str] = field(default_factory=dict)

    def read(self, keys: Sequence[SegmentKey]) -> Iterator[Segment]:
        """Its segments that are right in themselves. What is wrong with the others, or between them, is noted."""
        n, previous = 0, first_previous(self.day, self.chain)
        last: Segment | None = None
        with closing(read_together(self.blobs, keys)) as read:
            for number, (key, data) in enumerate(read, 1):
                self.found.segments += 1
                if key.number != number:
                    self._fault(n + 1, f"segment {number} is missing, or there twice")
                    return
                try:
                    segment = read_segment(key, data)
                except TamperedError as error:
                    self._fault(error.n or n + 1, f"segment {number}: {error}")
                    return
                if segment.first != n + 1 or segment.before != previous:
                    self._fault(n + 1, f"segment {number} does not follow the one before it")
                    return
                n, previous, last = segment.head.n, segment.head.hash, segment
                self.ends[n] = previous
                self.found.entries += len(segment.entries)
                yield segment
        if last is not None:
            self.found.heads.append(last.head)
            if last.entries[-1].get("act") != Act.END:
                why = "the chain has no end: its process runs, or was killed"
                self.found.notes.append(Fault(f"{self.day} {self.chain}", n, why))

    def check_seal(self, segment: Segment, keys: Sequence[AuditKey], *, is_needed: bool) -> None:
        if segment.sealed_by is None:
            if is_needed:
                self._fault(segment.head.n, f"segment {segment.key.number} has no HMAC, and those before it had")
        elif keys:
            right = [key for key in keys if key.id == segment.sealed_by]
            if not right:
                why = f"key {segment.sealed_by}, which LOBEWISE_AUDIT_KEYS does not have"
                self._fault(segment.head.n, f"segment {segment.key.number} is sealed by {why}")
            elif not segment.has_mac_of(right[0]):
                self._fault(segment.head.n, f"segment {segment.key.number} was not sealed by the key that it names")

    def named(self, entry: Fields) -> list[Head]:
        """The heads of other chains in the entry that begins this one."""
        try:
            return [Head.of(fields) for fields in entry["heads"]]
        except (KeyError, TypeError, ValueError):
            self._fault(1, "the entry that begins it names no heads of others")
            return []

    def _fault(self, n: int, why: str) -> None:
        self.found.faults.append(Fault(f"{self.day} {self.chain}", n, why))


def read_together(blobs: ObjectStore, keys: Sequence[SegmentKey]) -> Generator[tuple[SegmentKey, bytes], None, None]:
    """Some at once, in their order; a segment that has just gone is empty."""
    with ThreadPoolExecutor(READ_AT_ONCE) as readers:
        for at in range(0, len(keys), READ_TOGETHER):
            some = keys[at : at + READ_TOGETHER]
            yield from zip(some, readers.map(lambda key: blobs.read(str(key)) or b"", some), strict=True)


def entries(
    blobs: ObjectStore, since: datetime | None = None, until: datetime | None = None, *, tenant: str | None = None
) -> Iterator[Fields]:
    """All entries from `since` up to, not including, `until`, in the order of their times; those of one tenant, or all.

    Each has its chain beside its own fields. Read as they are: whether they are right is for `verify`.

    Raises StorageUnavailableError; TamperedError: a segment is no good.
    """
    first = "" if since is None else since.date().isoformat()
    last = "9999-12-31" if until is None else until.date().isoformat()
    begin, end = _moment(since), _moment(until)
    for day in sorted(blobs.folders(AUDIT)):
        if not first <= day <= last:
            continue
        chains: dict[str, list[SegmentKey]] = defaultdict(list)
        for key in sorted(filter(None, map(SegmentKey.parse, blobs.keys(f"{AUDIT}{day}/")))):
            # A segment whose follower begins before that time, too, has nothing of it.
            if (key.day, key.time) < (begin[:10], begin[11:19].replace(":", "")):
                chains[key.chain].clear()
            chains[key.chain].append(key)
        of_chains = (entries_of(blobs, keys) for keys in chains.values())
        for entry in heapq.merge(*of_chains, key=lambda entry: (str(entry.get("at")), entry["chain"], entry["n"])):
            at = str(entry.get("at"))
            if begin <= at and (not end or at < end) and (tenant is None or entry.get("tenant") == tenant):
                yield entry


def _moment(moment: datetime | None) -> str:
    """As entries have it: as text it sorts as the time does."""
    return "" if moment is None else moment.isoformat(timespec="microseconds")


def entries_of(blobs: ObjectStore, keys: Iterable[SegmentKey]) -> Iterator[Fields]:
    """Those of some segments of one chain. Raises as `entries`."""
    for key in keys:
        for entry in read_segment(key, blobs.read(str(key)) or b"").entries:
            yield entry | {"chain": key.chain}
