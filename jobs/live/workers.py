"""Which workers are ready, with which models, and how they are."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, cast

import redis
from pydantic import TypeAdapter

from jobs.live.connection import Script, broker_errors
from jobs.live.keys import WORKERS, worker_key
from jobs.models import Model, ModelProvenance

_MODELS: Final = TypeAdapter(list[ModelProvenance])


class WorkerStats(Model):
    """A worker process. What there is no GPU for, or nobody can tell, is None."""

    peak_memory_bytes: int
    #: Of the whole device, by whomever.
    gpu_memory_used_bytes: int | None = None
    gpu_memory_total_bytes: int | None = None
    #: Share of the last moments in which the device was busy, 0 to 1.
    gpu_utilization_ratio: float | None = None
    #: Of the software and weights that its results come from.
    result_digest: str | None = None


class ReadyWorkers:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server
        self._ready_workers = Script(server, "ready_workers")

    @broker_errors()
    def announce(
        self,
        worker: str,
        seconds: float,
        models: Sequence[ModelProvenance] = (),
        worker_stats: WorkerStats | None = None,
    ) -> None:
        """`worker` can score with these models; say so again before `seconds` have passed."""
        milliseconds = round(seconds * 1000)
        self._redis.set(worker_key("models", worker), _MODELS.dump_json(list(models)), px=milliseconds)
        if worker_stats is not None:
            self._redis.set(worker_key("vitals", worker), worker_stats.model_dump_json(), px=milliseconds)
        self._ready_workers(workers=WORKERS, worker=worker, milliseconds=milliseconds)

    @broker_errors()
    def count(self) -> int:
        """How many have announced themselves and not fallen silent."""
        return int(self._ready_workers(workers=WORKERS, worker="", milliseconds=0))

    def any_ready(self, workers: Iterable[str]) -> bool:
        """Whether one of these has announced itself and not fallen silent."""
        return not set(self._names()).isdisjoint(workers)

    def models(self) -> list[ModelProvenance]:
        """What the ready workers have loaded, each once."""
        texts = self._announced("models").values()
        found = {model for text in texts for model in _MODELS.validate_json(text, extra="ignore")}
        return sorted(found, key=lambda model: (model.name, model.version, model.sha256))

    def stats(self) -> Mapping[str, WorkerStats]:
        """Of the ready workers that tell them, by name."""
        return {name: WorkerStats.read(text) for name, text in self._announced("vitals").items()}

    def result_digest(self) -> str | None:
        """Of the software and weights of all ready workers; None where they differ, as in an upgrade, or none is ready.

        A worker that tells none, as one of an earlier version, differs from all others.
        """
        names, stats = self._names(), self.stats()
        digests = {stats[name].result_digest if name in stats else None for name in names}
        return digests.pop() if len(digests) == 1 else None

    @broker_errors()
    def _names(self) -> list[str]:
        self.count()  # it removes those that fell silent
        return cast("list[str]", self._redis.zrange(WORKERS, 0, -1))

    @broker_errors()
    def _announced(self, kind: Literal["models", "vitals"]) -> dict[str, str]:
        workers = self._names()
        if not workers:  # Redis refuses a question for no key
            return {}
        texts = cast("list[str | None]", self._redis.mget([worker_key(kind, worker) for worker in workers]))
        return {worker: text for worker, text in zip(workers, texts, strict=True) if text}
