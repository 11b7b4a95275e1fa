"""Deletes what nobody will ask for again: jobs past their retention, what never became a job, what a purge left.

A scan leaves traces before it is a job: an upload in parts, an `input` without its `job.json`, the unseen parts of a
writer that was killed. All are left alone for `upload_seconds`, in which an honest upload has ended.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from jobs import embedded_redis, states
from jobs.access.caller import DEFAULT_TENANT
from jobs.audit.entries import Act, Entry
from jobs.audit.trail import delete_expired
from jobs.backends import Backends
from jobs.batches import Batches
from jobs.errors import BrokerUnavailableError, JobNotFoundError, JobPurgedError, NewerSchemaError
from jobs.recovery import finalize
from jobs.store.inputs import RECEIVED, Inputs
from jobs.store.job_store import JobFiles
from jobs.store.keys import JOBS, RESULTS, TENANTS, UPLOADS
from jobs.store.multipart_uploads import MultipartUploads

log = logging.getLogger(__name__)

#: What bars a job from coming late is kept for much longer than any request lasts.
VOID_KEPT: Final = timedelta(days=30)


@dataclass(frozen=True)
class Cleanup:
    backends: Backends
    uploads: MultipartUploads
    batches: Batches

    def clean_up(self, now: datetime | None = None) -> int:
        """Look once through all blobs; how many things were deleted. Raises StorageUnavailableError."""
        now = now or states.now()
        settings, listed = self.backends.settings, list(self.backends.store.listed())
        retention = settings.retention_seconds
        kept_from = None if retention is None else now - timedelta(seconds=retention)
        upload_from = now - timedelta(seconds=settings.upload_seconds)
        retired = 0 if kept_from is None else self._purge_ended(listed, kept_from)
        orphans = self._delete_orphans([files for files in listed if states.made_at(files.job_id) < upload_from], now)
        orphans += self.uploads.clean_up(now)
        orphans += self._remove_leftovers(listed)
        orphans += self._delete_received(listed)
        orphans += self._delete_tombstones(listed, now - timedelta(seconds=settings.tombstone_seconds))
        orphans += self.batches.clean_up(now, kept_from)
        orphans += self._delete_stale_results(listed)
        with suppress(BrokerUnavailableError):
            self.backends.live.erase_deleted()
        audit, audit_days = self.backends.audit, settings.audit_retention_days
        # The trail is one for all tenants.
        if audit is not None and audit_days is not None and self.backends.tenant == DEFAULT_TENANT:
            orphans += delete_expired(audit, audit_days, now.date())
        blobs = self.backends.store.blobs
        # A bucket may also be that of others. In the folder of `default` lie those of all tenants, which are looked at
        # by themselves.
        in_folder = blobs.folder is not None
        below = [f"{name}/" for name in blobs.folders("") if f"{name}/" != TENANTS] if in_folder else [JOBS, UPLOADS]
        unfinished = sum(blobs.delete_unfinished(prefix, upload_from) for prefix in below)
        embedded_redis.compact(settings.data_dir / "valkey", settings.redis_url)
        if retired or orphans or unfinished:
            log.info("deleted %d jobs past retention, %d orphans, %d unfinished writes", retired, orphans, unfinished)
        return retired + orphans + unfinished

    def stored_bytes(self) -> int:
        """Of all scans and results, and of uploads on their way to a job. Raises StorageUnavailableError."""
        blobs = self.backends.store.blobs
        return sum(info.size_bytes for folder in (JOBS, UPLOADS) for info in blobs.infos(folder))

    def _purge_ended(self, listed: Iterable[JobFiles], oldest: datetime) -> int:
        purged = 0
        for files in listed:
            # A job cannot have ended before it was made: so only the old ones are read.
            if not files.is_final or files.is_purged or states.made_at(files.job_id) >= oldest:
                continue
            with suppress(JobNotFoundError, JobPurgedError, NewerSchemaError):  # just deleted by another, or not for us
                manifest = self.backends.store.manifest(files.job_id)
                if manifest is not None and manifest.finished_at <= oldest:
                    finalize.purge(self.backends, self.uploads, files.job_id)
                    purged += 1
                    if self.backends.audit is not None:
                        tenant, job_id = self.backends.tenant, files.job_id
                        self.backends.audit.record(
                            Entry(Act.PURGE, tenant=tenant, subject="retention", kind="job", id=job_id)
                        )
        return purged

    def _delete_orphans(self, old: Iterable[JobFiles], now: datetime) -> int:
        """Inputs that became no job, and later what kept them from becoming one."""
        store, deleted = self.backends.store, 0
        for files in old:
            if files.is_purged:
                continue
            # Only once it is certain that it becomes no job, however late its request comes to an end.
            if not files.is_job and store.void(files.job_id):
                store.delete_all_but_record(files.job_id)
                deleted += 1
                continue
            is_alone = files.names == {"job.json"} and states.made_at(files.job_id) <= now - VOID_KEPT
            if is_alone and store.is_void(files.job_id):
                store.delete_all_but_tombstone(files.job_id)
                deleted += 1
        return deleted

    def _remove_leftovers(self, listed: Iterable[JobFiles]) -> int:
        """What a purge that was cut short left, or a worker that was killed while it still wrote."""
        leftovers = [files.job_id for files in listed if files.is_purged and len(files.names) > 1]
        for job_id in leftovers:
            finalize.remove_traces(self.backends, job_id)
        return len(leftovers)

    def _delete_received(self, listed: Iterable[JobFiles]) -> int:
        """Scans as they came that outlived their job, since whoever ended it was killed before they were deleted."""
        left = [f.job_id for f in listed if f.is_final and not f.is_purged and RECEIVED in f.names]
        for job_id in left:
            Inputs(self.backends.store.blobs).delete_received(job_id)
        return len(left)

    def _delete_tombstones(self, listed: Iterable[JobFiles], oldest: datetime) -> int:
        # A job cannot have been deleted before it was made: so only the old ones are looked at.
        old = (f.job_id for f in listed if f.names == {"purged.json"} and states.made_at(f.job_id) < oldest)
        return sum(self.backends.store.delete_tombstone(job_id, oldest) for job_id in old)

    def _delete_stale_results(self, listed: Iterable[JobFiles]) -> int:
        """What led to results that are gone: its worker was killed, or could not be seen, while the job was deleted."""
        blobs, kept = self.backends.store.blobs, {files.job_id for files in listed if not files.is_purged}
        deleted = 0
        for key in blobs.keys(RESULTS):
            job_id = key.rpartition("/")[2]
            # A job that was accepted after the listing is not in it, and may have its result by now.
            if job_id not in kept and states.is_id(job_id) and not self.backends.store.is_final(job_id):
                blobs.delete(key)
                deleted += 1
        return deleted
