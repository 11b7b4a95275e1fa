"""Reads a stream of server-sent events, however it was cut into pieces."""

from dataclasses import dataclass
from typing import Final

#: An event of this service is a job, a few thousand bytes; what never ends a line must not fill the memory.
MOST_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class Event:
    """One event; `is_comment` where the stream only says that it is still there."""

    name: str
    data: str
    id: str | None
    is_comment: bool = False


class EventParser:
    """Feed it the bytes as they come.

    Attributes:
        retry_seconds: after which the server wants a broken stream to be asked for again.
    """

    def __init__(self) -> None:
        self.retry_seconds = 3.0
        self._rest = b""
        self._is_first = True
        self._ends_with_return = False
        self._name, self._data = "", list[str]()
        self._id: str | None = None

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete.

        Raises:
            ValueError: a line is longer than any event.
        """
        # CR LF ends one line and not two, also where a piece ends between them.
        if self._ends_with_return and data.startswith(b"\n"):
            data = data[1:]
            self._ends_with_return = False
        if not data:
            return []
        self._ends_with_return = data.endswith(b"\r")
        *lines, self._rest = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(self._rest) + sum(map(len, self._data)) > MOST_BYTES:
            raise ValueError("an event is too long")
        events = []
        for line in lines:
            text = line.decode("utf-8", errors="replace")
            if self._is_first:
                text, self._is_first = text.removeprefix("\ufeff"), False
            if (event := self._take(text)) is not None:
                events.append(event)
        return events

    def _take(self, line: str) -> Event | None:
        if not line:
            name, data = self._name or "message", self._data
            self._name, self._data = "", []
            return Event(name, "\n".join(data), self._id) if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not field:
            return Event("", value, self._id, is_comment=True)
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry_seconds = min(int(value) / 1000, 60.0)
        return None
