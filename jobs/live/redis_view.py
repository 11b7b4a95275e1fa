"""The live view in Redis: states of jobs, their lists and leases (`keys` says where they lie).

It shows quickly what the blobs decide, and can be wrong for a while, or wiped.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, cast

import redis
from pydantic_core import from_json
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs import states
from jobs.errors import BrokerUnavailableError
from jobs.live.audit_heads import AuditHeads
from jobs.live.callback_schedule import CallbackSchedule
from jobs.live.connection import Script, ViewFreshness, broker_errors
from jobs.live.events import EVENTS_KEPT, KEPT_SECONDS, EventLog
from jobs.live.feed import Feed, FeedLimits
from jobs.live.job_lists import JobLists
from jobs.live.job_metrics import Monitoring, counts_of
from jobs.live.keys import AT_WORK, CHANGED, DELETIONS, METRICS, PREFIX, RECENT, WORKERS, Keys
from jobs.live.pagination import Query, delay_ms, reference_member, severity_member
from jobs.live.recovery_view import BrokerMessages, RecoveryView
from jobs.live.usage import Usage
from jobs.live.workers import ReadyWorkers
from jobs.models import JobState, JobStatus, Priority, Stage

log = logging.getLogger(__name__)

#: Nobody who saw a job before it was deleted still works on it after that time.
TRACES_REMOVED_SECONDS: Final = 24 * 3600

#: Jobs in one question: Redis answers nobody else meanwhile.
MAX_TOGETHER: Final = 200

#: Estimates follow a change, as to a faster GPU, within so many jobs.
RECENT_KEPT: Final = 32

_EVENTS: Final[Mapping[str, str | int]] = {
    "events_kept": EVENTS_KEPT,
    "events_kept_ms": 1000 * KEPT_SECONDS,
    "channel": CHANGED,
}
_PRIORITIES: Final = tuple(Priority)
_STAGES: Final = frozenset(Stage)


class LiveView:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(
        self, url: str, timeout_seconds: float, view_freshness: ViewFreshness, feed_limits: FeedLimits
    ) -> None:
        self.view_freshness = view_freshness
        self._feed_limits = {"feed_events": feed_limits.events, "feed_ms": 1000 * feed_limits.seconds}
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
        self.audit_heads = AuditHeads(self._redis)
        self.workers = ReadyWorkers(self._redis)
        self.messages = BrokerMessages(self._redis)
        self.usage = Usage(self._redis)
        self._put_state = Script(self._redis, "put_state")
        self._mark_purged = Script(self._redis, "mark_purged")
        self._list_job = Script(self._redis, "list_job")
        self._read_states = Script(self._redis, "read_states")
        self._request_cancel = Script(self._redis, "request_cancel")
        self._renew_lease = Script(self._redis, "renew_lease")
        self._drop_lease = Script(self._redis, "drop_lease")
        self.use(Keys())

    def use(self, keys: Keys) -> None:
        """Show what lies under these keys."""
        self.keys = keys
        self.events = EventLog(self._redis, keys, _read_state)
        self.feed = Feed(self._redis, keys)
        self.callbacks = CallbackSchedule(self._redis, keys)
        self.recovery = RecoveryView(self._redis, keys)
        self.monitoring = Monitoring(self._redis, keys, self.get_many, self.workers)
        self._lists = JobLists(self._redis, keys, self.get_many)

    def of(self, tenant: str) -> Self:
        """That of a tenant, over the same connections."""
        view = copy.copy(self)
        view.use(Keys.of(tenant))
        return view

    def close(self) -> None:
        self._redis.close()

    def _connected(self, connection: Any) -> None:
        self.view_freshness.connected(connection)
        connection.on_connect()

    @broker_errors()
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
            stage_seconds: of the attempt that ended the job, for the job metrics.
        """
        counts = counts_of(state, stage_seconds or {}) if state.status.is_final else {}
        # A job that was begun runs on, also where it has to be queued again.
        has_deadline = state.not_after is not None and state.status is JobStatus.QUEUED and state.attempt == 0
        is_shown = self._put_state(
            *(item for pair in counts.items() for item in pair),
            job=self.keys.key("job", state.id),
            lease=self.keys.key("lease", state.id),
            events=self.keys.key("events", state.id),
            metrics=METRICS,
            at_work=AT_WORK,
            tombstone=self.keys.key("purged", state.id),
            feed=self.keys.feed,
            prefix=self.keys.prefix,
            job_id=state.id,
            priority=state.priority,
            status=state.status,
            attempt=state.attempt,
            state=state.model_dump_json(exclude={"revision", "queue_position", "estimated_start_at"}),
            guard=guard,
            severity_member=severity_member(state) or "",
            retry_after_ms="" if retry_after_seconds is None else round(retry_after_seconds * 1000),
            has_callback="1" if state.callback_url else "",
            batch_id=state.batch_id or "",
            delay_ms=delay_ms(state),
            reference_member=reference_member(state) or "",
            not_after_ms=round(1000 * state.not_after.timestamp()) if state.not_after and has_deadline else "",
            **_EVENTS,
            **self._feed_limits,
        )
        # An attempt that was lost, or never came to a worker, says nothing of how long the next will take.
        if is_shown and stage_seconds is not None and state.started_at and state.finished_at:
            took_ms = round(1000 * max((state.finished_at - state.started_at).total_seconds(), 0.0))
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.lpush(RECENT, took_ms)
                pipe.ltrim(RECENT, 0, RECENT_KEPT - 1)
                pipe.execute()
        return bool(is_shown)

    @broker_errors()
    def list_again(self, state: JobState) -> None:
        """Add a job that is shown to the lists that an earlier version did not keep."""
        self._list_job(
            job=self.keys.key("job", state.id),
            delays=self.keys.delays,
            references=self.keys.references,
            job_id=state.id,
            delay_ms=delay_ms(state),
            reference_member=reference_member(state) or "",
        )

    def get(self, job_id: str) -> JobState | None:
        """None when unknown here."""
        return self.get_many([job_id])[0]

    def get_with_freshness(self, job_id: str) -> tuple[JobState | None, bool]:
        """The state as it is shown, and whether to believe it."""
        try:
            (shown,), is_whole = self._read([job_id])
        except BrokerUnavailableError:
            self.view_freshness.lose()
            raise
        return shown, shown is not None and self.view_freshness.holds(shown, is_whole=is_whole)

    def get_many(self, job_ids: Sequence[str]) -> list[JobState | None]:
        found: list[JobState | None] = []
        for at in range(0, len(job_ids), MAX_TOGETHER):
            found += self._read(job_ids[at : at + MAX_TOGETHER])[0]
        return found

    @broker_errors()
    def _read(self, job_ids: Sequence[str]) -> tuple[list[JobState | None], bool]:
        keys, arguments = read_states_arguments(self.keys, job_ids)
        return parse_states(self._read_states.run(keys, arguments))

    @broker_errors()
    def status(self, job_id: str) -> JobStatus | None:
        status = cast("str | None", self._redis.hget(self.keys.key("job", job_id), "status"))
        return JobStatus(status) if status else None

    def statuses(self, job_ids: Sequence[str]) -> list[JobStatus | None]:
        """None for those that are unknown here."""
        with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(self.keys.key("job", job_id), "status")
            return [JobStatus(status) if status else None for status in pipe.execute()]

    @broker_errors()
    def request_cancel(self, job_id: str) -> None:
        self._request_cancel(
            job=self.keys.key("job", job_id), events=self.keys.key("events", job_id), job_id=job_id, **_EVENTS
        )

    @broker_errors()
    def is_cancel_requested(self, job_id: str) -> bool:
        return bool(self._redis.hget(self.keys.key("job", job_id), "cancel") == "1")

    def remove_traces(self, job_id: str) -> None:
        """Remove a job that was deleted, and from now on show nothing that others may still say of it."""
        with broker_errors():
            self._mark_purged(
                job=self.keys.key("job", job_id),
                tombstone=self.keys.key("purged", job_id),
                feed=self.keys.feed,
                prefix=self.keys.prefix,
                job_id=job_id,
                seconds=TRACES_REMOVED_SECONDS,
                **self._feed_limits,
            )
            self._redis.set(DELETIONS, "1")
        self.remove(job_id)

    def erase_deleted(self) -> bool:
        """Have the server write its append-only file anew, without what was deleted; whether it does.

        The file holds every change, and so a client's reference to a job that is gone, until it is written anew: by
        itself the server does so once it has doubled, and is 64 MB large. For no server that keeps none, or that does
        not let us.
        """
        with broker_errors():
            if not self._redis.exists(DELETIONS):
                return False
            try:
                info = self._redis.info("persistence")
                if str(info.get("aof_enabled")) == "1":
                    self._redis.bgrewriteaof()
            except redis.ResponseError as error:
                # Under way already, from before the deletion for all we know: next time then.
                if "in progress" in str(error) or "already" in str(error):
                    return False
                log.debug("the server does not write its file anew: %s", error)
            self._redis.delete(DELETIONS)
        return True

    def remove(self, job_id: str) -> None:
        """All but the lease, which stays until it expires: its worker learns from the blobs."""
        state = self.get(job_id)
        if state is not None:
            with broker_errors(), self._redis.pipeline() as pipe:
                pipe.delete(self.keys.key("job", state.id), self.keys.key("events", state.id))
                pipe.publish(CHANGED, state.id)
                pipe.zrem(self.keys.callbacks, state.id)
                pipe.zrem(self.keys.delays, state.id)
                if member := reference_member(state):
                    pipe.zrem(self.keys.references, member)
                pipe.zrem(self.keys.deadlines, state.id)
                for priority in ("*", state.priority):
                    for status in ("*", *JobStatus):
                        pipe.zrem(self.keys.key("index", status, priority), state.id)
                    if member := severity_member(state):
                        pipe.zrem(self.keys.key("severity", priority), member)
                pipe.execute()

    def page(self, query: Query, after: str | None, limit: int) -> list[str] | None:
        """Up to `limit` members of a list after one; None when the view is not whole."""
        return self._lists.page(query, after, limit)

    # Leases

    @broker_errors()
    def lease(self, job_id: str, value: str, seconds: float) -> bool:
        """Take the lease if nobody holds it."""
        return bool(self._redis.set(self.keys.key("lease", job_id), value, nx=True, px=round(seconds * 1000)))

    @broker_errors()
    def renew_lease(self, job_id: str, value: str, attempt: int, seconds: float) -> bool:
        """False when the job is no longer this attempt's."""
        keys = {"job": self.keys.key("job", job_id), "lease": self.keys.key("lease", job_id)}
        return bool(self._renew_lease(**keys, value=value, attempt=attempt, milliseconds=round(seconds * 1000)))

    @broker_errors()
    def drop_lease(self, job_id: str, value: str) -> None:
        self._drop_lease(lease=self.keys.key("lease", job_id), value=value)


def read_states_arguments(keys: Keys, job_ids: Sequence[str]) -> tuple[list[str], Sequence[str]]:
    """Keys and arguments of the script `read_states`."""
    jobs = (keys.key("job", job_id) for job_id in job_ids)
    return [*jobs, WORKERS, RECENT, keys.epoch, AT_WORK], [*job_ids, keys.prefix, PREFIX, *_PRIORITIES]


def parse_states(answer: Sequence[Any]) -> tuple[list[JobState | None], bool]:
    """What `read_states` found, None for those that are unknown here; and whether the view is whole."""
    jobs, is_whole, now_ms, ready, running, recent_ms = answer
    now = datetime.fromtimestamp(now_ms // 1000, UTC)
    recent = [int(took_ms) / 1000 for took_ms in recent_ms]
    seconds_per_job = sum(recent) / len(recent) if recent else None

    def start_of(position: int) -> datetime | None:
        seconds = states.estimated_wait_seconds(position, ready, running, seconds_per_job)
        return None if seconds is None else now + timedelta(seconds=round(seconds))

    return [_state(start_of, *one) for one in jobs], bool(is_whole)


def _state(
    start_of: Callable[[int], datetime | None], shown: str | None, cancel: str | None, *counts: int
) -> JobState | None:
    """`counts` holds for each priority, in their order: queued jobs up to this one, and all queued jobs."""
    if shown is None:
        return None
    state, position = _read_state(shown, cancel), None
    if state.status == JobStatus.QUEUED:
        rank = _PRIORITIES.index(state.priority)
        ahead = sum(counts[1 : 2 * rank : 2])
        position = max(ahead + counts[2 * rank], 1)
    return states.changed(state, queue_position=position, estimated_start_at=position and start_of(position))


def _read_state(shown: str, cancel: str | None) -> JobState:
    content = from_json(shown)
    if content.get("stage") not in _STAGES:  # none, or one that only newer workers have
        content["stage"] = None
    state = JobState.model_validate({**content, "revision": ""}, extra="ignore")
    return states.changed(
        state, cancel_requested=state.cancel_requested or (cancel == "1" and not state.status.is_final)
    )
