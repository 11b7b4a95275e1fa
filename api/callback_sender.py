"""Tells receivers how jobs ended: a process of its own, so that one that hangs holds up nobody else.

`python -m api.callback_sender` runs it as the environment describes it, until it is told to stop.
"""

import asyncio
import logging
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import httpx
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from standardwebhooks import Webhook

from api.callback_message import Message, compose, signers
from jobs import states, tracing
from jobs.access.caller import DEFAULT_TENANT
from jobs.bootstrap import connect
from jobs.callbacks import Answer, Delivery
from jobs.errors import (
    AddressRefusedError,
    BatchNotFoundError,
    JobNotFoundError,
    JobPurgedError,
    SettingsError,
    UnavailableError,
)
from jobs.live.callback_schedule import CallbackSchedule, batch_id_of
from jobs.liveness import alive
from jobs.logs import configure_logging
from jobs.models import CallbackFault, JobRecord
from jobs.outbound import AsyncPinnedBackend, OutboundRules, warn_of_refused
from jobs.private_files import keep_private
from jobs.proxies import AsyncRoutedTransport, proxy_of
from jobs.service import JobService
from jobs.settings import JobsSettings, misspelt, read_settings
from jobs.tenants import Tenants
from jobs.tracing import configure_tracing, stop_tracing

log = logging.getLogger(__name__)

#: How often callbacks that are due are looked for. Receivers are to hear "within a second or so" (docs/api.md).
LOOK_SECONDS: Final = 0.5
#: How long a message waits whose host has its share of connections.
CROWDED_SECONDS: Final = 2.0


def run(settings: JobsSettings | None = None) -> None:
    """Send until SIGTERM or Ctrl-C; what is under way then is finished."""
    settings = settings or read_settings(JobsSettings)
    keep_private(settings)
    configure_logging(settings.log_format, settings.log_level)
    configure_tracing("lobewise-sender")
    for prefix in settings.callback_allowlist:
        proxy_of(prefix)  # raises now what every message would meet
    for sentence in misspelt((JobsSettings,)):
        log.warning("%s", sentence)
    warn_of_refused(settings.callback_allowlist, settings.outbound_networks)
    connection = connect(settings)

    async def send_until_signal() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        # Set, not cancelled: a message that is cut off after the receiver's answer would be sent again.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await Sender(connection.tenants, connection.settings).run(stop)

    try:
        with alive(settings.liveness_file):
            asyncio.run(send_until_signal())
    finally:
        connection.close()
        stop_tracing()


class Sender:
    """Sends what is due, many at once, and to no host more than its share."""

    def __init__(self, tenants: Tenants, settings: JobsSettings) -> None:
        self._tenants, self._settings = tenants, settings
        self._under_way: set[asyncio.Task[None]] = set()
        self._at_host: Counter[str] = Counter()
        self._turn = 0
        self._signers: dict[str, list[Webhook]] = {}
        # A quarter, so that a receiver that hangs leaves most connections to the others.
        self._share = max(self._settings.callback_concurrency // 4, 1)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set and all that is under way has ended."""
        settings = self._settings
        # Now, so that what every message would meet is raised.
        self._signers[DEFAULT_TENANT] = await asyncio.to_thread(signers, settings)
        # No connection is kept between messages: receivers are many and messages few.
        limits = httpx.Limits(max_connections=settings.callback_concurrency, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            # No redirects: the operator allowed this address, and a redirect would lead to one that nobody allowed.
            follow_redirects=False,
            timeout=settings.callback_timeout_seconds,
            transport=AsyncRoutedTransport(limits, AsyncPinnedBackend(OutboundRules.of(settings.outbound_networks))),
            headers={"user-agent": "Lobewise"},
        ) as client:
            while not stop.is_set():
                free = settings.callback_concurrency - len(self._under_way)
                due: list[tuple[JobService, str]] = []
                try:
                    if free > 0:
                        due = await asyncio.to_thread(self._take_due, free)
                except UnavailableError as error:
                    log.warning("cannot look for callbacks: %s", error)
                for jobs, name in due:
                    task = asyncio.create_task(self._deliver(jobs, name, client))
                    self._under_way.add(task)
                    task.add_done_callback(self._under_way.discard)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await stop.wait()
            await asyncio.gather(*self._under_way)

    def _take_due(self, count: int) -> list[tuple[JobService, str]]:
        """What is due now, of all tenants, and no more than `count`."""
        due: list[tuple[JobService, str]] = []
        schedules = {known.service.callbacks.schedule: known.service for known in self._tenants.known()}
        waiting = [schedules[schedule] for schedule in CallbackSchedule.with_due(list(schedules))]
        self._turn += 1
        for n in range(len(waiting)):
            # Another begins each time, and has no more than its share of what is free while others wait.
            jobs = waiting[(self._turn + n) % len(waiting)]
            share = -(-(count - len(due)) // (len(waiting) - n))
            due += [(jobs, name) for name in jobs.callbacks.take_due(share)] if share > 0 else []
        return due

    async def _deliver(self, jobs: JobService, name: str, client: httpx.AsyncClient) -> None:
        try:
            delivery = await asyncio.to_thread(jobs.callbacks.next_delivery, name)
            if delivery is None:
                return
            record = delivery.record
            what = {tracing.JOB_ID: record.id} if isinstance(record, JobRecord) else {"lobewise.batch.id": record.id}
            span = tracing.entry("callback", record.traceparent, SpanKind.CLIENT, {tracing.TENANT: jobs.tenant, **what})
            # Not the address: it may hold a receiver's secret.
            span.set_attributes({"lobewise.callback.round": delivery.round, tracing.ATTEMPT: delivery.number})
            with tracing.ended(span), tracing.active(span):
                await self._send(jobs, delivery, client)
        except (JobNotFoundError, JobPurgedError, BatchNotFoundError):
            log.info("%s is gone, and with it whom to tell", _spoken(name))
        except UnavailableError as error:
            log.warning("%s: its callback comes later: %s", _spoken(name), error)
        # One message must not stop the others.
        except Exception:
            log.exception("%s: its callback stumbled", _spoken(name))

    async def _send(self, jobs: JobService, delivery: Delivery, client: httpx.AsyncClient) -> None:
        fault = await asyncio.to_thread(jobs.callbacks.barred, delivery)
        if fault is not None:
            await self._record_answer(jobs, delivery, Answer(states.now(), 0.0, fault=fault))
            return
        host = urlsplit(delivery.url).netloc
        if self._at_host[host] >= self._share:
            await asyncio.to_thread(jobs.callbacks.postpone, delivery.name, CROWDED_SECONDS)
            return
        self._at_host[host] += 1
        try:
            if jobs.tenant not in self._signers:
                self._signers[jobs.tenant] = await asyncio.to_thread(signers, self._settings, jobs.tenant)
            message = compose(delivery, self._signers[jobs.tenant], states.now(), tracing.traceparent_of())
            answer = await send(client, delivery.url, message, self._settings.callback_timeout_seconds)
        finally:
            self._at_host[host] -= 1
            # Drops the hosts at zero: the process runs for months, and every host would stay in memory.
            self._at_host += Counter()
        await self._record_answer(jobs, delivery, answer)

    async def _record_answer(self, jobs: JobService, delivery: Delivery, answer: Answer) -> None:
        attempt = await asyncio.to_thread(jobs.callbacks.record_answer, delivery, answer)
        trace.get_current_span().set_attributes({tracing.OUTCOME: attempt.outcome.value})
        if attempt.http_status is not None:
            trace.get_current_span().set_attributes({"http.response.status_code": attempt.http_status})
        # The address is not logged: it may hold a receiver's secret.
        said = attempt.http_status or attempt.fault
        tried = (delivery.round, delivery.number, attempt.outcome, said)
        log.info("%s: callback %d.%d %s (%s)", _spoken(delivery.name), *tried)


def _spoken(name: str) -> str:
    """`job …` or `batch …`, for the log."""
    batch_id = batch_id_of(name)
    return f"job {name}" if batch_id is None else f"batch {batch_id}"


async def send(client: httpx.AsyncClient, url: str, message: Message, timeout_seconds: float) -> Answer:
    """POST the message. Whatever the receiver does, this ends within the time and with an answer."""
    started_at, begin = states.now(), time.monotonic()
    try:
        async with asyncio.timeout(timeout_seconds):
            # Streamed, and left at its headers: a receiver whose body never ends costs nothing.
            async with client.stream("POST", url, content=message.body, headers=message.headers) as response:
                status, retry_after = response.status_code, response.headers.get("retry-after", "")
    except TimeoutError:
        return Answer(started_at, time.monotonic() - begin, fault=CallbackFault.TIMEOUT)
    except AddressRefusedError as refused:
        # Tried again, as a receiver that is down: the operator may list its network, and nothing is lost by then.
        log.warning("%s", refused)
        return Answer(started_at, time.monotonic() - begin, fault=CallbackFault.CONNECTION)
    except (httpx.HTTPError, httpx.InvalidURL, OSError):
        return Answer(started_at, time.monotonic() - begin, fault=CallbackFault.CONNECTION)
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 0.0
    return Answer(started_at, time.monotonic() - begin, http_status=status, retry_after_seconds=seconds)


if __name__ == "__main__":
    try:
        run()
    except (SettingsError, UnavailableError) as error:
        sys.exit(str(error))
