"""What workers did, counted in Redis, so that they need no port of their own: the gateway exports it.

```
lobewise:figures              hash of counts, since the server was last empty:
  finished:{outcome}:{problem}    jobs
  stage:{stage}:le:{seconds}      stages by the first bound of `BUCKETS_SECONDS` that is not below what they took
  stage:{stage}:ms                the time of all of them
  job:{priority}:le:{seconds}     jobs by the time from acceptance to end
  job:{priority}:ms
lobewise:vitals:{worker}      memory and GPU of a worker process, JSON, with a time to live
```

When it counts: in the one atomic step (`LiveView.put`) in which the live view first shows a job ended, and not when a
rebuild brings an ended job back. So each job counts once, however often it was attempted, and whoever ended it: its
worker, the reconciler, or a client that cancelled it while it waited. A job that is deleted before its end never
counts.

The seconds of stages are those of the attempt that ended the job, as far as it completed them. They count in the same
step, if that attempt's worker takes it. If the broker is down then, the job waits for nothing: the reconciler ends it
in the live view later, which counts the job, without the seconds of its stages.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, cast

import redis

from jobs.models import JobState, JobStatus, Model, Priority, Stage
from jobs.problems import PROBLEM_TYPES

FIGURES: Final = "lobewise:figures"

#: A stage takes no longer than the hard limit of an attempt, by default half an hour.
BUCKETS_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0)

#: A job may wait for a night beside.
WAITING_BUCKETS_SECONDS: Final = (*BUCKETS_SECONDS, 3600.0, 7200.0, 21600.0, 86400.0)
OTHER: Final = "other"
#: Every way in which a job fails; an unknown one counts as `other`, so that no label has values without end.
PROBLEMS: Final = (*sorted(problem.slug for problem in PROBLEM_TYPES if problem.ends_job), OTHER)


@dataclass(frozen=True)
class Histogram:
    """How many took no longer than each bound (seconds, or infinity), and the seconds of all of them."""

    buckets: Mapping[float, int]
    sum_seconds: float


class WorkerStats(Model):
    """A worker process. What there is no GPU for, or nobody can tell, is None."""

    peak_memory_bytes: int
    gpu_memory_used_bytes: int | None = None
    """Of the whole device, by whomever."""
    gpu_memory_total_bytes: int | None = None
    gpu_utilization_ratio: float | None = None
    """Share of the last moments in which the device was busy, 0 to 1."""


@dataclass(frozen=True)
class JobMetrics:
    """All that was counted, and what is there now.

    Attributes:
        finished: jobs by outcome and, for failures, problem ("" for the others).
        running: jobs by stage; those that have not told one yet are at None.
        workers: by name.
    """

    finished: Mapping[tuple[JobStatus, str], int]
    stage_seconds: Mapping[Stage, Histogram]
    job_seconds: Mapping[Priority, Histogram]
    running: Mapping[Stage | None, int] = field(default_factory=dict)
    workers: Mapping[str, WorkerStats] = field(default_factory=dict)


def counts_of(state: JobState, stage_seconds: Mapping[str, float]) -> dict[str, int]:
    """What a job that has ended adds to which fields of the hash."""
    seconds = (state.finished_at - state.created_at).total_seconds() if state.finished_at else 0.0
    counts = {f"finished:{state.status}:{_problem(state)}": 1}
    counts |= _observed(f"job:{state.priority}", seconds, WAITING_BUCKETS_SECONDS)
    for stage in Stage:
        if stage in stage_seconds:
            counts |= _observed(f"stage:{stage}", stage_seconds[stage], BUCKETS_SECONDS)
    return counts


class Tally:
    """Reads the counts. Callers turn errors of Redis into BrokerUnavailableError."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server

    def read(self, running: Mapping[Stage | None, int], workers: Mapping[str, WorkerStats]) -> JobMetrics:
        raw = cast("dict[str, str]", self._redis.hgetall(FIGURES))
        counts = {name: int(count) for name, count in raw.items()}
        ends = [(JobStatus.SUCCEEDED, ""), (JobStatus.CANCELLED, ""), *((JobStatus.FAILED, slug) for slug in PROBLEMS)]
        return JobMetrics(
            finished={end: counts.get(f"finished:{end[0]}:{end[1]}", 0) for end in ends},
            stage_seconds={stage: _histogram(counts, f"stage:{stage}", BUCKETS_SECONDS) for stage in Stage},
            job_seconds={p: _histogram(counts, f"job:{p}", WAITING_BUCKETS_SECONDS) for p in Priority},
            running=running,
            workers=workers,
        )


def by_stage(states: list[JobState | None]) -> dict[Stage | None, int]:
    """Running jobs by what they are doing."""
    found = Counter(state.stage for state in states if state is not None and state.status is JobStatus.RUNNING)
    return {stage: found[stage] for stage in (None, *Stage)}


def _problem(state: JobState) -> str:
    if state.status is not JobStatus.FAILED:
        return ""
    slug = state.error.type.rpartition("/")[2] if state.error else OTHER
    return slug if slug in PROBLEMS else OTHER


def _observed(name: str, seconds: float, bounds: tuple[float, ...]) -> dict[str, int]:
    seconds = max(seconds, 0.0)  # clocks of machines may differ by a little
    at = bisect_left(bounds, seconds)
    bound = f"{bounds[at]:g}" if at < len(bounds) else "inf"
    return {f"{name}:le:{bound}": 1, f"{name}:ms": round(1000 * seconds)}


def _histogram(counts: Mapping[str, int], name: str, bounds: tuple[float, ...]) -> Histogram:
    """Bounds that another version counted by go into the next of ours."""
    within: Counter[float] = Counter()
    limits = (*bounds, float("inf"))
    prefix = f"{name}:le:"
    for key, count in counts.items():
        if key.startswith(prefix):
            within[limits[bisect_left(limits, float(key.removeprefix(prefix)))]] += count
    summed = accumulate(within[limit] for limit in limits)
    return Histogram(dict(zip(limits, summed, strict=True)), counts.get(f"{name}:ms", 0) / 1000)
