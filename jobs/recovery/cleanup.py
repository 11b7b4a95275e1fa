"""Deletes what nobody will ask for again: jobs past their retention, what never became a job, what a purge left.

A scan leaves traces before it is a job: an upload in parts, an `input` without its `job.json`, the unseen parts of a
writer that was killed. All are left alone for `upload_seconds`, in which an honest upload has ended.
"""

import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from jobs import states
from jobs.backends import Backends
from jobs.batches import Batches
from jobs.errors import JobNotFoundError, JobPurgedError, NewerSchemaError
from jobs.recovery import finalize
from jobs.store.job_store import JobFiles
from jobs.store.multipart_uploads import PREFIX, MultipartUploads

log = logging.getLogger(__name__)

#: What bars a job from coming late is kept for much longer than any request lasts.
VOID_KEPT: Final = timedelta(days=30)

#: What obstore calls a local file that it has not finished.
_STAGED: Final = re.compile(r".*#\d+")


@dataclass(frozen=True)
class Cleanup:
    backends: Backends
    uploads: MultipartUploads
    batches: Batches

    def clean_up(self, now: datetime | None = None) -> int:
        """Look once through all blobs; how many things were deleted. Raises StorageUnavailableError."""
        now = now or states.now()
        listed = list(self.backends.store.listed())
        retired = self._retire(listed, now)
        oldest = self._oldest(now)
        old = [files for files in listed if not files.is_purged and states.made_at(files.job_id) < oldest]
        forgotten = sum(self._forget_void(files.job_id, now) for files in old if files.names == {"job.json"})
        clean_up_inputs = forgotten + sum(self._void(files.job_id) for files in old if not files.is_job)
        orphans = self.uploads.clean_up(now) + clean_up_inputs + self._clean_up_purged(listed)
        orphans += self._forget(listed, now)
        orphans += self.batches.clean_up(now, self._retention_began(now))
        unfinished = self._clean_up_multiparts(now) + self._clean_up_staged(now)
        if retired or orphans or unfinished:
            log.info("swept %d jobs past retention, %d orphans, %d unfinished writes", retired, orphans, unfinished)
        return retired + orphans + unfinished

    def _retire(self, listed: Iterable[JobFiles], now: datetime) -> int:
        oldest = self._retention_began(now)
        if oldest is None:
            return 0
        # A job cannot have ended before it was made: so only the old ones are read.
        ended = (files for files in listed if files.is_final and not files.is_purged)
        return sum(self._retire_if_ended(f.job_id, oldest) for f in ended if states.made_at(f.job_id) < oldest)

    def _retention_began(self, now: datetime) -> datetime | None:
        seconds = self.backends.settings.retention_seconds
        return None if seconds is None else now - timedelta(seconds=seconds)

    def _retire_if_ended(self, job_id: str, oldest: datetime) -> bool:
        with suppress(JobNotFoundError, JobPurgedError, NewerSchemaError):  # just deleted by another, or not for us
            manifest = self.backends.store.manifest(job_id)
            if manifest is not None and manifest.finished_at <= oldest:
                finalize.purge(self.backends, self.uploads, job_id)
                return True
        return False

    def _clean_up_purged(self, listed: Iterable[JobFiles]) -> int:
        """A purge that was cut off, or a worker that was killed while it still wrote."""
        leftovers = [files.job_id for files in listed if files.is_purged and len(files.names) > 1]
        for job_id in leftovers:
            finalize.remove_traces(self.backends, job_id)
        return len(leftovers)

    def _forget(self, listed: Iterable[JobFiles], now: datetime) -> int:
        """Tombstones that nobody asks for any more: in a busy service they would be most of what there is to list."""
        oldest = now - timedelta(seconds=self.backends.settings.tombstone_seconds)
        # A job cannot have been deleted before it was made: so only the old ones are looked at.
        graves = (f for f in listed if f.names == {"purged.json"} and states.made_at(f.job_id) < oldest)
        return sum(self.backends.store.delete_tombstone(files.job_id, oldest) for files in graves)

    def _void(self, job_id: str) -> bool:
        """Only once it is certain that it becomes no job, however late its request comes to an end."""
        if not self.backends.store.void(job_id):
            return False
        self.backends.store.delete_all_but_record(job_id)
        return True

    def _forget_void(self, job_id: str, now: datetime) -> bool:
        if states.made_at(job_id) > now - VOID_KEPT or not self.backends.store.is_void(job_id):
            return False
        self.backends.store.clean_up(job_id)
        return True

    def _oldest(self, now: datetime) -> datetime:
        return now - timedelta(seconds=self.backends.settings.upload_seconds)

    def _clean_up_multiparts(self, now: datetime) -> int:
        bucket = self.backends.store.blobs.bucket
        if bucket is None:
            return 0
        found = [upload for folder in (self.backends.store.prefix, PREFIX) for upload in bucket.unfinished(folder)]
        stale = [upload for upload in found if upload.begun_at < self._oldest(now)]
        for upload in stale:
            bucket.abort(upload.key, upload.multipart_id)
        return len(stale)

    def _clean_up_staged(self, now: datetime) -> int:
        folder = self.backends.store.blobs.folder
        if folder is None:
            return 0
        stale = list(_staged(folder.rglob("*#*"), self._oldest(now)))
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)


def _staged(paths: Iterable[Path], oldest: datetime) -> Iterable[Path]:
    for path in paths:
        with suppress(FileNotFoundError):
            if _STAGED.fullmatch(path.name) and datetime.fromtimestamp(path.stat().st_mtime, UTC) < oldest:
                yield path
