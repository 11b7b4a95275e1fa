"""What every part of `jobs` works on: the settings, the record, the live view and the queue."""

from dataclasses import dataclass

from jobs.access.caller import DEFAULT_TENANT
from jobs.audit.trail import AuditTrail
from jobs.live.redis_view import LiveView
from jobs.queue import JobQueue
from jobs.settings import JobsSettings
from jobs.store.job_store import JobStore
from jobs.store.keys import tenant_folder


@dataclass(frozen=True)
class Backends:
    """Of one process and one tenant. Those that a process begins with are of `default`, and lead to the others.

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
    tenant: str = DEFAULT_TENANT

    def of(self, tenant: str) -> "Backends":
        """Those of a tenant: what lies in its part of the same store, the same Redis and the same queue.

        Raises ValueError: this is no tenant's name.
        """
        live = self.live.of(tenant)
        store = JobStore(self.store.blobs.within(tenant_folder(tenant)))
        return Backends(self.settings, store, live, self.queue.of(tenant, live), self.audit, tenant)
