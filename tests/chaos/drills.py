"""One thing at a time, measured against its target: `python -m tests.chaos.drills`.

The campaign throws everything at once and asks whether the promise was kept; a drill asks how fast, or how often.
"""

import argparse
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx

from tests.chaos.campaign import FAST, percentile
from tests.chaos.checker import FINAL
from tests.chaos.cluster import Cluster, serving
from tests.chaos.history import read_history
from tests.chaos.orders import Order
from tests.support.processes import exit_on_sigterm, until


@dataclass(frozen=True)
class Result:
    """What a drill measured; `limit` is the most that is allowed."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def is_met(self) -> bool:
        return self.value <= self.limit

    def line(self) -> str:
        return (
            f"{self.name}: {self.value:g} {self.unit} (at most {self.limit:g}): {'met' if self.is_met else 'NOT MET'}"
        )


@dataclass
class Drill:
    """A fresh service and a client of it."""

    cluster: Cluster
    client: httpx.Client
    scale: float
    posted: int = 0

    def count(self, number: int) -> int:
        """So many in full size, fewer in a small one."""
        return max(round(number * self.scale), 5)

    def post(self, seconds: float = 0.0, **headers: str) -> httpx.Response:
        self.posted += 1
        order = Order(f"drill-{self.posted}", self.posted % 100, seconds)
        files = {"file": ("ct.nrrd", order.to_scan())}
        return self.client.post("/v1/jobs", files=files, headers=headers)

    def posted_id(self, seconds: float = 0.0) -> str:
        return str(self.post(seconds).json()["id"])

    def state(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/jobs/{job_id}")
        return dict(answer.json()) if answer.status_code == 200 else {}

    def status(self, job_id: str) -> str:
        return str(self.state(job_id).get("status"))

    def await_end(self, job_ids: list[str], seconds: float) -> list[str]:
        """Those that are not finished by then."""
        waiting = list(job_ids)

        def are_finished() -> bool:
            waiting[:] = [job_id for job_id in waiting if self.status(job_id) not in FINAL]
            return not waiting

        until(are_finished, seconds)
        return waiting

    def starts(self) -> dict[str, int]:
        """How often each scan was begun."""
        counts: dict[str, int] = {}
        for event in read_history(self.cluster.folder / "history.jsonl"):
            if event.kind == "start":
                counts[event.name] = counts.get(event.name, 0) + 1
        return counts


def one_key_one_job(drill: Drill) -> Iterator[Result]:
    """Many clients with the same key at the same moment, each trying again while the first is in flight."""
    order = Order("one-key", 10)

    def post(_number: int) -> str:
        while True:
            answer = drill.client.post(
                "/v1/jobs", files={"file": ("ct.nrrd", order.to_scan())}, headers={"Idempotency-Key": "one-key"}
            )
            if answer.status_code in (200, 202):
                return str(answer.json()["id"])
            if answer.status_code != 409:
                raise RuntimeError(f"{answer.status_code} {answer.text[:200]}")
            time.sleep(0.05)

    count = drill.count(1000)
    with ThreadPoolExecutor(64) as pool:
        found = set(pool.map(post, range(count)))
    yield Result(f"jobs of {count} concurrent posts with one key", len(found), 1, "jobs")


def cancel_in_time(drill: Drill) -> Iterator[Result]:
    """Queued and running jobs, from the call until they are shown as cancelled."""
    waits: dict[str, list[float]] = {"queued": [], "running": []}
    for _ in range(drill.count(20)):
        running = [drill.posted_id(30.0) for _ in drill.cluster.workers]
        queued = drill.posted_id(30.0)
        until(lambda running=running: all(drill.status(job) == "running" for job in running), 60)  # type: ignore[misc]
        waits["queued"].append(_cancelled_after(drill, queued))
        waits["running"] += [_cancelled_after(drill, job) for job in running]
    yield Result("cancel of a queued job, p95", percentile(waits["queued"], 95), 1, "s")
    yield Result("cancel of a running job, p95", percentile(waits["running"], 95), 5, "s")


def _cancelled_after(drill: Drill, job_id: str) -> float:
    begun = time.monotonic()
    drill.client.post(f"/v1/jobs/{job_id}/cancel")
    until(lambda: drill.status(job_id) == "cancelled", 60, 0.02)
    return time.monotonic() - begun


def without_redis(drill: Drill) -> Iterator[Result]:
    """Stopped (it takes connections and answers nothing), then gone: submissions are refused soon, reads go on."""
    job_id = drill.posted_id()
    drill.await_end([job_id], 60)
    posts, wrong, reads, unread = [], 0, [], 0
    process = drill.cluster.redis_process
    process.is_held = True
    for number in (signal.SIGSTOP, signal.SIGKILL):
        process.send(number)
        for _ in range(drill.count(50)):
            begun = time.monotonic()
            wrong += drill.post().status_code != 503
            posts.append(time.monotonic() - begun)
            begun = time.monotonic()
            unread += drill.status(job_id) != "succeeded"
            reads.append(time.monotonic() - begun)
        process.send(signal.SIGCONT)
    process.is_held = False
    until(drill.cluster.redis_answers, 30)
    yield Result("a post without Redis, p99", round(percentile(posts, 99), 2), 2, "s")
    yield Result("posts without Redis that were not answered 503", wrong, 0, "posts")
    yield Result("reads without Redis that failed", unread, 0, "reads")
    yield Result("a read without Redis, p99", round(percentile(reads, 99), 2), 2, "s")


def wiped_in_full_flight(drill: Drill) -> Iterator[Result]:
    """All of Redis is deleted while many jobs wait."""
    job_ids = [drill.posted_id(0.3) for _ in range(drill.count(750))]  # workers finish some meanwhile
    waiting = [job_id for job_id in job_ids if drill.status(job_id) not in FINAL]
    with drill.cluster.redis() as server:
        server.flushall()
        wiped = time.monotonic()
        until(lambda: bool(server.exists("lobewise:epoch")), 120, 0.02)
        rebuilt_seconds = time.monotonic() - wiped
    lost = drill.await_end(job_ids, 600)
    yield Result(f"Redis wiped with {len(waiting)} jobs in flight, rebuilt after", round(rebuilt_seconds, 1), 60, "s")
    yield Result("jobs lost by it", len(lost), 0, "jobs")


def told_to_stop(drill: Drill) -> Iterator[Result]:
    """Workers that get SIGTERM at any moment: nothing is begun twice."""
    rng = Random(1)
    count, job_ids = drill.count(200), []
    for _ in range(count):
        job_ids += [drill.posted_id(rng.uniform(0, 0.5)) for _ in range(3)]
        worker = rng.choice(drill.cluster.workers)
        time.sleep(rng.uniform(0, 0.5))
        handle = worker.handle
        if handle is not None and worker.send(signal.SIGTERM):
            until(lambda handle=handle: handle.poll() is not None, 60)  # type: ignore[misc]
    lost = drill.await_end(job_ids, 300)
    again = sum(number - 1 for name, number in drill.starts().items() if name.startswith("drill-"))
    yield Result(f"executions repeated by {count} SIGTERMs", again, 0, "executions")
    yield Result("jobs lost by them", len(lost), 0, "jobs")


DRILLS: Final[tuple[Callable[[Drill], Iterator[Result]], ...]] = (
    one_key_one_job,
    cancel_in_time,
    without_redis,
    wiped_in_full_flight,
    told_to_stop,
)


def main() -> int:
    names = {drill.__name__: drill for drill in DRILLS}
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.drills", description=__doc__)
    parser.add_argument("drills", nargs="*", choices=[*names, []], help="all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="0.05 for a twentieth of the jobs and faults")
    parser.add_argument("--timing", choices=["fast", "shipped"], default="shipped", help="leases and pauses of workers")
    options = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    exit_on_sigterm()
    results: list[Result] = []
    settings = FAST if options.timing == "fast" else {}
    for name in options.drills or names:
        with (
            tempfile.TemporaryDirectory(prefix="lobewise-drill-") as folder,
            serving(Path(folder).resolve(), settings) as cluster,
            httpx.Client(base_url=cluster.address, timeout=30.0, limits=httpx.Limits(max_connections=64)) as client,
        ):
            for result in names[name](Drill(cluster, client, options.scale)):
                results.append(result)
                print(result.line(), flush=True)
    return 0 if all(result.is_met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
