"""The order of jobs in lists, which jobs a list has, and the cursors that lead through it.

Every order is a plain order of strings, `member`s: so Redis and a scan of the blobs agree, and a cursor is the last
member seen. New jobs never shift a page that was begun.
"""

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from jobs.errors import InvalidCursorError
from jobs.models import JobState, JobStatus, Priority
from jobs.states import Sort, is_id, made_at

_SEVERITY_MEMBER: Final = re.compile(r"(\d{8}):(.+)")

#: Of a percent: so 100 % has eight digits, and strings of eight sort as their numbers do.
_SEVERITY_STEPS: Final = 100_000


@dataclass(frozen=True)
class Query:
    """Which jobs, in which order.

    Attributes:
        status: any of these; all where there are none.
        client_reference: exactly this one.
        created_after, created_before: created at the first moment or later, and before the second: so the days of a
            week have each job once.
    """

    sort: Sort = "-created_at"
    status: frozenset[JobStatus] = frozenset()
    priority: Priority | None = None
    client_reference: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    @property
    def is_descending(self) -> bool:
        return self.sort != "created_at"

    @property
    def has_times(self) -> bool:
        return self.created_after is not None or self.created_before is not None

    def member(self, state: JobState) -> str | None:
        """Where the job stands in this order; None where it is not in the list."""
        is_wanted = (
            (not self.status or state.status in self.status)
            and self.priority in (None, state.priority)
            and self.client_reference in (None, state.client_reference)
            and self.has_time(state.created_at)
        )
        if not is_wanted:
            return None
        return severity_member(state) if self.sort == "severity" else state.id

    def has_time(self, created_at: datetime) -> bool:
        return (self.created_after is None or self.created_after <= created_at) and (
            self.created_before is None or created_at < self.created_before
        )

    def encode(self, member: str) -> str:
        """A cursor to what comes after `member`."""
        text = json.dumps([*self._as_texts(), member], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def decode(self, cursor: str) -> str:
        """The member in a cursor. Raises InvalidCursorError: not one of ours, or one of another sort or filter."""
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            content = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        except (binascii.Error, ValueError) as error:
            raise InvalidCursorError("this is no cursor") from error
        if not isinstance(content, list) or len(content) < 4 or not isinstance(content[-1], str):
            raise InvalidCursorError("this is no cursor")
        if content[:-1] != self._as_texts():
            raise InvalidCursorError("this cursor belongs to another sort or filter")
        member = content[-1]
        match = _SEVERITY_MEMBER.fullmatch(member) if self.sort == "severity" else None
        if not is_id(match[2] if match else member):
            raise InvalidCursorError("this is no cursor")
        return member

    def _as_texts(self) -> list[Any]:
        """What a cursor is bound to."""
        # As versions before several statuses, references and times wrote it, as long as there are none: their cursors
        # go on.
        status: Any = sorted(self.status) if len(self.status) > 1 else next(iter(self.status), None)
        times = [moment and moment.timestamp() for moment in (self.created_after, self.created_before)]
        more = [self.client_reference and _hashed(self.client_reference), *times]
        return [self.sort, status, self.priority, *(more if any(one is not None for one in more) else [])]


#: Newest first.
ALL: Final = Query()


def severity_member(state: JobState) -> str | None:
    """The percentage of opacity in front, so that the highest is the last string; only once it is known."""
    if state.status != JobStatus.SUCCEEDED or state.severity is None:
        return None
    return f"{round(state.severity.percent_opacity * _SEVERITY_STEPS):08d}:{state.id}"


def reference_member(state: JobState) -> str | None:
    """The reference's hash in front, so that all jobs with the same one follow each other in the order of their ids."""
    return None if state.client_reference is None else reference_prefix(state.client_reference) + state.id


def reference_prefix(client_reference: str) -> str:
    """Of all its members: half of a sha256. Whoever reads the jobs compares the references themselves."""
    return _hashed(client_reference) + ":"


def delay_ms(state: JobState) -> int:
    """How long after the moment in its id a job was created: while its scan came in."""
    return round((state.created_at - made_at(state.id)) / timedelta(milliseconds=1))


def id_of(member: str) -> str:
    return member.rpartition(":")[2]


def _hashed(client_reference: str) -> str:
    return hashlib.sha256(client_reference.encode()).hexdigest()[:32]
