"""The live view in Redis: states of jobs, their lists and leases (`keys` says where they lie).

It shows quickly what the blobs decide, and can be wrong for a while, or wiped.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import redis
from pydantic_core import from_json
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs import states
from jobs.errors import BrokerUnavailableError
from jobs.live.broker_messages import BrokerMessages
from jobs.live.callback_schedule import CALLBACKS, CallbackQueue
from jobs.live.connection import ViewFreshness, broker_errors
from jobs.live.events import CHANNEL, EVENTS_KEPT, KEPT_SECONDS, EventLog, events_key
from jobs.live.job_metrics import FIGURES, JobMetrics, Tally, by_stage, counts_of
from jobs.live.keys import EPOCH, PREFIX, index_key, job_key, lease_key, severity_key, tombstone_key
from jobs.live.lua import Script
from jobs.live.pagination import Query, severity_member
from jobs.live.recovery_view import RecoveryView
from jobs.live.workers import ReadyWorkers
from jobs.models import JobState, JobStatus, Priority, Stage
from jobs.states import QueueLength

#: Nobody who saw a job before it was deleted still works on it after that time.
TRACES_REMOVED_SECONDS: Final = 24 * 3600

#: Jobs in one question: Redis answers nobody else meanwhile.
MAX_TOGETHER: Final = 200

_EVENTS: Final[Mapping[str, str | int]] = {
    "events_kept": EVENTS_KEPT,
    "events_kept_ms": 1000 * KEPT_SECONDS,
    "channel": CHANNEL,
}
_PRIORITIES: Final = tuple(Priority)
_STAGES: Final = frozenset(Stage)


class LiveView:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, url: str, timeout_seconds: float, view_freshness: ViewFreshness) -> None:
        self.view_freshness = view_freshness
        # One retry, at once and only for a broken connection: a pooled connection may be older than the server.
        retry = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        self._redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=retry,
            redis_connect_func=self._connected,
        )
        self.events = EventLog(self._redis, _read_state)
        self.callbacks = CallbackQueue(self._redis)
        self.workers = ReadyWorkers(self._redis)
        self.recovery = RecoveryView(self._redis)
        self.messages = BrokerMessages(self._redis)
        self._tally = Tally(self._redis)
        self._put_state = Script(self._redis, "put_state")
        self._read_states = Script(self._redis, "read_states")
        self._request_cancel = Script(self._redis, "request_cancel")
        self._renew_lease = Script(self._redis, "renew_lease")
        self._drop_lease = Script(self._redis, "drop_lease")

    def close(self) -> None:
        self._redis.close()

    def _connected(self, connection: Any) -> None:
        self.view_freshness.connected(connection)
        connection.on_connect()

    def ping(self) -> None:
        with broker_errors():
            self._redis.ping()

    # States

    def put(
        self,
        state: JobState,
        *,
        guard: str = "any",
        retry_after_seconds: float | None = None,
        stage_seconds: Mapping[str, float] | None = None,
    ) -> bool:
        """Show a state. False, and nothing changed, if the job is final, a later attempt runs or `guard` forbids it.

        Args:
            guard: `free`: only if it runs without a lease; `new`: only if unknown; `rebuild:` and the mark of
                `begin_rebuild`: only if unknown, and the server was not wiped since; `any`; or the lease that must be
                held.
            stage_seconds: of the attempt that ended the job, for the figures.
        """
        counts = counts_of(state, stage_seconds or {}) if state.status.is_final else {}
        with broker_errors():
            return bool(
                self._put_state(
                    *(item for pair in counts.items() for item in pair),
                    job=job_key(state.id),
                    lease=lease_key(state.id),
                    events=events_key(state.id),
                    metrics=FIGURES,
                    tombstone=tombstone_key(state.id),
                    prefix=PREFIX,
                    job_id=state.id,
                    priority=state.priority,
                    status=state.status,
                    attempt=state.attempt,
                    state=state.model_dump_json(exclude={"revision", "queue_position"}),
                    guard=guard,
                    severity_member=severity_member(state) or "",
                    retry_after_ms="" if retry_after_seconds is None else round(retry_after_seconds * 1000),
                    has_callback="1" if state.callback_url else "",
                    **_EVENTS,
                )
            )

    def get(self, job_id: str) -> JobState | None:
        """None when unknown here."""
        return self.get_many([job_id])[0]

    def look(self, job_id: str) -> tuple[JobState | None, bool]:
        """The state as it is shown, and whether the view was whole then: after a wipe it may show what was before."""
        try:
            (shown,), is_whole = self._looked([job_id])
        except BrokerUnavailableError:
            self.view_freshness.lose()
            raise
        return shown, is_whole

    def get_many(self, job_ids: Sequence[str]) -> list[JobState | None]:
        found: list[JobState | None] = []
        for at in range(0, len(job_ids), MAX_TOGETHER):
            found += self._looked(job_ids[at : at + MAX_TOGETHER])[0]
        return found

    def status(self, job_id: str) -> JobStatus | None:
        with broker_errors():
            status = cast("str | None", self._redis.hget(job_key(job_id), "status"))
        return JobStatus(status) if status else None

    def statuses(self, job_ids: Sequence[str]) -> list[JobStatus | None]:
        """None for those that are unknown here."""
        with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(job_key(job_id), "status")
            return [JobStatus(status) if status else None for status in pipe.execute()]

    def request_cancel(self, job_id: str) -> None:
        with broker_errors():
            self._request_cancel(job=job_key(job_id), events=events_key(job_id), job_id=job_id, **_EVENTS)

    def is_cancel_requested(self, job_id: str) -> bool:
        with broker_errors():
            return bool(self._redis.hget(job_key(job_id), "cancel") == "1")

    def remove_traces(self, job_id: str) -> None:
        """Forget a job that was deleted, and show nothing that others may still say of it."""
        with broker_errors():
            self._redis.set(tombstone_key(job_id), "1", ex=TRACES_REMOVED_SECONDS)
        self.forget(job_id)

    def forget(self, job_id: str) -> None:
        """The lease stays until it expires: its worker learns from the blobs."""
        state = self.get(job_id)
        if state is not None:
            with broker_errors(), self._redis.pipeline() as pipe:
                pipe.delete(job_key(state.id), events_key(state.id))
                pipe.publish(CHANNEL, state.id)
                pipe.zrem(CALLBACKS, state.id)
                for priority in ("*", state.priority):
                    for status in ("*", *JobStatus):
                        pipe.zrem(index_key(status, priority), state.id)
                    if member := severity_member(state):
                        pipe.zrem(severity_key(priority), member)
                pipe.execute()

    def page(self, query: Query, after: str | None, limit: int) -> list[str] | None:
        """Up to `limit` members of a list after one; None when the view is not whole."""
        key = severity_key(query.priority or "*") if query.sort == "severity" else None
        key = key or index_key(query.status or "*", query.priority or "*")
        if query.sort == "severity" and query.status not in (None, JobStatus.SUCCEEDED):
            return []
        with broker_errors(), self._redis.pipeline() as pipe:
            pipe.exists(EPOCH)
            if query.is_descending:
                pipe.zrevrangebylex(key, f"({after}" if after else "+", "-", 0, limit)
            else:
                pipe.zrangebylex(key, f"({after}" if after else "-", "+", 0, limit)
            is_whole, members = pipe.execute()
        return list(members) if is_whole else None

    def _looked(self, job_ids: Sequence[str]) -> tuple[list[JobState | None], bool]:
        keys, arguments = look_at(job_ids)
        with broker_errors():
            return seen(self._read_states.run(keys, arguments))

    # Leases

    def lease(self, job_id: str, value: str, seconds: float) -> bool:
        """Take the lease if nobody holds it."""
        with broker_errors():
            return bool(self._redis.set(lease_key(job_id), value, nx=True, px=round(seconds * 1000)))

    def renew_lease(self, job_id: str, value: str, attempt: int, seconds: float) -> bool:
        """False when the job is no longer this attempt's."""
        with broker_errors():
            return bool(
                self._renew_lease(
                    job=job_key(job_id),
                    lease=lease_key(job_id),
                    value=value,
                    attempt=attempt,
                    milliseconds=round(seconds * 1000),
                )
            )

    def drop_lease(self, job_id: str, value: str) -> None:
        with broker_errors():
            self._drop_lease(lease=lease_key(job_id), value=value)

    # What monitoring asks

    def counts(self) -> dict[JobStatus, int]:
        """How many jobs have each status."""
        with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            for status in JobStatus:
                pipe.zcard(index_key(status, "*"))
            return dict(zip(JobStatus, pipe.execute(), strict=True))

    def queues(self) -> dict[Priority, QueueLength]:
        """What waits, by priority."""
        with broker_errors():
            with self._redis.pipeline(transaction=False) as pipe:
                for priority in _PRIORITIES:
                    pipe.zcard(index_key(JobStatus.QUEUED, priority))
                    pipe.zrange(index_key(JobStatus.QUEUED, priority), 0, 0)
                pipe.time()
                *answers, (seconds, microseconds) = pipe.execute()
            now_ms = seconds * 1000 + microseconds // 1000
            counts, firsts = answers[::2], answers[1::2]
            begun = [self._redis.hget(job_key(first[0]), "since_ms") if first else None for first in firsts]
        return {
            priority: QueueLength(int(count), max(now_ms - int(cast("str", since)), 0) / 1000 if since else 0.0)
            for priority, count, since in zip(_PRIORITIES, counts, begun, strict=True)
        }

    def job_metrics(self) -> JobMetrics:
        """What workers did since the server was last empty, and how they are now."""
        with broker_errors():
            running = cast("list[str]", self._redis.zrange(index_key(JobStatus.RUNNING, "*"), 0, -1))
            return self._tally.read(by_stage(self.get_many(running)), self.workers.stats())


def look_at(job_ids: Sequence[str]) -> tuple[list[str], Sequence[str]]:
    """Keys and arguments of `read_states`."""
    queues = [index_key(JobStatus.QUEUED, priority) for priority in _PRIORITIES]
    return [*map(job_key, job_ids), *queues, EPOCH], job_ids


def seen(answer: Sequence[Any]) -> tuple[list[JobState | None], bool]:
    """What `read_states` found, None for those that are unknown here; and whether the view is whole."""
    jobs, is_whole = answer
    return [_state(*one) for one in jobs], bool(is_whole)


def _state(shown: str | None, cancel: str | None, *counts: int) -> JobState | None:
    if shown is None:
        return None
    state = _read_state(shown, cancel)
    return states.changed(state, queue_position=_position(state, counts) if state.status == JobStatus.QUEUED else None)


def _read_state(shown: str, cancel: str | None) -> JobState:
    content = from_json(shown)
    if content.get("stage") not in _STAGES:  # none, or one that only newer workers have
        content["stage"] = None
    state = JobState.model_validate({**content, "revision": ""}, extra="ignore")
    return states.changed(
        state, cancel_requested=state.cancel_requested or (cancel == "1" and not state.status.is_final)
    )


def _position(state: JobState, counts: Sequence[int]) -> int:
    """`counts` holds for each priority, in their order: queued jobs up to this one, and all queued jobs."""
    rank = _PRIORITIES.index(state.priority)
    ahead = sum(counts[1 : 2 * rank : 2])
    return max(ahead + counts[2 * rank], 1)
