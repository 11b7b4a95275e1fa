"""Lists of jobs from the sorted sets of the live view, without a look at all jobs.

A job's id has the moment at which its request began, and the job is created once its scan is here (`Keys.delays` knows
how much later). So a time range is a range of ids, a little wider than asked, whose jobs are then compared with the
times. What has to fit two lists is found in the shorter one and looked up in the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import methodcaller as _command
from typing import Any, Final

import redis
from redis.client import Pipeline

from jobs.live.connection import broker_errors
from jobs.live.keys import Keys
from jobs.live.pagination import Query, id_of, reference_prefix
from jobs.models import JobState, JobStatus
from jobs.states import first_id, made_at

#: Members in one question: Redis answers nobody else meanwhile.
MAX_MEMBERS: Final = 1000

#: To read a job's state and find its place takes as long as to look up so many members of a list.
_READ_COST: Final = 50

#: After every id, which begins with a hexadecimal digit.
_END: Final = "g"


class _NotWholeError(Exception):
    """The view was wiped, or an earlier version filled it without these lists."""


@dataclass(frozen=True)
class _Span:
    """Ids from `first` up to, not including, `end`; `prefix` stands before each of them in the sorted set."""

    first: str
    end: str
    prefix: str = ""

    def bounds(self, query: Query, after: str | None) -> tuple[str, str]:
        """Of ZRANGEBYLEX, for what comes after an id in the order of the query."""
        first, end = f"[{self.prefix}{self.first}", f"({self.prefix}{self.end}"
        if after is None:
            return first, end
        return (first, f"({self.prefix}{after}") if query.is_descending else (f"({self.prefix}{after}", end)


@dataclass(frozen=True)
class _Checks:
    """What members still have to pass, since the list that they come from says nothing of it."""

    times: bool = False
    reference: bool = False
    lists: bool = False
    span: _Span | None = None


class JobLists:
    """Raises BrokerUnavailableError when Redis does not answer in time."""

    def __init__(self, server: redis.Redis, keys: Keys, read: Callable[[Sequence[str]], list[JobState | None]]) -> None:
        """`read` gives the states of jobs that are shown."""
        self._redis, self._keys, self._read = server, keys, read

    def page(self, query: Query, after: str | None, limit: int) -> list[str] | None:
        """Up to `limit` members of a list after one; None when the view is not whole."""
        try:
            if query.sort != "severity":
                return self._by_id(query, after, limit)
            if query.status and JobStatus.SUCCEEDED not in query.status:
                return []
            return self._by_severity(query, after, limit)
        except _NotWholeError:
            return None

    def _by_id(self, query: Query, after: str | None, limit: int) -> list[str]:
        span, lists = self._span(query), self._lists(query)
        if query.client_reference is None:
            return self._walk(query, lists, span, after, limit, _Checks(times=query.has_times))
        referring = _Span(span.first, span.end, reference_prefix(query.client_reference))
        checks = _Checks(times=query.has_times, lists=bool(query.status) or query.priority is not None)
        if checks.lists:
            of_reference, *of_lists = self._ask(
                query,
                _command("zlexcount", self._keys.references, *referring.bounds(query, after)),
                *(_command("zlexcount", name, *span.bounds(query, after)) for name in lists),
            )
            if sum(of_lists) < of_reference:
                checks = _Checks(times=query.has_times, reference=True)
                return self._walk(query, lists, span, after, limit, checks)
        return self._walk(query, [self._keys.references], referring, after, limit, checks)

    def _by_severity(self, query: Query, after: str | None, limit: int) -> list[str]:
        ranked = self._keys.key("severity", query.priority or "*")
        whole = _Span("", ":")  # members begin with digits, which all come before this
        if query.client_reference is None and not query.has_times:
            return self._walk(query, [ranked], whole, after, limit, _Checks())
        span, source = self._span(query), self._keys.key("index", JobStatus.SUCCEEDED, query.priority or "*")
        if query.client_reference is not None:
            span, source = _Span(span.first, span.end, reference_prefix(query.client_reference)), self._keys.references
        bounds = span.bounds(query, None)
        candidates, all_ranked = self._ask(query, _command("zlexcount", source, *bounds), _command("zcard", ranked))
        # Few jobs are read and put in order; of many, one is soon met on the way down from the most severe.
        if _READ_COST * candidates**2 > limit * all_ranked:
            checks = _Checks(query.has_times, reference=query.client_reference is not None, span=span)
            return self._walk(query, [ranked], whole, after, limit, checks)
        (found,) = self._ask(query, _command("zrangebylex", source, *bounds))
        states = self._read([id_of(member) for member in found])
        members = sorted((m for state in states if state and (m := query.member(state))), reverse=True)
        return [member for member in members if after is None or member < after][:limit]

    def _walk(
        self, query: Query, sources: Sequence[str], span: _Span, after: str | None, limit: int, checks: _Checks
    ) -> list[str]:
        """Up to `limit` members of all these sorted sets that pass the checks, in order."""
        found: list[str] = []
        count = limit
        while True:
            low, high = span.bounds(query, after)
            read, bounds = ("zrevrangebylex", (high, low)) if query.is_descending else ("zrangebylex", (low, high))
            answers = self._ask(query, *(_command(read, name, *bounds, 0, count) for name in sources))
            members = sorted((member for some in answers for member in some), reverse=query.is_descending)[:count]
            members = [member.removeprefix(span.prefix) for member in members]
            found += self._passing(query, members, checks)
            if len(found) >= limit or len(members) < count:
                return found[:limit]
            after, count = members[-1], min(2 * count, MAX_MEMBERS)

    def _passing(self, query: Query, members: list[str], checks: _Checks) -> list[str]:
        if checks.span is not None:
            # Most of a long list is out of the time by its ids alone, and nothing has to be looked up.
            members = [m for m in members if checks.span.first <= id_of(m) < checks.span.end]
        job_ids = [id_of(member) for member in members]
        if not job_ids or checks == _Checks():
            return members
        passing = [True] * len(job_ids)
        if checks.lists:
            answers = self._ask(query, *(_command("zmscore", name, job_ids) for name in self._lists(query)))
            passing = [any(score is not None for score in scores) for scores in zip(*answers, strict=True)]
        if checks.reference:
            prefix = reference_prefix(query.client_reference or "")
            (scores,) = self._ask(
                query, _command("zmscore", self._keys.references, [prefix + job_id for job_id in job_ids])
            )
            passing = [ok and score is not None for ok, score in zip(passing, scores, strict=True)]
        if checks.times:
            (delays,) = self._ask(query, _command("zmscore", self._keys.delays, job_ids))
            passing = [
                ok and delay is not None and query.has_time(made_at(job_id) + timedelta(milliseconds=delay))
                for ok, job_id, delay in zip(passing, job_ids, delays, strict=True)
            ]
        return [member for member, ok in zip(members, passing, strict=True) if ok]

    def _span(self, query: Query) -> _Span:
        """Of the jobs that may have been created in the query's time."""
        if not query.has_times:
            return _Span("", _END)
        least, most = self._ask(
            query,
            _command("zrange", self._keys.delays, 0, 0, withscores=True),
            _command("zrange", self._keys.delays, -1, -1, withscores=True),
        )

        def moved(moment: datetime, delays: list[tuple[str, float]], spare_ms: int) -> str:
            delay_ms = delays[0][1] if delays else 0
            return first_id(moment.timestamp() * 1000 - delay_ms + spare_ms)

        # A millisecond more on both sides: ids and delays are rounded.
        first = moved(query.created_after, most, -1) if query.created_after else ""
        return _Span(first, moved(query.created_before, least, 2) if query.created_before else _END)

    def _ask(self, query: Query, *commands: Callable[[Pipeline], object]) -> list[Any]:
        """Answers that belong together. Raises _NotWholeError."""
        with broker_errors(), self._redis.pipeline() as pipe:
            pipe.exists(self._keys.epoch)
            pipe.zcard(self._keys.key("index", "*", "*"))
            pipe.zcard(self._keys.delays)
            for command in commands:
                command(pipe)
            is_whole, shown, listed, *answers = pipe.execute()
        needs_all = query.has_times or query.client_reference is not None
        if not is_whole or (needs_all and shown != listed):
            raise _NotWholeError
        return answers

    def _lists(self, query: Query) -> list[str]:
        """Every job that may be in the list is in one of these sorted sets, and in no other."""
        statuses: list[str] = sorted(query.status) or ["*"]
        return [self._keys.key("index", status, query.priority or "*") for status in statuses]
