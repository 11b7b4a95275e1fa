"""What waits, and what workers did, counted in Redis, so that they need no port of their own: the gateway exports it.

Fields of the hash of counts:
```
finished:{outcome}:{problem}    jobs
reused                          jobs that were given the result of an earlier one
stage:{stage}:le:{seconds}      stages by the first bound of `BUCKETS_SECONDS` that is not below what they took
stage:{stage}:ms                the time of all of them
job:{priority}:le:{seconds}     jobs by the time from acceptance to end
job:{priority}:ms
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, cast

import redis

from jobs.live.connection import broker_errors
from jobs.live.keys import METRICS, Keys
from jobs.live.workers import ReadyWorkers, WorkerStats
from jobs.models import JobState, JobStatus, Priority, Stage
from jobs.problems import PROBLEM_TYPES
from jobs.states import QueueLength

#: A stage takes no longer than the hard limit of an attempt, by default half an hour.
BUCKETS_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0)

#: Beside its stages a job may wait for a night.
WAITING_BUCKETS_SECONDS: Final = (*BUCKETS_SECONDS, 3600.0, 7200.0, 21600.0, 86400.0)
OTHER: Final = "other"
#: Every way in which a job fails; an unknown one counts as `other`, so that no label has values without end.
PROBLEMS: Final = (*sorted(problem.slug for problem in PROBLEM_TYPES if problem.ends_job), OTHER)


@dataclass(frozen=True)
class Histogram:
    """How many took no longer than each bound (seconds, or infinity), and the seconds of all of them."""

    buckets: Mapping[float, int]
    sum_seconds: float


@dataclass(frozen=True)
class JobMetrics:
    """All that was counted, and the workers that there are.

    Attributes:
        finished: jobs by outcome and, for failures, problem ("" for the others).
        reused: jobs that were given the result of an earlier one.
        workers: by name.
    """

    finished: Mapping[tuple[JobStatus, str], int]
    reused: int
    stage_seconds: Mapping[Stage, Histogram]
    job_seconds: Mapping[Priority, Histogram]
    workers: Mapping[str, WorkerStats]


def counts_of(state: JobState, stage_seconds: Mapping[str, float]) -> dict[str, int]:
    """What a job that has ended adds to which fields of the hash."""
    seconds = (state.finished_at - state.created_at).total_seconds() if state.finished_at else 0.0
    problem = ""
    if state.status is JobStatus.FAILED:
        slug = state.error.type.rpartition("/")[2] if state.error else OTHER
        problem = slug if slug in PROBLEMS else OTHER
    counts = {f"finished:{state.status}:{problem}": 1}
    if state.reused_from is not None:
        counts["reused"] = 1
    counts |= _observed(f"job:{state.priority}", seconds, WAITING_BUCKETS_SECONDS)
    for stage in Stage:
        if stage in stage_seconds:
            counts |= _observed(f"stage:{stage}", stage_seconds[stage], BUCKETS_SECONDS)
    return counts


class Monitoring:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(
        self,
        server: redis.Redis,
        keys: Keys,
        states: Callable[[Sequence[str]], list[JobState | None]],
        workers: ReadyWorkers,
    ) -> None:
        """`states` reads jobs by their ids."""
        self._redis, self._keys, self._states, self._workers = server, keys, states, workers

    @broker_errors()
    def ping(self) -> None:
        """Whether the broker answers, within about a second; what is raised says so."""
        self._redis.ping()

    def counts(self) -> Mapping[JobStatus, int]:
        """How many jobs have each status."""
        with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            for status in JobStatus:
                pipe.zcard(self._keys.key("index", status, "*"))
            return dict(zip(JobStatus, pipe.execute(), strict=True))

    @broker_errors()
    def queues(self) -> Mapping[Priority, QueueLength]:
        """How many jobs wait, and how long."""
        with self._redis.pipeline(transaction=False) as pipe:
            for priority in Priority:
                pipe.zcard(self._keys.key("index", JobStatus.QUEUED, priority))
                pipe.zrange(self._keys.key("index", JobStatus.QUEUED, priority), 0, 0)
            pipe.time()
            *answers, (seconds, microseconds) = pipe.execute()
        now_ms = seconds * 1000 + microseconds // 1000
        counts, firsts = answers[::2], answers[1::2]
        begun = [self._redis.hget(self._keys.key("job", first[0]), "since_ms") if first else None for first in firsts]
        return {
            priority: QueueLength(int(count), max(now_ms - int(cast("str", since)), 0) / 1000 if since else 0.0)
            for priority, count, since in zip(Priority, counts, begun, strict=True)
        }

    @broker_errors()
    def running(self) -> Mapping[Stage | None, int]:
        """How many jobs are at each stage; those that have reported none yet are at None."""
        job_ids = cast("list[str]", self._redis.zrange(self._keys.key("index", JobStatus.RUNNING, "*"), 0, -1))
        shown = [state for state in self._states(job_ids) if state is not None and state.status is JobStatus.RUNNING]
        counts = Counter(state.stage for state in shown)
        return {stage: counts[stage] for stage in (None, *Stage)}

    @broker_errors()
    def job_metrics(self) -> JobMetrics:
        """What workers did since Redis was last empty, for all tenants, and how they are now."""
        raw = cast("dict[str, str]", self._redis.hgetall(METRICS))
        counts = {name: int(count) for name, count in raw.items()}
        ends = [(JobStatus.SUCCEEDED, ""), (JobStatus.CANCELLED, ""), *((JobStatus.FAILED, slug) for slug in PROBLEMS)]
        return JobMetrics(
            finished={end: counts.get(f"finished:{end[0]}:{end[1]}", 0) for end in ends},
            reused=counts.get("reused", 0),
            stage_seconds={stage: _histogram(counts, f"stage:{stage}", BUCKETS_SECONDS) for stage in Stage},
            job_seconds={p: _histogram(counts, f"job:{p}", WAITING_BUCKETS_SECONDS) for p in Priority},
            workers=self._workers.stats(),
        )


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
    for field, count in counts.items():
        if field.startswith(prefix):
            within[limits[bisect_left(limits, float(field.removeprefix(prefix)))]] += count
    summed = accumulate(within[limit] for limit in limits)
    return Histogram(dict(zip(limits, summed, strict=True)), counts.get(f"{name}:ms", 0) / 1000)
