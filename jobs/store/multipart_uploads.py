"""Scans that come in parts, straight to the store, before there is a job.

create -> parts, in any order, again after an interruption -> complete -> a job takes the scan, or nobody does and it
expires. `upload.json` is written once; only `completed.json` makes the parts a scan.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from jobs import states
from jobs.access.caller import DEFAULT_TENANT
from jobs.errors import (
    NewerSchemaError,
    UploadClosedError,
    UploadIncompleteError,
    UploadMismatchError,
    UploadNotFoundError,
    UploadTooLargeError,
    UrlNotValidError,
)
from jobs.models import InputInfo, UploadCompletion, UploadRecord
from jobs.settings import GIB, MIB, JobsSettings
from jobs.states import MultipartUploadState, PartState, ReceivedPart, UrlSignature
from jobs.store.inputs import input_key
from jobs.store.keys import UPLOADS, upload_key
from jobs.store.object_store import ObjectStore
from jobs.store.signed_urls import UrlSigner
from jobs.store.upload_stream import BlobUpload

if TYPE_CHECKING:
    from jobs.store.s3_multipart import S3Bucket

#: S3 allows 10 000; a thousand addresses are as many as one answer should hold.
MAX_PARTS: Final = 1000
#: S3 copies no larger object in one request, and a job takes its scan by a copy.
COPY_LIMIT_BYTES: Final = 5 * GIB


class MultipartUploads:
    """All calls raise UploadNotFoundError for an upload that never was, has expired, was aborted or became a job.

    Unavailable storage raises StorageUnavailableError; the broker is never asked.
    """

    def __init__(self, blobs: ObjectStore, settings: JobsSettings, tenant: str = DEFAULT_TENANT) -> None:
        self._blobs, self._settings = blobs, settings
        self._parts: S3Bucket | FolderParts = blobs.bucket or FolderParts(blobs, UrlSigner(settings, tenant))

    def create(self, size_bytes: int, sha256: str | None = None) -> MultipartUploadState:
        """Raises UploadTooLargeError."""
        limit_bytes = min(self._settings.max_upload_bytes, COPY_LIMIT_BYTES)
        if size_bytes > limit_bytes:
            raise UploadTooLargeError(limit_bytes)
        now, upload_id = states.now(), states.new_id()
        needed_mib = -(-size_bytes // (MAX_PARTS * MIB))
        record = UploadRecord(
            id=upload_id,
            created_at=now,
            expires_at=now + timedelta(seconds=self._settings.upload_seconds),
            size_bytes=size_bytes,
            sha256=sha256,
            part_bytes=max(self._settings.upload_part_bytes, needed_mib * MIB),
            multipart_id=self._parts.create(upload_id),
        )
        self._blobs.create(upload_key(upload_id, "upload.json"), record.stored())
        return self._state(record, {})

    def get(self, upload_id: str) -> MultipartUploadState:
        """Which parts have arrived, and where the others may be sent."""
        record = self._record(upload_id)
        completion = self._completion(upload_id)
        if completion is not None:
            return _completed(record, completion)
        received = self._parts.received(record)
        if not received and self._joined(record):  # a crash came before the digest was checked: complete again
            received = {n: ReceivedPart(size_bytes) for n, size_bytes in record.part_sizes_bytes.items()}
        return self._state(record, received)

    def open_part(self, upload_id: str, number: int, signed: UrlSignature) -> tuple[BlobUpload, int]:
        """Where the gateway writes a part to, and how many bytes it must have.

        Raises UrlNotValidError: it was not signed for this part, or has expired; UploadClosedError: it is complete.
        """
        if not isinstance(self._parts, FolderParts):
            raise UrlNotValidError("this service takes no parts itself: send them to the address that the upload names")
        self._parts.signer.verify(signed, upload_id, number)
        self._require_open(upload_id)
        expected_bytes = self._record(upload_id).part_sizes_bytes[number]
        return BlobUpload(self._blobs, upload_key(upload_id, f"parts/{number}"), expected_bytes), expected_bytes

    def require_part_in_time(self, upload_id: str, number: int) -> None:
        """After a part was written: delete it again if its upload ended meanwhile. Raises as `open_part`."""
        try:
            self._require_open(upload_id)
        except (UploadNotFoundError, UploadClosedError):
            self._blobs.delete(upload_key(upload_id, f"parts/{number}"))
            raise

    def complete(self, upload_id: str) -> MultipartUploadState:
        """Check size and digest, then let jobs take the scan. May be repeated, also after a crash.

        Raises:
            UploadIncompleteError: parts are missing or have the wrong size; they can still be sent.
            UploadMismatchError: the bytes are not those announced; the upload is deleted.
        """
        record = self._record(upload_id)
        completion = self._completion(upload_id)
        if completion is None:
            key = self._join(record)
            if key is None:
                return self.get(upload_id)
            completion = self._publish(record, self._verify(record, key))
            # Only now: until `completed.json` is there, a call that is repeated after a crash needs the parts.
            self._parts.delete(record)
        return _completed(record, completion)

    def abort(self, upload_id: str) -> None:
        """Delete all of it; addresses of its parts are worth nothing then."""
        self._discard(self._record(upload_id, also_expired=True))

    def head(self, upload_id: str, size_bytes: int) -> bytes:
        """The first bytes of a completed upload. Raises UploadIncompleteError."""
        completion = self._require_completed(upload_id)
        try:
            return b"".join(self._blobs.pieces(completion.key, 0, min(size_bytes, completion.size_bytes)))
        except FileNotFoundError as error:
            raise UploadNotFoundError from error

    def copy_input(self, upload_id: str, job_id: str) -> InputInfo:
        """Make the scan that of a job to come. The upload stays until `delete`. Raises UploadIncompleteError."""
        completion = self._require_completed(upload_id)
        try:
            self._blobs.copy(completion.key, input_key(job_id, self._settings))
        except FileNotFoundError as error:
            raise UploadNotFoundError from error
        return InputInfo(size_bytes=completion.size_bytes, sha256=completion.sha256)

    def delete(self, upload_id: str) -> None:
        """Delete a completed upload; harmless when there is none."""
        self._blobs.delete_all(upload_key(upload_id, ""))

    def clean_up(self, now: datetime) -> int:
        """Delete what has expired, and what crashes left; how many uploads that were."""
        deleted = 0
        for upload_id in {key.removeprefix(UPLOADS).partition("/")[0] for key in self._blobs.keys(UPLOADS)}:
            if not states.is_id(upload_id):
                continue
            try:
                record = self._record(upload_id, also_expired=True)
            except NewerSchemaError:
                continue
            except UploadNotFoundError:
                # Without its `upload.json`: an abort was cut short, or a call to create it is not done yet.
                if states.made_at(upload_id) + timedelta(seconds=self._settings.upload_seconds) < now:
                    self._blobs.delete_all(upload_key(upload_id, ""))
                    deleted += 1
                continue
            if record.expires_at <= now:
                self._discard(record)
                deleted += 1
        return deleted

    def _record(self, upload_id: str, *, also_expired: bool = False) -> UploadRecord:
        key = upload_key(upload_id, "upload.json")
        record = self._blobs.read_document(UploadRecord, key) if states.is_id(upload_id) else None
        if record is None or (record.expires_at <= states.now() and not also_expired):
            raise UploadNotFoundError
        return record

    def _completion(self, upload_id: str) -> UploadCompletion | None:
        return self._blobs.read_document(UploadCompletion, upload_key(upload_id, "completed.json"))

    def _require_open(self, upload_id: str) -> None:
        self._record(upload_id)
        if self._completion(upload_id) is not None:
            raise UploadClosedError

    def _require_completed(self, upload_id: str) -> UploadCompletion:
        record = self._record(upload_id)
        completion = self._completion(upload_id)
        if completion is None:
            _require_parts(record, self._parts.received(record))
            raise UploadIncompleteError([], [])
        return completion

    def _join(self, record: UploadRecord) -> str | None:
        """The key of all parts in one; None if another call has completed the upload meanwhile."""
        try:
            parts = self._parts.received(record)
            _require_parts(record, parts)
            return self._parts.join(record, parts)
        except (UploadIncompleteError, FileNotFoundError) as error:
            if self._completion(record.id) is not None:
                return None
            joined = self._joined(record)  # by a call that crashed, or has not come to its end
            if joined is None and isinstance(error, FileNotFoundError):
                raise UploadNotFoundError from error
            if joined is None:
                raise
            return joined

    def _joined(self, record: UploadRecord) -> str | None:
        """The key of what was joined before, if that used up the parts, as on S3; in a folder they outlast it."""
        key = upload_key(record.id, "scan")
        return key if self._blobs.exists(key) else None

    def _verify(self, record: UploadRecord, key: str) -> UploadCompletion:
        # All of it is read once more: S3's checksum of a multipart upload is not the sha256 of the file.
        digest, size_bytes = hashlib.sha256(), 0
        try:
            for piece in self._blobs.pieces(key, 0, None):
                digest.update(piece)
                size_bytes += len(piece)
        except FileNotFoundError as error:
            raise UploadNotFoundError from error
        found = UploadCompletion(key=key, size_bytes=size_bytes, sha256=digest.hexdigest())
        if size_bytes != record.size_bytes or record.sha256 not in (None, found.sha256):
            self._discard(record)
            raise UploadMismatchError(
                "the bytes are not those announced; the upload is deleted",
                expected_bytes=record.size_bytes,
                found_bytes=size_bytes,
                expected_sha256=record.sha256,
                found_sha256=found.sha256,
            )
        return found

    def _publish(self, record: UploadRecord, completion: UploadCompletion) -> UploadCompletion:
        """Of several calls that complete an upload at once, jobs take the scan of the first."""
        self._blobs.create(upload_key(record.id, "completed.json"), completion.stored())
        winner = self._completion(record.id)
        if winner is not None and winner.key != completion.key:
            self._blobs.delete(completion.key)
        if winner is None or not self._blobs.exists(upload_key(record.id, "upload.json")):  # aborted or taken meanwhile
            self._blobs.delete_all(upload_key(record.id, ""))
            raise UploadNotFoundError
        return winner

    def _discard(self, record: UploadRecord) -> None:
        # In this order: the record names S3's upload, without which its parts cannot be deleted; and once the record
        # is gone nobody adds a part to the folder while the rest of it is deleted.
        self._parts.delete(record)
        self._blobs.delete(upload_key(record.id, "upload.json"))
        self._blobs.delete_all(upload_key(record.id, ""))

    def _state(self, record: UploadRecord, received: Mapping[int, ReceivedPart]) -> MultipartUploadState:
        now = states.now()
        # An address must not outlive its upload.
        seconds = max(1, min(self._settings.url_seconds, int((record.expires_at - now).total_seconds())))
        parts = []
        for number, size_bytes in record.part_sizes_bytes.items():
            part = received.get(number)
            is_received = part is not None and part.size_bytes == size_bytes
            parts.append(
                PartState(number, size_bytes, None if is_received else self._parts.url(record, number, seconds))
            )
        is_open = any(not part.is_received for part in parts)
        return MultipartUploadState(record, None, tuple(parts), now + timedelta(seconds=seconds) if is_open else None)


@dataclass(frozen=True)
class FolderParts:
    """A file for each part, written by the gateway; what `S3Bucket` does for a bucket."""

    blobs: ObjectStore
    signer: UrlSigner

    def create(self, upload_id: str) -> None:
        """None: a folder has no name of its own for an upload."""

    def received(self, upload: UploadRecord) -> dict[int, ReceivedPart]:
        infos = self.blobs.infos(upload_key(upload.id, "parts/"))
        return {int(info.key.rpartition("/")[2]): ReceivedPart(info.size_bytes) for info in infos}

    def url(self, upload: UploadRecord, number: int, seconds: int) -> UrlSignature:
        """The signature of the gateway's own address."""
        return self.signer.sign(upload.id, number, int(time.time()) + seconds)

    def join(self, upload: UploadRecord, parts: Mapping[int, ReceivedPart]) -> str:
        """Raises FileNotFoundError: parts are gone."""
        # Each time a new key, so that two calls that join at once do not write over each other.
        key = upload_key(upload.id, f"scan-{secrets.token_hex(4)}")
        keys = (upload_key(upload.id, f"parts/{number}") for number in sorted(parts))
        self.blobs.write_pieces(key, (piece for part in keys for piece in self.blobs.pieces(part, 0, None)))
        return key

    def delete(self, upload: UploadRecord) -> None:
        self.blobs.delete_all(upload_key(upload.id, "parts/"))


def _require_parts(record: UploadRecord, parts: Mapping[int, ReceivedPart]) -> None:
    sizes = record.part_sizes_bytes
    missing = [number for number in sizes if number not in parts]
    wrong = [
        {"number": number, "expected_bytes": sizes.get(number, 0), "found_bytes": part.size_bytes}
        for number, part in parts.items()
        if part.size_bytes != sizes.get(number)
    ]
    if missing or wrong:
        raise UploadIncompleteError(missing, wrong)


def _completed(record: UploadRecord, completion: UploadCompletion) -> MultipartUploadState:
    parts = tuple(PartState(number, size_bytes, url=None) for number, size_bytes in record.part_sizes_bytes.items())
    return MultipartUploadState(record, completion, parts, None)
