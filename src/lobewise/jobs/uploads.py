"""Uploads: hashed while they stream to the blob store, in constant memory."""

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import obstore
from obstore.exceptions import BaseError

from lobewise.jobs import tracing
from lobewise.jobs.blobs import PART_BYTES, Blobs, traced
from lobewise.jobs.errors import BlobStoreUnavailableError, UploadTooLargeError
from lobewise.jobs.models import InputInfo


class BlobUpload:
    """The upload sink of one job. Nothing is visible under the key before `finish`."""

    def __init__(self, blobs: Blobs, key: str, limit_bytes: int) -> None:
        self._blobs, self._key, self._limit_bytes = blobs, key, limit_bytes
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._span = tracing.child("blob write", traced(key))
        self._writer: obstore.AsyncWritableFile | None = obstore.open_writer_async(
            blobs.store, key, buffer_size=PART_BYTES, max_concurrency=2
        )

    async def write(self, chunk: bytes) -> None:
        if self._writer is None:
            raise ValueError("this upload has ended")
        self._size_bytes += len(chunk)
        if self._size_bytes > self._limit_bytes:
            await self.abort()
            raise UploadTooLargeError(self._limit_bytes)
        self._hash.update(chunk)
        with _unavailable():
            await self._writer.write(chunk)

    async def finish(self) -> InputInfo:
        if self._writer is None:
            raise ValueError("this upload has ended")
        writer, self._writer = self._writer, None
        self._span.note(traced(self._key, self._size_bytes))
        with tracing.ended(self._span), _unavailable():
            await writer.close()
            await asyncio.to_thread(self._blobs.sync, self._key)  # writing a large file out takes seconds
        return InputInfo(size_bytes=self._size_bytes, sha256=self._hash.hexdigest())

    async def abort(self) -> None:
        # A writer that is dropped without `close` gives its parts up.
        self._writer = None
        self._span.fail("aborted")
        self._span.end()


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise BlobStoreUnavailableError(f"the upload could not be stored: {type(error).__name__}") from error
