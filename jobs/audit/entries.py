"""What the audit trail is made of: entries in chains, chains in segments, each segment one blob that is created once.

```
audit/{day}/{chain}/{number}-{hhmmss}.jsonl     a segment: its entries, a line each, and the seal as the last line
```

A chain belongs to one process and one day (UTC). Every entry has its number `n` in the chain, the hash of the entry
before it (`previous`) and its own: SHA-256 of its canonical JSON (keys sorted, no blanks, ASCII) without `hash`. The
first entry's `previous` is the hash of the chain's id, so that no entry can stand in another chain. The seal says how
many entries the segment has and where the chain stands, with an HMAC of that where the operator has given a key.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, Final, Literal

AUDIT: Final = "audit/"

Outcome = Literal["done", "refused", "failed"]
Fields = dict[str, Any]

_KEY: Final = re.compile(
    rf"{AUDIT}(?P<day>\d{{4}}-\d\d-\d\d)/(?P<chain>[0-9a-f-]{{36}})/(?P<number>\d{{6,}})-(?P<time>\d{{6}})\.jsonl"
)


class AuditLevel(StrEnum):
    """How much is recorded; each level has all of the one before."""

    OFF = "off"
    #: Submissions, cancellations, deletions, callbacks made again, keys; and every refused access, whatever it wanted.
    CHANGES = "changes"
    #: Who was given something: results, jobs that have ended, lists, exports.
    READS = "reads"
    #: Looks at jobs that have not ended, and what says nothing of a patient.
    ALL = "all"


_LEVELS: Final = tuple(AuditLevel)


class Act(StrEnum):
    """What was done."""

    SUBMIT = "submit"
    CANCEL = "cancel"
    DELETE = "delete"
    #: Deleted because its retention was over.
    PURGE = "purge"
    REDELIVER = "redeliver"
    CREATE_KEY = "create-key"
    REVOKE_KEY = "revoke-key"
    READ = "read"
    DOWNLOAD = "download"
    LIST = "list"
    EXPORT = "export"
    #: Asked about something that has not ended, or has not changed: the answer tells nothing of a patient.
    LOOK = "look"
    #: Of the trail itself: a chain begins and ends, a day of it is deleted.
    BEGIN = "begin"
    END = "end"
    EXPIRE = "expire"

    @property
    def level(self) -> AuditLevel:
        """From which level on it is recorded."""
        if self is Act.LOOK:
            return AuditLevel.ALL
        reads = (Act.READ, Act.DOWNLOAD, Act.LIST, Act.EXPORT)
        return AuditLevel.READS if self in reads else AuditLevel.CHANGES


@dataclass(slots=True)
class Entry:
    """Who did what, on what, when, and how it ended. Nothing that a client wrote freely: it may be a patient's.

    Attributes:
        subject: id of the key, hash of a token's subject, `anonymous`, or what of ours did it.
        address: of the peer, as trusted proxies tell it.
        kind: of what: `job`, `batch`, `upload`, `key`, or `trail`.
        part: which mask, or DICOM product.
        status: of the HTTP answer.
        times: how often the same happened until the entry was stored; of looks and refusals alone.
        more: what only the entries of the trail itself have.
    """

    act: Act
    outcome: Outcome = "done"
    tenant: str | None = None
    subject: str | None = None
    address: str | None = None
    kind: str | None = None
    id: str | None = None
    part: str | None = None
    operation: str | None = None
    status: int | None = None
    request_id: str | None = None
    trace_id: str | None = None
    times: int = 1
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    more: Mapping[str, Any] | None = None

    def is_wanted(self, level: AuditLevel) -> bool:
        """Whether it is recorded at this level."""
        needed = AuditLevel.CHANGES if self.outcome == "refused" else self.act.level
        return _LEVELS.index(level) >= _LEVELS.index(needed)

    @property
    def is_change(self) -> bool:
        """Whether it is stored before its request is answered."""
        return self.act.level is AuditLevel.CHANGES and self.outcome != "refused"

    @property
    def merge_key(self) -> tuple[Any, ...] | None:
        """Entries of the same key become one; None for those that stand alone."""
        # Who knocks a thousand times a second at a closed door, or polls, must not fill the store.
        if self.act is not Act.LOOK and self.outcome != "refused":
            return None
        return (self.act, self.operation, self.tenant, self.subject, self.address, self.id, self.part, self.status)

    def fields(self) -> Fields:
        found = {
            "act": self.act.value,
            "address": self.address,
            "at": self.at.isoformat(timespec="microseconds"),
            "id": self.id,
            "kind": self.kind,
            "operation": self.operation,
            "outcome": self.outcome,
            "part": self.part,
            "request_id": self.request_id,
            "status": self.status,
            "subject": self.subject,
            "tenant": self.tenant,
            "times": self.times if self.times > 1 else None,
            "trace_id": self.trace_id,
            **(self.more or {}),
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, order=True)
class Head:
    """Where a chain stood: its entry `n` has this hash."""

    day: str
    chain: str
    n: int
    hash: str

    def fields(self) -> Fields:
        return {"chain": self.chain, "day": self.day, "hash": self.hash, "n": self.n}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Head":
        """Raises KeyError, TypeError, ValueError: these are not the fields of one."""
        return cls(str(fields["day"]), str(fields["chain"]), int(fields["n"]), str(fields["hash"]))


@dataclass(frozen=True, order=True)
class SegmentKey:
    """Where a segment lies; sorts by day, chain and number.

    Attributes:
        time: of its first entry, `hhmmss`, so that who looks for a time need not read what was before.
    """

    day: str
    chain: str
    number: int
    time: str

    def __str__(self) -> str:
        return f"{AUDIT}{self.day}/{self.chain}/{self.number:06}-{self.time}.jsonl"

    @classmethod
    def parse(cls, key: str) -> "SegmentKey | None":
        match = _KEY.fullmatch(key)
        if match is None:
            return None
        try:
            date.fromisoformat(match["day"])
        except ValueError:
            return None
        return cls(match["day"], match["chain"], int(match["number"]), match["time"])


@dataclass(frozen=True)
class AuditKey:
    """Seals segments. Its `id` tells which of several it was and gives nothing of it away."""

    secret: bytes

    @property
    def id(self) -> str:
        return hashlib.sha256(b"lobewise audit key" + self.secret).hexdigest()[:16]

    def mac(self, seal: Mapping[str, Any]) -> str:
        return hmac.new(self.secret, canonical(seal), hashlib.sha256).hexdigest()


class TamperedError(Exception):
    """A segment is not as it was stored. `n` is the entry that is wrong; 0 where none can be told."""

    def __init__(self, n: int, why: str) -> None:
        super().__init__(why)
        self.n = n


def canonical(fields: Mapping[str, Any]) -> bytes:
    """One text for the same fields, on every machine."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def first_previous(day: str, chain: str) -> str:
    """What a chain's first entry has as the hash of the one before it."""
    return hashlib.sha256(f"lobewise audit chain {day} {chain}".encode()).hexdigest()


def chained(fields: Fields, n: int, previous: str) -> tuple[bytes, str]:
    """An entry as a line of its segment, and its hash."""
    fields = fields | {"n": n, "previous": previous}
    digest = hashlib.sha256(canonical(fields)).hexdigest()
    return canonical(fields | {"hash": digest}), digest


def sealed(lines: Sequence[bytes], key: SegmentKey, head: Head, sealed_by: AuditKey | None) -> bytes:
    """A segment as it is stored."""
    seal: Fields = {"act": "seal", "entries": len(lines), "head": head.fields(), "segment": key.number}
    if sealed_by is not None:
        seal["key"] = sealed_by.id
        seal["mac"] = sealed_by.mac(seal)
    return b"\n".join([*lines, canonical(seal)]) + b"\n"


@dataclass(frozen=True)
class Segment:
    """One that was read and is right in itself: its hashes fit, one to the next, and its seal fits them.

    Attributes:
        before: the hash that its first entry has of the entry before.
        first: the number of its first entry.
        sealed_by: id of the key; None where it has none. Whether the HMAC is right is for `require_mac`.
    """

    key: SegmentKey
    entries: list[Fields]
    first: int
    before: str
    head: Head
    seal: Fields

    @property
    def sealed_by(self) -> str | None:
        return self.seal.get("key")

    def has_mac_of(self, key: AuditKey) -> bool:
        expected = key.mac({name: value for name, value in self.seal.items() if name != "mac"})
        return hmac.compare_digest(expected, str(self.seal.get("mac")))


def read_segment(key: SegmentKey, data: bytes) -> Segment:
    """Raises TamperedError: it is not as a process of ours stored it."""
    *lines, last = data.split(b"\n")
    if last or len(lines) < 2:
        raise TamperedError(0, "it is empty or breaks off")
    entries = [_fields(line) for line in lines]
    seal = entries.pop()
    n, previous = _number(entries[0]), str(entries[0].get("previous"))
    first, before = n, previous
    for expected, (line, fields) in enumerate(zip(lines[:-1], entries, strict=True), first):
        n = _number(fields)
        if n != expected:
            raise TamperedError(expected, f"entry {n} stands where entry {expected} belongs")
        if fields.get("previous") != previous:
            raise TamperedError(n, "it does not follow the entry before it")
        rest = {name: value for name, value in fields.items() if name != "hash"}
        previous = hashlib.sha256(canonical(rest)).hexdigest()
        if fields.get("hash") != previous or canonical(fields) != line:
            raise TamperedError(n, "it was changed: its hash is another one's")
    head = Head(key.day, key.chain, n, previous)
    expected_seal = {"act": "seal", "entries": len(entries), "head": head.fields(), "segment": key.number}
    given = {name: value for name, value in seal.items() if name not in ("key", "mac")}
    if given != expected_seal or canonical(seal) != lines[-1]:
        raise TamperedError(n, "the seal is of something else: entries were cut off, or the segment was moved")
    return Segment(key, entries, first, before, head, seal)


def _fields(line: bytes) -> Fields:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise TamperedError(0, "a line is no entry")
    return found


def _number(fields: Mapping[str, Any]) -> int:
    n = fields.get("n")
    if type(n) is not int or n < 1:
        raise TamperedError(0, "a line is no entry")
    return n
