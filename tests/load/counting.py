"""What it costs a request to be counted: `python -m tests.load.counting` against a Valkey of its own.

So many callers, each with a limit of its tenant and one of its key, poll at a steady rate, as `RequestCounter` sees
them. Shown are the microseconds of each call, and the CPU that the process spent on telling Redis beside them.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from api.quotas import RequestCounter
from jobs import embedded_redis
from jobs.access.caller import Caller, Role
from jobs.bootstrap import connect
from jobs.quotas import Quotas
from jobs.settings import JobsSettings

#: Higher than what is sent: nothing is refused.
LIMIT = 1_000_000


async def measure(counter: RequestCounter, callers: int, per_second: int, seconds: float) -> list[float]:
    """Microseconds of each call."""
    known = [Caller(f"tenant-{i % 10}", f"key-{i}", frozenset(Role)) for i in range(callers)]
    took = []
    every = 0.01
    for turn in range(round(seconds / every)):
        began = time.perf_counter()
        for i in range(round(per_second * every)):
            before = time.perf_counter()
            counter.count(known[(turn * 7919 + i) % callers])
            took.append(1e6 * (time.perf_counter() - before))
        await asyncio.sleep(max(0.0, every - (time.perf_counter() - began)))
    await counter.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=100)
    parser.add_argument("--per-second", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = embedded_redis.join(Path(folder) / "valkey")
        cpu_us = {}
        # The first without limits: what the loop that asks costs by itself.
        for limit in (0, LIMIT):
            settings = JobsSettings(
                data_dir=Path(folder),
                redis_url=server.url,
                quota_requests_per_minute=limit,
                key_quota_requests_per_minute=limit,
            )
            jobs = connect(settings)
            try:
                counter = RequestCounter(Quotas(settings), jobs.backends.live.usage)
                before = time.process_time()
                took = asyncio.run(measure(counter, given.callers, given.per_second, given.seconds))
                cpu_us[limit] = 1e6 * (time.process_time() - before) / len(took)
            finally:
                jobs.close()
        server.close()
    centiles = statistics.quantiles(took, n=100)
    print(f"{given.per_second} requests a second of {given.callers} callers, each with two limits")
    print(f"counting one: p50 {centiles[49]:.1f} us, p99 {centiles[98]:.1f} us")
    print(f"CPU for one, telling Redis included: {cpu_us[LIMIT] - cpu_us[0]:.0f} us")


if __name__ == "__main__":
    main()
