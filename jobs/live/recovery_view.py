"""What finding lost jobs asks of Redis: who leads, what was lost, whether all of the view is there, and which messages.

Celery's messages lie in the same server as the live view.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import redis

from jobs.live.connection import Script, broker_errors
from jobs.live.keys import LEADER, LISTS, Keys
from jobs.live.pagination import id_of
from jobs.models import JobStatus

#: The mark of a rebuild whose process died must go by itself, and no rebuild takes a day.
REBUILD_SECONDS: Final = 24 * 3600

#: Members in one command.
MAX_REMOVED: Final = 1000


#: A list of messages that is empty for so long is no longer looked into. Much longer than a message is with a worker,
#: so that one that is delivered again is seen.
LIST_SECONDS: Final = 7 * 24 * 3600


@dataclass(frozen=True)
class Waiting:
    """A queued job, as the reconciler sees it.

    Attributes:
        silent_for_ms: since its last message was sent, or since it was queued.
        retry_in_ms: None unless it pauses after a fault.
    """

    job_id: str
    silent_for_ms: int
    retry_in_ms: int | None


class RecoveryView:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis, keys: Keys) -> None:
        self._redis, self._keys = server, keys
        self._lead = Script(server, "lead")
        self._declare_whole = Script(server, "declare_whole")
        self._mark_published = Script(server, "mark_published")

    @broker_errors()
    def lead(self, who: str, seconds: float) -> bool:
        """Whether `who` is the one that looks for lost jobs, of all tenants."""
        return bool(self._lead(leader=LEADER, who=who, milliseconds=round(seconds * 1000)))

    @broker_errors()
    def is_whole(self) -> bool:
        """False after a wipe, until a rebuild."""
        return bool(self._redis.exists(self._keys.epoch))

    @broker_errors()
    def begin_rebuild(self) -> str:
        """Leave a mark for `declare_whole`, which a wipe in between takes away."""
        mark = secrets.token_hex(8)
        self._redis.set(self._keys.key("rebuild", mark), "1", ex=REBUILD_SECONDS)
        return mark

    @broker_errors()
    def declare_whole(self, mark: str) -> bool:
        """After a rebuild. False if the server was wiped meanwhile: then it takes another."""
        return bool(self._declare_whole(epoch=self._keys.epoch, mark_key=self._keys.key("rebuild", mark), mark=mark))

    @broker_errors()
    def running_without_lease(self) -> list[str]:
        job_ids = self._ids(JobStatus.RUNNING)
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.exists(self._keys.key("lease", job_id))
            return [job_id for job_id, held in zip(job_ids, pipe.execute(), strict=True) if not held]

    @broker_errors()
    def waiting(self) -> list[Waiting]:
        """Every queued job, oldest first."""
        job_ids = self._ids(JobStatus.QUEUED)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for job_id in job_ids:
                pipe.hmget(self._keys.key("job", job_id), "since_ms", "published_ms", "retry_ms")
            (seconds, microseconds), *rows = pipe.execute()
        now_ms = seconds * 1000 + microseconds // 1000
        found = []
        for job_id, row in zip(job_ids, rows, strict=True):
            since, published, retry = (int(value) if value else None for value in row)
            silent_for_ms = now_ms - (published or since or now_ms)
            found.append(Waiting(job_id, silent_for_ms, max(retry - now_ms, 0) if retry else None))
        return found

    @broker_errors()
    def past_deadline(self) -> list[str]:
        """Jobs that no worker has begun, though their `not_after` is over."""
        seconds, microseconds = self._redis.time()
        return cast(
            "list[str]", self._redis.zrangebyscore(self._keys.deadlines, "-inf", seconds * 1000 + microseconds // 1000)
        )

    @broker_errors()
    def all_ids(self) -> list[str]:
        """Every job that the view has."""
        return self._ids("*")

    @broker_errors()
    def has_whole_lists(self) -> bool:
        """False after an earlier version showed or removed a job, which it did not in all lists of this one."""
        with self._redis.pipeline() as pipe:
            pipe.zcard(self._keys.key("index", "*", "*"))
            pipe.zcard(self._keys.delays)
            shown, listed = pipe.execute()
        return bool(shown == listed)

    @broker_errors()
    def unlisted(self) -> list[str]:
        """Jobs that are shown and not in all lists. What the lists have of jobs that are not shown is removed."""
        with self._redis.pipeline() as pipe:
            for name in (self._keys.key("index", "*", "*"), self._keys.delays, self._keys.references):
                pipe.zrange(name, 0, -1)
            shown, listed, references = pipe.execute()
        known = set(shown)
        removed = {self._keys.delays: [i for i in listed if i not in known]}
        removed[self._keys.references] = [member for member in references if id_of(member) not in known]
        with self._redis.pipeline() as pipe:
            for name, members in removed.items():
                for at in range(0, len(members), MAX_REMOVED):
                    pipe.zrem(name, *members[at : at + MAX_REMOVED])
            pipe.execute()
        return sorted(known.difference(listed))

    @broker_errors()
    def mark_published(self, job_id: str) -> None:
        self._mark_published(job=self._keys.key("job", job_id))

    def _ids(self, status: str) -> list[str]:
        return cast("list[str]", self._redis.zrange(self._keys.key("index", status, "*"), 0, -1))


class BrokerMessages:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server
        self._note_list = Script(server, "note_list")
        self._drop_lists = Script(server, "drop_lists")

    @broker_errors()
    def note_list(self, name: str) -> None:
        """Let workers look into this list, which is about to get a message."""
        self._note_list(lists=LISTS, name=name)

    @broker_errors()
    def lists(self) -> list[str]:
        """Every list that was noted and not dropped since."""
        return cast("list[str]", self._redis.zrange(LISTS, 0, -1))

    @broker_errors()
    def drop_lists(self) -> int:
        """Let nobody look into lists that have been empty for `LIST_SECONDS`; how many there were."""
        return int(self._drop_lists(lists=LISTS, seconds=LIST_SECONDS))

    @broker_errors()
    def waiting(self, queues: Iterable[str]) -> list[str]:
        """Every message that waits in these queues, raw."""
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.lrange(queue, 0, -1)
            return [message for queue in pipe.execute() for message in queue]

    @broker_errors()
    def any_waiting(self, queues: Sequence[str]) -> bool:
        return bool(queues) and bool(self._redis.exists(*queues))  # Redis has no empty lists

    @broker_errors()
    def delivered(self, younger_than_seconds: float) -> list[str]:
        """Messages that a worker took lately and has not acknowledged, raw."""
        seconds, microseconds = self._redis.time()
        oldest = seconds + microseconds / 1e6 - younger_than_seconds
        tags = cast("list[str]", self._redis.zrangebyscore("unacked_index", oldest, "+inf"))
        found = cast("list[str | None]", self._redis.hmget("unacked", tags)) if tags else []
        return [message for message in found if message is not None]
