"""Wires the parts together, in one function."""

import atexit

from lobewise.jobs import embedded
from lobewise.jobs.belief import Belief
from lobewise.jobs.blobs import open_blobs
from lobewise.jobs.configuration import read_settings
from lobewise.jobs.live import LiveView
from lobewise.jobs.outcomes import Parts
from lobewise.jobs.queue import JobQueue
from lobewise.jobs.records import Records
from lobewise.jobs.service import Jobs
from lobewise.jobs.settings import JobsSettings


def connect(settings: JobsSettings | None = None) -> Jobs:
    """Jobs over the blob store and the broker that the settings name; starts or joins the embedded server if none.

    Works with an unreachable broker too: then only what needs it fails.

    Raises:
        BlobStoreUnavailableError: the folder of the blobs cannot be made.
        BrokerUnavailableError: the embedded server does not start.
        SettingsError: a wrong value in the environment.
        ValueError: an address that is none.
    """
    settings = settings or read_settings(JobsSettings)
    data_dir = settings.data_dir.resolve()
    blob_url = settings.blob_url or (data_dir / "blobs").as_uri()
    blobs = open_blobs(blob_url, settings.blob_public_endpoint)
    server = None if settings.redis_url else embedded.join(data_dir / "valkey")
    resolved = settings.model_copy(
        update={
            "data_dir": data_dir,
            "blob_url": blob_url,
            "redis_url": server.url if server else settings.redis_url,
        }
    )
    if server is not None:
        atexit.register(server.close)
    belief = Belief(resolved.lease_seconds + 3 * resolved.reap_seconds)
    live = LiveView(resolved.redis_url or "", resolved.broker_timeout_seconds, belief)
    parts = Parts(resolved, Records(blobs), live, JobQueue(resolved, live))
    return Jobs(parts, on_close=server.close if server else lambda: None)
