"""How jobs ended, by their manifests: what the live view shows of it is a copy, which anybody in Redis could change."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, Final

from jobs import states
from jobs.errors import NewerSchemaError, StorageUnavailableError
from jobs.models import JobState, JobStatus, Manifest

#: About 1 KB each.
ENDS_KEPT: Final = 5_000


class Ends:
    """Keeps what the last manifests said. They never change, so that each is read once by a gateway."""

    def __init__(self, manifest: Callable[[str], Manifest | None]) -> None:
        """`manifest` reads that of a job; None where there is none (any more)."""
        self._manifest = manifest
        self._kept: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = Lock()

    def holds(self, state: JobState) -> bool:
        """Whether `settled` reads nothing for this one."""
        return not state.status.is_final or state.id in self._kept

    def settled(self, state: JobState) -> JobState:
        """The state with status, scores and error as the manifest has them, if the job has ended.

        As it is shown, where the storage does not answer, or has it in a form of later versions: reading goes on.
        """
        if not state.status.is_final:
            return state
        with self._lock:
            end = self._kept.get(state.id)
        if end is None:
            try:
                manifest = self._manifest(state.id)
            except (StorageUnavailableError, NewerSchemaError):
                return state
            if manifest is None:  # deleted this very moment
                return state
            # Made as every final state is, so that both ways to it have the same values.
            end = {
                "status": JobStatus(manifest.outcome),
                "severity": manifest.severity,
                "error": manifest.error,
                "reused_from": manifest.reused_from,
                "finished_at": manifest.finished_at,
            }
            with self._lock:
                self._kept[state.id] = end
                while len(self._kept) > ENDS_KEPT:
                    self._kept.popitem(last=False)
        if all(getattr(state, name) == value for name, value in end.items()):
            return state
        return states.changed(state, **end)
