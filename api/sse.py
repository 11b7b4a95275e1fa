"""Server-sent events: one listener per gateway wakes the streams whose job has changed."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import anyio

from api.connection_limits import ClientShares
from api.dependencies import Addresses
from api.errors import ApiError
from api.views import as_json, job_view
from jobs import problems
from jobs.errors import BrokerUnavailableError, JobNotFoundError, JobPurgedError
from jobs.live.events import JobEvent
from jobs.service import JobService

log = logging.getLogger(__name__)

#: How a stream begins: after so many milliseconds a client comes back when it has ended or broken.
RETRY: Final = "retry: 3000\n\n"
#: Between two tries to subscribe. What was published meanwhile is not lost: streams look again at every keep-alive.
RECONNECT_SECONDS: Final = 1.0
STOP_SECONDS: Final = 2.0


class Streams:
    """The open streams of a gateway. Its event loop calls everything but `close`, which any thread may."""

    def __init__(self, limit: int, limit_per_client: int) -> None:
        self.limit = limit
        self._shares = ClientShares("streams", limit_per_client)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._listener: threading.Thread | None = None
        self._open = 0
        self._closing = threading.Event()

    def start(self, jobs: JobService) -> None:
        """Listen for changes of all tenants' jobs, in a thread of its own."""
        self._loop = asyncio.get_running_loop()
        arguments = (jobs, self._loop)
        self._listener = threading.Thread(target=self._listen, args=arguments, name="job-changes", daemon=True)
        self._listener.start()

    def stop(self) -> None:
        """Close, and wait until nobody listens any more."""
        self.close()
        if self._listener is not None:
            self._listener.join(STOP_SECONDS)

    def close(self) -> None:
        """End every stream: its client comes back, to another gateway or to none."""
        self._closing.set()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, None)

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    def count(self) -> int:
        """How many are open."""
        return self._open

    def has_room(self, client: str) -> bool:
        """Whether this client may have one more."""
        return self._open < self.limit and self._shares.has_room(client)

    @contextmanager
    def slot(self, client: str) -> Iterator[None]:
        """Raises ApiError: too-many-streams when all are taken, client-limit when the client has its share."""
        if self._open >= self.limit:
            raise ApiError(problems.TOO_MANY_STREAMS, f"{self.limit} streams are open", evidence={"limit": self.limit})
        with self._shares.share(client):
            self._open += 1
            try:
                yield
            finally:
                self._open -= 1

    @contextmanager
    def watching(self, job_id: str) -> Iterator[asyncio.Event]:
        """What is set whenever the job, or the feed of this name, may have changed."""
        # A stream costs this event and no connection to Redis: one listener wakes all.
        waker = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(waker)
        try:
            yield waker
        finally:
            wakers = self._waiting[job_id]
            wakers.discard(waker)
            if not wakers:
                del self._waiting[job_id]

    def _wake(self, job_id: str | None) -> None:
        """None wakes all."""
        wanted = self._waiting.values() if job_id is None else [self._waiting.get(job_id, set())]
        for wakers in wanted:
            for waker in wakers:
                waker.set()

    def _listen(self, jobs: JobService, loop: asyncio.AbstractEventLoop) -> None:
        while not self.is_closing:
            try:
                for job_id in jobs.event_log.changes(lambda: not self.is_closing):
                    loop.call_soon_threadsafe(self._wake, job_id)
            except BrokerUnavailableError as error:
                log.warning("changes of jobs are not heard: %s", error)
            # A thread that dies unseen would leave all streams to their keep-alive.
            except Exception:
                if loop.is_closed():
                    return
                log.exception("the listener for changes of jobs stumbled; it goes on")
            self._closing.wait(RECONNECT_SECONDS)


async def follow(
    streams: Streams,
    job_id: str,
    after: str | None,
    fetch: Callable[[str | None], Sequence[JobEvent]],
    keep_alive_seconds: float,
    longest_seconds: float,
) -> AsyncGenerator[JobEvent | None]:
    """Each state of a job that follows the event `after`, or its present one and those that follow.

    `fetch`, called in a thread, gives the events after one, or the present state where they are not known.
    None where nothing came for `keep_alive_seconds`. Ends after a final state, after `longest_seconds`, and when the
    job is deleted or the gateway stops.
    """
    deadline, told = anyio.current_time() + longest_seconds, ""
    with streams.watching(job_id) as waker:
        while True:
            # Cleared before reading: a change that comes while the events are read wakes the loop once more.
            waker.clear()
            try:
                events = await anyio.to_thread.run_sync(fetch, after)
            except (JobNotFoundError, JobPurgedError):
                return
            for event in events:
                # Without ids (Redis is down) only the revision tells whether the client has this state already.
                is_known = event.state.revision == told and (event.id is None or after is None)
                after, told = event.id, event.state.revision
                if not is_known:
                    yield event
                if event.state.status.is_final:
                    return
            left_seconds = deadline - anyio.current_time()
            if streams.is_closing or left_seconds <= 0:
                return
            with anyio.move_on_after(min(keep_alive_seconds, left_seconds)) as patient:
                await waker.wait()
            if patient.cancelled_caught:
                yield None


def written(event: JobEvent, addresses: Addresses) -> str:
    """An event as it travels; JSON has no line breaks."""
    data = json.dumps(as_json(job_view(event.state, addresses)))
    number = f"id: {event.id}\n" if event.id is not None else ""
    return f"{number}event: job\ndata: {data}\n\n"
