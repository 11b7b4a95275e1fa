"""The blob store: a local folder or an S3 bucket, with create-only writes. It is the record; all else is a view.

```
jobs/{id}/job.json                  created once: the job is accepted
jobs/{id}/input                     the upload, written before job.json
jobs/{id}/attempts/{n}/claim.json   created once, before the work: attempt n has begun
jobs/{id}/attempts/{n}/ended.json   created once: attempt n ended without an outcome and may publish none
jobs/{id}/attempts/{n}/report.json  and the masks, named as in `MaskName`
jobs/{id}/manifest.json             created once: the outcome
jobs/{id}/cancel.json               someone asked to stop
jobs/{id}/purged.json               a tombstone; all other blobs are gone
idempotency/{sha256 of the key}/{n}.json
```
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from lobewise.jobs.errors import BlobStoreUnavailableError

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig

PIECE_BYTES: Final = 1 << 20
PART_BYTES: Final = 8 << 20
"""Of a multipart upload: what a writer holds in memory; S3 wants at least 5 MiB."""

_RETRY: Final["RetryConfig"] = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
_CLIENT: Final["ClientConfig"] = {"connect_timeout": timedelta(seconds=2), "timeout": timedelta(minutes=5)}


@dataclass(frozen=True)
class BlobInfo:
    key: str
    size_bytes: int
    last_modified: datetime


class Blobs:
    """Small documents, large files and listings, by key.

    Every method raises BlobStoreUnavailableError when the store does not answer.
    """

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        """`folder` is where a local store keeps its files; they are synced to the disk there."""
        self.store = store
        self._folder = folder

    def read(self, key: str) -> bytes | None:
        """The whole blob; None if there is none."""
        try:
            with _unavailable():
                return bytes(obstore.get(self.store, key).bytes())
        except FileNotFoundError:
            return None

    def create(self, key: str, data: bytes) -> bool:
        """Write unless the key exists: of many callers exactly one gets True."""
        with _unavailable():
            try:
                obstore.put(self.store, key, data, mode="create")
            except AlreadyExistsError:
                return False
            self.sync(key)
            return True

    def write(self, key: str, data: bytes) -> None:
        with _unavailable():
            obstore.put(self.store, key, data)
            self.sync(key)

    def write_file(self, key: str, path: Path) -> str:
        """Store a file; the answer is its sha256."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with _unavailable():
            obstore.put(self.store, key, path, chunk_size=PART_BYTES, max_concurrency=2)
            self.sync(key)
        return digest

    def read_file(self, key: str, path: Path) -> None:
        """Copy a blob to a file.

        Raises:
            FileNotFoundError: there is no such blob.
        """
        with path.open("wb") as file:
            for piece in self.pieces(key, 0, None):
                file.write(piece)

    def pieces(self, key: str, start: int, end: int | None) -> Iterator[bytes]:
        """The bytes from `start` up to, not including, `end`. Raises FileNotFoundError."""
        span: GetOptions = {"range": {"offset": start} if end is None else (start, end)}
        with _unavailable():
            stream = obstore.get(self.store, key, options=span if start or end else None)
            for piece in stream.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

    def info(self, key: str) -> BlobInfo | None:
        try:
            with _unavailable():
                meta = obstore.head(self.store, key)
        except FileNotFoundError:
            self.check()  # the answer to HEAD does not tell a missing blob from a missing bucket
            return None
        return BlobInfo(key, meta["size"], meta["last_modified"])

    def exists(self, key: str) -> bool:
        return self.info(key) is not None

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key below a prefix that ends with a slash, in no order."""
        with _unavailable():
            for page in obstore.list(self.store, prefix, chunk_size=1000):
                yield from (meta["path"] for meta in page)

    def delete(self, key: str) -> None:
        """Harmless when there is no such blob."""
        with suppress(FileNotFoundError), _unavailable():
            obstore.delete(self.store, key)

    def delete_all(self, prefix: str, keep: Callable[[str], bool] = lambda _key: False) -> None:
        for key in list(self.keys(prefix)):
            if not keep(key):
                self.delete(key)

    def sync(self, key: str) -> None:
        """Make a local blob survive a power cut: the file, and the folders that name it."""
        if self._folder is None:
            return
        path = self._folder / key
        while path != self._folder.parent:
            _fsync(path)
            path = path.parent

    def check(self) -> None:
        """Raises BlobStoreUnavailableError when the store does not answer, or its bucket or folder is gone."""
        if self._folder is not None and not self._folder.is_dir():
            raise BlobStoreUnavailableError("the folder of the blobs is gone")
        with _unavailable():
            next(iter(obstore.list(self.store, "ready/", chunk_size=1)), None)


def open_blobs(url: str) -> Blobs:
    """The store at `file:///folder` or `s3://bucket/prefix`.

    Credentials, region and endpoint of S3 come from the usual `AWS_*` variables.

    Raises:
        ValueError: another scheme.
        BlobStoreUnavailableError: the folder cannot be made or written.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return Blobs(S3Store.from_url(url, client_options=_client(), retry_config=_RETRY))
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ValueError(f"blobs live at file:///folder or s3://bucket/prefix, not at {url!r}")
    return _local(Path(unquote(parts.path)))


def _client() -> "ClientConfig":
    """obstore reads `AWS_ALLOW_HTTP` itself only where no other option of the client is given."""
    allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    return {**_CLIENT, "allow_http": allow_http}


def _local(folder: Path) -> Blobs:
    with _unavailable():
        folder.mkdir(parents=True, exist_ok=True)
        store = LocalStore(folder, automatic_cleanup=True)
    return Blobs(store, folder.resolve())


def _fsync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return  # deleted meanwhile: nothing to keep
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _unavailable() -> Iterator[None]:
    """Turns every error of the store but a missing blob into ours."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise BlobStoreUnavailableError("the bucket of the blobs is gone") from error
        raise
    except (BaseError, OSError) as error:
        raise BlobStoreUnavailableError(f"the blob store does not answer: {type(error).__name__}") from error
