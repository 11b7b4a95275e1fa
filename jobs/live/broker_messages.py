"""Celery's messages, which lie in the same server as the live view."""

from collections.abc import Iterable
from typing import cast

import redis

from jobs.live.connection import broker_errors


class BrokerMessages:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server

    def waiting(self, queues: Iterable[str]) -> list[str]:
        """Every message that waits in these queues, raw."""
        with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.lrange(queue, 0, -1)
            return [message for queue in pipe.execute() for message in queue]

    def any_waiting(self, queues: Iterable[str]) -> bool:
        with broker_errors():
            return bool(self._redis.exists(*queues))  # Redis has no empty lists

    def delivered(self, younger_than_seconds: float) -> list[str]:
        """Messages that a worker took lately and has not acknowledged, raw."""
        with broker_errors():
            seconds, microseconds = self._redis.time()
            oldest = seconds + microseconds / 1e6 - younger_than_seconds
            tags = cast("list[str]", self._redis.zrangebyscore("unacked_index", oldest, "+inf"))
            found = cast("list[str | None]", self._redis.hmget("unacked", tags)) if tags else []
        return [message for message in found if message is not None]
