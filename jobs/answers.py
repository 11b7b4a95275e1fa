"""What `Jobs` answers with, apart from the contract in `models`."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from jobs.models import InputInfo, JobState, UploadCompletion, UploadRecord

Chunk = bytes | memoryview
"""Bytes on their way; a view saves a copy."""
Sort = Literal["-created_at", "created_at", "severity"]


@dataclass(frozen=True)
class JobPage:
    """Some jobs; `next_cursor` leads to the next ones, None after the last."""

    items: tuple[JobState, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class Readiness:
    """Which parts answer. `workers` have their models loaded."""

    broker: bool
    blobs: bool
    workers: int


@dataclass(frozen=True)
class QueueLength:
    """How many jobs of a priority wait, and how long the first of them has."""

    waiting: int
    oldest_seconds: float


class StoredMask(Protocol):
    """A mask of a succeeded job."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    @property
    def last_modified(self) -> datetime: ...

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to, not including, `end`; in pieces."""
        ...

    def signed_url(self, seconds: int) -> str | None:
        """Where it can be had without us for some seconds; None where the store gives no such addresses."""
        ...


@dataclass(frozen=True)
class ReceivedPart:
    """A part that has arrived. `tag` is what S3 wants to hear of it again."""

    size_bytes: int
    tag: str = ""


@dataclass(frozen=True)
class UrlSignature:
    """What makes an address of the gateway valid for one part of an upload. `expires` is in seconds since 1970."""

    expires: int
    signature: str


@dataclass(frozen=True)
class PartState:
    """A part of an upload: it has arrived, or `url` says where it may be sent (a signature is one for the gateway)."""

    number: int
    size_bytes: int
    url: str | UrlSignature | None

    @property
    def is_received(self) -> bool:
        return self.url is None


@dataclass(frozen=True)
class MultipartUploadState:
    """An upload as it stands. `completion` is there once a job may take it."""

    record: UploadRecord
    completion: UploadCompletion | None
    parts: tuple[PartState, ...]
    urls_expire_at: datetime | None
    """None when there is nothing left to send."""


class UploadSink(Protocol):
    """Takes an upload piece by piece, hashing on the way. End it with `finish` or `abort`."""

    async def write(self, chunk: Chunk) -> None:
        """Raises UploadTooLargeError past the limit; nothing is kept then."""
        ...

    async def finish(self) -> InputInfo:
        """Makes the upload durable."""
        ...

    async def abort(self) -> None:
        """Forgets it; harmless after `finish` failed or when called twice."""
        ...
