"""Which jobs have to tell how they ended, and when the next attempt is due.

```
lobewise:callbacks            ids by the time at which they are due, ms
lobewise:callback-outcomes    how many attempts ended in each way since the server was last empty
```

The blobs know what was tried (`callbacks`); a job that is here for nothing is looked at once and forgotten.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import redis

from jobs.live.lua import Script
from jobs.models import CallbackOutcome

CALLBACKS: Final = "lobewise:callbacks"
OUTCOMES: Final = "lobewise:callback-outcomes"


@dataclass(frozen=True)
class CallbackBacklog:
    """What is still to be told: all of it, what is due now, and how long the first of that has been."""

    pending: int
    due: int
    overdue_seconds: float


class CallbackQueue:
    """Callers turn errors of Redis into BrokerUnavailableError."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server
        self._take, self._schedule = Script(server, "take_callbacks"), Script(server, "schedule_callback")
        self._backlog = Script(server, "callback_backlog")

    def take(self, count: int, seconds: float) -> list[str]:
        """Up to `count` jobs that are due. Whoever does not `forget` or put them off meets them again after a while."""
        return cast("list[str]", self._take(callbacks=CALLBACKS, count=count, milliseconds=round(1000 * seconds)))

    def schedule(self, job_id: str, seconds: float) -> None:
        """Make it due in `seconds`."""
        self._schedule(callbacks=CALLBACKS, job_id=job_id, milliseconds=round(1000 * seconds))

    def forget(self, job_id: str) -> None:
        self._redis.zrem(CALLBACKS, job_id)

    def count(self, outcome: CallbackOutcome) -> None:
        self._redis.hincrby(OUTCOMES, outcome.value, 1)

    def outcomes(self) -> Mapping[CallbackOutcome, int]:
        """How many attempts ended in each way."""
        found = cast("dict[str, str]", self._redis.hgetall(OUTCOMES))
        return {outcome: int(found.get(outcome.value, 0)) for outcome in CallbackOutcome}

    def backlog(self) -> CallbackBacklog:
        pending, due, overdue_ms = cast("list[int]", self._backlog(callbacks=CALLBACKS))
        return CallbackBacklog(int(pending), int(due), int(overdue_ms) / 1000)
