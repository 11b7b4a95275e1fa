"""Every change of a job, in order, for those who watch it.

The scripts of the live view write an event in the same step as the state itself, so that none is missed or told twice.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import redis

from jobs.live.connection import broker_errors
from jobs.live.keys import CHANGED, FEED_PATTERN, Keys
from jobs.models import JobState

#: Of a job: its stages and steps of progress are some dozens.
EVENTS_KEPT: Final = 256
#: A client that comes back later gets the present state alone.
KEPT_SECONDS: Final = 24 * 3600
_EVENT_ID: Final = re.compile(r"\d{1,18}-\d{1,18}")


@dataclass(frozen=True)
class JobEvent:
    """A state that a job had."""

    #: Grows from event to event of a job; None where only the present state is known.
    id: str | None
    state: JobState


class EventLog:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis, keys: Keys, read: Callable[[str, str | None], JobState]) -> None:
        """`read` turns a stored state, and whether to cancel, into a JobState."""
        self._redis, self._keys, self._read = server, keys, read

    @broker_errors()
    def after(self, job_id: str, event_id: str) -> list[JobEvent] | None:
        """The events that followed one; None if that one is not known (any more), so that some may be missing."""
        if not _EVENT_ID.fullmatch(event_id):
            return None
        found = self._events(self._redis.xrange(self._keys.key("events", job_id), event_id))
        return found[1:] if found and found[0].id == event_id else None

    @broker_errors()
    def latest(self, job_id: str) -> JobEvent | None:
        """The event that made the job what it is; None if it is not known."""
        return next(iter(self._events(self._redis.xrevrange(self._keys.key("events", job_id), count=1))), None)

    def changes(self, is_wanted: Callable[[], bool], pause_seconds: float = 0.25) -> Iterator[str | None]:
        """Ids of jobs of all tenants as they change, and the keys of feeds as they grow.

        None after a (re)connection, when all may have. Ends when no longer wanted.
        """
        with broker_errors(), self._redis.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(CHANGED, Keys().feed)
            channel.psubscribe(FEED_PATTERN)
            yield None
            while is_wanted():
                message = cast("dict[str, Any] | None", channel.get_message(timeout=pause_seconds))
                if message is not None:
                    yield str(message["data"] if message["channel"] == CHANGED else message["channel"])

    def _events(self, answer: Any) -> list[JobEvent]:
        entries = cast("list[tuple[str, dict[str, str]]]", answer)
        return [JobEvent(id_, self._read(fields["state"], fields["cancel"])) for id_, fields in entries]
