"""States of jobs for an event loop, without a thread each: what clients that poll ask for all day.

One question to Redis is under way at a time; who asks meanwhile shares the next one. So the more they are, the less
each costs, and one connection is enough.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from lobewise.jobs.errors import BrokerUnavailableError
from lobewise.jobs.ids import is_id
from lobewise.jobs.live import LOOK, MAX_TOGETHER, broker_errors, look_at, seen
from lobewise.jobs.models import JobState


class Glance:
    """Belongs to the event loop that uses it first."""

    def __init__(self, url: str, timeout_seconds: float, recorded: Callable[[str], JobState]) -> None:
        """`recorded` tells, in a thread, of a job that Redis does not know, or while it does not answer."""
        self._redis = redis.asyncio.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        self._look = self._redis.register_script(LOOK)
        self._recorded = recorded
        self._asked: dict[str, list[asyncio.Future[JobState | None]]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, job_id: str) -> JobState:
        """Raises JobNotFoundError, JobPurgedError."""
        shown = await self._shown(job_id) if is_id(job_id) else None
        return shown if shown is not None else await asyncio.to_thread(self._recorded, job_id)

    async def close(self) -> None:
        if self._asking is not None:
            await self._asking
        await self._redis.aclose()

    async def _shown(self, job_id: str) -> JobState | None:
        answer: asyncio.Future[JobState | None] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(job_id, []).append(answer)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_on())
        return await answer

    async def _ask_on(self) -> None:
        while self._asked:
            together = {job_id: self._asked.pop(job_id) for job_id in list(self._asked)[:MAX_TOGETHER]}
            try:
                states = await self._ask(list(together))
            except Exception as error:  # a fault of ours: for those who asked to answer for
                for answer in _waiting(together.values()):
                    answer.set_exception(error)
            else:
                for answers, state in zip(together.values(), states, strict=True):
                    for answer in _waiting([answers]):
                        answer.set_result(state)
        self._asking = None

    async def _ask(self, job_ids: list[str]) -> list[JobState | None]:
        try:
            with broker_errors():
                keys, arguments = look_at(job_ids)
                return seen(await self._look(keys=keys, args=arguments))
        except BrokerUnavailableError:
            return [None] * len(job_ids)


def _waiting(asked: Iterable[list["asyncio.Future[JobState | None]"]]) -> Iterator["asyncio.Future[JobState | None]"]:
    """Those who have not gone away meanwhile."""
    return (answer for answers in asked for answer in answers if not answer.done())
