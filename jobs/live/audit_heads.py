"""How far each chain of the audit trail had come, told to another store than the one that keeps it.

Who can cut a chain's end off in the object store need not reach Redis, and is found by what is known here.
"""

from typing import Final

import redis
from pydantic_core import from_json, to_json

from jobs.live.connection import broker_errors
from jobs.live.keys import key

#: Longer than the day that follows, whose chains name the heads of this one in the store.
KEPT_SECONDS: Final = 400 * 24 * 3600


class AuditHeads:
    """Raises BrokerUnavailableError when Redis does not answer."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server

    @broker_errors()
    def show(self, day: str, chain: str, n: int, digest: str) -> None:
        """The chain has come to this entry."""
        name = key("audit", day)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(name, chain, to_json([n, digest]).decode())
            pipe.expire(name, KEPT_SECONDS)
            pipe.execute()

    @broker_errors()
    def all(self) -> list[tuple[str, str, int, str]]:
        """Day, chain, number and hash of the last entry of each chain; empty after a wipe."""
        found = []
        for name in self._redis.scan_iter(key("audit", "*"), count=1000):
            for chain, text in self._redis.hgetall(name).items():
                n, digest = from_json(text)
                found.append((name.rpartition(":")[2], chain, n, digest))
        return found

    @broker_errors()
    def forget(self, day: str) -> None:
        """The day's chains are deleted."""
        self._redis.delete(key("audit", day))
