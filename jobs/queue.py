"""The broker: three Celery queues in Redis, and the one task that goes through them. Only the job id does.

The gateway sends the task by its name, so that it needs nothing of the worker's.
"""

import json
from contextlib import AbstractContextManager
from typing import Any, Final

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from opentelemetry.trace import SpanKind

from jobs import tracing
from jobs.errors import BrokerUnavailableError
from jobs.fairness import FairQueues
from jobs.live.redis_view import LiveView, broker_errors
from jobs.models import Priority
from jobs.settings import JobsSettings

TASK_NAME: Final = "lobewise.score"
RESTORE_GRACE_SECONDS: Final = 60

_RETRY_ONCE: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def queue_name(priority: Priority) -> str:
    return f"lobewise.{priority}"


QUEUES: Final = tuple(queue_name(priority) for priority in Priority)
"""In the order in which workers empty them."""


def celery_config(settings: JobsSettings) -> dict[str, Any]:
    """What both ends of the broker must agree on."""
    return {
        "broker_url": settings.redis_url,
        "task_queues": [Queue(name, routing_key=name) for name in QUEUES],  # type: ignore[no-untyped-call]
        "task_default_queue": queue_name(Priority.ROUTINE),
        "task_create_missing_queues": False,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "event_serializer": "json",
        "enable_utc": True,
        "broker_transport_options": {
            # A message that a dead worker held is delivered again only after no living worker can still hold it.
            "visibility_timeout": settings.hard_limit_seconds + RESTORE_GRACE_SECONDS,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "queue_order_strategy": FairQueues,
            "priority_steps": [0],  # three queues instead of priorities within one
            "socket_connect_timeout": settings.broker_timeout_seconds,
        },
    }


class JobQueue:
    """The gateway's and the reaper's end of the broker."""

    def __init__(self, settings: JobsSettings, live: LiveView) -> None:
        self._live = live
        self._app = Celery("lobewise", set_as_current=False)
        self._app.conf.update(celery_config(settings))
        self._app.conf.broker_transport_options["socket_timeout"] = settings.broker_timeout_seconds

    def publish(self, job_id: str, priority: Priority) -> None:
        """Send a job to the workers. Twice does no harm: only one can claim it.

        Raises:
            BrokerUnavailableError: not sent, or not known to be sent.
        """
        try:
            with broker_errors(), _sending(job_id, queue := queue_name(priority)):
                self._app.send_task(TASK_NAME, (job_id,), task_id=job_id, queue=queue, retry_policy=_RETRY_ONCE)
        except (OperationalError, OSError) as error:
            raise BrokerUnavailableError(f"the broker does not answer: {type(error).__name__}") from error
        self._live.mark_published(job_id)

    def has_messages(self) -> bool:
        """Whether any queue holds one. Raises BrokerUnavailableError."""
        return self._live.has_messages(QUEUES)

    def present(self, delivered_within_seconds: float) -> set[str]:
        """Ids of the jobs with a message in a queue, or lately in the hands of a worker."""
        waiting = [json.loads(raw) for raw in self._live.messages(QUEUES)]
        delivered = [json.loads(raw)[0] for raw in self._live.delivered_messages(delivered_within_seconds)]
        return {message["headers"]["id"] for message in (*waiting, *delivered)}

    def close(self) -> None:
        self._app.close()


def _sending(job_id: str, queue: str) -> AbstractContextManager[object]:
    named = {"messaging.system": "celery", "messaging.destination.name": queue, "messaging.message.id": job_id}
    return tracing.step(f"send {queue}", {**named, "messaging.operation.type": "send"}, SpanKind.PRODUCER)
