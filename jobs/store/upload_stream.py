"""Uploads: hashed while they stream to the blob store, in constant memory and in threads of their own."""

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

import obstore
from obstore.exceptions import BaseError

from jobs import tracing
from jobs.errors import StorageUnavailableError, UploadTooLargeError
from jobs.models import InputInfo
from jobs.states import Chunk
from jobs.store.object_store import ObjectStore, traced

#: Threads for a bucket, where they mostly wait. For a folder there are as many as cores: they hash, and copy.
SENDERS: Final = 16

Result = TypeVar("Result")

_storers: Final = ThreadPoolExecutor(os.cpu_count(), "upload")
_senders: Final = ThreadPoolExecutor(SENDERS, "upload")


async def in_upload_thread(
    function: Callable[..., Result], *arguments: object, threads: ThreadPoolExecutor = _storers
) -> Result:
    """For work on the bytes of scans."""
    # Not in the threads of other calls: polls would wait behind uploads there.
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


class BlobUpload:
    """Takes an upload piece by piece. Nothing is visible under the key before `finish`; end it so, or with `abort`."""

    def __init__(self, blobs: ObjectStore, key: str, limit_bytes: int) -> None:
        self._blobs, self._key, self._limit_bytes = blobs, key, limit_bytes
        self._threads = _senders if blobs.folder is None else _storers
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._span = tracing.child("blob write", traced(key))
        self._writer: obstore.WritableFile | None = blobs.open_writer(key)

    async def write(self, chunk: Chunk) -> None:
        """Raises UploadTooLargeError past the limit; nothing is kept then."""
        if self._writer is None:
            raise ValueError("this upload has ended")
        self._size_bytes += len(chunk)
        if self._size_bytes > self._limit_bytes:
            await self.abort()
            raise UploadTooLargeError(self._limit_bytes)
        with _unavailable():
            await in_upload_thread(self._store, self._writer, chunk, threads=self._threads)

    async def finish(self) -> InputInfo:
        """Makes the upload durable."""
        if self._writer is None:
            raise ValueError("this upload has ended")
        writer, self._writer = self._writer, None
        self._span.set_attributes(traced(self._key, self._size_bytes))
        with tracing.ended(self._span), _unavailable():
            await in_upload_thread(self._close, writer, threads=self._threads)
        return InputInfo(size_bytes=self._size_bytes, sha256=self._hash.hexdigest())

    async def abort(self) -> None:
        """Keeps nothing; harmless after `finish` failed or when called twice."""
        # A writer that is dropped without `close` drops its parts, and nothing is stored.
        self._writer = None
        tracing.fail(self._span, "aborted")
        tracing.end(self._span)

    def _store(self, writer: "obstore.WritableFile", chunk: Chunk) -> None:
        self._hash.update(chunk)
        writer.write(chunk)

    def _close(self, writer: "obstore.WritableFile") -> None:
        writer.close()
        self._blobs.sync(self._key)  # writing a large file out takes seconds


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise StorageUnavailableError(f"the upload could not be stored: {type(error).__name__}") from error
