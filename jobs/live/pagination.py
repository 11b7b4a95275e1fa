"""The order of jobs in lists, and the cursors that lead through them.

Every order is a plain order of strings, `member`s: so Redis and a scan of the blobs agree, and a cursor is the last
member seen. New jobs never shift a page that was begun.
"""

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Final

from jobs.errors import InvalidCursorError
from jobs.models import JobState, JobStatus, Priority
from jobs.states import Sort, is_id

_SEVERITY_MEMBER: Final = re.compile(r"(\d{8}):(.+)")

#: Of a percent: so 100 % has eight digits, and strings of eight sort as their numbers do.
_SEVERITY_STEPS: Final = 100_000


@dataclass(frozen=True)
class Query:
    """Which jobs, in which order."""

    sort: Sort = "-created_at"
    status: JobStatus | None = None
    priority: Priority | None = None

    @property
    def is_descending(self) -> bool:
        return self.sort != "created_at"

    def member(self, state: JobState) -> str | None:
        """Where the job stands in this order; None where it is not in the list."""
        if self.status not in (None, state.status) or self.priority not in (None, state.priority):
            return None
        return severity_member(state) if self.sort == "severity" else state.id

    def encode(self, member: str) -> str:
        """A cursor to what comes after `member`."""
        text = json.dumps([self.sort, self.status, self.priority, member], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def decode(self, cursor: str) -> str:
        """The member in a cursor. Raises InvalidCursorError: not one of ours, or one of another sort or filter."""
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            content = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        except (binascii.Error, ValueError) as error:
            raise InvalidCursorError("this is no cursor") from error
        if not isinstance(content, list) or len(content) != 4 or not isinstance(content[3], str):
            raise InvalidCursorError("this is no cursor")
        if content[:3] != [self.sort, self.status, self.priority]:
            raise InvalidCursorError("this cursor belongs to another sort or filter")
        member = content[3]
        match = _SEVERITY_MEMBER.fullmatch(member) if self.sort == "severity" else None
        if not is_id(match[2] if match else member):
            raise InvalidCursorError("this is no cursor")
        return member


def severity_member(state: JobState) -> str | None:
    """The percentage of opacity in front, so that the highest is the last string; only once it is known."""
    if state.status != JobStatus.SUCCEEDED or state.severity is None:
        return None
    return f"{round(state.severity.percent_opacity * _SEVERITY_STEPS):08d}:{state.id}"


def id_of(member: str) -> str:
    return member.rpartition(":")[2]
