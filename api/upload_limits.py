"""Limits scans on their way in: how many, by turns, and how fast while others ask (`docs/decisions/0020`)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

import anyio

from api.connection_limits import ClientShares
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


class Pace:
    """How fast a body comes: its client's time is counted, and not what it waits for its turn or the disk.

    A body may stay behind `least_bytes_per_second` for `idle_seconds` in all, and stand still for no longer; what comes
    faster makes up for it, but for no time to come.
    """

    def __init__(self, idle_seconds: float, least_bytes_per_second: int = 0) -> None:
        """Without a rate, only standing still counts."""
        self._idle_seconds, self._rate = idle_seconds, least_bytes_per_second
        self._behind_seconds = 0.0
        self._waits_since: float | None = None
        self._scope: anyio.CancelScope | None = None
        self.is_displaced = False

    @property
    def behind_seconds(self) -> float:
        """How long the client has been too slow."""
        waited = 0.0 if self._waits_since is None else monotonic() - self._waits_since
        return self._behind_seconds + waited

    def displace(self) -> None:
        """End the wait: another scan needs the place. For one whose client is waited for."""
        self.is_displaced = True
        if self._scope is not None:
            self._scope.cancel()

    async def next_of(self, pieces: AsyncIterator[bytes]) -> bytes:
        """The next piece. Raises StopAsyncIteration, ApiError (request-timeout), and what `pieces` do."""
        self._waits_since = monotonic()
        left = self._idle_seconds - self._behind_seconds if self._rate else self._idle_seconds
        try:
            with anyio.move_on_after(max(left, 0.0)) as self._scope:
                piece = await anext(pieces)
                waited = monotonic() - self._waits_since
                # A fast client stays at 0, so that what it has sent is no leave to stand still afterwards.
                if self._rate:
                    self._behind_seconds = max(self._behind_seconds + waited - len(piece) / self._rate, 0.0)
                return piece
        finally:
            self._waits_since = self._scope = None
        idle = self._idle_seconds
        evidence: dict[str, float] = {"idle_seconds": idle}
        detail = f"no byte arrived for {idle:g} seconds"
        if self.is_displaced or left < idle:
            evidence["least_bytes_per_second"] = self._rate
            detail = f"the body came slower than {self._rate} bytes a second for too long"
        if self.is_displaced:
            detail += ", and another scan needed its place"
        # The rest of the body is never read, so the next request on this connection could not be found.
        raise ApiError(problems.REQUEST_TIMEOUT, detail, evidence=evidence, headers={"Connection": "close"})


class UploadLimiter:
    """How many scans may be on their way in, and how fast. For one event loop alone."""

    def __init__(self, limit: int, limit_per_client: int | None = None, crowded_seconds: float = 5.0) -> None:
        """When all places are taken, a client that was too slow for `crowded_seconds` gives up its own."""
        self.limit = limit
        self._shares = ClientShares("uploads", limit if limit_per_client is None else limit_per_client)
        self._crowded_seconds = crowded_seconds
        self._slots: set[UploadSlot] = set()
        self.rate = Rate()
        self._taken = 0
        self._turns = asyncio.Semaphore(TURNS)
        self._deferred_at = float("-inf")
        self._free_at = 0.0
        self._delay_task: asyncio.Task[None] | None = None

    @contextmanager
    def take(self, client: str = "", pace: Pace | None = None) -> Iterator["UploadSlot"]:
        """A slot for one scan of this client, whose body comes at this pace.

        Raises:
            ApiError: too-many-uploads when all are taken, client-limit when the client has its share.
        """
        with self._shares.share(client):
            if self._taken >= self.limit:
                paces = [slot.pace for slot in self._slots if slot.pace is not None and not slot.pace.is_displaced]
                slowest = max(paces, key=lambda pace: pace.behind_seconds, default=None)
                if slowest is None or slowest.behind_seconds < self._crowded_seconds:
                    detail = f"{self.limit} scans are on their way in"
                    raise ApiError(problems.TOO_MANY_UPLOADS, detail, evidence={"limit": self.limit})
                slowest.displace()
            self._taken += 1
            if self._delay_task is None:
                self._delay_task = asyncio.get_running_loop().create_task(self._measure_delay())
            slot = UploadSlot(self, pace)
            self._slots.add(slot)
            try:
                yield slot
            finally:
                self._slots.discard(slot)
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

    def __init__(self, upload_limiter: UploadLimiter, pace: Pace | None = None) -> None:
        self.pace = pace
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
