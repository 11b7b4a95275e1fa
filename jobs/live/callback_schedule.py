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

from jobs.models import CallbackOutcome

CALLBACKS: Final = "lobewise:callbacks"
OUTCOMES: Final = "lobewise:callback-outcomes"

_CLAIM: Final = """
-- KEYS: callbacks.  ARGV: how many, for how long (ms).  The jobs that are due; nobody else gets them for that long.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], now + ARGV[2], id) end
return due
"""

_AFTER: Final = """
-- KEYS: callbacks.  ARGV: id, in how long (ms).
local t = redis.call('TIME')
return redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[2], ARGV[1])
"""

_LENGTH: Final = """
-- KEYS: callbacks.  How many there are, how many are due, and for how long the first has been (ms).
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local overdue = 0
if first[2] then overdue = math.max(now - tonumber(first[2]), 0) end
return {redis.call('ZCARD', KEYS[1]), redis.call('ZCOUNT', KEYS[1], '-inf', now), overdue}
"""


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
        self._claim, self._after, self._length = map(server.register_script, (_CLAIM, _AFTER, _LENGTH))

    def claim(self, count: int, seconds: float) -> list[str]:
        """Up to `count` jobs that are due. Whoever does not `forget` or put them off meets them again after a while."""
        return cast("list[str]", self._claim(keys=[CALLBACKS], args=[count, round(1000 * seconds)]))

    def after(self, job_id: str, seconds: float) -> None:
        """Make it due in `seconds`."""
        self._after(keys=[CALLBACKS], args=[job_id, round(1000 * seconds)])

    def forget(self, job_id: str) -> None:
        self._redis.zrem(CALLBACKS, job_id)

    def count(self, outcome: CallbackOutcome) -> None:
        self._redis.hincrby(OUTCOMES, outcome.value, 1)

    def outcomes(self) -> Mapping[CallbackOutcome, int]:
        """How many attempts ended in each way."""
        found = cast("dict[str, str]", self._redis.hgetall(OUTCOMES))
        return {outcome: int(found.get(outcome.value, 0)) for outcome in CallbackOutcome}

    def backlog(self) -> CallbackBacklog:
        pending, due, overdue_ms = cast("list[int]", self._length(keys=[CALLBACKS]))
        return CallbackBacklog(int(pending), int(due), int(overdue_ms) / 1000)
