"""Every change of every job in one order, for those who follow them all.

The scripts of the live view write a change in the same step as the state itself. A change names its job alone: what
else is told of it is read from the view, so that nothing of a deleted job stays here.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, cast

import redis

from jobs.errors import BrokerUnavailableError, CursorExpiredError, InvalidCursorError
from jobs.live.connection import broker_errors
from jobs.live.keys import Keys

#: The view that it belongs to, and the last change that was read.
_CURSOR: Final = re.compile(r"([0-9A-Za-z]{1,64})\.(\d{1,18}-\d{1,18})")
#: What stands before the first change of all.
_BEGINNING: Final = "0-0"

_Entry = tuple[str, dict[str, str]]


class ChangeType(StrEnum):
    """What happened to a job: it was accepted, came to a status, or was deleted."""

    CREATED = "created"
    #: Again: its worker was lost, stopped or met a fault.
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PURGED = "purged"


@dataclass(frozen=True)
class FeedLimits:
    """How many changes are kept, about, and for how long."""

    events: int
    seconds: int


@dataclass(frozen=True)
class Change:
    """One entry of the feed."""

    id: str
    job_id: str
    type: ChangeType

    @property
    def at(self) -> datetime:
        """When it was shown, by Redis' clock."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)


@dataclass(frozen=True)
class Changes:
    """Some changes in their order; `next_cursor` leads to what comes after them."""

    items: tuple[Change, ...]
    next_cursor: str
    has_more: bool


class Feed:
    """Raises BrokerUnavailableError when Redis does not answer in time, or was wiped and is not rebuilt yet."""

    def __init__(self, server: redis.Redis, keys: Keys) -> None:
        self._redis, self._keys = server, keys

    def after(self, cursor: str, limit: int) -> Changes:
        """What followed a cursor.

        Raises:
            InvalidCursorError: this is none.
            CursorExpiredError: what followed it is not all known any more.
        """
        match = _CURSOR.fullmatch(cursor)
        if match is None:
            raise InvalidCursorError("this is no cursor")
        epoch, first, entries = self._read(match[2], limit)
        # A view that was rebuilt after a wipe knows nothing of what happened before.
        if match[1] != epoch:
            raise CursorExpiredError
        if entries and entries[0][0] == match[2]:
            entries = entries[1:]
        # Each change names the one before it: so a cursor is good as long as the change after it is there.
        elif match[2] != (first[1]["prev"] if first else _BEGINNING):
            raise CursorExpiredError
        return _page(epoch, match[2], entries, limit)

    def oldest(self, limit: int) -> Changes:
        """From the first change that is kept."""
        epoch, first, entries = self._read("-", limit)
        return _page(epoch, first[1]["prev"] if first else _BEGINNING, entries, limit)

    def newest(self) -> Changes:
        """No change, and a cursor to those to come."""
        with broker_errors(), self._redis.pipeline() as pipe:
            pipe.get(self._keys.epoch)
            pipe.xrevrange(self._keys.feed, count=1)
            epoch, last = pipe.execute()
        return _page(_require_whole(epoch), last[0][0] if last else _BEGINNING, [], 0)

    def _read(self, begin: str, limit: int) -> tuple[str, _Entry | None, list[_Entry]]:
        """Which view this is, its first change, and those from `begin` on: that one, `limit` more and one further."""
        with broker_errors(), self._redis.pipeline() as pipe:
            pipe.get(self._keys.epoch)
            pipe.xrange(self._keys.feed, count=1)
            pipe.xrange(self._keys.feed, begin, count=limit + 2)
            epoch, first, entries = cast("tuple[str | None, list[_Entry], list[_Entry]]", pipe.execute())
        return _require_whole(epoch), first[0] if first else None, entries


def _require_whole(epoch: Any) -> str:
    # Cursors are given by a whole view alone: in one that is being rebuilt, jobs are brought back without a change.
    if not epoch:
        raise BrokerUnavailableError("the live view is being rebuilt")
    return str(epoch)


def _page(epoch: str, before: str, entries: list[_Entry], limit: int) -> Changes:
    items = tuple(Change(id_, fields["job"], ChangeType(fields["type"])) for id_, fields in entries[:limit])
    return Changes(items, f"{epoch}.{items[-1].id if items else before}", len(entries) > limit)
