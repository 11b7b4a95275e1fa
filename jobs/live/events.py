"""Every change of a job, in order, for those who watch it.

```
lobewise:events:{id}   stream of states, `EVENTS_KEPT` at most, gone some time after the last; its ids only grow
lobewise:changed       channel: the id of a job that has a new event
```

The scripts of the live view write both in the same step as the state itself, so that no event is missed or told twice.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import redis

from jobs.models import JobState

#: Of a job: its stages and steps of progress are some dozens.
EVENTS_KEPT: Final = 256
KEPT_SECONDS: Final = 24 * 3600
CHANNEL: Final = "lobewise:changed"
_EVENT_ID: Final = re.compile(r"\d{1,18}-\d{1,18}")


@dataclass(frozen=True)
class JobEvent:
    """A state that a job had.

    Attributes:
        id: grows from event to event of a job; None where only the present state is known.
    """

    id: str | None
    state: JobState


class EventLog:
    """Reads what the live view's scripts wrote. `read` turns a stored state, and whether to cancel, into a JobState."""

    def __init__(self, server: redis.Redis, read: Callable[[str, str | None], JobState]) -> None:
        self._redis, self._read = server, read

    def after(self, job_id: str, event_id: str) -> list[JobEvent] | None:
        """The events that followed one; None if that one is not known (any more), so that some may be missing."""
        if not _EVENT_ID.fullmatch(event_id):
            return None
        entries = cast("list[tuple[str, dict[str, str]]]", self._redis.xrange(events_key(job_id), event_id))
        if not entries or entries[0][0] != event_id:
            return None
        return [JobEvent(id_, self._read(fields["state"], fields["cancel"])) for id_, fields in entries[1:]]

    def latest(self, job_id: str) -> JobEvent | None:
        """The event that made the job what it is; None if it is not known."""
        entries = cast("list[tuple[str, dict[str, str]]]", self._redis.xrevrange(events_key(job_id), count=1))
        return next((JobEvent(id_, self._read(fields["state"], fields["cancel"])) for id_, fields in entries), None)

    def changes(self, is_wanted: Callable[[], bool], pause_seconds: float = 0.25) -> Iterator[str | None]:
        """Ids of jobs as they change; None after a (re)connection, when any may have. Ends when no longer wanted.

        Raises:
            redis.ConnectionError: ask again later.
        """
        with self._redis.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(CHANNEL)
            yield None
            while is_wanted():
                message = cast("dict[str, Any] | None", channel.get_message(timeout=pause_seconds))
                if message is not None:
                    yield str(message["data"])


def events_key(job_id: str) -> str:
    return f"lobewise:events:{job_id}"
