"""States of jobs for an event loop, without a thread each: what clients that poll ask for all day.

One question to Redis is under way at a time; who asks meanwhile shares the next one. So the more they are, the less
each costs, and one connection is enough.
"""

import asyncio
import copy
from collections.abc import Callable
from typing import Any, Self

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from jobs.ends import Ends
from jobs.errors import BrokerUnavailableError
from jobs.live.connection import Script, ViewFreshness, broker_errors
from jobs.live.keys import Keys
from jobs.live.redis_view import MAX_TOGETHER, parse_states, read_states_arguments
from jobs.models import JobState
from jobs.settings import JobsSettings
from jobs.states import is_id

Read = Callable[[str], JobState]


class StatusBatcher:
    """Belongs to the event loop that uses it first."""

    def __init__(
        self, settings: JobsSettings, view_freshness: ViewFreshness, checked: Read, recorded: Read, ends: Ends
    ) -> None:
        """In a thread, `checked` reads a job that Redis does not know, or of which it may not be believed, and
        `recorded` one while Redis does not answer; Redis is not asked again. `ends` knows those that ended.
        """
        self._redis = redis.asyncio.Redis.from_url(
            settings.redis_url or "",
            decode_responses=True,
            socket_timeout=settings.broker_timeout_seconds,
            socket_connect_timeout=settings.broker_timeout_seconds,
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            redis_connect_func=self._connected,
        )
        self._view_freshness = view_freshness
        self._read_states = Script(self._redis, "read_states")
        self._begin(Keys(), checked, recorded, ends)

    def of(self, keys: Keys, checked: Read, recorded: Read, ends: Ends) -> Self:
        """The same for the jobs of a tenant, over the same connections."""
        batcher = copy.copy(self)
        batcher._begin(keys, checked, recorded, ends)
        return batcher

    def _begin(self, keys: Keys, checked: Read, recorded: Read, ends: Ends) -> None:
        self._keys, self._checked, self._recorded, self._ends = keys, checked, recorded, ends
        self._asked: dict[str, asyncio.Future[JobState | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, job_id: str) -> JobState:
        """Raises JobNotFoundError, JobPurgedError."""
        if is_id(job_id):
            if job_id not in self._asked:
                self._asked[job_id] = asyncio.get_running_loop().create_future()
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask_on())
            try:
                # Shielded: a client that goes away must not cancel what others wait for.
                shown = await asyncio.shield(self._asked[job_id])
            except BrokerUnavailableError:
                return await asyncio.to_thread(self._recorded, job_id)
            if shown is not None:
                # A thread for the first look at an end alone: the others are in memory.
                holds = self._ends.holds(shown)
                return self._ends.settled(shown) if holds else await asyncio.to_thread(self._ends.settled, shown)
        return await asyncio.to_thread(self._checked, job_id)

    async def close(self) -> None:
        """Of all that share these connections, each has to be closed."""
        if self._asking is not None:
            await self._asking
        await self._redis.aclose()

    async def _ask_on(self) -> None:
        while self._asked:
            together = {job_id: self._asked.pop(job_id) for job_id in list(self._asked)[:MAX_TOGETHER]}
            try:
                states = await self._ask(list(together))
            except Exception as error:  # for those who asked to answer for
                for answer in together.values():
                    answer.set_exception(error)
                    answer.exception()  # else asyncio complains of it where all who asked have gone
            else:
                for answer, state in zip(together.values(), states, strict=True):
                    answer.set_result(state)
        self._asking = None

    async def _ask(self, job_ids: list[str]) -> list[JobState | None]:
        """None for those of which Redis may not be believed, too."""
        try:
            with broker_errors():
                keys, arguments = read_states_arguments(self._keys, job_ids)
                states, is_whole = parse_states(await self._read_states.run(keys, arguments))
        except BrokerUnavailableError:
            self._view_freshness.lose()
            raise
        return [state if state and self._view_freshness.holds(state, is_whole=is_whole) else None for state in states]

    async def _connected(self, connection: Any) -> None:
        self._view_freshness.connected(connection)
        await connection.on_connect()
