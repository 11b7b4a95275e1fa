"""An hour of mixed load, and whether anything grows: `python -m tests.chaos.soak`.

Jobs are posted, polled, streamed, cancelled and deleted, in batches too; finished ones go after their retention. Once a
minute memory, descriptors, processes, temporary files, Redis keys and blobs are counted.
"""

import argparse
import csv
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import httpx
import numpy as np

from tests.chaos.cluster import Cluster, Process, serving
from tests.chaos.orders import Order
from tests.support.processes import exit_on_sigterm

RETENTION_SECONDS: Final = 120
SETTINGS: Final = {
    "LOBEWISE_RETENTION_SECONDS": str(RETENTION_SECONDS),
    "LOBEWISE_SWEEP_SECONDS": "20",
    "LOBEWISE_UPLOAD_SECONDS": "300",
    "LOBEWISE_TOMBSTONE_SECONDS": "300",
}
#: What clients do, and how often beside the others.
STEPS: Final = {"post": 10, "post_large": 1, "post_batch": 1, "follow": 2, "cancel": 1, "delete": 1, "list": 1}
POST_EVERY_SECONDS: Final = 0.5
BIG_BYTES: Final = 4 << 20

#: Of the time, in which caches fill; growth is measured after it.
WARM_UP_SHARE: Final = 0.5
LIMITS_PERCENT_AN_HOUR: Final = {"memory": 5.0, "count": 5.0}


@dataclass(frozen=True)
class Series:
    """A quantity over time.

    Attributes:
        kind: `memory` (MiB) or `count`.
        slack: what may come and go without being a leak, in its own unit.
    """

    name: str
    kind: str
    slack: float
    seconds: list[float]
    values: list[float]

    def growth_an_hour(self) -> float:
        """Slope of a straight line through the values after the warm-up."""
        begin = round(len(self.values) * WARM_UP_SHARE)
        if len(self.values) - begin < 3:
            return 0.0
        slope: float = np.polyfit(np.array(self.seconds[begin:]), np.array(self.values[begin:]), 1)[0]
        return slope * 3600

    @property
    def is_flat(self) -> bool:
        level = float(np.median(self.values)) if self.values else 0.0
        return self.growth_an_hour() <= max(LIMITS_PERCENT_AN_HOUR[self.kind] / 100 * level, self.slack)

    def line(self) -> str:
        verdict = "flat" if self.is_flat else "GROWS"
        first, last = (self.values[0], self.values[-1]) if self.values else (0.0, 0.0)
        return f"{self.name}: {first:.1f} first, {last:.1f} last, {self.growth_an_hour():+.2f} an hour: {verdict}"


class Load:
    """Clients of all kinds, a step at a time, so that the same seed asks for the same."""

    def __init__(self, address: str, rng: Random) -> None:
        self._client = httpx.Client(base_url=address, timeout=30.0)
        self._rng = rng
        self._jobs: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.steps = 0
        self.faults = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._stop.wait(POST_EVERY_SECONDS):
            self.steps += 1
            try:
                self._step()
            except (httpx.HTTPError, KeyError):
                self.faults += 1

    def _step(self) -> None:
        job_id = self._rng.choice(self._jobs or ["x"])
        match self._rng.choices(list(STEPS), weights=list(STEPS.values()))[0]:
            case "post":
                self._post()
            case "post_large":
                self._post(BIG_BYTES)
            case "post_batch":  # of a source that nobody allows: every item is refused
                batch = {"items": [{"source": {"url": "https://nowhere.invalid/ct"}}] * 3}
                self._client.post("/v1/batches", json=batch)
            case "follow":
                with self._client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
                    next(stream.iter_lines(), None)
            case "cancel":
                self._client.post(f"/v1/jobs/{job_id}/cancel")
            case "delete":
                self._client.delete(f"/v1/jobs/{job_id}")
            case "list":
                self._client.get("/v1/jobs", params={"sort": "severity"})
                self._client.get("/metrics")
        for job_id in self._rng.sample(self._jobs, min(5, len(self._jobs))):
            self._client.get(f"/v1/jobs/{job_id}")
            self._client.get(f"/v1/jobs/{job_id}/report")

    def _post(self, padding: int = 0) -> None:
        order = Order(f"soak-{self.steps}", self._rng.randint(0, 100), self._rng.uniform(0, 0.3))
        answer = self._client.post("/v1/jobs", files={"file": ("ct.nrrd", order.to_scan() + bytes(padding))})
        self._jobs = [*self._jobs[-50:], answer.json()["id"]]


def quantities(cluster: Cluster, temporary: Path) -> Iterator[tuple[str, str, float, Callable[[], float]]]:
    """Name, kind, slack, and how to count it."""
    for process in (*cluster.gateways, *cluster.workers):
        yield f"{process.name} memory (MiB)", "memory", 4.0, partial(_resident_mib, process, _itself)
        yield f"{process.name} descriptors", "count", 3.0, partial(_descriptors, process, _itself)
    for worker in cluster.workers:
        yield f"{worker.name}'s child memory (MiB)", "memory", 4.0, partial(_resident_mib, worker, Process.children)
        yield f"{worker.name}'s child descriptors", "count", 3.0, partial(_descriptors, worker, Process.children)
        yield f"{worker.name}'s processes", "count", 0.5, partial(_descendants, worker)
    yield "temporary files", "count", 3.0, lambda: float(sum(1 for path in temporary.rglob("*") if path.is_file()))
    yield "redis keys", "count", 60.0, lambda: _redis(cluster, "keys")
    yield "redis memory (MiB)", "memory", 2.0, lambda: _redis(cluster, "memory")
    # But for the audit trail, which is kept for good.
    blobs = cluster.folder / "blobs"
    yield "blobs", "count", 400.0, lambda: float(sum(1 for path in blobs.rglob("*") if "audit" not in path.parts))


def run(folder: Path, minutes: float, every_seconds: float, seed: int) -> tuple[list[Series], Load]:
    """Do it; the samples are in `folder/samples.csv` too."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    with serving(folder, {**SETTINGS, "TMPDIR": str(temporary)}) as cluster:
        load = Load(cluster.address, Random(seed))
        load.start()
        series = _watch(cluster, temporary, minutes * 60, every_seconds)
        load.stop()
    restarts = [process.name for process in cluster.processes if process.restarts]
    if restarts:
        raise RuntimeError(f"they ended, though nobody asked: {restarts}")
    return series, load


def _watch(cluster: Cluster, temporary: Path, seconds: float, every_seconds: float) -> list[Series]:
    counted = list(quantities(cluster, temporary))
    series = [Series(name, kind, slack, [], []) for name, kind, slack, _ in counted]
    begun = time.monotonic()
    with (cluster.folder / "samples.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["seconds", *(one.name for one in series)])
        while (now := time.monotonic() - begun) < seconds:
            for one, (_, _, _, count) in zip(series, counted, strict=True):
                one.seconds.append(now)
                one.values.append(count())
            rows.writerow([round(now), *(round(one.values[-1], 2) for one in series)])
            file.flush()
            time.sleep(every_seconds)
    return series


def _itself(process: Process) -> list[int]:
    return [] if process.pid is None else [process.pid]


def _resident_mib(process: Process, pids: Callable[[Process], list[int]]) -> float:
    total = 0.0
    for pid in pids(process):
        with suppress(OSError, ValueError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            total += pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    return total


def _descriptors(process: Process, pids: Callable[[Process], list[int]]) -> float:
    total = 0
    for pid in pids(process):
        with suppress(OSError):
            total += len(os.listdir(f"/proc/{pid}/fd"))
    return float(total)


def _descendants(process: Process) -> float:
    """Processes of the worker's session: it began one."""
    count = 0
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            count += int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == process.pid
    return float(count)


def _redis(cluster: Cluster, what: str) -> float:
    with cluster.redis() as server:
        return float(server.dbsize()) if what == "keys" else server.info("memory")["used_memory"] / (1 << 20)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every-seconds", type=float, default=30.0, help="between two counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for samples and logs; a new one by default")
    options = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    exit_on_sigterm()
    folder = (options.out or Path(tempfile.mkdtemp(prefix="lobewise-soak-"))).resolve()
    series, load = run(folder, options.minutes, options.every_seconds, options.seed)
    for one in series:
        print(one.line())
    print(f"{load.steps} steps of the load, {load.faults} of them without an answer; samples: {folder / 'samples.csv'}")
    return 0 if all(one.is_flat for one in series) and not load.faults else 1


if __name__ == "__main__":
    sys.exit(main())
