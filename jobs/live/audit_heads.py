"""How far each chain of the audit trail had come, told to another store than the one that keeps it.

Who can cut a chain's end off in the object store need not reach Redis, and is found by what is known here.
"""

from typing import Final

import redis
from pydantic_core import from_json, to_json

from jobs.audit.entries import Head
from jobs.live.connection import broker_errors
from jobs.live.keys import PREFIX

AUDIT: Final = PREFIX + "audit:"
#: Longer than the day that follows, whose chains name the heads of this one in the store.
KEPT_SECONDS: Final = 400 * 24 * 3600


class AuditHeads:
    """Raises BrokerUnavailableError when Redis does not answer."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server

    @broker_errors()
    def show(self, head: Head) -> None:
        """The chain has come to this entry."""
        name = AUDIT + head.day
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(name, head.chain, to_json(head.fields()).decode())
            pipe.expire(name, KEPT_SECONDS)
            pipe.execute()

    @broker_errors()
    def all(self) -> list[Head]:
        """The last one that is known of each chain; none after a wipe."""
        names = list(self._redis.scan_iter(AUDIT + "*", count=1000))
        return sorted(Head.of(from_json(text)) for name in names for text in self._redis.hvals(name))

    @broker_errors()
    def forget(self, day: str) -> None:
        """The day's chains are deleted."""
        self._redis.delete(AUDIT + day)
