"""Which workers are ready, with which models, and how they are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, cast

import redis
from pydantic import TypeAdapter

from jobs.live.connection import broker_errors
from jobs.live.job_metrics import WorkerStats
from jobs.live.keys import WORKERS, models_key, worker_stats_key
from jobs.live.lua import Script
from jobs.models import ModelProvenance

_MODELS: Final = TypeAdapter(list[ModelProvenance])


class ReadyWorkers:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server
        self._ready_workers = Script(server, "ready_workers")

    def announce(
        self,
        worker: str,
        seconds: float,
        models: Sequence[ModelProvenance] = (),
        worker_stats: WorkerStats | None = None,
    ) -> None:
        """`worker` has these models loaded; its word holds for some seconds."""
        milliseconds = round(seconds * 1000)
        with broker_errors():
            self._redis.set(models_key(worker), _MODELS.dump_json(list(models)), px=milliseconds)
            if worker_stats is not None:
                self._redis.set(worker_stats_key(worker), worker_stats.model_dump_json(), px=milliseconds)
            self._ready_workers(workers=WORKERS, worker=worker, milliseconds=milliseconds)

    def count(self) -> int:
        with broker_errors():
            return int(self._ready_workers(workers=WORKERS, worker="", milliseconds=0))

    def any_ready(self, workers: Iterable[str]) -> bool:
        return not set(self._names()).isdisjoint(workers)

    def models(self) -> list[ModelProvenance]:
        """What the ready workers have loaded, each once."""
        words = self._words(self._names(), models_key)
        found = {model for word in words.values() for model in _MODELS.validate_json(word, extra="ignore")}
        return sorted(found, key=lambda model: (model.name, model.version, model.sha256))

    def stats(self) -> Mapping[str, WorkerStats]:
        """Of the ready workers that tell them, by name."""
        return {name: WorkerStats.read(word) for name, word in self._words(self._names(), worker_stats_key).items()}

    def _names(self) -> list[str]:
        self.count()  # it forgets those that fell silent
        with broker_errors():
            return cast("list[str]", self._redis.zrange(WORKERS, 0, -1))

    def _words(self, workers: Sequence[str], key: Callable[[str], str]) -> dict[str, str]:
        if not workers:  # Redis refuses a question for no key
            return {}
        with broker_errors():
            words = cast("list[str | None]", self._redis.mget(map(key, workers)))
        return {worker: word for worker, word in zip(workers, words, strict=True) if word}
