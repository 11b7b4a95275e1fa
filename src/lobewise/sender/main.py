"""Runs a sender until it is told to stop."""

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

import httpx
from standardwebhooks import Webhook

from lobewise.jobs import states, tracing
from lobewise.jobs.bootstrap import connect
from lobewise.jobs.callbacks import Answer, Letter
from lobewise.jobs.configuration import misspelt, read_settings
from lobewise.jobs.errors import JobNotFoundError, JobPurgedError, UnavailableError
from lobewise.jobs.liveness import alive
from lobewise.jobs.logs import configure_logging
from lobewise.jobs.service import Jobs
from lobewise.jobs.settings import JobsSettings
from lobewise.jobs.tracing import configure_tracing, stop_tracing
from lobewise.sender.messages import compose, signers
from lobewise.sender.sending import new_client, send

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
"""How often callbacks that are due are looked for."""
CROWDED_SECONDS: Final = 2.0
"""How long a message waits whose host has its share of connections."""


def run(settings: JobsSettings | None = None) -> None:
    """Send until SIGTERM or Ctrl-C; what is under way then is finished."""
    settings = settings or read_settings(JobsSettings)
    configure_logging(settings.log_format, settings.log_level)
    configure_tracing("lobewise-sender")
    for sentence in misspelt((JobsSettings,)):
        log.warning("%s", sentence)
    jobs = connect(settings)
    try:
        with alive(settings.liveness_file):
            asyncio.run(_until_told(Sender(jobs)))
    finally:
        jobs.close()
        stop_tracing()


async def _until_told(sender: "Sender") -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await sender.run(stop)


class Sender:
    """Sends what is due, many at once, and to no host more than its share."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs, self._callbacks, self._settings = jobs, jobs.callbacks, jobs.settings
        self._under_way: set[asyncio.Task[None]] = set()
        self._at_host: Counter[str] = Counter()
        self._share = max(self._settings.callback_concurrency // 4, 1)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set and all that is under way has ended."""
        signed_by = await asyncio.to_thread(signers, self._jobs.settings)
        settings = self._settings
        async with new_client(settings.callback_concurrency, settings.callback_timeout_seconds) as client:
            while not stop.is_set():
                for job_id in await self._claimed():
                    task = asyncio.create_task(self._deliver(job_id, client, signed_by))
                    self._under_way.add(task)
                    task.add_done_callback(self._under_way.discard)
                await _wait(stop, LOOK_SECONDS)
            await asyncio.gather(*self._under_way)

    async def _claimed(self) -> list[str]:
        free = self._settings.callback_concurrency - len(self._under_way)
        try:
            return await asyncio.to_thread(self._callbacks.claim, free) if free > 0 else []
        except UnavailableError as error:
            log.warning("cannot look for callbacks: %s", error)
            return []

    async def _deliver(self, job_id: str, client: httpx.AsyncClient, signed_by: list[Webhook]) -> None:
        try:
            letter = await asyncio.to_thread(self._callbacks.open, job_id)
            if letter is not None:
                with _traced(letter):
                    await self._send(letter, client, signed_by)
        except (JobNotFoundError, JobPurgedError):
            log.info("job %s is gone, and with it whom to tell", job_id)
        except UnavailableError as error:
            log.warning("job %s: its callback comes later: %s", job_id, error)
        except Exception:  # one message must not stop the others
            log.exception("job %s: its callback stumbled", job_id)

    async def _send(self, letter: Letter, client: httpx.AsyncClient, signed_by: list[Webhook]) -> None:
        fault = await asyncio.to_thread(self._callbacks.barred, letter)
        if fault is not None:
            await self._settle(letter, Answer(states.now(), 0.0, fault=fault))
            return
        host = urlsplit(letter.url).netloc
        if self._at_host[host] >= self._share:
            await asyncio.to_thread(self._callbacks.postpone, letter.record.id, CROWDED_SECONDS)
            return
        self._at_host[host] += 1
        try:
            message = compose(letter, signed_by, states.now(), tracing.current().traceparent)
            answer = await send(client, letter.url, message, self._settings.callback_timeout_seconds)
        finally:
            self._at_host[host] -= 1
            self._at_host += Counter()  # forgets hosts with nothing under way
        await self._settle(letter, answer)

    async def _settle(self, letter: Letter, answer: Answer) -> None:
        """The address is not logged: it may hold a receiver's secret."""
        attempt = await asyncio.to_thread(self._callbacks.settle, letter, answer)
        tracing.current().note({tracing.OUTCOME: attempt.outcome.value})
        if attempt.http_status is not None:
            tracing.current().note({"http.response.status_code": attempt.http_status})
        said = attempt.http_status or attempt.fault
        log.info("job %s: callback %d.%d %s (%s)", letter.record.id, letter.round, letter.number, attempt.outcome, said)


@contextmanager
def _traced(letter: Letter) -> Iterator[None]:
    """The address is not told, as it is not logged."""
    span = tracing.entry("callback", letter.record.traceparent, "client", {tracing.JOB_ID: letter.record.id})
    span.note({"lobewise.callback.round": letter.round, tracing.ATTEMPT: letter.number})
    with tracing.ended(span), span.active():
        yield


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
