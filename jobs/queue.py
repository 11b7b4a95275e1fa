"""The broker: three Celery queues in Redis, and the one task that goes through them. The job id does, and its tenant.

The gateway sends the task by its name, so that it needs nothing of the worker's.

A queue is one list for each tenant: `lobewise.{priority}` for tenant `default`, `lobewise.{priority}:{tenant}` for
another. The list is the message's routing key too, so that a message that is delivered again lies in its own list.

A worker looks into the queues in the order of `Priority`, but for some turns: every fourth job is `routine` and every
sixteenth `batch`, if one waits. A flood of `batch` so delays a `stat` by no more than the job in progress and one
other, and a flood of `stat` leaves `routine` three sixteenths of the workers and `batch` one. Within a queue the lists
take turns: the one that this worker took from longest ago is looked into first. Of `n` tenants that wait, each so has
one of any `n` jobs that a worker takes, however many the others have sent.
"""

import copy
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from queue import Empty
from time import monotonic, sleep
from typing import Any, Final, Self

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from kombu.transport import redis
from kombu.utils.json import dumps
from kombu.utils.scheduling import round_robin_cycle
from opentelemetry.trace import SpanKind
from redis import Redis
from redis.connection import Connection, SSLConnection
from redis.exceptions import ConnectionError as BrokenConnectionError
from redis.exceptions import ResponseError

from jobs import states, tracing
from jobs.access.caller import DEFAULT_TENANT
from jobs.errors import BrokerUnavailableError
from jobs.live.connection import broker_errors, has_full_disk
from jobs.live.keys import LISTS
from jobs.live.redis_view import LiveView
from jobs.live.usage import Usage
from jobs.models import Priority
from jobs.quotas import Owner, Quota, quotas_of
from jobs.settings import JobsSettings

log = logging.getLogger(__name__)

TASK_NAME: Final = "lobewise.score"
#: Between two looks into queues of a broker that cannot write to its disk, or that is away.
DISK_FULL_SECONDS: Final = 0.5
#: A worker that was killed at the hard limit needs a moment more until it is gone.
RESTORE_GRACE_SECONDS: Final = 60

# Strict order would let a night's study wait for as long as `routine` never ends.
ROUTINE_TURN: Final = 4
BATCH_TURN: Final = 16

#: How often a worker looks which tenants have lists, so that the first message of a new one waits no longer.
LOOK_SECONDS: Final = 1.0

# Once, at once: a client waits for the answer, and the reconciler publishes what was lost.
_RETRY_ONCE: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def queue_name(priority: Priority, tenant: str = DEFAULT_TENANT) -> str:
    """The list of a tenant in the queue of a priority; of tenant `default` it has the queue's own name."""
    return f"lobewise.{priority}" + ("" if tenant == DEFAULT_TENANT else f":{tenant}")


def _queue_of(list_name: str) -> str:
    return list_name.partition(":")[0]


#: Most urgent first.
QUEUES: Final = tuple(queue_name(priority) for priority in Priority)


def _tenant_of(list_name: str) -> str:
    return list_name.partition(":")[2] or DEFAULT_TENANT


class RunningLimits:
    """How many jobs of each tenant all workers may have at once; the others wait in their list."""

    def __init__(self, settings: JobsSettings) -> None:
        """Raises SettingsError, as `quotas_of`."""
        self._quotas, self._settings = quotas_of(settings), settings

    @cached_property
    def _usage(self) -> Usage:
        seconds = self._settings.broker_timeout_seconds
        url = self._settings.redis_url or ""
        server = Redis.from_url(url, decode_responses=True, socket_timeout=seconds, socket_connect_timeout=seconds)
        return Usage(server)

    def take(self, tenant: str, job_id: str) -> bool:
        """Whether a worker may run this job now; counts it, if so. Raises BrokerUnavailableError."""
        limit = self._quotas.limit(Owner("tenant", tenant), Quota.RUNNING_JOBS)
        return not limit or self._usage.take_slot(tenant, job_id, limit)

    def is_full(self, tenant: str) -> bool:
        """Whether the tenant has as many jobs as it may. Raises BrokerUnavailableError."""
        limit = self._quotas.limit(Owner("tenant", tenant), Quota.RUNNING_JOBS)
        return bool(limit) and self._usage.running(tenant) >= limit


class FairQueues(round_robin_cycle):
    """kombu's `queue_order_strategy` of a worker; `items` are the queues, most urgent first."""

    def __init__(self, items: Sequence[str] = ()) -> None:
        super().__init__(list(items))  # type: ignore[no-untyped-call]  # kombu does not type it
        self._taken = 0
        #: Beside those of the default tenant, which are always looked into.
        self._lists: list[str] = []
        self._last_turns: dict[str, int] = {}
        self._rests_until: dict[str, float] = {}

    def know(self, lists: Iterable[str]) -> None:
        """Look into these lists from now on, beside those that have the name of their queue."""
        self._lists = sorted(lists)
        known = {*self.items, *self._lists}
        self._last_turns = {name: turn for name, turn in self._last_turns.items() if name in known}

    def rest(self, tenant: str) -> None:
        """Look into no list of a tenant for `LOOK_SECONDS`: it has as many running jobs as it may."""
        self._rests_until[tenant] = monotonic() + LOOK_SECONDS

    def consume(self, n: int) -> list[str]:
        """The lists in the order in which the next message is looked for."""
        turn, queues = self._taken + 1, self.items[:n]
        first = 2 if turn % BATCH_TURN == 0 else 1 if turn % ROUTINE_TURN == 0 else 0
        # The favoured queue first, then the others by urgency: a turn whose queue is empty is not lost.
        queues = queues[first : first + 1] + queues[:first] + queues[first + 1 :]
        lists: dict[str, list[str]] = {queue: [queue] for queue in queues}
        for name in self._lists:
            if (queue := _queue_of(name)) in lists:
                lists[queue].append(name)
        in_turn = [name for names in lists.values() for name in sorted(names, key=lambda n: self._last_turns.get(n, 0))]
        if not self._rests_until:
            return in_turn
        now = monotonic()
        self._rests_until = {tenant: until for tenant, until in self._rests_until.items() if until > now}
        return [name for name in in_turn if _tenant_of(name) not in self._rests_until]

    def rotate(self, last_used: str) -> str:
        """A message was taken from `last_used`: the next turn begins."""
        self._taken += 1
        self._last_turns[last_used] = self._taken
        return last_used


class _PatientConnection:
    """Of a broker that cannot write to its disk: as one that is away, since kombu waits for that, and ends else."""

    def read_response(self, *arguments: Any, **named: Any) -> Any:
        try:
            return super().read_response(*arguments, **named)  # type: ignore[misc]  # of the class beside it
        except ResponseError as error:
            if has_full_disk(error):
                raise BrokenConnectionError(str(error)) from error
            raise


class _Connection(_PatientConnection, Connection):
    pass


class _SslConnection(_PatientConnection, SSLConnection):
    pass


class _FullError(Exception):
    """The tenant of a message has as many running jobs as it may."""

    def __init__(self, message: Any, list_name: str) -> None:
        super().__init__(list_name)
        self.message, self.list_name = message, list_name


class _Channel(redis.Channel):
    """Waits for the lists of all tenants; drops a message that is no JSON, where kombu's would end the worker."""

    connection_class = _Connection
    connection_class_ssl = _SslConnection
    _looked_at = float("-inf")

    def _brpop_start(self, timeout: float | None = None) -> None:
        # It waits for a second at most: so a list that is new is known after two.
        if monotonic() - self._looked_at >= LOOK_SECONDS:
            with self.conn_or_acquire() as client:
                lists = [name.decode() for name in client.zrange(LISTS, 0, -1)]
            self._queue_cycle.know(lists)
            self._looked_at = monotonic()
        super()._brpop_start(timeout)  # type: ignore[no-untyped-call]

    def _brpop_read(self, **options: Any) -> bool:
        try:
            return bool(super()._brpop_read(**options))  # type: ignore[no-untyped-call]
        except BrokenConnectionError:
            # The connection may be made again at once, while the disk is as full as before.
            sleep(DISK_FULL_SECONDS)
            raise
        except ValueError as error:
            # It is off the queue already. A job that it stood for is found and sent again by the reconciler.
            log.warning("a message that is no JSON was dropped: %s", type(error).__name__)
            raise Empty from error
        except _FullError as full:
            # Back to the end it was taken from: next, unless another comes back meanwhile. Who dies before that leaves
            # it to the reconciler.
            with self.conn_or_acquire() as client:
                client.rpush(full.list_name, dumps(full.message))  # type: ignore[no-untyped-call]
            self._queue_cycle.rest(_tenant_of(full.list_name))
            raise Empty from full


class Transport(redis.Transport):
    """kombu's Redis, but whatever anybody put into a queue, the worker goes on."""

    Channel = _Channel

    def _deliver(self, message: Any, queue: str) -> None:
        """`queue` is the list that the message was in; Celery listens to the queue that it belongs to.

        Raises _FullError.
        """
        if (job_id := _id_of(message)) is not None:
            connection: Any = self.client
            limits: RunningLimits = connection.transport_options["running_limits"]
            with suppress(BrokerUnavailableError):  # rather one job too many than a message that nobody has
                if not limits.take(_tenant_of(queue), job_id):
                    raise _FullError(message, queue)
            super()._deliver(message, _queue_of(queue))  # type: ignore[no-untyped-call]
        else:
            log.warning("a message of %s that is no task was dropped", queue)


def _id_of(message: Any) -> str | None:
    """Of the job that a message of a queue stands for; None unless Celery can read the message as our task."""
    with suppress(KeyError, TypeError):
        headers, properties = message["headers"], message["properties"]
        is_ours = headers["task"] == TASK_NAME and isinstance(message["body"], str)
        if is_ours and properties["delivery_tag"] and {*properties["delivery_info"]} and states.is_id(headers["id"]):
            return str(headers["id"])
    return None


def celery_config(settings: JobsSettings) -> dict[str, Any]:
    """What both ends of the broker must agree on."""
    return {
        "broker_url": settings.redis_url,
        "broker_transport": f"{__name__}:{Transport.__name__}",
        "task_queues": [Queue(name, routing_key=name) for name in QUEUES],  # type: ignore[no-untyped-call]
        "task_default_queue": queue_name(Priority.ROUTINE),
        # A misspelt queue would be made, and nobody would listen to it.
        "task_create_missing_queues": False,
        # The record has the outcome; a result backend would be a second truth.
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "event_serializer": "json",
        "enable_utc": True,
        "broker_transport_options": {
            # Delivered again only after no living worker can still hold the message: Celery's Redis has no heartbeat.
            "visibility_timeout": settings.hard_limit_seconds + RESTORE_GRACE_SECONDS,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "queue_order_strategy": FairQueues,
            "running_limits": RunningLimits(settings),
            "priority_steps": [0],  # three queues instead of priorities within one
            "socket_connect_timeout": settings.broker_timeout_seconds,
        },
    }


class JobQueue:
    """The gateway's and the reconciler's end of the broker."""

    def __init__(self, settings: JobsSettings, live: LiveView) -> None:
        self._live, self._tenant = live, DEFAULT_TENANT
        self._app = Celery("lobewise", set_as_current=False)
        self._app.conf.update(celery_config(settings))
        self._app.conf.broker_transport_options["socket_timeout"] = settings.broker_timeout_seconds

    def of(self, tenant: str, live: LiveView) -> Self:
        """That of a tenant, whose live view this is; over the same connections."""
        queue = copy.copy(self)
        queue._live, queue._tenant = live, tenant
        return queue

    def publish(self, job_id: str, priority: Priority) -> None:
        """Send a job of this tenant to the workers. Twice does no harm: only one can claim it.

        Raises BrokerUnavailableError: not sent, or not known to be sent.
        """
        name = queue_name(priority, self._tenant)
        queue = Queue(name, routing_key=name)  # type: ignore[no-untyped-call]
        attributes = {
            "messaging.system": "celery",
            "messaging.destination.name": queue_name(priority),
            "messaging.message.id": job_id,
            "messaging.operation.type": "send",
            tracing.TENANT: self._tenant,
        }
        try:
            with broker_errors(), tracing.step(f"send {queue_name(priority)}", attributes, SpanKind.PRODUCER):
                arguments: tuple[str, ...] = (job_id,)
                # Of `default` as before there were tenants: workers of both versions take messages from one Redis.
                if self._tenant != DEFAULT_TENANT:
                    arguments = (job_id, self._tenant)
                    # Before sending: a worker would not look into the list.
                    self._live.messages.note_list(name)
                self._app.send_task(TASK_NAME, arguments, task_id=job_id, queue=queue, retry_policy=_RETRY_ONCE)
        except (OperationalError, OSError) as error:
            raise BrokerUnavailableError(f"the broker does not answer: {type(error).__name__}") from error
        # After sending: a message that is not known to be sent is sent again, and one too many does no harm.
        self._live.recovery.mark_published(job_id)

    def has_messages(self) -> bool:
        """Whether any queue holds one that a worker may take. Raises BrokerUnavailableError."""
        lists = (*QUEUES, *self._live.messages.lists())
        # What waits for a job of its tenant to end is no reason for a worker to have something to do.
        limits: RunningLimits = self._app.conf.broker_transport_options["running_limits"]
        full = {tenant for tenant in {_tenant_of(name) for name in lists} if limits.is_full(tenant)}
        return self._live.messages.any_waiting([name for name in lists if _tenant_of(name) not in full])

    def present(self, delivered_within_seconds: float) -> set[str]:
        """Ids of the jobs, of all tenants, with a message in a queue, or delivered to a worker lately."""
        ids = set()
        for raw in self._live.messages.waiting((*QUEUES, *self._live.messages.lists())):
            with suppress(ValueError):
                ids.add(_id_of(json.loads(raw)))
        for raw in self._live.messages.delivered(delivered_within_seconds):
            with suppress(ValueError, LookupError, TypeError):
                ids.add(_id_of(json.loads(raw)[0]))
        return {found for found in ids if found is not None}

    def close(self) -> None:
        self._app.close()
