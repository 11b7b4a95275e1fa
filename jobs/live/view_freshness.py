"""Whether the live view may be believed when it shows a job as open.

While the broker was away jobs ended unseen, and the end of some was read from the blobs. Nothing may follow an end. So
for as long as the view may be behind, until the reaper has been through it, the blobs are asked whether what it shows
as open has ended.
"""

import math
import time
from typing import Any

from jobs.models import JobState


class ViewFreshness:
    """Of one process; lost with every answer that did not come, and with every connection that had to be made again."""

    def __init__(self, doubt_seconds: float) -> None:
        """`doubt_seconds`: until the reaper has certainly looked."""
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
