"""Simulates a day's scans through queue, workers and autoscaler: `python k8s/simulate.py`. Simulated, not measured.

Scans arrive at random with a tide of day and night, wait in three queues, and are taken in the workers' turns. The
autoscaler is the one of components/queue-autoscaling. A worker needs a node of its own with a GPU, which takes time to
start and is given back when it was idle for a while. A worker that is told to stop finishes its scan first.
"""

import argparse
import dataclasses
import math
import random
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import simpy
import yaml
from scaling import DAY_SECONDS, PRIORITIES, Autoscaler, Scaling, arrivals_per_second, order_of, scaling_of

SCALED_OBJECT: Final = Path(__file__).parent / "components" / "queue-autoscaling" / "scaledobject.yaml"
WARM_UP_DAYS: Final = 1
"""Left out of every figure: the simulation begins with nobody waiting and the fewest workers."""

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Load:
    """How many scans, for how many days, and between how many workers the autoscaler may choose."""

    scans_per_day: float
    days: int
    least: int
    most: int


LOADS: Final = (
    Load(10, 200, 0, 2),
    Load(10, 200, 1, 2),
    Load(1_000, 20, 0, 8),
    Load(1_000, 20, 1, 8),
    Load(100_000, 3, 4, 48),
    Load(100_000, 3, 4, 96),
)


@dataclass(frozen=True)
class World:
    """What is assumed of everything but the load. All seconds.

    Attributes:
        service: a scan's mean time on a worker.
        spread: its standard deviation, as a share of the mean (log-normal).
        mix: shares of stat, routine and batch.
        swing: of the tide, see `arrivals_per_second`.
        node_start: from asking for a node to its being ready.
        pod_start: from a ready node to loaded models.
        node_idle: a node without a worker is given back after that.
        scrape: how old the autoscaler's figures may be.
    """

    service: float
    spread: float
    mix: tuple[float, float, float]
    swing: float
    node_start: float
    pod_start: float
    node_idle: float
    scrape: float


@dataclass
class Figures:
    """What is counted after the warm-up."""

    waits: dict[str, list[float]] = field(default_factory=lambda: {priority: [] for priority in PRIORITIES})
    busy_seconds: float = 0.0
    node_seconds: float = 0.0
    most_nodes: int = 0


@dataclass
class Worker:
    """A pod. `wake` is set while it has nothing to do."""

    number: int
    ready: bool = False
    stopping: bool = False
    wake: simpy.Event | None = None


class Cluster:
    """Queues, workers and nodes in simulated time."""

    def __init__(self, load: Load, world: World, scaling: Scaling, seed: int) -> None:
        self.env = simpy.Environment()
        self.load, self.world, self.figures = load, world, Figures()
        self._arrivals, self._services = random.Random(seed), random.Random(seed + 1)  # noqa: S311 (no secrets)
        self._scaler = Autoscaler(scaling)
        self._every = scaling.every_seconds
        self._queues: tuple[deque[float], ...] = tuple(deque() for _ in PRIORITIES)
        self._running = 0
        self._workers: list[Worker] = []  # those that shall be, oldest first
        self._idle: deque[Worker] = deque()
        self._spare: deque[float] = deque()  # idle nodes, by when they became so
        self._nodes = 0
        self._nodes_since = 0.0
        self._made = 0
        self._seen = 0
        self._resize(scaling.least)

    def run(self) -> Figures:
        for process in (self._arrive, self._scrape, self._scale):
            self.env.process(process())
        self.env.run(until=(WARM_UP_DAYS + self.load.days) * DAY_SECONDS)
        self._count_nodes(0)
        return self.figures

    def _is_counted(self) -> bool:
        return self.env.now >= WARM_UP_DAYS * DAY_SECONDS

    def _arrive(self) -> Process:
        """Thinning: candidates at the highest rate, of which the tide keeps some."""
        highest = self.load.scans_per_day / DAY_SECONDS * (1 + self.world.swing)
        while True:
            yield self.env.timeout(self._arrivals.expovariate(highest))
            rate = arrivals_per_second(self.env.now, self.load.scans_per_day, self.world.swing)
            if self._arrivals.random() * highest < rate:
                (queue,) = self._arrivals.choices(range(len(PRIORITIES)), self.world.mix)
                self._queues[queue].append(self.env.now)
                self._wake_one()

    def _wake_one(self) -> None:
        while self._idle:
            worker = self._idle.popleft()
            if worker.wake is not None and not worker.wake.triggered:
                worker.wake.succeed()
                return

    def _scrape(self) -> Process:
        """What the autoscaler sees is as old as Prometheus' last look."""
        while True:
            self._seen = self._running + sum(map(len, self._queues))
            yield self.env.timeout(self.world.scrape)

    def _scale(self) -> Process:
        while True:
            yield self.env.timeout(self._every)
            self._give_nodes_back()
            self._resize(self._scaler.decide(self.env.now, self._seen, len(self._workers)))

    def _resize(self, wanted: int) -> None:
        while len(self._workers) < wanted:
            self._made += 1
            worker = Worker(self._made)
            self._workers.append(worker)
            self.env.process(self._live(worker))
        while len(self._workers) > wanted:
            # Kubernetes stops first what is not ready, then the youngest; it does not know who is busy.
            worker = min(self._workers, key=lambda each: (each.ready, -each.number))
            self._workers.remove(worker)
            worker.stopping = True
            if worker.wake is not None and not worker.wake.triggered:
                worker.wake.succeed()

    def _live(self, worker: Worker) -> Process:
        yield from self._take_node()
        yield self.env.timeout(self.world.pod_start)
        worker.ready = True
        turn = 0
        while not worker.stopping:
            queue = next((queue for queue in order_of(turn + 1) if self._queues[queue]), None)
            if queue is None:
                worker.wake = self.env.event()
                self._idle.append(worker)
                yield worker.wake
                worker.wake = None
            else:
                turn += 1
                yield from self._score(queue)
        self._spare.append(self.env.now)
        if any(self._queues):  # it may have been woken for a scan and told to stop in the same instant
            self._wake_one()

    def _score(self, queue: int) -> Process:
        waited = self.env.now - self._queues[queue].popleft()
        seconds = self._service_seconds()
        self._running += 1
        yield self.env.timeout(seconds)
        self._running -= 1
        if self._is_counted():
            self.figures.waits[PRIORITIES[queue]].append(waited)
            self.figures.busy_seconds += seconds

    def _service_seconds(self) -> float:
        """Log-normal, so that none is negative and a few are long."""
        variance = math.log(1 + self.world.spread**2)
        return self.world.service * self._services.lognormvariate(-variance / 2, variance**0.5)

    def _take_node(self) -> Process:
        if self._spare:
            self._spare.pop()
            return
        self._count_nodes(1)  # it is paid for from the asking
        yield self.env.timeout(self.world.node_start)

    def _give_nodes_back(self) -> None:
        while self._spare and self._spare[0] <= self.env.now - self.world.node_idle:
            self._spare.popleft()
            self._count_nodes(-1)

    def _count_nodes(self, change: int) -> None:
        begin = WARM_UP_DAYS * DAY_SECONDS
        self.figures.node_seconds += self._nodes * max(0.0, self.env.now - max(self._nodes_since, begin))
        self._nodes, self._nodes_since = self._nodes + change, self.env.now
        if self._is_counted():
            self.figures.most_nodes = max(self.figures.most_nodes, self._nodes)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def rows(loads: Sequence[Load], world: World, scaling: Scaling, seed: int) -> Iterator[list[str]]:
    """The table, a load a row, after its head."""
    yield [
        "scans a day",
        "workers",
        *(f"{priority}: p50, p95 wait" for priority in PRIORITIES),
        "nodes, mean and most",
        "GPU-hours a day",
        "of them busy",
        "GPU-seconds paid a scan",
    ]
    for load in loads:
        allowed = dataclasses.replace(scaling, least=load.least, most=load.most)
        figures = Cluster(load, world, allowed, seed).run()
        scans = sum(map(len, figures.waits.values()))
        hours = figures.node_seconds / 3600 / load.days
        yield [
            f"{load.scans_per_day:,.0f}".replace(",", " "),
            f"{load.least}-{load.most}",
            *(f"{percentile(waits, 50):.0f} s, {percentile(waits, 95):.0f} s" for waits in figures.waits.values()),
            f"{hours / 24:.1f}, {figures.most_nodes}",
            f"{hours:.1f}",
            f"{100 * figures.busy_seconds / figures.node_seconds:.0f} %",
            f"{figures.node_seconds / scans:.0f}",
        ]


def main() -> None:
    """Print the table."""
    options = _parser().parse_args()
    world = World(
        service=options.service_seconds,
        spread=options.service_spread,
        mix=tuple(options.mix),
        swing=options.swing,
        node_start=options.node_start_seconds,
        pod_start=options.pod_start_seconds,
        node_idle=options.node_idle_seconds,
        scrape=options.scrape_seconds,
    )
    loads: tuple[Load, ...] = LOADS
    if options.scans_per_day is not None:
        loads = (Load(options.scans_per_day, options.days, options.min_workers, options.max_workers),)
    scaling = scaling_of(yaml.safe_load(SCALED_OBJECT.read_text()))
    for number, row in enumerate(rows(loads, world, scaling, options.seed)):
        print("| " + " | ".join(row) + " |", flush=True)
        if number == 0:
            print("|" + "---|" * len(row))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Simulate queue and autoscaler.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--scans-per-day", type=float, help="one load instead of those of docs/deployment.md")
    parser.add_argument("--days", type=int, default=5, help="of that load, after a day of warm-up")
    parser.add_argument("--min-workers", type=int, default=1)
    parser.add_argument("--max-workers", type=int, default=8)
    parser.add_argument("--service-seconds", type=float, default=24.0, help="mean; 24 is one CPU core, measured")
    parser.add_argument("--service-spread", type=float, default=0.3, help="standard deviation by mean; assumed")
    parser.add_argument("--mix", type=float, nargs=3, default=(0.1, 0.6, 0.3), help="shares of the priorities; assumed")
    parser.add_argument("--swing", type=float, default=0.8, help="of day and night, 0 to 1; assumed")
    parser.add_argument("--node-start-seconds", type=float, default=240.0, help="assumed")
    parser.add_argument("--pod-start-seconds", type=float, default=60.0, help="assumed")
    parser.add_argument("--node-idle-seconds", type=float, default=600.0, help="the cluster autoscaler's default")
    parser.add_argument("--scrape-seconds", type=float, default=15.0, help="as components/monitoring has it")
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()
