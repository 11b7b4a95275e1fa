"""Takes a request's body: a form, or a part, streams into the blob store; JSON is read whole, but small."""

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol, TypeVar

import anyio
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from api.errors import BodyTooLargeError, InvalidParametersError, MalformedRequestError, RequestTimeoutError, pointer
from api.formats import HEAD_BYTES, require_scan
from api.multipart import Event, MultipartReader, PartBegin, PartData
from api.schemas import FieldError, JobOptions, SourceSubmission, UploadedSubmission
from api.upload_limits import Place
from jobs.errors import WrongPartSizeError
from jobs.models import InputInfo
from jobs.states import Chunk
from jobs.store.upload_stream import in_upload_thread

FORM_OVERHEAD_BYTES: Final = 64 << 10
"""What a form may have beside its file: boundaries, headers and fields."""
MAX_JSON_BYTES: Final = 64 << 10
MAX_BATCH_BYTES: Final = 4 << 20
MAX_FIELD_BYTES: Final = 4 << 10

Body = TypeVar("Body", bound=BaseModel)


class Sink(Protocol):
    """Where the file goes; `jobs.UploadSink` is one."""

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


def require_length(request: Request, limit_bytes: int) -> None:
    """Refuse by Content-Length, before a byte is read.

    Raises:
        BodyTooLargeError
    """
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit_bytes:
        raise BodyTooLargeError(limit_bytes)


async def body_chunks(request: Request, limit_bytes: int, idle_seconds: float) -> AsyncIterator[bytes]:
    """The body as it comes.

    Raises:
        BodyTooLargeError: it is longer than `limit_bytes`, whatever its Content-Length says.
        RequestTimeoutError: nothing came for `idle_seconds`.
        MalformedRequestError: the client went away.
    """
    stream, size = request.stream(), 0
    while True:
        try:
            with anyio.fail_after(idle_seconds):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise RequestTimeoutError(idle_seconds) from error
        except ClientDisconnect as error:
            raise MalformedRequestError("the connection was closed before the end of the body") from error
        size += len(chunk)
        if size > limit_bytes:
            raise BodyTooLargeError(limit_bytes)
        yield chunk


async def read_submission(chunks: AsyncIterator[bytes]) -> SourceSubmission | UploadedSubmission:
    """Raises as `read_json`."""
    body = await _whole(chunks)
    return _parsed(body, UploadedSubmission) if _names_upload(body) else _parsed(body, SourceSubmission)


async def read_json(chunks: AsyncIterator[bytes], model: type[Body]) -> Body:
    """Raises MalformedRequestError (no JSON), InvalidParametersError."""
    return _parsed(await _whole(chunks), model)


async def receive_part(request: Request, place: Place, sink: Sink, expected_bytes: int, idle_seconds: float) -> None:
    """Stream a whole body into `sink`, if it has this size.

    Raises:
        WrongPartSizeError: and what `body_chunks` and `sink` raise. Nothing is kept then.
    """
    try:
        announced = request.headers.get("content-length", str(expected_bytes))
        if not announced.isdecimal() or int(announced) != expected_bytes:
            raise WrongPartSizeError(expected_bytes, int(announced) if announced.isdecimal() else None)
        chunks = place.in_turn(body_chunks(request, expected_bytes, idle_seconds))
        await _pour(chunks, sink, expected_bytes)
        await sink.finish()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await sink.abort()
        raise


async def _pour(chunks: AsyncIterator[bytes], sink: Sink, expected_bytes: int) -> None:
    size_bytes = 0
    try:
        async for chunk in chunks:
            size_bytes += len(chunk)
            await sink.write(chunk)
    except BodyTooLargeError as error:
        raise WrongPartSizeError(expected_bytes, None) from error
    if size_bytes != expected_bytes:
        raise WrongPartSizeError(expected_bytes, size_bytes)


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def _names_upload(body: bytes) -> bool:
    try:
        document = from_json(body)
    except ValueError:
        return False
    source = document.get("source") if isinstance(document, dict) else None
    return isinstance(source, dict) and "upload_id" in source


def _parsed(body: bytes, model: type[Body]) -> Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if any(e["type"] == "json_invalid" for e in error.errors()):
            raise MalformedRequestError("the body is not valid JSON") from error
        raise InvalidParametersError.from_pydantic(error, "/body") from error


async def read_form(
    chunks: AsyncIterator[bytes], boundary: bytes, sink: Sink, require: Callable[[JobOptions], None]
) -> tuple[InputInfo, JobOptions]:
    """Stream the part `file` into `sink`; the other parts, before or after it, are the options.

    The sink is finished only if all of the form is right, and aborted otherwise.

    Args:
        demand: raises what is wrong with the options, if they are.

    Raises:
        MalformedRequestError, InvalidParametersError, UnsupportedFormatError: and what `chunks` and `sink` raise.
    """
    form = _Form(sink)
    try:
        reader = MultipartReader(boundary)
        async for chunk in chunks:
            for event in reader.feed(chunk):
                await form.take(event)
        reader.close()
        options = form.options()
        require(options)
        return await sink.finish(), options
    except BaseException:
        with anyio.CancelScope(shield=True):
            await sink.abort()
        raise


class _Form:
    """What has come of a form so far."""

    def __init__(self, sink: Sink) -> None:
        self._file = _File(sink)
        self._fields: dict[str, bytes] = {}
        self._name = ""

    async def take(self, event: Event) -> None:
        if isinstance(event, PartBegin):
            self._begin(event.name)
        elif isinstance(event, PartData):
            data = event.data
            if self._name == "file":
                await self._file.write(data)
            elif len(self._fields[self._name]) + len(data) > MAX_FIELD_BYTES:
                raise InvalidParametersError.one(_pointer(self._name), f"longer than {MAX_FIELD_BYTES} bytes")
            else:
                self._fields[self._name] += data
        elif self._name == "file":
            await self._file.end()

    def options(self) -> JobOptions:
        """Raises InvalidParametersError: a part is missing, unknown, repeated or not valid."""
        errors = []
        if self._file.is_missing:
            errors.append(FieldError(pointer="/body/file", detail="the file is missing or empty"))
        try:
            options = JobOptions.model_validate(
                {name: value.decode("utf-8", errors="replace") for name, value in self._fields.items()}
            )
        except ValidationError as error:
            errors.extend(InvalidParametersError.from_pydantic(error, "/body").errors)
        if errors:
            raise InvalidParametersError(errors)
        return options

    def _begin(self, name: str) -> None:
        if name in self._fields or (name == "file" and self._file.has_begun):
            raise InvalidParametersError.one(_pointer(name), "given more than once")
        self._name = name
        if name == "file":
            self._file.has_begun = True
        else:
            self._fields[name] = b""


class _File:
    """Holds the first bytes back until they are known to begin a scan."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._head: bytes | None = b""
        self._size = 0
        self.has_begun = False

    @property
    def is_missing(self) -> bool:
        return self._size == 0

    async def write(self, data: Chunk) -> None:
        self._size += len(data)
        if self._head is None:
            await self._sink.write(data)
            return
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


def _pointer(name: str) -> str:
    return pointer(("body", name))
