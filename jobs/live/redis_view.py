"""The live view in Redis: states, orders, leases and ready workers. All of it can be rebuilt from the blobs.

```
lobewise:epoch                          set once the view is whole; missing after a wipe
lobewise:job:{id}                       hash: state, status, attempt, cancel, since_ms, published_ms, retry_ms
lobewise:events:{id}                    what the job was, in order (`events`)
lobewise:lease:{id}                     "{attempt}:{token}" with a time to live
lobewise:purged:{id}                    nothing is shown of this job any more; with a time to live
lobewise:index:{status|*}:{priority|*}  ids, in order
lobewise:severity:{priority|*}          members of `listing.severity_member`, in order
lobewise:workers                        ready workers by the time at which their word expires
lobewise:models:{worker}                the models it has loaded, JSON, with a time to live
lobewise:callbacks                      jobs that have to tell how they ended, by when (`callback_queue`)
lobewise:figures, lobewise:vitals:{worker}  what workers did, and how they are (`figures`)
lobewise:reaper                         who looks for lost jobs now
```

Times are Redis' own, so that clocks of machines need not agree.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
from pydantic import TypeAdapter
from pydantic_core import from_json
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs import states
from jobs.errors import BrokerUnavailableError
from jobs.live.callback_schedule import CALLBACKS, CallbackQueue
from jobs.live.events import CHANNEL, EVENTS_KEPT, KEPT_SECONDS, EventLog, events_key
from jobs.live.job_metrics import FIGURES, JobMetrics, Tally, WorkerStats, by_stage, counts_of
from jobs.live.pagination import Query, severity_member
from jobs.live.view_freshness import ViewFreshness
from jobs.models import JobState, JobStatus, ModelProvenance, Priority, Stage
from jobs.states import QueueLength

PREFIX: Final = "lobewise:"
REBUILT: Final = "rebuilt"
"""Token of a lease that a rebuild grants, in place of the worker's own that was wiped."""

REBUILD_SECONDS: Final = 24 * 3600
"""A rebuild takes no longer."""

TRACES_REMOVED_SECONDS: Final = 24 * 3600
"""Nobody who saw a job before it was deleted still works on it after that time."""

MAX_TOGETHER: Final = 200
"""Jobs in one question: Redis answers nobody else meanwhile."""

_EVENTS: Final = (EVENTS_KEPT, 1000 * KEPT_SECONDS, CHANNEL)
_PRIORITIES: Final = tuple(Priority)
_MODELS: Final = TypeAdapter(list[ModelProvenance])
_STAGES: Final = frozenset(Stage)

_PUT: Final = """
-- KEYS: job, lease, events, figures, tombstone.  ARGV: prefix, id, priority, status, attempt, state, guard, severity
-- member, retry after (ms), events kept, for how long (ms), channel, '1' if somebody wants to be told of its end, then
-- figures and by how much they grow at the job's end.
-- guard: 'free' = only if it runs without a lease, 'new' = only if unknown, 'rebuild:{mark}' = only if unknown and not
-- wiped since the mark, 'any', or the lease that must be held.
local old = redis.call('HMGET', KEYS[1], 'status', 'attempt')
local lease = redis.call('GET', KEYS[2])
local ends = ARGV[4] == 'succeeded' or ARGV[4] == 'failed' or ARGV[4] == 'cancelled'
if redis.call('EXISTS', KEYS[5]) == 1 then return 0 end
if old[1] == 'succeeded' or old[1] == 'failed' or old[1] == 'cancelled' then return 0 end
if not ends and old[2] and tonumber(old[2]) > tonumber(ARGV[5]) then return 0 end
local is_new = ARGV[7] == 'new' or string.sub(ARGV[7], 1, 8) == 'rebuild:'
if ARGV[7] == 'free' then
  if lease or old[1] ~= 'running' then return 0 end
elseif is_new then
  if old[1] or ARGV[7] ~= 'new' and redis.call('EXISTS', ARGV[1] .. ARGV[7]) == 0 then return 0 end
elseif ARGV[7] ~= 'any' and ARGV[7] ~= lease then
  return 0
end
redis.call('HSET', KEYS[1], 'status', ARGV[4], 'attempt', ARGV[5], 'state', ARGV[6])
if old[1] ~= ARGV[4] then
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  redis.call('HSET', KEYS[1], 'since_ms', now)
  redis.call('HDEL', KEYS[1], 'published_ms', 'retry_ms')
  if ends and ARGV[13] == '1' then redis.call('ZADD', ARGV[1] .. 'callbacks', 'NX', now, ARGV[2]) end
  if ARGV[9] ~= '' then redis.call('HSET', KEYS[1], 'retry_ms', now + tonumber(ARGV[9])) end
  for _, priority in ipairs({'*', ARGV[3]}) do
    if old[1] then redis.call('ZREM', ARGV[1] .. 'index:' .. old[1] .. ':' .. priority, ARGV[2]) end
    redis.call('ZADD', ARGV[1] .. 'index:' .. ARGV[4] .. ':' .. priority, 0, ARGV[2])
    redis.call('ZADD', ARGV[1] .. 'index:*:' .. priority, 0, ARGV[2])
    if ARGV[8] ~= '' then redis.call('ZADD', ARGV[1] .. 'severity:' .. priority, 0, ARGV[8]) end
  end
end
if ends then
  redis.call('DEL', KEYS[2])
  if not is_new then
    for i = 14, #ARGV, 2 do redis.call('HINCRBY', KEYS[4], ARGV[i], ARGV[i + 1]) end
  end
end
local cancel = redis.call('HGET', KEYS[1], 'cancel') or ''
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[10], '*', 'state', ARGV[6], 'cancel', cancel)
redis.call('PEXPIRE', KEYS[3], ARGV[11])
redis.call('PUBLISH', ARGV[12], ARGV[2])
return 1
"""

LOOK: Final = """
-- KEYS: jobs, then queues by priority, then the epoch.  ARGV: ids of the jobs.
-- For each job: state, cancel, and of each queue how many are not behind it and how many there are (0 unless queued).
-- Beside them, whether the view is whole.
local seen = {}
for i, id in ipairs(ARGV) do
  local job = redis.call('HMGET', KEYS[i], 'state', 'cancel', 'status')
  local one = {job[1], job[2]}
  for queue = #ARGV + 1, #KEYS - 1 do
    local is_queued = job[3] == 'queued'
    one[#one + 1] = is_queued and redis.call('ZLEXCOUNT', KEYS[queue], '-', '[' .. id) or 0
    one[#one + 1] = is_queued and redis.call('ZCARD', KEYS[queue]) or 0
  end
  seen[i] = one
end
return {seen, redis.call('EXISTS', KEYS[#KEYS])}
"""

_CANCEL: Final = """
-- KEYS: job, events.  ARGV: id, events kept, for how long (ms), channel.
local state = redis.call('HGET', KEYS[1], 'state')
if not state or redis.call('HGET', KEYS[1], 'cancel') == '1' then return 0 end
redis.call('HSET', KEYS[1], 'cancel', '1')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'state', state, 'cancel', '1')
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[1])
return 1
"""

_RENEW: Final = """
-- KEYS: job, lease.  ARGV: lease value, attempt, milliseconds.  1 while the job is still this attempt's.
local lease = redis.call('GET', KEYS[2])
if lease == ARGV[1] or lease == ARGV[2] .. ':rebuilt' then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
  return 1
end
if lease then return 0 end
local job = redis.call('HMGET', KEYS[1], 'status', 'attempt')
-- Wiped, or late but not yet noticed: the lease can be had again. Otherwise the job was taken away.
if not job[1] or (job[1] == 'running' and job[2] == ARGV[2]) then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
  return 1
end
return 0
"""

_DROP: Final = """
-- KEYS: lease.  ARGV: lease value.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

_LEAD: Final = """
-- KEYS: leader.  ARGV: who, milliseconds.
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_READY: Final = """
-- KEYS: workers.  ARGV: who or '', milliseconds.  The answer is how many are ready.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[1] ~= '' then redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1]) end
return redis.call('ZCARD', KEYS[1])
"""

_WHOLE: Final = """
-- KEYS: epoch, the rebuild's mark.  ARGV: mark.
if redis.call('DEL', KEYS[2]) == 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return 1
"""

_MARK: Final = """
-- KEYS: job.  Notes the time at which a message was sent.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'published_ms', t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('HDEL', KEYS[1], 'retry_ms')
return 1
"""


@dataclass(frozen=True)
class Waiting:
    """A queued job, as the reaper sees it. Ages in milliseconds."""

    job_id: str
    queued_for_ms: int
    published_ms_ago: int | None
    retry_in_ms: int | None


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
        self._tally = Tally(self._redis)
        scripts = (_PUT, _CANCEL, _RENEW, _DROP, _LEAD, _READY, _MARK, _WHOLE)
        self._put, self._cancel, self._renew, self._drop, self._lead, self._ready, self._mark, self._whole = map(
            self._redis.register_script, scripts
        )
        self._look = self._redis.register_script(LOOK)

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
        shown = state.model_dump_json(exclude={"revision", "queue_position"})
        retry_ms = "" if retry_after_seconds is None else round(retry_after_seconds * 1000)
        keys = [_job(state.id), _lease(state.id), events_key(state.id), FIGURES, _tombstone(state.id)]
        args: list[str | int] = [PREFIX, state.id, state.priority, state.status, state.attempt, shown, guard]
        told = "1" if state.callback_url else ""
        counts = counts_of(state, stage_seconds or {}) if state.status.is_final else {}
        grown = [item for pair in counts.items() for item in pair]
        with broker_errors():
            return bool(
                self._put(keys=keys, args=[*args, severity_member(state) or "", retry_ms, *_EVENTS, told, *grown])
            )

    def get(self, job_id: str) -> JobState | None:
        """None when unknown here."""
        return self._states([job_id])[0]

    def look(self, job_id: str) -> tuple[JobState | None, bool]:
        """The state as it is shown, and whether the view was whole then: after a wipe it may show what was before."""
        try:
            (shown,), is_whole = self._looked([job_id])
        except BrokerUnavailableError:
            self.view_freshness.lose()
            raise
        return shown, is_whole

    def get_many(self, job_ids: Sequence[str]) -> list[JobState | None]:
        return self._states(job_ids)

    def status(self, job_id: str) -> JobStatus | None:
        with broker_errors():
            status = cast("str | None", self._redis.hget(_job(job_id), "status"))
        return JobStatus(status) if status else None

    def statuses(self, job_ids: Sequence[str]) -> list[JobStatus | None]:
        """None for those that are unknown here."""
        with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(_job(job_id), "status")
            return [JobStatus(status) if status else None for status in pipe.execute()]

    def request_cancel(self, job_id: str) -> None:
        with broker_errors():
            self._cancel(keys=[_job(job_id), events_key(job_id)], args=[job_id, *_EVENTS])

    def is_cancel_requested(self, job_id: str) -> bool:
        with broker_errors():
            return bool(self._redis.hget(_job(job_id), "cancel") == "1")

    def remove_traces(self, job_id: str) -> None:
        """Forget a job that was deleted, and show nothing that others may still say of it."""
        with broker_errors():
            self._redis.set(_tombstone(job_id), "1", ex=TRACES_REMOVED_SECONDS)
        self.forget(job_id)

    def forget(self, job_id: str) -> None:
        """The lease stays until it expires: its worker learns from the blobs."""
        state = self.get(job_id)
        if state is not None:
            with broker_errors(), self._redis.pipeline() as pipe:
                pipe.delete(_job(state.id), events_key(state.id))
                pipe.publish(CHANNEL, state.id)
                pipe.zrem(CALLBACKS, state.id)
                for priority in ("*", state.priority):
                    for status in ("*", *JobStatus):
                        pipe.zrem(_index(status, priority), state.id)
                    if member := severity_member(state):
                        pipe.zrem(_severity(priority), member)
                pipe.execute()

    def page(self, query: Query, after: str | None, limit: int) -> list[str] | None:
        """Up to `limit` members of a list after one; None when the view is not whole."""
        key = _severity(query.priority or "*") if query.sort == "severity" else None
        key = key or _index(query.status or "*", query.priority or "*")
        if query.sort == "severity" and query.status not in (None, JobStatus.SUCCEEDED):
            return []
        with broker_errors(), self._redis.pipeline() as pipe:
            pipe.exists(PREFIX + "epoch")
            if query.is_descending:
                pipe.zrevrangebylex(key, f"({after}" if after else "+", "-", 0, limit)
            else:
                pipe.zrangebylex(key, f"({after}" if after else "-", "+", 0, limit)
            is_whole, members = pipe.execute()
        return list(members) if is_whole else None

    def _states(self, job_ids: Sequence[str]) -> list[JobState | None]:
        found: list[JobState | None] = []
        for at in range(0, len(job_ids), MAX_TOGETHER):
            found += self._looked(job_ids[at : at + MAX_TOGETHER])[0]
        return found

    def _looked(self, job_ids: Sequence[str]) -> tuple[list[JobState | None], bool]:
        keys, arguments = look_at(job_ids)
        with broker_errors():
            return seen(self._look(keys=keys, args=arguments))

    # Leases

    def lease(self, job_id: str, value: str, seconds: float) -> bool:
        """Take the lease if nobody holds it."""
        with broker_errors():
            return bool(self._redis.set(_lease(job_id), value, nx=True, px=round(seconds * 1000)))

    def renew_lease(self, job_id: str, value: str, attempt: int, seconds: float) -> bool:
        """False when the job is no longer this attempt's."""
        with broker_errors():
            keys = [_job(job_id), _lease(job_id)]
            return bool(self._renew(keys=keys, args=[value, attempt, round(seconds * 1000)]))

    def drop_lease(self, job_id: str, value: str) -> None:
        with broker_errors():
            self._drop(keys=[_lease(job_id)], args=[value])

    # For the reaper

    def lead(self, who: str, seconds: float) -> bool:
        """Whether `who` is the one that looks for lost jobs."""
        with broker_errors():
            return bool(self._lead(keys=[PREFIX + "reaper"], args=[who, round(seconds * 1000)]))

    def is_whole(self) -> bool:
        """False after a wipe, until a rebuild."""
        with broker_errors():
            return bool(self._redis.exists(PREFIX + "epoch"))

    def begin_rebuild(self) -> str:
        """Leave a mark for `declare_whole`, which a wipe in between takes away."""
        mark = secrets.token_hex(8)
        with broker_errors():
            self._redis.set(f"{PREFIX}rebuild:{mark}", "1", ex=REBUILD_SECONDS)
        return mark

    def declare_whole(self, mark: str) -> bool:
        """After a rebuild. False if the server was wiped meanwhile: then it takes another."""
        with broker_errors():
            return bool(self._whole(keys=[PREFIX + "epoch", f"{PREFIX}rebuild:{mark}"], args=[mark]))

    def running_without_lease(self) -> list[str]:
        with broker_errors():
            job_ids = self._ids(JobStatus.RUNNING)
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in job_ids:
                    pipe.exists(_lease(job_id))
                return [job_id for job_id, held in zip(job_ids, pipe.execute(), strict=True) if not held]

    def waiting(self) -> list[Waiting]:
        """Every queued job, oldest first."""
        with broker_errors():
            job_ids = self._ids(JobStatus.QUEUED)
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                for job_id in job_ids:
                    pipe.hmget(_job(job_id), "since_ms", "published_ms", "retry_ms")
                (seconds, microseconds), *rows = pipe.execute()
        now_ms = seconds * 1000 + microseconds // 1000
        return [_waiting(job_id, row, now_ms) for job_id, row in zip(job_ids, rows, strict=True)]

    def all_ids(self) -> list[str]:
        """Every job that the view has."""
        with broker_errors():
            return self._ids("*")

    def mark_published(self, job_id: str) -> None:
        with broker_errors():
            self._mark(keys=[_job(job_id)])

    def _ids(self, status: str) -> list[str]:
        return cast("list[str]", self._redis.zrange(_index(status, "*"), 0, -1))

    # Ready workers

    def announce(
        self,
        worker: str,
        seconds: float,
        models: Sequence[ModelProvenance] = (),
        worker_stats: WorkerStats | None = None,
    ) -> None:
        """`worker` has these models loaded; its word holds for some seconds."""
        milliseconds = round(seconds * 1000)
        with broker_errors():
            self._redis.set(_models(worker), _MODELS.dump_json(list(models)), px=milliseconds)
            if worker_stats is not None:
                self._redis.set(_worker_stats(worker), worker_stats.model_dump_json(), px=milliseconds)
            self._ready(keys=[PREFIX + "workers"], args=[worker, milliseconds])

    def ready_workers(self) -> int:
        with broker_errors():
            return int(cast("int", self._ready(keys=[PREFIX + "workers"], args=["", 0])))

    def any_ready(self, workers: Iterable[str]) -> bool:
        with broker_errors():
            return not set(self._workers()).isdisjoint(workers)

    def models(self) -> list[ModelProvenance]:
        """What the ready workers have loaded, each once."""
        with broker_errors():
            words = self._words(self._workers(), _models)
        found = {model for word in words if word for model in _MODELS.validate_json(word, extra="ignore")}
        return sorted(found, key=lambda model: (model.name, model.version, model.sha256))

    def job_metrics(self) -> JobMetrics:
        """What workers did since the server was last empty, and how they are now."""
        with broker_errors():
            workers = self._workers()
            words = zip(workers, self._words(workers, _worker_stats), strict=True)
            worker_stats = {worker: WorkerStats.read(word) for worker, word in words if word}
            return self._tally.read(by_stage(self._states(self._ids(JobStatus.RUNNING))), worker_stats)

    def _workers(self) -> list[str]:
        self.ready_workers()  # forgets those that fell silent
        return cast("list[str]", self._redis.zrange(PREFIX + "workers", 0, -1))

    def _words(self, workers: Sequence[str], key: Callable[[str], str]) -> list[str | None]:
        return cast("list[str | None]", self._redis.mget(map(key, workers))) if workers else []

    def counts(self) -> dict[JobStatus, int]:
        """How many jobs have each status."""
        with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            for status in JobStatus:
                pipe.zcard(_index(status, "*"))
            return dict(zip(JobStatus, pipe.execute(), strict=True))

    def queues(self) -> dict[Priority, QueueLength]:
        """What waits, by priority."""
        with broker_errors():
            with self._redis.pipeline(transaction=False) as pipe:
                for priority in _PRIORITIES:
                    pipe.zcard(_index(JobStatus.QUEUED, priority))
                    pipe.zrange(_index(JobStatus.QUEUED, priority), 0, 0)
                pipe.time()
                *answers, (seconds, microseconds) = pipe.execute()
            now_ms = seconds * 1000 + microseconds // 1000
            counts, firsts = answers[::2], answers[1::2]
            begun = [self._redis.hget(_job(first[0]), "since_ms") if first else None for first in firsts]
        return {
            priority: QueueLength(int(count), max(now_ms - int(cast("str", since)), 0) / 1000 if since else 0.0)
            for priority, count, since in zip(_PRIORITIES, counts, begun, strict=True)
        }

    # Messages of the broker, which lie in the same server

    def messages(self, queues: Iterable[str]) -> list[str]:
        """Every message that waits in these queues, raw."""
        with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.lrange(queue, 0, -1)
            return [message for queue in pipe.execute() for message in queue]

    def has_messages(self, queues: Iterable[str]) -> bool:
        with broker_errors():
            return bool(self._redis.exists(*queues))  # Redis has no empty lists

    def delivered_messages(self, younger_than_seconds: float) -> list[str]:
        """Messages that a worker took lately and has not acknowledged, raw."""
        with broker_errors():
            seconds, microseconds = self._redis.time()
            oldest = seconds + microseconds / 1e6 - younger_than_seconds
            tags = cast("list[str]", self._redis.zrangebyscore("unacked_index", oldest, "+inf"))
            found = cast("list[str | None]", self._redis.hmget("unacked", tags)) if tags else []
        return [message for message in found if message is not None]


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turns an answer that did not come, or that a full or read-only server refused, into BrokerUnavailableError."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.OutOfMemoryError) as error:
        raise BrokerUnavailableError(f"the broker does not answer: {type(error).__name__}") from error
    except redis.exceptions.ReadOnlyError as error:
        raise BrokerUnavailableError("the broker is read-only") from error


def _job(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def _lease(job_id: str) -> str:
    return f"{PREFIX}lease:{job_id}"


def _tombstone(job_id: str) -> str:
    return f"{PREFIX}purged:{job_id}"


def _models(worker: str) -> str:
    return f"{PREFIX}models:{worker}"


def _worker_stats(worker: str) -> str:
    return f"{PREFIX}vitals:{worker}"


def _index(status: str, priority: str) -> str:
    return f"{PREFIX}index:{status}:{priority}"


def _severity(priority: str) -> str:
    return f"{PREFIX}severity:{priority}"


def look_at(job_ids: Sequence[str]) -> tuple[list[str], Sequence[str]]:
    """Keys and arguments of `LOOK`."""
    queues = [_index(JobStatus.QUEUED, priority) for priority in _PRIORITIES]
    return [*map(_job, job_ids), *queues, PREFIX + "epoch"], job_ids


def seen(answer: Sequence[Any]) -> tuple[list[JobState | None], bool]:
    """What `LOOK` found, None for those that are unknown here; and whether the view is whole."""
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


def _waiting(job_id: str, row: Sequence[Any], now_ms: int) -> Waiting:
    since, published, retry = (int(value) if value else None for value in row)
    return Waiting(
        job_id,
        queued_for_ms=now_ms - since if since else 0,
        published_ms_ago=now_ms - published if published else None,
        retry_in_ms=max(retry - now_ms, 0) if retry else None,
    )
