"""Which jobs and batches have to tell how they ended, and when the next attempt is due.

The blobs know what was tried (`callbacks`); what is here for nothing is looked at once and removed. A job is named by
its id, a batch as `batch_name` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import redis

from jobs.live.connection import Script, broker_errors
from jobs.live.keys import CALLBACK_OUTCOMES, Keys
from jobs.models import CallbackOutcome

_BATCH: Final = "batch:"
#: A batch of which nothing was heard for so long is looked for by the cleanup, again and again.
_WATCHED_SECONDS: Final = 30 * 24 * 3600


def batch_name(batch_id: str) -> str:
    """What a batch is called in the schedule."""
    return _BATCH + batch_id


def batch_id_of(name: str) -> str | None:
    """The batch that a name stands for; None for a job's."""
    return name.removeprefix(_BATCH) if name.startswith(_BATCH) else None


@dataclass(frozen=True)
class CallbackBacklog:
    """What is still to be told: all of it, what is due now, and how long the first of that has been."""

    pending: int
    due: int
    overdue_seconds: float


class CallbackSchedule:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis, keys: Keys) -> None:
        self._redis, self._keys = server, keys
        self._take, self._schedule = Script(server, "take_callbacks"), Script(server, "schedule_callback")
        self._watch_batch = Script(server, "watch_batch")
        self._backlog = Script(server, "callback_backlog")

    @staticmethod
    @broker_errors()
    def with_due(schedules: Sequence["CallbackSchedule"]) -> list["CallbackSchedule"]:
        """Those in which something is due, by one question for all of them."""
        with schedules[0]._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for schedule in schedules:
                pipe.zrange(schedule._keys.callbacks, 0, 0, withscores=True)
            (seconds, microseconds), *firsts = pipe.execute()
        now_ms = seconds * 1000 + microseconds // 1000
        found = zip(schedules, firsts, strict=True)
        return [schedule for schedule, first in found if first and first[0][1] <= now_ms]

    @broker_errors()
    def take(self, count: int, seconds: float) -> list[str]:
        """Up to `count` jobs that are due; what is neither removed nor set anew is due again after `seconds`."""
        return cast(
            "list[str]", self._take(callbacks=self._keys.callbacks, count=count, milliseconds=round(1000 * seconds))
        )

    @broker_errors()
    def set_due(self, job_id: str, seconds: float) -> None:
        """Make it due in `seconds`."""
        self._schedule(callbacks=self._keys.callbacks, job_id=job_id, milliseconds=round(1000 * seconds))

    @broker_errors()
    def watch_batch(self, batch_id: str, open_jobs: Sequence[str]) -> int:
        """Make its callback due when the last of these jobs ends; how many are shown as unfinished, or not at all."""
        arguments: list[str | int] = [self._keys.prefix, 1000 * _WATCHED_SECONDS, *open_jobs]
        return int(self._watch_batch.run([self._keys.key("batch", batch_id)], arguments))

    @broker_errors()
    def remove(self, job_id: str) -> None:
        self._redis.zrem(self._keys.callbacks, job_id)

    @broker_errors()
    def count(self, outcome: CallbackOutcome) -> None:
        self._redis.hincrby(CALLBACK_OUTCOMES, outcome.value, 1)

    @broker_errors()
    def outcomes(self) -> Mapping[CallbackOutcome, int]:
        """How many attempts ended in each way, of all tenants."""
        found = cast("dict[str, str]", self._redis.hgetall(CALLBACK_OUTCOMES))
        return {outcome: int(found.get(outcome.value, 0)) for outcome in CallbackOutcome}

    @broker_errors()
    def backlog(self) -> CallbackBacklog:
        pending, due, overdue_ms = cast("list[int]", self._backlog(callbacks=self._keys.callbacks))
        return CallbackBacklog(int(pending), int(due), int(overdue_ms) / 1000)
