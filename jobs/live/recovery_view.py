"""What the reconciler asks of the live view: who leads, what was lost, and whether all of it is there."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import redis

from jobs.live.connection import broker_errors
from jobs.live.keys import EPOCH, LEADER, index_key, job_key, lease_key, rebuild_key
from jobs.live.lua import Script
from jobs.models import JobStatus

#: A rebuild takes no longer.
REBUILD_SECONDS: Final = 24 * 3600


@dataclass(frozen=True)
class Waiting:
    """A queued job, as the reconciler sees it. Ages in milliseconds."""

    job_id: str
    queued_for_ms: int
    published_ms_ago: int | None
    retry_in_ms: int | None


class RecoveryView:
    """Every method raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis) -> None:
        self._redis = server
        self._lead = Script(server, "lead")
        self._declare_whole = Script(server, "declare_whole")
        self._mark_published = Script(server, "mark_published")

    def lead(self, who: str, seconds: float) -> bool:
        """Whether `who` is the one that looks for lost jobs."""
        with broker_errors():
            return bool(self._lead(leader=LEADER, who=who, milliseconds=round(seconds * 1000)))

    def is_whole(self) -> bool:
        """False after a wipe, until a rebuild."""
        with broker_errors():
            return bool(self._redis.exists(EPOCH))

    def begin_rebuild(self) -> str:
        """Leave a mark for `declare_whole`, which a wipe in between takes away."""
        mark = secrets.token_hex(8)
        with broker_errors():
            self._redis.set(rebuild_key(mark), "1", ex=REBUILD_SECONDS)
        return mark

    def declare_whole(self, mark: str) -> bool:
        """After a rebuild. False if the server was wiped meanwhile: then it takes another."""
        with broker_errors():
            return bool(self._declare_whole(epoch=EPOCH, mark_key=rebuild_key(mark), mark=mark))

    def running_without_lease(self) -> list[str]:
        with broker_errors():
            job_ids = self._ids(JobStatus.RUNNING)
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in job_ids:
                    pipe.exists(lease_key(job_id))
                return [job_id for job_id, held in zip(job_ids, pipe.execute(), strict=True) if not held]

    def waiting(self) -> list[Waiting]:
        """Every queued job, oldest first."""
        with broker_errors():
            job_ids = self._ids(JobStatus.QUEUED)
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                for job_id in job_ids:
                    pipe.hmget(job_key(job_id), "since_ms", "published_ms", "retry_ms")
                (seconds, microseconds), *rows = pipe.execute()
        now_ms = seconds * 1000 + microseconds // 1000
        return [_waiting(job_id, row, now_ms) for job_id, row in zip(job_ids, rows, strict=True)]

    def all_ids(self) -> list[str]:
        """Every job that the view has."""
        with broker_errors():
            return self._ids("*")

    def mark_published(self, job_id: str) -> None:
        with broker_errors():
            self._mark_published(job=job_key(job_id))

    def _ids(self, status: str) -> list[str]:
        return cast("list[str]", self._redis.zrange(index_key(status, "*"), 0, -1))


def _waiting(job_id: str, row: Sequence[Any], now_ms: int) -> Waiting:
    since, published, retry = (int(value) if value else None for value in row)
    return Waiting(
        job_id,
        queued_for_ms=now_ms - since if since else 0,
        published_ms_ago=now_ms - published if published else None,
        retry_in_ms=max(retry - now_ms, 0) if retry else None,
    )
