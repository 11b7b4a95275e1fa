"""The object store: a local folder or an S3 bucket, with create-only writes. It is the record; all else is a view."""

import copy
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store

from jobs.errors import StorageUnavailableError
from jobs.models import Model
from jobs.proxies import obstore_options, s3_endpoint
from jobs.settings import JobsSettings
from jobs.tracing import step

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig, S3Config

    from jobs.store.s3_multipart import S3Bucket

PIECE_BYTES: Final = 1 << 20
#: Of a multipart upload: what a writer holds in memory; S3 wants at least 5 MiB.
PART_BYTES: Final = 8 << 20
#: What a writer to a folder holds: many may write at once.
FOLDER_PART_BYTES: Final = 128 << 10

#: A file beside the blobs of a folder, and of no key.
RESERVE: Final = ".reserve"
#: Enough for tombstones while others who write take their part of it.
RESERVE_BYTES: Final = 8 << 20

#: What obstore calls a local file that it has not finished.
_STAGED: Final = re.compile(r".*#\d+")
_ID: Final = re.compile(r"[0-9a-f-]{32}")
_RETRY: Final["RetryConfig"] = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
_CLIENT: Final["ClientConfig"] = {"connect_timeout": timedelta(seconds=2), "timeout": timedelta(minutes=5)}

Document = TypeVar("Document", bound=Model)


@dataclass(frozen=True)
class Encryption:
    """What S3 is told about the key under which it keeps what we write.

    Attributes:
        kind: `AES256` (SSE-S3), `aws:kms` or `aws:kms:dsse`.
        key_id: of KMS; None for the bucket's own.
    """

    kind: str
    key_id: str | None = None


@dataclass(frozen=True)
class BlobInfo:
    key: str
    size_bytes: int
    last_modified: datetime


class ObjectStore:
    """Small documents, large files and listings, by key.

    Every method raises StorageUnavailableError when the store does not answer.
    """

    def __init__(
        self, store: obstore.store.ObjectStore, folder: Path | None = None, bucket: "S3Bucket | None" = None
    ) -> None:
        """`folder` is where a local store keeps its files; they are synced to the disk there. S3 has a `bucket`."""
        self.folder, self.bucket = folder, bucket
        self._root = folder
        self._store, self._prefix = store, ""

    def within(self, prefix: str) -> Self:
        """What lies below a prefix that ends with a slash, as a store of its own over the same connections."""
        # One store for all prefixes: each of obstore's has connections, and a client of botocore takes megabytes.
        store = copy.copy(self)
        store._prefix = self._prefix + prefix
        store.folder = None if self.folder is None else self.folder / prefix
        store.bucket = None if self.bucket is None else self.bucket.within(prefix)
        return store

    @property
    def part_bytes(self) -> int:
        """What a writer holds in memory, and once more while it sends it."""
        return PART_BYTES if self.folder is None else FOLDER_PART_BYTES

    def read(self, key: str) -> bytes | None:
        """The whole blob; None if there is none."""
        try:
            with _unavailable():
                return bytes(obstore.get(self._store, self._prefix + key).bytes())
        except FileNotFoundError:
            return None

    def read_document(self, kind: type[Document], key: str) -> Document | None:
        """A stored document; None if there is none. Raises NewerSchemaError."""
        data = self.read(key)
        return None if data is None else kind.read(data)

    def create(self, key: str, data: bytes, *, leads_to_space: bool = False) -> bool:
        """Write unless the key exists: of many callers exactly one gets True.

        What `leads_to_space`, as the tombstone of a job, is written to a full disk, too, in the place of the reserve.
        """
        # The promise that all else rests on: exactly one attempt wins, without a lock service or a database.
        with _unavailable(), step("blob create", traced(key, len(data))) as span:
            try:
                try:
                    obstore.put(self._store, self._prefix + key, data, mode="create")
                except BaseError as error:
                    # The store's library has no class for it: what it says ends with the number that the system has.
                    is_full = f"os error {errno.ENOSPC}" in str(error)
                    if self._root is None or not leads_to_space or not is_full:
                        raise
                    with suppress(FileNotFoundError):  # another was faster
                        (self._root / RESERVE).unlink()
                    obstore.put(self._store, self._prefix + key, data, mode="create")
            except AlreadyExistsError:
                span.set_attributes({"lobewise.blob.existed": True})
                return False
            self.sync(key)
            return True

    def keep_reserve(self) -> None:
        """Hold some space of a folder's disk back, if there is any: without it nothing could be deleted of a full one.

        A tombstone comes before what it stands for is deleted, and needs space itself.
        """
        if self._root is None or (self._root / RESERVE).exists():
            return
        partial = self._root / f"{RESERVE}.{uuid4().hex}"
        try:
            with partial.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
            partial.replace(self._root / RESERVE)
        except OSError:  # full now; whoever deletes something tries again
            partial.unlink(missing_ok=True)

    def write(self, key: str, data: bytes) -> None:
        with _unavailable(), step("blob write", traced(key, len(data))):
            obstore.put(self._store, self._prefix + key, data)
            self.sync(key)

    def write_file(self, key: str, path: Path) -> str:
        """Store a file; returns its sha256."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with _unavailable(), step("blob write", traced(key, path.stat().st_size)):
            obstore.put(self._store, self._prefix + key, path, chunk_size=PART_BYTES, max_concurrency=2)
            self.sync(key)
        return digest

    def write_pieces(self, key: str, pieces: Iterator[bytes]) -> None:
        """Store a stream; nothing is seen of it before its end. Raises what `pieces` does."""
        with _unavailable(), step("blob write", traced(key)):
            writer = obstore.open_writer(self._store, self._prefix + key, buffer_size=PART_BYTES, max_concurrency=2)
            for piece in pieces:
                writer.write(piece)
            writer.close()  # without it the parts are dropped, and nothing is stored of a stream that broke off
            self.sync(key)

    def open_writer(self, key: str) -> "obstore.WritableFile":
        """To write piece by piece; nothing is seen of it before it is closed. Errors are the caller's to turn."""
        return obstore.open_writer(self._store, self._prefix + key, buffer_size=self.part_bytes, max_concurrency=1)

    def copy(self, key: str, to: str) -> None:
        """Within the store, which moves no bytes through us. Raises FileNotFoundError."""
        with _unavailable(), step("blob copy", traced(to)):
            obstore.copy(self._store, self._prefix + key, self._prefix + to)
            self.sync(to)

    def read_file(self, key: str, path: Path) -> None:
        """Copy a blob to a file. Raises FileNotFoundError: there is no such blob."""
        with path.open("wb") as file:
            for piece in self.pieces(key, 0, None):
                file.write(piece)

    def pieces(self, key: str, start: int, end: int | None) -> Iterator[bytes]:
        """The bytes from `start` up to, not including, `end`. Raises FileNotFoundError."""
        span: GetOptions = {"range": {"offset": start} if end is None else (start, end)}
        with _unavailable():
            stream = obstore.get(self._store, self._prefix + key, options=span if start or end else None)
            for piece in stream.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

    def info(self, key: str) -> BlobInfo | None:
        try:
            with _unavailable():
                meta = obstore.head(self._store, self._prefix + key)
        except FileNotFoundError:
            self.check()  # HEAD has no body that tells a missing blob from a missing bucket
            return None
        return BlobInfo(key, meta["size"], meta["last_modified"])

    def exists(self, key: str) -> bool:
        return self.info(key) is not None

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key below a prefix that ends with a slash, in no order."""
        return (info.key for info in self.infos(prefix))

    def infos(self, prefix: str) -> Iterator[BlobInfo]:
        """What is known of every blob below a prefix that ends with a slash, in no order."""
        with _unavailable():
            for page in obstore.list(self._store, self._prefix + prefix, chunk_size=1000):
                for meta in page:
                    yield BlobInfo(meta["path"].removeprefix(self._prefix), meta["size"], meta["last_modified"])

    def folders(self, prefix: str) -> list[str]:
        """The names between a prefix that ends with a slash and the next slash, each once and in order."""
        with _unavailable():
            found = obstore.list_with_delimiter(self._store, self._prefix + prefix)["common_prefixes"]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def delete(self, key: str) -> None:
        """Harmless when there is no such blob."""
        with suppress(FileNotFoundError), _unavailable():
            obstore.delete(self._store, self._prefix + key)

    def delete_all(self, prefix: str, keep: Callable[[str], bool] = lambda _key: False) -> None:
        for key in list(self.keys(prefix)):
            if not keep(key):
                self.delete(key)

    def delete_unfinished(self, prefix: str, begun_before: datetime | None = None) -> int:
        """What writers below a prefix left that never came to their end, which no listing shows; how many that were.

        Without a time also what is being written now, and then fails.
        """
        deleted = 0
        if self.bucket is not None:
            found = [upload for upload in self.bucket.unfinished(prefix) if _is_before(upload.begun_at, begun_before)]
            for upload in found:
                self.bucket.abort(upload.key, upload.multipart_id)
            return len(found)
        for path in (self.folder / prefix).rglob("*#*") if self.folder is not None else ():
            with suppress(FileNotFoundError):  # just finished
                begun_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                if _STAGED.fullmatch(path.name) and _is_before(begun_at, begun_before):
                    path.unlink()
                    deleted += 1
        return deleted

    def sync(self, key: str) -> None:
        """Make a local blob survive a power cut: the file, and the folders that name it."""
        if self.folder is None:
            return
        path = self.folder / key
        # The folders too, up to the first: a file whose new folder was not synced is lost with it.
        while path != self.folder.parent:
            with suppress(FileNotFoundError):  # deleted meanwhile: nothing to keep
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            path = path.parent

    def check(self) -> None:
        """Raises StorageUnavailableError when the store does not answer, or its bucket or folder is gone."""
        # A list of a folder that is gone is empty and no error.
        if self.folder is not None and not self.folder.is_dir():
            raise StorageUnavailableError("the folder of the blobs is gone")
        with _unavailable():
            next(iter(obstore.list(self._store, self._prefix + "ready/", chunk_size=1)), None)


def _is_before(moment: datetime, limit: datetime | None) -> bool:
    return limit is None or moment < limit


def traced(key: str, size_bytes: int | None = None) -> dict[str, str | int]:
    """Attributes of a span about a blob: which of those in `keys` it is, without ids and hashes."""
    name = "/".join(part for part in key.split("/") if not _ID.match(part))
    return {"lobewise.blob.name": name} | ({} if size_bytes is None else {"lobewise.blob.size_bytes": size_bytes})


def encryption_of(settings: JobsSettings) -> Encryption | None:
    """What the operator wants S3 to be told; None: nothing."""
    kind = settings.blob_encryption
    return None if kind is None else Encryption(kind, settings.blob_encryption_key)


def open_object_store(
    url: str, public_endpoint: str | None = None, encryption: Encryption | None = None
) -> ObjectStore:
    """The store at `file:///folder` or `s3://bucket/prefix`; a ValueError for another scheme.

    Credentials, region and endpoint of S3 come from the usual `AWS_*` variables; clients may know the endpoint by
    another name. Raises StorageUnavailableError: the folder cannot be made or written.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        from jobs.store.s3_multipart import S3Bucket  # botocore takes a while, and a folder does not need it

        client: ClientConfig = {**_CLIENT, **obstore_options(s3_endpoint())}
        encrypted: S3Config = {}
        if encryption is not None:
            encrypted["server_side_encryption"] = encryption.kind
            if encryption.key_id is not None:
                encrypted["sse_kms_key_id"] = encryption.key_id
        s3 = S3Store.from_url(url, config=encrypted, client_options=client, retry_config=_RETRY)
        return ObjectStore(s3, bucket=S3Bucket(parts.netloc, unquote(parts.path), public_endpoint, encryption))
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ValueError(f"blobs live at file:///folder or s3://bucket/prefix, not at {url!r}")
    folder = Path(unquote(parts.path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageUnavailableError(f"the folder {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageUnavailableError(f"the folder {folder} cannot be written")
    with _unavailable():
        store = LocalStore(folder, automatic_cleanup=True)
    opened = ObjectStore(store, folder.resolve())
    opened.keep_reserve()
    return opened


@contextmanager
def _unavailable() -> Iterator[None]:
    """Turns every error of the store but a missing blob into ours."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise StorageUnavailableError("the bucket of the blobs is gone") from error
        raise
    except (BaseError, OSError) as error:
        raise StorageUnavailableError(f"the blob store does not answer: {type(error).__name__}") from error
