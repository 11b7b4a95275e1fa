"""How the queue and its autoscaler behave: what k8s/simulate.py simulates, as plain functions of the standard library.

Each repeats a rule that stands elsewhere: the turns of `jobs.fairness`, the manifest of the ScaledObject, the
horizontal pod autoscaler of Kubernetes. tests/test_k8s.py holds them against the first two.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

PRIORITIES: Final = ("stat", "routine", "batch")
ROUTINE_TURN: Final = 4
BATCH_TURN: Final = 16
TOLERANCE: Final = 0.1
"""Kubernetes leaves the number of pods alone while load and target are that close."""
DAY_SECONDS: Final = 86400.0
PEAK_HOUR: Final = 13.0


def order_of(turn: int) -> tuple[int, ...]:
    """In which order a worker looks into the queues, the most urgent being 0, at its `turn` (from 1 on)."""
    first = 2 if turn % BATCH_TURN == 0 else 1 if turn % ROUTINE_TURN == 0 else 0
    return (first, *(queue for queue in range(len(PRIORITIES)) if queue != first))


def arrivals_per_second(now: float, per_day: float, swing: float) -> float:
    """A day's tide: the mean times 1 + swing at 13:00, 1 - swing at 1:00.

    Args:
        swing: 0 for no tide, 1 for none at all at the darkest hour.
    """
    hour = now / 3600 % 24
    return per_day / DAY_SECONDS * (1 + swing * math.cos((hour - PEAK_HOUR) / 24 * 2 * math.pi))


@dataclass(frozen=True)
class Scaling:
    """What the ScaledObject says.

    Attributes:
        jobs_per_worker: waiting and running, that an autoscaler aims at.
        up_percent, up_workers: by how much it may grow in `up_seconds`, whichever is more.
        down_percent: by how much it may shrink in `down_seconds`.
        down_window_seconds: it shrinks to the most that it wanted in that time.
    """

    least: int
    most: int
    every_seconds: float
    jobs_per_worker: float
    up_percent: float
    up_workers: int
    up_seconds: float
    down_percent: float
    down_seconds: float
    down_window_seconds: float


def scaling_of(manifest: Mapping[str, Any]) -> Scaling:
    """As the manifest has it."""
    spec = manifest["spec"]
    behaviour = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    up = {policy["type"]: policy for policy in behaviour["scaleUp"]["policies"]}
    (down,) = behaviour["scaleDown"]["policies"]
    return Scaling(
        least=spec["minReplicaCount"],
        most=spec["maxReplicaCount"],
        every_seconds=spec["pollingInterval"],
        jobs_per_worker=float(spec["triggers"][0]["metadata"]["threshold"]),
        up_percent=up["Percent"]["value"],
        up_workers=up["Pods"]["value"],
        up_seconds=up["Percent"]["periodSeconds"],
        down_percent=down["value"],
        down_seconds=down["periodSeconds"],
        down_window_seconds=behaviour["scaleDown"]["stabilizationWindowSeconds"],
    )


@dataclass
class Autoscaler:
    """The horizontal pod autoscaler that KEDA makes, with the memory that it has."""

    scaling: Scaling
    _wanted: "deque[tuple[float, int]]" = field(default_factory=deque)
    _had: "deque[tuple[float, int]]" = field(default_factory=deque)

    def decide(self, now: float, jobs: int, workers: int) -> int:
        """How many workers there shall be, with so many jobs and workers now."""
        self._had.append((now, workers))
        self._wanted.append((now, self._wish(jobs, workers)))
        _forget(self._wanted, now - self.scaling.down_window_seconds)
        _forget(self._had, now - max(self.scaling.up_seconds, self.scaling.down_seconds))
        wish = self._wanted[-1][1]
        if wish > workers:
            return min(wish, self._ceiling(now))
        if wish < workers:
            held = max(number for _, number in self._wanted)
            return min(workers, max(held, self._floor(now)))
        return workers

    def _wish(self, jobs: int, workers: int) -> int:
        if workers == 0:
            return self._clip(1 if jobs else 0)  # KEDA wakes the first; the rest is the autoscaler's
        ratio = jobs / (workers * self.scaling.jobs_per_worker)
        wish = workers if abs(ratio - 1) <= TOLERANCE else math.ceil(jobs / self.scaling.jobs_per_worker)
        return self._clip(wish)

    def _clip(self, wish: int) -> int:
        return max(self.scaling.least, min(self.scaling.most, wish))

    def _ceiling(self, now: float) -> int:
        fewest = min(number for then, number in self._had if then >= now - self.scaling.up_seconds)
        return max(math.ceil(fewest * (1 + self.scaling.up_percent / 100)), fewest + self.scaling.up_workers)

    def _floor(self, now: float) -> int:
        most = max(number for then, number in self._had if then >= now - self.scaling.down_seconds)
        return math.floor(most * (1 - self.scaling.down_percent / 100))


def _forget(memory: "deque[tuple[float, int]]", before: float) -> None:
    while memory and memory[0][0] < before:
        memory.popleft()
