"""When to try again."""

import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Retry:
    """How long what failed is tried again, with growing pauses.

    Attributes:
        seconds: since the first failure, or the last progress; 0: not at all.
        first_pause_seconds: doubled with each failure.
        longest_pause_seconds: unless the service asks for more by `Retry-After`.
    """

    seconds: float = 120.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 20.0


class Patience:
    """What is left of a `Retry` for one call.

    Attributes:
        failures: so far.
    """

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._since: float | None = None
        self._pauses = 0
        self.failures = 0

    def pause_seconds(self, asked_seconds: float | None = None) -> float | None:
        """How long to wait after a failure; None: no longer.

        Args:
            asked_seconds: by `Retry-After`.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self.failures += 1
        grown = min(self._retry.first_pause_seconds * 2**self._pauses, self._retry.longest_pause_seconds)
        self._pauses = min(self._pauses + 1, 30)
        # Never sooner than asked, and spread, so that clients which failed together do not come back together.
        pause = grown * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
        if asked_seconds is not None:
            pause = max(pause, asked_seconds * random.uniform(1.0, 1.1))  # noqa: S311 (no secret)
        return pause if self._retry.seconds > 0 and now + pause <= self._since + self._retry.seconds else None

    def progressed(self) -> None:
        """Something arrived: the time begins anew."""
        self._since, self._pauses = None, 0


def retry_after_seconds(value: str | None, now: datetime | None = None) -> float | None:
    """Of a `Retry-After`, in seconds or as an HTTP date; None if there is none that can be understood."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    # RFC 9110: an HTTP date is in UTC, whatever it says.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
