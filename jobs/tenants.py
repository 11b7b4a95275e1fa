"""The tenants: each has jobs, batches and uploads of its own, which nobody else's calls can reach.

A tenant is a prefix. Its records are a part of the object store and its live view a part of Redis (`Backends.of`), and
everything is built over these as over a whole store: so what belongs to another tenant is not forbidden but unknown.
`default` has no prefix, and with that all that was stored before there were tenants.

A document in the object store says that there is a tenant, before anything of it is stored. Every process reads their
names from time to time, so that each looks after all of them.
"""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from jobs import states
from jobs.access.caller import DEFAULT_TENANT, is_tenant
from jobs.backends import Backends
from jobs.errors import BrokerUnavailableError, StorageUnavailableError, TooManyTenantsError
from jobs.models import SCHEMA_VERSION, Model, SchemaVersion
from jobs.recovery.cleanup import Cleanup
from jobs.recovery.reconciler import Reconciler
from jobs.service import JobService
from jobs.store.keys import TENANTS, tenant_folder
from jobs.worker_api import WorkerApi

log = logging.getLogger(__name__)

#: So long after its first call every process knows a tenant. The names are listed as often, if somebody asks for them.
LISTED_SECONDS: Final = 5.0


class TenantRecord(Model):
    """`tenant.json`."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    created_at: datetime


@dataclass(frozen=True)
class TenantJobs:
    """All sides of one tenant's jobs, in one process."""

    backends: Backends
    service: JobService
    worker: WorkerApi
    cleanup: Cleanup
    reconciler: Reconciler

    @property
    def tenant(self) -> str:
        return self.backends.tenant


class Tenants:
    """Of one process. All calls are thread-safe."""

    def __init__(self, backends: Backends) -> None:
        """`backends` are those of `default`."""
        self._backends = backends
        self._open: dict[str, TenantJobs] = {}
        self._lock = threading.Lock()
        self._listed_at = -float("inf")
        self.default = self._opened(DEFAULT_TENANT)

    def opened(self, tenant: str) -> TenantJobs | None:
        """The tenant's jobs, if this process knows it already; asks nobody."""
        return self._open.get(tenant)

    def of(self, tenant: str) -> TenantJobs:
        """The tenant's jobs. There is such a tenant from now on, if there was none.

        Raises:
            ValueError: this is no tenant's name.
            TooManyTenantsError: there are as many as there may be.
            StorageUnavailableError: it cannot be known whether it is there.
        """
        found = self.find(tenant)
        if found is not None:
            return found
        if len(self._names()) >= self._backends.settings.max_tenants:
            raise TooManyTenantsError("the operator allows no more tenants")
        record = TenantRecord(created_at=states.now())
        # From the root, so that the folder, too, survives a power cut.
        is_new = self._backends.store.blobs.create(_record_key(tenant), record.stored())
        made = self._opened(tenant)
        if is_new:
            log.info("there is a new tenant: %s", tenant)
            with suppress(BrokerUnavailableError):  # the reconciler does it then
                # It has no jobs yet: so its view is whole without a look at the blobs.
                recovery = made.backends.live.recovery
                recovery.declare_whole(recovery.begin_rebuild())
        return made

    def find(self, tenant: str) -> TenantJobs | None:
        """The tenant's jobs; None if there is no such tenant. Raises ValueError, StorageUnavailableError as `of`."""
        if tenant not in self._open and self._backends.store.blobs.exists(_record_key(tenant)):
            return self._opened(tenant)
        return self._open.get(tenant)

    def known(self) -> Sequence[TenantJobs]:
        """The jobs of every tenant, `default` first, then by name; one that is new may be missing for seconds."""
        if time.monotonic() - self._listed_at > LISTED_SECONDS:
            self._listed_at = time.monotonic()
            try:
                for tenant in self._names():
                    self._opened(tenant)
            except StorageUnavailableError as error:
                log.warning("tenants that are new are not known: %s", error)
        return sorted(self._open.values(), key=lambda jobs: (jobs.tenant != DEFAULT_TENANT, jobs.tenant))

    def _names(self) -> Sequence[str]:
        """Of all but `default`."""
        return [name for name in self._backends.store.blobs.folders(TENANTS) if is_tenant(name)]

    def _opened(self, tenant: str) -> TenantJobs:
        with self._lock:
            if tenant not in self._open:
                is_default = tenant == DEFAULT_TENANT
                backends = self._backends if is_default else self._backends.of(tenant)
                service = JobService(backends)
                cleanup = Cleanup(backends, service.uploads, service.batches)
                reconciler = Reconciler(backends, cleanup, self.other_reconcilers if is_default else tuple)
                self._open[tenant] = TenantJobs(backends, service, WorkerApi(backends), cleanup, reconciler)
            return self._open[tenant]

    def other_reconcilers(self) -> Sequence[Reconciler]:
        """Those of all tenants but `default`, whose own asks for them."""
        return [jobs.reconciler for jobs in self.known() if jobs.tenant != DEFAULT_TENANT]


def _record_key(tenant: str) -> str:
    """Raises ValueError: this is no tenant's name."""
    return f"{tenant_folder(tenant)}tenant.json"
