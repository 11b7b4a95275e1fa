"""Results by what they were computed from, so that the same scan is not scored twice by the same software and weights.

Each computed result has one small blob whose key says all: the sha256 of the scan, the digest of software and weights,
the job. These blobs are an index and decide nothing: one that is missing costs a computation, and one that leads to a
job that was deleted, or to a result that is damaged, is passed over.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from jobs.errors import NewerSchemaError
from jobs.models import ImageBlob, ImageName, JobRecord, JobTask, Manifest, MaskBlob, Report
from jobs.settings import JobsSettings
from jobs.store.job_store import JobStore
from jobs.store.keys import RESULTS, attempt_key
from jobs.store.object_store import ObjectStore


def results_prefix(record: JobRecord, input_sha256: str, digest: str) -> str:
    """Where the results lie that this job may be given. Whoever may not see each other's results differs here."""
    return f"{RESULTS}{record.task.value}/{input_sha256}/{digest}/"


@dataclass(frozen=True)
class CopiedResult:
    """The result of an earlier job, as a later one's own: `source_id` names the job that was computed."""

    source_id: str
    report: Report
    report_key: str
    masks: list[MaskBlob]
    images: list[ImageBlob]

    def in_manifest(self) -> dict[str, Any]:
        """The fields of the later job's manifest that come from it."""
        return {
            "severity": self.report.severity,
            "report_key": self.report_key,
            "masks": self.masks,
            "images": self.images,
            "reused_from": self.source_id,
        }


@dataclass(frozen=True)
class Results:
    """Every method raises StorageUnavailableError."""

    store: JobStore
    settings: JobsSettings

    def may_serve(self, record: JobRecord) -> bool:
        """Whether operator and client let this job be given another's result. Validating a scan takes seconds."""
        return self.settings.reuse_results and record.reuse and record.task is JobTask.SCORE

    def add(self, manifest: Manifest) -> None:
        """Make a computed result one that others may be given. It is no more than a hint: nothing waits for it."""
        if manifest.index_key is not None:
            self.store.blobs.write(manifest.index_key, b"{}")
            if self.store.is_purged(manifest.job_id):  # deleted meanwhile, by someone who could not see the line above
                self.store.blobs.delete(manifest.index_key)

    def copy(self, record: JobRecord, input_sha256: str, digest: str, attempt: int) -> CopiedResult | None:
        """Copy the newest whole result for these bytes into the attempt's folder; None if there is none.

        Masks and images are copied within the store, and the copies are read: what is damaged is not given to anybody.
        """
        prefix = results_prefix(record, input_sha256, digest)
        for source_id in sorted((key.removeprefix(prefix) for key in self.store.blobs.keys(prefix)), reverse=True):
            try:
                copied = self._copy_of(source_id, record.id, input_sha256, attempt)
            except (FileNotFoundError, NewerSchemaError, ValueError):  # deleted meanwhile, or damaged
                copied = None
            if copied is not None:
                return copied
        return None

    def _copy_of(self, source_id: str, job_id: str, input_sha256: str, attempt: int) -> CopiedResult | None:
        """Raises FileNotFoundError, NewerSchemaError, and ValueError for a report that is damaged."""
        # The tombstone is asked for first: what was deleted before this moment does not come back.
        if self.store.is_purged(source_id) or (manifest := self.store.manifest(source_id)) is None:
            return None
        if manifest.outcome != "succeeded" or manifest.input_sha256 != input_sha256 or manifest.report_key is None:
            return None
        report = Report.read(self.store.blobs.read(manifest.report_key) or b"")
        masks: list[MaskBlob] = []
        images: list[ImageBlob] = []
        known, keeps = frozenset(ImageName), self.settings.keep_images
        wanted = (image for image in manifest.images if image.name in known and ImageName(image.name).is_kept(keeps))
        copied: list[MaskBlob | ImageBlob] = [*manifest.masks, *wanted]
        for blob in copied:
            folder = "images/" if isinstance(blob, ImageBlob) else ""
            key = attempt_key(job_id, attempt, folder + blob.key.rpartition("/")[2])
            self.store.blobs.copy(blob.key, key)
            if _sha256(self.store.blobs, key) != blob.sha256:
                return None
            if isinstance(blob, ImageBlob):
                images.append(blob.model_copy(update={"key": key}))
            else:
                masks.append(blob.model_copy(update={"key": key}))
        provenance = report.provenance.model_copy(update={"reused_from": source_id})
        report = report.model_copy(update={"job_id": job_id, "provenance": provenance})
        report_key = attempt_key(job_id, attempt, "report.json")
        self.store.blobs.write(report_key, report.model_dump_json().encode())
        return CopiedResult(source_id, report, report_key, masks, images)


def _sha256(blobs: ObjectStore, key: str) -> str:
    digest = hashlib.sha256()
    for piece in blobs.pieces(key, 0, None):
        digest.update(piece)
    return digest.hexdigest()
