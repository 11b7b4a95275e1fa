"""Jobs by a query: from the live view, and from the blobs where it is away or not whole."""

import logging
from collections.abc import Iterator
from contextlib import suppress

from jobs.errors import BrokerUnavailableError, JobNotFoundError, JobPurgedError, NewerSchemaError
from jobs.live.pagination import Query, id_of
from jobs.live.redis_view import LiveView
from jobs.models import JobState
from jobs.store.job_store import JobStore

log = logging.getLogger(__name__)


class Listing:
    """Raises StorageUnavailableError. Without the broker every job may have to be read."""

    def __init__(self, store: JobStore, live: LiveView) -> None:
        self._store, self._live = store, live

    def walk(self, query: Query, after: str | None, page: int) -> Iterator[tuple[str, JobState]]:
        """Members and jobs that come after a member, read by so many at a time.

        Each is there once, whatever happens meanwhile, and those that are there and fit all the time are not missed.
        """
        while True:
            try:
                members = self._live.page(query, after, page)
                shown = self._live.get_many([id_of(member) for member in members or ()])
            except BrokerUnavailableError:
                log.warning("jobs are listed from the blobs, which is slow")
                members = None
            if members is None:
                yield from self._walk_blobs(query, after)
                return
            # Compared once more: a job may have gone on since it was found.
            yield from (
                (m, state) for m, state in zip(members, shown, strict=True) if state and query.member(state) == m
            )
            if len(members) < page:
                return
            after = members[-1]

    def _walk_blobs(self, query: Query, after: str | None) -> Iterator[tuple[str, JobState]]:
        """Right, but slow: many jobs are read to find one."""
        files = {found.job_id: found for found in self._store.all_files()}

        def read(job_id: str) -> tuple[str, JobState] | None:
            with suppress(JobNotFoundError, JobPurgedError, NewerSchemaError):  # just deleted, or not for us
                state = self._store.state(job_id, files[job_id])
                if (member := query.member(state)) is not None:
                    return member, state
            return None

        order = list(files)
        if query.sort == "severity":
            # All are read to find their order, and once more when their turn comes: their states would fill the memory.
            order = [found[0] for job_id in order if (found := read(job_id))]
        order.sort(reverse=query.is_descending)
        for place in order:
            if after is None or (place < after if query.is_descending else place > after):
                found = read(id_of(place))
                if found is not None:
                    yield found
