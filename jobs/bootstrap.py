"""Connects a process to the blob store and the broker, and wires all of `jobs` together."""

import atexit
from collections.abc import Callable
from dataclasses import dataclass

from jobs import embedded_redis
from jobs.audit.trail import AuditTrail
from jobs.backends import Backends
from jobs.live.connection import ViewFreshness
from jobs.live.feed import FeedLimits
from jobs.live.redis_view import LiveView
from jobs.queue import JobQueue
from jobs.recovery.cleanup import Cleanup
from jobs.recovery.reconciler import Reconciler
from jobs.service import JobService
from jobs.settings import JobsSettings, read_settings
from jobs.store.job_store import JobStore
from jobs.store.object_store import ObjectStore, encryption_of, open_object_store
from jobs.tenants import Tenants
from jobs.worker_api import WorkerApi


@dataclass(frozen=True)
class Connection:
    """Of one process to the jobs; each process uses the side that it needs.

    Attributes:
        tenants: leads to the jobs of each.
    """

    tenants: Tenants
    _on_close: Callable[[], None]

    # Those of the tenant `default`:

    @property
    def backends(self) -> Backends:
        return self.tenants.default.backends

    @property
    def service(self) -> JobService:
        """For probes, and what is the same for all tenants."""
        return self.tenants.default.service

    @property
    def worker(self) -> WorkerApi:
        return self.tenants.default.worker

    @property
    def cleanup(self) -> Cleanup:
        return self.tenants.default.cleanup

    @property
    def reconciler(self) -> Reconciler:
        """Finds lost jobs, of all tenants; gateways and workers start it."""
        return self.tenants.default.reconciler

    @property
    def settings(self) -> JobsSettings:
        return self.backends.settings

    def close(self) -> None:
        """Stop threads and connections; the embedded server too, if nobody else uses it."""
        self.reconciler.stop()
        if self.backends.audit is not None:
            self.backends.audit.close()
        self.backends.queue.close()
        self.backends.live.close()
        self._on_close()


def connect(settings: JobsSettings | None = None) -> Connection:
    """Over the blob store and the broker that the settings name; starts or joins the embedded server if none.

    Works with an unreachable broker too: then only what needs it fails. Raises SettingsError or, for an address that is
    none, ValueError; StorageUnavailableError and BrokerUnavailableError where what is local cannot be made or started.
    """
    settings = settings or read_settings(JobsSettings)
    data_dir = settings.data_dir.resolve()
    blob_url, blobs = _blob_url(settings), blobs_of(settings)
    server = None if settings.redis_url else embedded_redis.join(data_dir / "valkey")
    resolved = settings.model_copy(
        update={"data_dir": data_dir, "blob_url": blob_url, "redis_url": server.url if server else settings.redis_url}
    )
    if server is not None:
        # A process that forgets to close must not leave the server running for ever.
        atexit.register(server.close)
    # By then the reconciler has certainly looked: its leader may be lost, and be followed after three of its turns.
    view_freshness = ViewFreshness(resolved.lease_seconds + 3 * resolved.reap_seconds)
    feed_limits = FeedLimits(resolved.feed_events, resolved.feed_seconds)
    live = LiveView(resolved.redis_url or "", resolved.broker_timeout_seconds, view_freshness, feed_limits)
    audit = AuditTrail(blobs, resolved, live.audit_heads)
    backends = Backends(resolved, JobStore(blobs), live, JobQueue(resolved, live), audit)
    return assemble(backends, on_close=server.close if server else lambda: None)


def blobs_of(settings: JobsSettings) -> ObjectStore:
    """The store alone, for what needs no broker. Raises as `connect` does."""
    return open_object_store(_blob_url(settings), settings.blob_public_endpoint, encryption_of(settings))


def _blob_url(settings: JobsSettings) -> str:
    return settings.blob_url or (settings.data_dir.resolve() / "blobs").as_uri()


def assemble(backends: Backends, on_close: Callable[[], None] = lambda: None) -> Connection:
    """All sides over these backends, which are those of the tenant `default`."""
    return Connection(Tenants(backends), on_close)
