"""What a broker says about itself."""

import time
from dataclasses import dataclass
from typing import Any, cast

import redis

from jobs.live.redis_view import broker_errors
from jobs.settings import JobsSettings


@dataclass(frozen=True)
class BrokerInfo:
    """The server and how it is set.

    Attributes:
        clock_skew_seconds: how far its clock is ahead of ours.
        eviction_policy: `noeviction` is the only one that forgets no job.
        is_append_only: whether a restart keeps what it had.
    """

    server: str
    version: str
    clock_skew_seconds: float
    eviction_policy: str
    is_append_only: bool


def read_broker_info(settings: JobsSettings) -> BrokerInfo:
    """Ask the server of `redis_url`. Raises BrokerUnavailableError."""
    timeout = settings.broker_timeout_seconds
    with (
        broker_errors(),
        redis.Redis.from_url(
            settings.redis_url or "", decode_responses=True, socket_timeout=timeout, socket_connect_timeout=timeout
        ) as client,
    ):
        info = cast("dict[str, Any]", client.info())
        seconds, microseconds = cast("tuple[int, int]", client.time())
    is_valkey = "valkey_version" in info
    return BrokerInfo(
        server="Valkey" if is_valkey else "Redis",
        version=str(info["valkey_version" if is_valkey else "redis_version"]),
        clock_skew_seconds=seconds + microseconds / 1e6 - time.time(),
        eviction_policy=str(info.get("maxmemory_policy", "noeviction")),
        is_append_only=str(info.get("aof_enabled", 0)) == "1",
    )
