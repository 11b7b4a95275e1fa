"""Wires the parts together, in one function."""

import atexit

from jobs import embedded_redis
from jobs.live.redis_view import LiveView
from jobs.live.view_freshness import ViewFreshness
from jobs.queue import JobQueue
from jobs.recovery.finalize import Backends
from jobs.service import Jobs
from jobs.settings import JobsSettings, read_settings
from jobs.store.job_store import JobStore
from jobs.store.object_store import open_object_store


def connect(settings: JobsSettings | None = None) -> Jobs:
    """Jobs over the blob store and the broker that the settings name; starts or joins the embedded server if none.

    Works with an unreachable broker too: then only what needs it fails.

    Raises:
        StorageUnavailableError: the folder of the blobs cannot be made.
        BrokerUnavailableError: the embedded server does not start.
        SettingsError: a wrong value in the environment.
        ValueError: an address that is none.
    """
    settings = settings or read_settings(JobsSettings)
    data_dir = settings.data_dir.resolve()
    blob_url = settings.blob_url or (data_dir / "blobs").as_uri()
    blobs = open_object_store(blob_url, settings.blob_public_endpoint)
    server = None if settings.redis_url else embedded_redis.join(data_dir / "valkey")
    resolved = settings.model_copy(
        update={
            "data_dir": data_dir,
            "blob_url": blob_url,
            "redis_url": server.url if server else settings.redis_url,
        }
    )
    if server is not None:
        atexit.register(server.close)
    view_freshness = ViewFreshness(resolved.lease_seconds + 3 * resolved.reap_seconds)
    live = LiveView(resolved.redis_url or "", resolved.broker_timeout_seconds, view_freshness)
    parts = Backends(resolved, JobStore(blobs), live, JobQueue(resolved, live))
    return Jobs(parts, on_close=server.close if server else lambda: None)
