"""Scans that come in parts, straight to the store, before there is a job.

create -> parts, in any order, again after an interruption -> complete -> a job takes the scan, or nobody does and it
expires. `upload.json` is written once; `completed.json` is the only thing that makes the parts a scan.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from jobs import ids, states
from jobs.answers import LargeUploadState, PartState, ReceivedPart, UploadSink
from jobs.errors import (
    NewerSchemaError,
    TicketError,
    UploadClosedError,
    UploadIncompleteError,
    UploadMismatchError,
    UploadNotFoundError,
    UploadTooLargeError,
)
from jobs.models import InputInfo, UploadCompletion, UploadRecord
from jobs.settings import GIB, MIB, JobsSettings
from jobs.store.object_store import Blobs
from jobs.store.part_stores import PREFIX, FolderParts, PartStore, S3Parts, folder_of, part_key
from jobs.store.signed_urls import Ticket, TicketOffice
from jobs.store.upload_stream import BlobUpload

MAX_PARTS: Final = 1000
COPY_LIMIT_BYTES: Final = 5 * GIB
"""S3 copies no larger blob in one request, and a job takes its scan by a copy."""


class LargeUploads:
    """All calls raise UploadNotFoundError for an upload that never was, has expired, was aborted or became a job.

    Unavailable storage raises BlobStoreUnavailableError; the broker is never asked.
    """

    def __init__(self, blobs: Blobs, settings: JobsSettings) -> None:
        self._blobs, self._settings = blobs, settings
        self._tickets = TicketOffice(settings)
        self._parts: PartStore = S3Parts(blobs, blobs.bucket) if blobs.bucket else FolderParts(blobs, self._tickets)

    @property
    def limit_bytes(self) -> int:
        return min(self._settings.max_upload_bytes, COPY_LIMIT_BYTES)

    def create(self, size_bytes: int, sha256: str | None = None) -> LargeUploadState:
        """Raises UploadTooLargeError."""
        if size_bytes > self.limit_bytes:
            raise UploadTooLargeError(self.limit_bytes)
        now, upload_id = states.now(), ids.new_id()
        # As set, or larger, so that there are not too many parts.
        needed_mib = -(-size_bytes // (MAX_PARTS * MIB))
        part_bytes = max(self._settings.upload_part_bytes, needed_mib * MIB)
        record = UploadRecord(
            id=upload_id,
            created_at=now,
            expires_at=now + timedelta(seconds=self._settings.upload_seconds),
            size_bytes=size_bytes,
            sha256=sha256,
            part_bytes=part_bytes,
            multipart_id=self._parts.begin(upload_id),
        )
        self._blobs.create(folder_of(upload_id) + "upload.json", record.model_dump_json(exclude_none=True).encode())
        return self._state(record, {})

    def get(self, upload_id: str) -> LargeUploadState:
        """Which parts have arrived, and where the others may be sent."""
        record = self._record(upload_id)
        completion = self._completion(upload_id)
        if completion is not None:
            return _completed(record, completion)
        received = self._parts.received(record)
        if not received and self._parts.joined(record):  # a crash came before the digest was checked: complete again
            received = {n: ReceivedPart(size_bytes) for n, size_bytes in record.part_sizes_bytes.items()}
        return self._state(record, received)

    def open_part(self, upload_id: str, number: int, ticket: Ticket) -> tuple[UploadSink, int]:
        """Where the gateway writes a part to, and how many bytes it must have.

        Raises:
            TicketError: this ticket does not allow it.
            UploadClosedError: the upload is complete.
        """
        if not isinstance(self._parts, FolderParts):
            raise TicketError("this service takes no parts itself: send them to the address that the upload names")
        self._tickets.check(ticket, upload_id, number)
        self._require_open(upload_id)
        expected_bytes = self._record(upload_id).part_sizes_bytes[number]
        return BlobUpload(self._blobs, part_key(upload_id, number), expected_bytes), expected_bytes

    def settle_part(self, upload_id: str, number: int) -> None:
        """Take back a part that came while its upload ended. Raises as `open_part`."""
        try:
            self._require_open(upload_id)
        except (UploadNotFoundError, UploadClosedError):
            self._blobs.delete(part_key(upload_id, number))
            raise

    def complete(self, upload_id: str) -> LargeUploadState:
        """Check size and digest, then let jobs take the scan. May be repeated, also after a crash.

        Raises:
            UploadIncompleteError: parts are missing or have the wrong size; they can still be sent.
            UploadMismatchError: the bytes are not those announced; the upload is deleted.
        """
        record = self._record(upload_id)
        if (completion := self._completion(upload_id)) is not None:
            return _completed(record, completion)
        key = self._join(record)
        if key is None:
            return self.get(upload_id)
        completion = self._publish(record, self._verified(record, key))
        self._parts.drop(record)
        return _completed(record, completion)

    def abort(self, upload_id: str) -> None:
        """Delete all of it; addresses of its parts are good for nothing then."""
        self._discard(self._record(upload_id, also_expired=True))

    def head(self, upload_id: str, size_bytes: int) -> bytes:
        """The first bytes of a completed upload. Raises UploadIncompleteError."""
        completion = self._require_completed(upload_id)
        try:
            return b"".join(self._blobs.pieces(completion.key, 0, min(size_bytes, completion.size_bytes)))
        except FileNotFoundError as error:
            raise UploadNotFoundError from error

    def hand_over(self, upload_id: str, key: str) -> InputInfo:
        """Give a job its own copy of the scan. The upload stays until `forget`. Raises UploadIncompleteError."""
        completion = self._require_completed(upload_id)
        try:
            self._blobs.copy(completion.key, key)
        except FileNotFoundError as error:
            raise UploadNotFoundError from error
        return InputInfo(size_bytes=completion.size_bytes, sha256=completion.sha256)

    def forget(self, upload_id: str) -> None:
        """Delete a completed upload; harmless when there is none."""
        self._blobs.delete_all(folder_of(upload_id))

    def clean_up(self, now: datetime) -> int:
        """Delete what has expired, and what crashes left; how many uploads that were."""
        keys = self._blobs.keys(PREFIX)
        upload_ids = {key.removeprefix(PREFIX).partition("/")[0] for key in keys}
        return sum(self._clean_up(upload_id, now) for upload_id in upload_ids if ids.is_id(upload_id))

    def _clean_up(self, upload_id: str, now: datetime) -> bool:
        try:
            record = self._record(upload_id, also_expired=True)
        except UploadNotFoundError:
            if not (ids.made_at(upload_id) + timedelta(seconds=self._settings.upload_seconds) < now):
                return False
            self._blobs.delete_all(folder_of(upload_id))
            return True
        except NewerSchemaError:
            return False
        if record.expires_at > now:
            return False
        self._discard(record)
        return True

    def _record(self, upload_id: str, *, also_expired: bool = False) -> UploadRecord:
        data = self._blobs.read(folder_of(upload_id) + "upload.json") if ids.is_id(upload_id) else None
        if data is None:
            raise UploadNotFoundError
        record = UploadRecord.read(data)
        if record.expires_at <= states.now() and not also_expired:
            raise UploadNotFoundError
        return record

    def _completion(self, upload_id: str) -> UploadCompletion | None:
        data = self._blobs.read(folder_of(upload_id) + "completed.json")
        return None if data is None else UploadCompletion.read(data)

    def _require_open(self, upload_id: str) -> None:
        self._record(upload_id)
        if self._completion(upload_id) is not None:
            raise UploadClosedError

    def _require_completed(self, upload_id: str) -> UploadCompletion:
        record = self._record(upload_id)
        completion = self._completion(upload_id)
        if completion is None:
            self._require_parts(record, self._parts.received(record))
            raise UploadIncompleteError([], [])
        return completion

    def _join(self, record: UploadRecord) -> str | None:
        """The key of all parts in one; None if another call has completed the upload meanwhile."""
        try:
            parts = self._parts.received(record)
            self._require_parts(record, parts)
            return self._parts.join(record, parts)
        except (UploadIncompleteError, FileNotFoundError) as error:
            if self._completion(record.id) is not None:
                return None
            joined = self._parts.joined(record)  # by a call that crashed, or has not come to its end
            if joined is None and isinstance(error, FileNotFoundError):
                raise UploadNotFoundError from error
            if joined is None:
                raise
            return joined

    def _require_parts(self, record: UploadRecord, parts: Mapping[int, ReceivedPart]) -> None:
        sizes = record.part_sizes_bytes
        missing = [number for number in sizes if number not in parts]
        wrong = [
            {"number": number, "expected_bytes": sizes.get(number, 0), "found_bytes": part.size_bytes}
            for number, part in parts.items()
            if part.size_bytes != sizes.get(number)
        ]
        if missing or wrong:
            raise UploadIncompleteError(missing, wrong)

    def _verified(self, record: UploadRecord, key: str) -> UploadCompletion:
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

    def _publish(self, record: UploadRecord, mine: UploadCompletion) -> UploadCompletion:
        """Of several that complete an upload at once, the first one's scan is the one that jobs take."""
        folder = folder_of(record.id)
        self._blobs.create(folder + "completed.json", mine.model_dump_json().encode())
        winner = self._completion(record.id)
        if winner is not None and winner.key != mine.key:
            self._blobs.delete(mine.key)
        if winner is None or not self._blobs.exists(folder + "upload.json"):  # aborted or taken meanwhile
            self._blobs.delete_all(folder)
            raise UploadNotFoundError
        return winner

    def _discard(self, record: UploadRecord) -> None:
        """S3 forgets its parts while we still know their name; without `upload.json` nobody adds any; then the rest."""
        self._parts.drop(record)
        self._blobs.delete(folder_of(record.id) + "upload.json")
        self._blobs.delete_all(folder_of(record.id))

    def _state(self, record: UploadRecord, received: Mapping[int, ReceivedPart]) -> LargeUploadState:
        now = states.now()
        left = int((record.expires_at - now).total_seconds())
        seconds = max(1, min(self._settings.url_seconds, left))
        parts = tuple(
            PartState(
                number,
                size_bytes,
                None if _fits(received.get(number), size_bytes) else self._parts.place(record, number, seconds),
            )
            for number, size_bytes in record.part_sizes_bytes.items()
        )
        is_open = any(not part.is_received for part in parts)
        return LargeUploadState(record, None, parts, now + timedelta(seconds=seconds) if is_open else None)


def _completed(record: UploadRecord, completion: UploadCompletion) -> LargeUploadState:
    parts = tuple(PartState(number, size_bytes, place=None) for number, size_bytes in record.part_sizes_bytes.items())
    return LargeUploadState(record, completion, parts, None)


def _fits(part: ReceivedPart | None, size_bytes: int) -> bool:
    return part is not None and part.size_bytes == size_bytes
