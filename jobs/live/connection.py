"""Connections to Redis: what their loss means for what the live view shows, and for those who ask."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from jobs.errors import BrokerUnavailableError
from jobs.models import JobState


class ViewFreshness:
    """Whether one process may believe what the live view shows as open.

    While the broker was away jobs ended unseen, and clients may have been told so from the blobs; nothing may follow an
    end. So freshness is lost with every answer that did not come and with every connection that had to be made again,
    until the reconciler has been through the view.
    """

    def __init__(self, doubt_seconds: float) -> None:
        """`doubt_seconds`: until the reconciler has certainly looked."""
        self._doubt_seconds = doubt_seconds
        self._lost_at = -math.inf

    def lose(self) -> None:
        self._lost_at = time.monotonic()

    def was_lost_after(self, moment: float) -> bool:
        """Whether it was lost after this monotonic time: then the view and the blobs should be compared."""
        return self._lost_at > moment

    def connected(self, connection: Any) -> None:
        """A connection was made. If it had been there before, the broker was away, though nobody may have asked it."""
        if getattr(connection, "was_there_before", False):
            self.lose()
        connection.was_there_before = True

    def holds(self, shown: JobState, *, is_whole: bool) -> bool:
        """Whether to believe this. A view that is not whole was wiped, and may show what a rebuild saw before."""
        return shown.status.is_final or (is_whole and time.monotonic() > self._lost_at + self._doubt_seconds)


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turns an answer that did not come, or that a full or read-only server refused, into BrokerUnavailableError."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.OutOfMemoryError) as error:
        raise BrokerUnavailableError(f"the broker does not answer: {type(error).__name__}") from error
    except redis.exceptions.ReadOnlyError as error:
        raise BrokerUnavailableError("the broker is read-only") from error
