"""Where the parts of an upload lie: S3 keeps them itself, a folder has a file for each."""

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from jobs.answers import ReceivedPart
from jobs.models import UploadRecord
from jobs.store.object_store import Blobs
from jobs.store.signed_urls import Ticket, TicketOffice

if TYPE_CHECKING:
    from jobs.store.s3_multipart import S3Bucket

PREFIX: Final = "uploads/"


def folder_of(upload_id: str) -> str:
    return f"{PREFIX}{upload_id}/"


class PartStore(Protocol):
    """Raises BlobStoreUnavailableError."""

    def begin(self, upload_id: str) -> str | None:
        """Make ready for parts; the answer is the store's own name of the upload, if it has one."""
        ...

    def received(self, upload: UploadRecord) -> Mapping[int, ReceivedPart]:
        """The parts that have arrived, by number."""
        ...

    def place(self, upload: UploadRecord, number: int, seconds: int) -> str | Ticket:
        """Where the client may send a part, for some seconds: an address, or a ticket for the gateway's."""
        ...

    def join(self, upload: UploadRecord, parts: Mapping[int, ReceivedPart]) -> str:
        """Make one blob of the parts; the answer is its key. Raises FileNotFoundError: they are gone."""
        ...

    def joined(self, upload: UploadRecord) -> str | None:
        """The key of what `join` made before a crash, if that used up the parts."""
        ...

    def drop(self, upload: UploadRecord) -> None:
        """Forget all parts."""
        ...


@dataclass(frozen=True)
class S3Parts:
    """A multipart upload of S3: parts never pass through us, and end with the upload."""

    blobs: Blobs
    bucket: "S3Bucket"

    def begin(self, upload_id: str) -> str:
        return self.bucket.begin(_scan(upload_id))

    def received(self, upload: UploadRecord) -> Mapping[int, ReceivedPart]:
        return self.bucket.received(_scan(upload.id), upload.multipart_id or "")

    def place(self, upload: UploadRecord, number: int, seconds: int) -> str:
        size_bytes = upload.part_sizes_bytes[number]
        return self.bucket.part_url(_scan(upload.id), upload.multipart_id or "", number, size_bytes, seconds)

    def join(self, upload: UploadRecord, parts: Mapping[int, ReceivedPart]) -> str:
        self.bucket.complete(_scan(upload.id), upload.multipart_id or "", parts)
        return _scan(upload.id)

    def joined(self, upload: UploadRecord) -> str | None:
        return _scan(upload.id) if self.blobs.exists(_scan(upload.id)) else None

    def drop(self, upload: UploadRecord) -> None:
        self.bucket.abort(_scan(upload.id), upload.multipart_id or "")


@dataclass(frozen=True)
class FolderParts:
    """A file for each part, written by the gateway."""

    blobs: Blobs
    tickets: TicketOffice

    def begin(self, upload_id: str) -> None:  # noqa: ARG002
        return None

    def received(self, upload: UploadRecord) -> Mapping[int, ReceivedPart]:
        infos = self.blobs.infos(_parts(upload.id))
        return {int(info.key.rpartition("/")[2]): ReceivedPart(info.size_bytes) for info in infos}

    def place(self, upload: UploadRecord, number: int, seconds: int) -> Ticket:
        return self.tickets.issue(upload.id, number, int(time.time()) + seconds)

    def join(self, upload: UploadRecord, parts: Mapping[int, ReceivedPart]) -> str:
        """Each time under a new key, so that two that join at once do not write over each other."""
        key = f"{_scan(upload.id)}-{secrets.token_hex(4)}"
        self.blobs.write_pieces(key, self._pieces(upload, parts))
        return key

    def joined(self, upload: UploadRecord) -> None:
        """Parts outlast the joining."""

    def drop(self, upload: UploadRecord) -> None:
        self.blobs.delete_all(_parts(upload.id))

    def _pieces(self, upload: UploadRecord, parts: Mapping[int, ReceivedPart]) -> Iterator[bytes]:
        for number in sorted(parts):
            yield from self.blobs.pieces(part_key(upload.id, number), 0, None)


def part_key(upload_id: str, number: int) -> str:
    return f"{_parts(upload_id)}{number}"


def _parts(upload_id: str) -> str:
    return folder_of(upload_id) + "parts/"


def _scan(upload_id: str) -> str:
    return folder_of(upload_id) + "scan"
