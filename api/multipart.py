"""Reads a multipart form piece by piece, so that a file in it never lies in memory or in a temporary file.

The parser is python-multipart's; this turns its callbacks into events that can be awaited on in between.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.errors import ApiError
from jobs import problems

MAX_PARTS: Final = 8
MAX_BOUNDARY_BYTES: Final = 70  # RFC 2046


@dataclass(frozen=True)
class PartBegin:
    """A form field begins. A file's name is not kept: it may carry the patient's."""

    name: str


@dataclass(frozen=True)
class PartData:
    """A view of what was fed, not a copy."""

    data: memoryview


@dataclass(frozen=True)
class PartEnd:
    pass


Event = PartBegin | PartData | PartEnd


def boundary_of(content_type: str) -> bytes:
    """Raises ApiError (malformed-request): there is none, or none that could be."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        raise ApiError(
            problems.MALFORMED_REQUEST, "the Content-Type of a form must name its boundary, of 1 to 70 characters"
        )
    return boundary


class MultipartReader:
    """Feed it the body as it comes; each call returns what happened in it."""

    def __init__(self, boundary: bytes) -> None:
        self._events: list[Event] = []
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._parts = 0
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, chunk: bytes) -> Iterable[Event]:
        """Raises ApiError (malformed-request): this is no form."""
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise ApiError(problems.MALFORMED_REQUEST, "the body is not a well-formed multipart form") from error
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Raises ApiError (malformed-request): the form ended before its end."""
        if not self._ended:
            raise ApiError(problems.MALFORMED_REQUEST, "the form ends before its last boundary")

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ApiError(problems.MALFORMED_REQUEST, f"the form has more than {MAX_PARTS} parts")
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise ApiError(problems.MALFORMED_REQUEST, "a part of the form has no name")
        self._events.append(PartBegin(options[b"name"].decode("utf-8", errors="replace")))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(memoryview(data)[start:end]))

    def _on_part_end(self) -> None:
        self._events.append(PartEnd())

    def _on_end(self) -> None:
        self._ended = True
