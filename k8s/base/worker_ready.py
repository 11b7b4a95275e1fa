"""Readiness of a worker's pod: has a process of it loaded its models and told the broker so?

The broker forgets who has not repeated it for 15 seconds (`worker.celery_app`). With `--without-broker-too` a broker
that cannot be asked counts as yes: a start must not fail for the fault of another.
"""

import os
import socket
import sys
from pathlib import Path
from typing import cast

import redis

WORKERS = "lobewise:workers"
TIMEOUT_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """The exit code of the probe."""
    try:
        return 0 if is_announced(redis_url(), socket.gethostname()) else 1
    except (redis.ConnectionError, redis.TimeoutError) as error:
        print(f"the broker cannot be asked: {type(error).__name__}", file=sys.stderr)
        return 0 if "--without-broker-too" in arguments else 1


def is_announced(url: str, host: str) -> bool:
    """Whether a worker of that host is ready. The broker has them in order of the time (its own, ms) until it holds."""
    with redis.Redis.from_url(
        url, decode_responses=True, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
    ) as client:
        seconds, microseconds = cast("tuple[int, int]", client.time())
        now_ms = seconds * 1000 + microseconds // 1000
        names = cast("list[str]", client.zrangebyscore(WORKERS, now_ms, "+inf"))
    return any(name.rpartition(":")[0] == host for name in names)


def redis_url() -> str:
    """As the worker reads it: the environment goes before the file."""
    secrets = Path(os.environ.get("LOBEWISE_SECRETS_DIR", "/run/secrets"))
    return os.environ.get("LOBEWISE_REDIS_URL") or (secrets / "LOBEWISE_REDIS_URL").read_text().strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
