"""Which jobs have to tell how they ended, and when the next attempt is due.

The blobs know what was tried (`callbacks`); a job that is here for nothing is looked at once and removed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import redis

from jobs.live.connection import Script, broker_errors
from jobs.live.keys import CALLBACK_OUTCOMES, CALLBACKS
from jobs.models import CallbackOutcome


@dataclass(frozen=True)
class CallbackBacklog:
    """What is still to be told: all of it, what is due now, and how long the first of that has been."""

    pending: int
    due: int
    overdue_seconds: float


class CallbackSchedule:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server
        self._take, self._schedule = Script(server, "take_callbacks"), Script(server, "schedule_callback")
        self._backlog = Script(server, "callback_backlog")

    @broker_errors()
    def take(self, count: int, seconds: float) -> list[str]:
        """Up to `count` jobs that are due; what is neither removed nor set anew is due again after `seconds`."""
        return cast("list[str]", self._take(callbacks=CALLBACKS, count=count, milliseconds=round(1000 * seconds)))

    @broker_errors()
    def set_due(self, job_id: str, seconds: float) -> None:
        """Make it due in `seconds`."""
        self._schedule(callbacks=CALLBACKS, job_id=job_id, milliseconds=round(1000 * seconds))

    @broker_errors()
    def remove(self, job_id: str) -> None:
        self._redis.zrem(CALLBACKS, job_id)

    @broker_errors()
    def count(self, outcome: CallbackOutcome) -> None:
        self._redis.hincrby(CALLBACK_OUTCOMES, outcome.value, 1)

    @broker_errors()
    def outcomes(self) -> Mapping[CallbackOutcome, int]:
        """How many attempts ended in each way."""
        found = cast("dict[str, str]", self._redis.hgetall(CALLBACK_OUTCOMES))
        return {outcome: int(found.get(outcome.value, 0)) for outcome in CallbackOutcome}

    @broker_errors()
    def backlog(self) -> CallbackBacklog:
        pending, due, overdue_ms = cast("list[int]", self._backlog(callbacks=CALLBACKS))
        return CallbackBacklog(int(pending), int(due), int(overdue_ms) / 1000)
