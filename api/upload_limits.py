"""Limits scans on their way in: how many, by turns, and how fast while others ask (`docs/decisions/0020`)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from api.errors import ApiError
from jobs import problems
from jobs.settings import MIB

#: Scans of which a piece may be under way at once. The connections of the others stand still and hold one piece.
#: Turns go round several times a second, so that no client believes its line dead; one whole scan after the other would
#: leave the last of 50 without a sign for most of a minute.
TURNS: Final = 4
#: A client that sends nothing for so long loses its turn, so that a slow line holds nobody up.
STALL_SECONDS: Final = 0.02

BEAT_SECONDS: Final = 0.01
#: A heartbeat that comes later than this has kept readers waiting, too. The loop's delay is the sign, and not the time
#: of the polls: there may be none, and theirs holds Redis's time too.
LATE_SECONDS: Final = 0.004
#: As long after somebody asked for something, uploads give way.
ASKED_SECONDS: Final = 1.0
#: Bytes a second, of all scans together, at the least, at the most, and when others begin to ask.
LEAST_RATE: Final = 8.0 * MIB
MOST_RATE: Final = 4096.0 * MIB
FIRST_RATE: Final = 64.0 * MIB
FALL: Final = 0.75
RISE_PER_SECOND: Final = 24.0 * MIB
#: After a fall, so long until the next: what is under way shows only then.
CALM_SECONDS: Final = 0.1


class Rate:
    """How fast scans may come in together: less when the event loop is late, more as long as it is not.

    As senders on a shared line do (additive increase, multiplicative decrease): nobody needs to know how fast the
    machine is, or who else uses it.
    """

    def __init__(self) -> None:
        self.bytes_per_second = FIRST_RATE
        self._calm_until = 0.0

    def adjust(self, late_seconds: float, now: float) -> None:
        """Takes note of a heartbeat."""
        if late_seconds <= LATE_SECONDS:
            self.bytes_per_second = min(self.bytes_per_second + RISE_PER_SECOND * BEAT_SECONDS, MOST_RATE)
        elif now >= self._calm_until:
            self.bytes_per_second = max(self.bytes_per_second * FALL, LEAST_RATE)
            self._calm_until = now + CALM_SECONDS


class UploadLimiter:
    """How many scans may be on their way in, and how fast. For one event loop alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rate = Rate()
        self._taken = 0
        self._turns = asyncio.Semaphore(TURNS)
        self._deferred_at = float("-inf")
        self._free_at = 0.0
        self._delay_task: asyncio.Task[None] | None = None

    @contextmanager
    def take(self) -> Iterator["UploadSlot"]:
        """A slot for one scan. Raises ApiError (too-many-uploads) when all are taken."""
        if self._taken >= self.limit:
            raise ApiError(
                problems.TOO_MANY_UPLOADS, f"{self.limit} scans are on their way in", evidence={"limit": self.limit}
            )
        self._taken += 1
        if self._delay_task is None:
            self._delay_task = asyncio.get_running_loop().create_task(self._measure_delay())
        slot = UploadSlot(self)
        try:
            yield slot
        finally:
            slot.release()
            self._taken -= 1

    def taken(self) -> int:
        """How many scans are on their way in."""
        return self._taken

    def bytes_per_second(self) -> float:
        """How fast they may come together; without limit while nobody asks for anything."""
        return self.rate.bytes_per_second if self.is_deferring else float("inf")

    def defer_to_reader(self) -> None:
        """A reader asks for something: scans give way for `ASKED_SECONDS`."""
        if self._taken:
            self._deferred_at = monotonic()

    @property
    def is_deferring(self) -> bool:
        return monotonic() - self._deferred_at < ASKED_SECONDS

    async def acquire_turn(self) -> None:
        """Wait until a piece may come."""
        await self._turns.acquire()
        try:
            while self.is_deferring and (left := self._free_at - monotonic()) > 0:
                await asyncio.sleep(left)
        except BaseException:
            self._turns.release()
            raise

    def release_turn(self) -> None:
        self._turns.release()

    # Counted after the fact, since nobody knows a piece's size before it comes.
    def record_bytes(self, size_bytes: int) -> None:
        """The next piece may come when this one has had its time."""
        self._free_at = max(self._free_at, monotonic()) + size_bytes / self.rate.bytes_per_second

    async def _measure_delay(self) -> None:
        """Feels how late the loop is, while there are scans."""
        while self._taken:
            began = monotonic()
            await asyncio.sleep(BEAT_SECONDS)
            if self.is_deferring:
                now = monotonic()
                self.rate.adjust(now - began - BEAT_SECONDS, now)
        self._delay_task = None


class UploadSlot:
    """One scan on its way in."""

    def __init__(self, upload_limiter: UploadLimiter) -> None:
        self._upload_limiter = upload_limiter
        self._has_turn = False
        self._stall: asyncio.TimerHandle | None = None

    async def in_turn(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same pieces, each asked for, and worked off, in a turn of this scan."""
        while True:
            self.release()
            await self._acquire()
            self._stall = asyncio.get_running_loop().call_later(STALL_SECONDS, self.release)
            try:
                chunk = await anext(chunks)
            except StopAsyncIteration:
                # What comes now is work of the disk: another scan may be read meanwhile.
                self.release()
                return
            self._stall.cancel()
            self._upload_limiter.record_bytes(len(chunk))
            # The client was slow and lost its turn, but its piece is here now: it is worked off in a new one.
            if not self._has_turn:
                await self._acquire()
            yield chunk

    def release(self) -> None:
        """End the turn, if there is one."""
        if self._stall is not None:
            self._stall.cancel()
        if self._has_turn:
            self._has_turn = False
            self._upload_limiter.release_turn()

    async def _acquire(self) -> None:
        await self._upload_limiter.acquire_turn()
        self._has_turn = True
