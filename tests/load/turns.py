"""Fair turns between tenants, measured: `python -m tests.load.turns` against a Valkey of its own.

One tenant sends a flood of jobs, then another sends a few. Consumers of Celery's kombu, as workers have them, take them
one by one and work on each for the same time. How long the other's jobs took is set beside how long they take alone.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kombu

from jobs import embedded_redis, states
from jobs.bootstrap import Connection, connect
from jobs.models import Priority
from jobs.queue import QUEUES, celery_config
from jobs.settings import JobsSettings

#: Beyond a run of any size that is asked for here.
PATIENCE_SECONDS = 300


@dataclass
class Taken:
    """What consumers took, in order: the id, and when its work was done."""

    jobs: list[tuple[str, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, job_id: str) -> None:
        with self.lock:
            self.jobs.append((job_id, time.perf_counter()))

    def done_at(self, job_ids: set[str]) -> list[float]:
        with self.lock:
            return [moment for job_id, moment in self.jobs if job_id in job_ids]


def consume(settings: JobsSettings, work_seconds: float, taken: Taken, stop: threading.Event) -> None:
    """As a worker of one process: takes a message when it has none, works, and acknowledges."""
    options = celery_config(settings)
    with kombu.Connection(
        settings.redis_url,
        transport=options["broker_transport"],
        transport_options=options["broker_transport_options"],
    ) as connection:

        def work(_body: Any, message: Any) -> None:
            time.sleep(work_seconds)
            taken.add(message.headers["id"])
            message.ack()

        queues = [kombu.Queue(name, routing_key=name) for name in QUEUES]
        with kombu.Consumer(connection, queues, callbacks=[work], prefetch_count=1, accept=["json"]):
            while not stop.is_set():
                try:
                    connection.drain_events(timeout=0.5)
                except TimeoutError:
                    continue


def run(
    jobs: Connection, flood: int, few: int, consumers: int, work_seconds: float, other: str
) -> tuple[list[float], list[str]]:
    """Seconds from the other's submission to the end of each of its jobs; and whose each taken job was.

    Raises TimeoutError: they are not done in time.
    """
    taken, stop = Taken(), threading.Event()
    queues = {tenant: jobs.tenants.of(tenant).backends.queue for tenant in ("flood", other)}
    owners = {states.new_id(): "flood" for _ in range(flood)}
    for job_id in owners:
        queues["flood"].publish(job_id, Priority.ROUTINE)
    threads = [
        threading.Thread(target=consume, args=(jobs.settings, work_seconds, taken, stop)) for _ in range(consumers)
    ]
    for thread in threads:
        thread.start()
    try:
        if flood:
            _wait(lambda: len(taken.jobs) >= 4 * consumers)
        began = time.perf_counter()
        few_ids = {states.new_id(): "other" for _ in range(few)}
        for job_id in few_ids:
            queues[other].publish(job_id, Priority.ROUTINE)
        _wait(lambda: len(taken.done_at(set(few_ids))) == few)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    owners |= few_ids
    return [moment - began for moment in taken.done_at(set(few_ids))], [owners[job_id] for job_id, _ in taken.jobs]


def _wait(is_done: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_done():
        if time.monotonic() > until:
            raise TimeoutError("the jobs are not done in time")
        time.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flood", type=int, default=1000)
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--consumers", type=int, default=2)
    parser.add_argument("--work-ms", type=float, default=50.0)
    given = parser.parse_args()
    print(f"{given.few} jobs of {given.work_ms:g} ms, {given.consumers} consumers; seconds from submission to end")
    print("| before them wait | lists | first | last |\n|---|---|---|---|")
    cases = [(0, "other", "none"), (given.flood, "other", "one a tenant"), (given.flood, "flood", "one for all")]
    for flood, other, lists in cases:
        with tempfile.TemporaryDirectory() as folder:
            server = embedded_redis.join(Path(folder) / "valkey")
            jobs = connect(JobsSettings(data_dir=Path(folder), redis_url=server.url))
            try:
                seconds, _ = run(jobs, flood, given.few, given.consumers, given.work_ms / 1000, other)
            finally:
                jobs.close()
                server.close()
            print(f"| {flood} | {lists} | {min(seconds):.2f} | {max(seconds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
