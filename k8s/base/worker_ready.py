"""Readiness of a worker's pod: has a process of it loaded its models and told the broker so?

The broker forgets who has not repeated it for 15 seconds (`lobewise.worker.app`). With `--without-broker-too` a broker
that cannot be asked counts as yes: a start must not fail for the fault of another.
"""

import os
import socket
import sys
import time
from pathlib import Path

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
    """Whether a worker of that host is ready; the broker has them by the time, in ms, at which their word expires."""
    with redis.Redis.from_url(
        url, decode_responses=True, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
    ) as client:
        names = client.zrangebyscore(WORKERS, time.time() * 1000, "+inf")
    return any(str(name).rpartition(":")[0] == host for name in names)


def redis_url() -> str:
    """As the worker reads it: the environment goes before the file."""
    secrets = Path(os.environ.get("LOBEWISE_SECRETS_DIR", "/run/secrets"))
    return os.environ.get("LOBEWISE_REDIS_URL") or (secrets / "LOBEWISE_REDIS_URL").read_text().strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
