"""What every part of `jobs` works on: the settings, the record, the live view and the queue."""

from dataclasses import dataclass

from jobs.audit.trail import AuditTrail
from jobs.live.redis_view import LiveView
from jobs.queue import JobQueue
from jobs.settings import JobsSettings
from jobs.store.job_store import JobStore


@dataclass(frozen=True)
class Backends:
    """Of one process.

    Attributes:
        settings: with `redis_url` filled in, an embedded server's too.
        store: the record of each job, which alone decides.
        live: what is shown of the jobs, and their leases; it can be rebuilt from the store.
        audit: who did what; nothing is recorded without it.
    """

    settings: JobsSettings
    store: JobStore
    live: LiveView
    queue: JobQueue
    audit: AuditTrail | None = None
