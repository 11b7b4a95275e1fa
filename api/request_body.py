"""Takes a request's body: a form, or a part, streams into the blob store; JSON is read whole, but small."""

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeVar

import anyio
from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from api.errors import (
    ApiError,
    BodyTooLargeError,
    field_errors,
    invalid_parameter,
    invalid_parameters,
    pointer,
    unsupported_content_type,
)
from api.schemas import FieldError, JobOptions, SourceSubmission
from api.upload_limits import Pace, UploadSlot
from jobs import problems
from jobs.errors import WrongPartSizeError
from jobs.models import InputInfo
from jobs.states import Chunk
from jobs.store.upload_stream import in_upload_thread

#: There are four names; a body of empty parts alone would keep the parser busy for as long as its limit allows.
MAX_PARTS: Final = 8
#: RFC 2046, section 5.1.1.
MAX_BOUNDARY_BYTES: Final = 70


@dataclass(frozen=True)
class PartEvent:
    """A part of a form begins, goes on or ends. A file's own name is not kept: it may carry the patient's.

    Attributes:
        name: of the form's field.
        data: a view of what was fed, not a copy.
    """

    name: str
    kind: Literal["begin", "data", "end"]
    data: Chunk = b""


def boundary_of(request: Request) -> bytes:
    """What parts a form. Raises ApiError (malformed-request): there is none, or none that could be."""
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        detail = "the Content-Type of a form must name its boundary, of 1 to 70 characters"
        raise ApiError(problems.MALFORMED_REQUEST, detail)
    return boundary


class MultipartReader:
    """Feed it the body as it comes; each call returns what happened in it."""

    def __init__(self, boundary: bytes) -> None:
        self._events: list[PartEvent] = []
        self._name = ""
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._parts = 0
        self._ended = False
        # Blanks may follow it. A line that only begins like it is none.
        self._first = re.compile(b"\r\n--" + re.escape(boundary) + b"[ \t]{0,64}(?=\r\n|--)")
        self._boundary = b"--" + boundary
        # The end of what came before the first boundary; None once that was found. It may begin the body at once.
        self._preamble: bytes | None = b"\r\n"
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

    def feed(self, chunk: bytes) -> Iterable[PartEvent]:
        """Raises ApiError (malformed-request): this is no form."""
        if self._preamble is not None:
            # RFC 2046, section 5.1.1: there may be anything before, and it is ignored. The parser takes none of it.
            body = self._preamble + chunk
            first = self._first.search(body)
            if first is None:
                self._preamble = body[-MAX_BOUNDARY_BYTES - 80 :]
                return []
            self._preamble, chunk = None, self._boundary + body[first.end() :]
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
        self._name = options[b"name"].decode("utf-8", errors="replace")
        self._events.append(PartEvent(self._name, "begin"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartEvent(self._name, "data", memoryview(data)[start:end]))

    def _on_part_end(self) -> None:
        self._events.append(PartEvent(self._name, "end"))

    def _on_end(self) -> None:
        self._ended = True


#: DICOM's mark stands at byte 128, NIfTI-1's at 344; a text header of MetaImage has its first line here.
HEAD_BYTES: Final = 512

_ARCHIVES: Final = (b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06")
_METAIMAGE: Final = re.compile(rb"\s*(ObjectType|NDims|Comment|ObjectSubType|BinaryData|DimSize)\s*[=:]")
#: By where they stand in the file. The detached ones are of a header whose pixels are in a second file.
_NIFTI_MAGIC: Final = {344: (b"n+1\0",), 4: (b"n+2\0\r\n\x1a\n",)}
_DETACHED_MAGIC: Final = {344: (b"ni1\0",), 4: (b"ni2\0\r\n\x1a\n",)}


def require_scan(head: bytes) -> None:
    """`head` is the first `HEAD_BYTES` of the file, or all of a shorter one.

    Raises:
        ApiError (unsupported-format): this cannot be a scan.
    """
    if head.startswith(_ARCHIVES):
        return
    if head[128:132] == b"DICM":
        detail = "this is a single DICOM file: send all slices of the series in one zip file"
        raise ApiError(problems.UNSUPPORTED_FORMAT, detail)
    if head.startswith(b"NRRD") or _METAIMAGE.match(head) or _has_magic(head, _NIFTI_MAGIC):
        return
    if _has_magic(head, _DETACHED_MAGIC):
        detail = "this is a NIfTI header without its pixels: send a .nii or .nii.gz file"
        raise ApiError(problems.UNSUPPORTED_FORMAT, detail)
    raise ApiError(problems.UNSUPPORTED_FORMAT, "the file does not begin as NIfTI, NRRD, MetaImage or zip files do")


def _has_magic(head: bytes, magics: Mapping[int, tuple[bytes, ...]]) -> bool:
    return any(head.startswith(values, at) for at, values in magics.items())


#: What a form may have beside its file: boundaries, headers and fields.
FORM_OVERHEAD_BYTES: Final = 64 << 10
#: JSON is held in memory, unlike scans: one source with its digest and callback takes far less.
MAX_JSON_BYTES: Final = 64 << 10
#: 1000 items of about 4 KB: an address may be long.
MAX_BATCH_BYTES: Final = 4 << 20
MAX_FIELD_BYTES: Final = 4 << 10

Body = TypeVar("Body", bound=BaseModel)


class Sink(Protocol):
    """Where the file goes; `BlobUpload` is one."""

    async def write(self, chunk: Chunk) -> None: ...
    async def finish(self) -> InputInfo: ...
    async def abort(self) -> None: ...


class HashSink:
    """Keeps nothing: the body of a repeated request is only compared with the first one's."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._size = 0

    async def write(self, chunk: Chunk) -> None:
        await in_upload_thread(self._sha256.update, chunk)
        self._size += len(chunk)

    async def finish(self) -> InputInfo:
        return InputInfo(size_bytes=self._size, sha256=self._sha256.hexdigest())

    async def abort(self) -> None:
        pass


def media_type_of(request: Request) -> str:
    """Its Content-Type without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_length(request: Request, limit_bytes: int) -> None:
    """Refuse by Content-Length, before a byte is read.

    Raises:
        BodyTooLargeError
    """
    # Only a first look: a chunked body has no length, and `body_chunks` counts what really comes.
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit_bytes:
        raise BodyTooLargeError(limit_bytes)


async def body_chunks(request: Request, limit_bytes: int, pace: Pace) -> AsyncIterator[bytes]:
    """The body as it comes.

    Raises:
        BodyTooLargeError: it is longer than `limit_bytes`, whatever its Content-Length says.
        ApiError (request-timeout): it came slower than `pace` allows.
        ApiError (malformed-request): the client went away.
    """
    stream, size = request.stream(), 0
    while True:
        try:
            chunk = await pace.next_of(stream)
        except StopAsyncIteration:
            return
        except ClientDisconnect as error:
            detail = "the connection was closed before the end of the body"
            raise ApiError(problems.MALFORMED_REQUEST, detail) from error
        size += len(chunk)
        if size > limit_bytes:
            raise BodyTooLargeError(limit_bytes)
        yield chunk


async def read_submission(chunks: AsyncIterator[bytes]) -> SourceSubmission:
    """Raises ApiError (malformed-request, invalid-parameters), and what `chunks` raise."""
    return _parsed(b"".join([chunk async for chunk in chunks]), SourceSubmission)


async def read_json(request: Request, model: type[Body], limit_bytes: int, pace: Pace) -> Body:
    """The whole body. Raises ApiError (unsupported-content-type), and as `body_chunks` and `read_submission`."""
    if media_type_of(request) != "application/json":
        raise unsupported_content_type("send application/json")
    require_length(request, limit_bytes)
    chunks = body_chunks(request, limit_bytes, pace)
    return _parsed(b"".join([chunk async for chunk in chunks]), model)


async def receive_part(request: Request, slot: UploadSlot, sink: Sink, expected_bytes: int, pace: Pace) -> None:
    """Stream a whole body into `sink`, if it has this size.

    Raises:
        WrongPartSizeError: and what `body_chunks` and `sink` raise. Nothing is kept then.
    """
    async with _aborted_on_error(sink):
        announced = request.headers.get("content-length", str(expected_bytes))
        if not announced.isdecimal() or int(announced) != expected_bytes:
            raise WrongPartSizeError(expected_bytes, int(announced) if announced.isdecimal() else None)
        size_bytes = 0
        try:
            async for chunk in slot.in_turn(body_chunks(request, expected_bytes, pace)):
                size_bytes += len(chunk)
                await sink.write(chunk)
        except BodyTooLargeError as error:
            raise WrongPartSizeError(expected_bytes, None) from error
        if size_bytes != expected_bytes:
            raise WrongPartSizeError(expected_bytes, size_bytes)
        await sink.finish()


def _parsed(body: bytes, model: type[Body]) -> Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if any(e["type"] == "json_invalid" for e in error.errors()):
            raise ApiError(problems.MALFORMED_REQUEST, "the body is not valid JSON") from error
        raise invalid_parameters(*field_errors(error, "/body")) from error


async def read_form(
    chunks: AsyncIterator[bytes], boundary: bytes, sink: Sink, require: Callable[[JobOptions], None]
) -> tuple[InputInfo, JobOptions]:
    """Stream the part `file` into `sink`; the other parts, before or after it, are the options.

    The sink is finished only if all of the form is right, and aborted otherwise.

    Args:
        require: raises what is wrong with the options, if they are.

    Raises:
        ApiError (malformed-request, invalid-parameters, unsupported-format), and what `chunks` and `sink` raise.
    """
    form = _Form(sink)
    async with _aborted_on_error(sink):
        reader = MultipartReader(boundary)
        async for chunk in chunks:
            for event in reader.feed(chunk):
                await form.take(event)
        reader.close()
        options = form.options()
        require(options)
        return await sink.finish(), options


@asynccontextmanager
async def _aborted_on_error(sink: Sink) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        # Shielded: a client that went away cancels this task, and what was stored would stay.
        with anyio.CancelScope(shield=True):
            await sink.abort()
        raise


class _Form:
    """What has come of a form so far."""

    def __init__(self, sink: Sink) -> None:
        self._file = _File(sink)
        self._names: set[str] = set()
        self._fields: dict[str, bytes] = {}

    async def take(self, event: PartEvent) -> None:
        """Raises ApiError (invalid-parameters) for a field, and what `_File` raises for the file."""
        name, at = event.name, pointer(("body", event.name))
        if event.kind == "begin":
            if name in self._names:
                raise invalid_parameter(at, "given more than once")
            self._names.add(name)
            if name != "file":
                self._fields[name] = b""
        elif name == "file":
            await (self._file.end() if event.kind == "end" else self._file.write(event.data))
        elif len(self._fields[name]) + len(event.data) > MAX_FIELD_BYTES:
            raise invalid_parameter(at, f"longer than {MAX_FIELD_BYTES} bytes")
        else:
            self._fields[name] += event.data

    def options(self) -> JobOptions:
        """Raises ApiError (invalid-parameters): a part is missing, unknown, repeated or not valid."""
        errors = []
        if self._file.size_bytes == 0:
            errors.append(FieldError(pointer="/body/file", detail="the file is missing or empty"))
        try:
            # An empty field is what a page's form sends of a box that nobody filled in: as if it were not there.
            given = {
                name: value.decode("utf-8", errors="replace")
                for name, value in self._fields.items()
                if value or name not in JobOptions.model_fields
            }
            options = JobOptions.model_validate(given)
        except ValidationError as error:
            errors.extend(field_errors(error, "/body"))
        if errors:
            raise invalid_parameters(*errors)
        return options


class _File:
    """Holds the first bytes back until they are known to begin a scan."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._head: bytes | None = b""
        self.size_bytes = 0

    async def write(self, data: Chunk) -> None:
        self.size_bytes += len(data)
        if self._head is None:
            await self._sink.write(data)
            return
        # A file that is no scan is refused before a byte of it reaches the storage.
        self._head += data
        if len(self._head) >= HEAD_BYTES:
            await self._release()

    async def end(self) -> None:
        if self._head:
            await self._release()

    async def _release(self) -> None:
        head, self._head = self._head or b"", None
        require_scan(head[:HEAD_BYTES])
        await self._sink.write(head)
