"""What an operator watches, in the text format of Prometheus."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import isinf
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.audit.trail import AuditTrail
from jobs.errors import BrokerUnavailableError
from jobs.live.job_metrics import Histogram as Seconds
from jobs.models import JobStatus, Priority, Stage
from jobs.quotas import Quota
from jobs.service import JobService
from jobs.tenants import Tenants

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: With the other, which a tenant cannot be called.
TENANTS_SHOWN: Final = 20
OTHERS: Final = "(other)"
OPEN: Final = (JobStatus.QUEUED, JobStatus.RUNNING)
_SECONDS: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The metrics of one gateway process. Routes are templates, so that no job id becomes a label."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "lobewise_http_requests",
            "Answers by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "lobewise_http_request_seconds",
            "Time from the first byte of a request to the last of its answer",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.accepted = Counter(
            "lobewise_jobs_accepted", "Jobs accepted by this process", ["priority"], registry=self.registry
        )
        self.upload_bytes = Counter(
            "lobewise_upload_bytes", "Bytes of the scans accepted by this process", registry=self.registry
        )

        self.quota_refusals = Counter(
            "lobewise_quota_refusals", "Requests refused for a limit", ["quota"], registry=self.registry
        )
        # All from the start: a rate needs the 0 before the first.
        for quota in Quota:
            if quota is not Quota.RUNNING_JOBS:  # which delays, and refuses nothing
                self.quota_refusals.labels(quota.value)

    def watch_streams(self, count: Callable[[], int]) -> None:
        """Add how many streams of events are open."""
        self._add_gauge("lobewise_event_streams", "Streams of events that are open", count)

    def watch_uploads(self, count: Callable[[], int], bytes_per_second: Callable[[], float]) -> None:
        """Add how many scans are on their way in, and how fast they may come."""
        self._add_gauge("lobewise_uploads", "Scans on their way in", count)
        meaning = "How fast scans may come in together while others ask for something; +Inf while nobody does"
        self._add_gauge("lobewise_upload_limit_bytes_per_second", meaning, bytes_per_second)

    def watch_audit(self, trail: AuditTrail) -> None:
        """Add what this process recorded in the audit trail, and whether the store takes it."""
        self.registry.register(_AuditCollector(trail))

    def watch(self, tenants: Tenants) -> None:
        """Add what the jobs themselves know, asked for at each scrape."""
        self.registry.register(_JobsCollector(tenants))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def refused(self, status: int) -> None:
        """A connection was answered before there was a request to count."""
        self._requests.labels("(none)", "(none)", str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _add_gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        Gauge(name, meaning, registry=self.registry).set_function(value)


class _AuditCollector(Collector):
    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    def collect(self) -> Iterator[Metric]:
        meaning = "Entries of the audit trail that this process recorded"
        recorded = CounterMetricFamily("lobewise_audit_entries", meaning, labels=["act"])
        yield _filled(recorded, dict(self._trail.recorded))
        meaning = "For how long the oldest entry that this process has not stored has waited"
        yield GaugeMetricFamily("lobewise_audit_behind_seconds", meaning, value=self._trail.behind_seconds())
        meaning = "Refusals and looks that were not recorded, since too many entries waited to be stored"
        yield CounterMetricFamily("lobewise_audit_dropped", meaning, value=self._trail.dropped)


class _JobsCollector(Collector):
    def __init__(self, tenants: Tenants) -> None:
        self._tenants, self._jobs = tenants, tenants.default.service

    def describe(self) -> Iterator[Metric]:
        """Nothing is asked of the jobs before the first scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        ready = self._jobs.readiness()
        yield GaugeMetricFamily("lobewise_broker_up", "1 if the broker answers", value=ready.broker)
        yield GaugeMetricFamily("lobewise_blobs_up", "1 if the store of scans and results answers", value=ready.blobs)
        yield GaugeMetricFamily("lobewise_workers_ready", "Workers with their models loaded", value=ready.workers)
        if ready.broker:
            # It may go down between two questions. Then what is known is still shown, rather than no page at all.
            with suppress(BrokerUnavailableError):
                services = [known.service for known in self._tenants.known()]
                counts = {jobs.tenant: jobs.monitoring.counts() for jobs in services}
                jobs = GaugeMetricFamily("lobewise_jobs", "Jobs by status", labels=["status"])
                yield _filled(jobs, {status: sum(found[status] for found in counts.values()) for status in JobStatus})
                yield GaugeMetricFamily("lobewise_tenants", "Tenants, with `default`", value=len(services))
                yield _by_tenant(counts)
                waiting = GaugeMetricFamily("lobewise_queue_jobs", "Jobs that wait for a worker", labels=["priority"])
                meaning = "How long the first of the waiting jobs has waited"
                oldest = GaugeMetricFamily("lobewise_queue_oldest_seconds", meaning, labels=["priority"])
                # All of these have the default's, so that there is something to show where nobody has anything to do.
                at_work = [jobs for jobs in services if jobs is self._jobs or any(counts[jobs.tenant][s] for s in OPEN)]
                queues = [jobs.monitoring.queues() for jobs in at_work]
                yield _filled(waiting, {p: sum(queue[p].waiting for queue in queues) for p in Priority})
                yield _filled(oldest, {p: max(queue[p].oldest_seconds for queue in queues) for p in Priority})
                backlogs = [jobs.callbacks.schedule.backlog() for jobs in services]
                meaning = "Callbacks to make, now or later"
                pending = sum(backlog.pending for backlog in backlogs)
                yield GaugeMetricFamily("lobewise_callbacks_pending", meaning, value=pending)
                meaning = "For how long the first callback that is due has been"
                overdue_seconds = max(backlog.overdue_seconds for backlog in backlogs)
                yield GaugeMetricFamily("lobewise_callbacks_overdue_seconds", meaning, value=overdue_seconds)
                meaning = "Attempts at callbacks, by how they ended"
                attempts = CounterMetricFamily("lobewise_callback_attempts", meaning, labels=["outcome"])
                yield _filled(attempts, self._jobs.callbacks.schedule.outcomes())
                yield from self._job_metrics(at_work)

    def _job_metrics(self, at_work: Sequence[JobService]) -> Iterator[Metric]:
        """What the workers did; they count in Redis, so every gateway shows the same."""
        job_metrics = self._jobs.monitoring.job_metrics()
        meaning = "Jobs by how they ended and, if they failed, why"
        finished = CounterMetricFamily("lobewise_jobs_finished", meaning, labels=["outcome", "problem"])
        for (outcome, problem), count in job_metrics.finished.items():
            finished.add_metric([outcome, problem], count)
        meaning = "Jobs that were given the result of an earlier one"
        yield CounterMetricFamily("lobewise_jobs_reused", meaning, value=job_metrics.reused)
        running = GaugeMetricFamily("lobewise_running_jobs", "Jobs that a worker has, by stage", labels=["stage"])
        by_stage = [jobs.monitoring.running() for jobs in at_work]
        for stage in (None, *Stage):
            running.add_metric([stage or "none"], sum(count[stage] for count in by_stage))
        yield from (finished, running)
        meaning = "What each stage took, in the attempt that ended its job"
        yield _histogram("lobewise_stage_seconds", meaning, "stage", job_metrics.stage_seconds)
        meaning = "Time from a job's acceptance to its end"
        yield _histogram("lobewise_job_seconds", meaning, "priority", job_metrics.job_seconds)
        # What nobody can tell, such as the GPU of a worker without one, is left out.
        for field, (name, meaning) in _WORKER_GAUGES.items():
            gauge = GaugeMetricFamily(name, meaning, labels=["worker"])
            for worker, stats in job_metrics.workers.items():
                if (value := getattr(stats, field)) is not None:
                    gauge.add_metric([worker], value)
            yield gauge


def _by_tenant(counts: Mapping[str, Mapping[JobStatus, int]]) -> Metric:
    """Open jobs of the tenants that have most of them; all others are one, so that there is no label without end."""
    meaning = f"Jobs of a tenant that wait or run; those of all but {TENANTS_SHOWN} tenants are one, `{OTHERS}`"
    family = GaugeMetricFamily("lobewise_tenant_open_jobs", meaning, labels=["tenant", "status"])
    ranked = sorted(counts, key=lambda tenant: (-sum(counts[tenant][status] for status in OPEN), tenant))
    for status in OPEN:
        for tenant in ranked[:TENANTS_SHOWN]:
            family.add_metric([tenant, status], counts[tenant][status])
        others = sum(counts[tenant][status] for tenant in ranked[TENANTS_SHOWN:])
        family.add_metric([OTHERS, status], others)
    return family


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[Any, float]) -> Metric:
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def _histogram(name: str, meaning: str, label: str, found: Mapping[Any, Seconds]) -> Metric:
    family = HistogramMetricFamily(name, meaning, labels=[label])
    for value, seconds in found.items():
        # The text format writes the last bound as +Inf, which Python's repr does not.
        buckets = [("+Inf" if isinf(bound) else repr(bound), count) for bound, count in seconds.buckets.items()]
        family.add_metric([str(value)], buckets, seconds.sum_seconds)
    return family


_WORKER_GAUGES: Final = {
    "peak_memory_bytes": ("lobewise_worker_memory_peak_bytes", "The most memory that the worker process ever had"),
    "gpu_memory_used_bytes": ("lobewise_worker_gpu_memory_used_bytes", "Memory in use on the worker's GPU"),
    "gpu_memory_total_bytes": ("lobewise_worker_gpu_memory_total_bytes", "Memory of the worker's GPU"),
    "gpu_utilization_ratio": ("lobewise_worker_gpu_utilization_ratio", "How busy the worker's GPU is, 0 to 1"),
}
