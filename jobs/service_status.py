"""How the service is: which of its parts answer, how many jobs wait, what workers did."""

from collections.abc import Mapping, Sequence

from jobs.backends import Backends
from jobs.errors import BrokerUnavailableError, StorageUnavailableError
from jobs.live.job_metrics import JobMetrics
from jobs.models import JobStatus, ModelProvenance, Priority
from jobs.states import QueueLength, Readiness


class ServiceStatus:
    """All but `readiness` raise BrokerUnavailableError."""

    def __init__(self, backends: Backends) -> None:
        self._live, self._blobs = backends.live, backends.store.blobs

    def readiness(self) -> Readiness:
        """Never raises."""
        try:
            workers, broker = self._live.workers.count(), True
        except BrokerUnavailableError:
            workers, broker = 0, False
        try:
            self._blobs.check()
        except StorageUnavailableError:
            return Readiness(broker, blobs=False, workers=workers)
        return Readiness(broker, blobs=True, workers=workers)

    def models(self) -> Sequence[ModelProvenance]:
        """What the ready workers have loaded, each once."""
        return self._live.workers.models()

    def counts(self) -> Mapping[JobStatus, int]:
        """How many jobs have each status."""
        return self._live.counts()

    def queues(self) -> Mapping[Priority, QueueLength]:
        """How many jobs wait, and how long."""
        return self._live.queues()

    def job_metrics(self) -> JobMetrics:
        """What workers did since Redis was last empty, and how they are now."""
        return self._live.job_metrics()
