"""How much of their limits tenants and keys have used, counted in Redis for all gateways together.

What is counted over a time is counted by `limits`, in a window that begins with the first use after the one before:
`lobewise:quota:{quota}/{tenant|key}/{name}/{limit}/1/{minute|day}`, with a time to live. A limit that is changed begins
a new one.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import redis
from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter

from jobs.live.connection import Script, broker_errors
from jobs.live.keys import PREFIX, STORED, Keys
from jobs.models import JobStatus
from jobs.quotas import Owner, Quota

#: A message that a worker took has become a running job by then, or never will.
SLOT_SECONDS: Final = 30

_ITEMS: Final[Mapping[Quota, type[RateLimitItem]]] = {
    Quota.REQUESTS: RateLimitItemPerMinute,
    Quota.UPLOAD_BYTES: RateLimitItemPerDay,
}


@dataclass(frozen=True)
class Use:
    """Of one window: what is left of it, and for how many seconds it lasts on; 0 where it has not begun."""

    remaining: int
    resets_in_seconds: float


class Usage:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server
        self._storage = RedisStorage("redis://", connection_pool=server.connection_pool, key_prefix=PREFIX + "quota")
        self._take_slot = Script(server, "take_slot")
        self._windows = FixedWindowRateLimiter(self._storage)

    def add(self, owner: Owner, quota: Quota, limit: int, amount: int) -> Use:
        """Count an amount, also beyond the limit; what is left then."""
        return self.add_all(quota, {owner: (limit, amount)})[owner]

    @broker_errors()
    def add_all(self, quota: Quota, amounts: Mapping[Owner, tuple[int, int]]) -> dict[Owner, Use]:
        """As `add`, the limits and amounts of several owners, in one question."""
        # The storage's own script and keys, so that its other methods see what is counted here.
        with self._redis.pipeline(transaction=False) as pipe:
            for owner, (limit, amount) in amounts.items():
                item = _ITEMS[quota](limit, namespace=quota)
                key = self._storage.prefixed_key(item.key_for(owner.scope, owner.name))
                self._storage.lua_incr_expire(keys=[key], args=[item.get_expiry(), amount], client=pipe)
                pipe.pttl(key)
            answers = pipe.execute()
        return {
            owner: Use(max(limit - int(count), 0), max(int(left_ms), 0) / 1000)
            for (owner, (limit, _)), count, left_ms in zip(amounts.items(), answers[::2], answers[1::2], strict=True)
        }

    @broker_errors()
    def use(self, owner: Owner, quota: Quota, limit: int) -> Use:
        """What is left."""
        item = _ITEMS[quota](limit, namespace=quota)
        resets_at, remaining = self._windows.get_window_stats(item, owner.scope, owner.name)
        return Use(remaining, max(resets_at - time.time(), 0.0))

    @broker_errors()
    def take_slot(self, tenant: str, job_id: str, limit: int) -> bool:
        """Whether one more job of a tenant may run; it counts from now on, if so."""
        keys = Keys.of(tenant)
        return bool(
            self._take_slot(
                running=keys.key("index", JobStatus.RUNNING, "*"),
                slots=f"{PREFIX}slots:{tenant}",
                prefix=keys.key("job", ""),
                job_id=job_id,
                limit=limit,
                milliseconds=1000 * SLOT_SECONDS,
            )
        )

    @broker_errors()
    def running(self, tenant: str) -> int:
        """How many jobs of a tenant run."""
        return int(self._redis.zcard(Keys.of(tenant).key("index", JobStatus.RUNNING, "*")))

    @broker_errors()
    def stored_bytes(self, tenant: str) -> int:
        """As the last listing found, with what was sent since; 0 before the first."""
        return int(cast("str | None", self._redis.hget(STORED, tenant)) or 0)

    @broker_errors()
    def add_stored_bytes(self, tenant: str, size_bytes: int) -> None:
        """Something was stored since the last listing."""
        self._redis.hincrby(STORED, tenant, size_bytes)

    @broker_errors()
    def set_stored_bytes(self, tenant: str, size_bytes: int) -> None:
        """What a listing found."""
        self._redis.hset(STORED, tenant, str(size_bytes))
