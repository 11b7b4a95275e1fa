"""Turns what the jobs say into what travels over HTTP: the same fields, with addresses."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from api.dependencies import Addresses
from api.schemas import (
    Batch,
    BatchCountsView,
    BatchItemView,
    BatchLinks,
    BatchSummary,
    FeedEvent,
    FeedPage,
    Job,
    JobLinks,
    Upload,
    UploadLinks,
    UploadPart,
)
from jobs.batches import BatchCounts, BatchRecord
from jobs.live.feed import Changes, ChangeType
from jobs.models import JobState, JobStatus, JobTask, MaskName, Report
from jobs.states import MultipartUploadState, UrlSignature


def job_view(state: JobState, addresses: Addresses) -> Job:
    fields = {name: getattr(state, name) for name in Job.model_fields if name != "links"}
    fields["callback_url"] = _shown(state.callback_url)
    succeeded = state.status is JobStatus.SUCCEEDED
    scored = succeeded and state.task is JobTask.SCORE
    links = JobLinks(
        self=addresses.job(state.id),
        cancel=None if state.status.is_final else addresses.job(state.id, "cancel"),
        callback=addresses.job(state.id, "callback") if state.callback_url else None,
        events=addresses.job(state.id, "events"),
        report=addresses.job(state.id, "report") if scored else None,
        masks=_masks(state.id, addresses) if scored else None,
        labels=addresses.job(state.id, "labels") if scored else None,
        inspection=addresses.job(state.id, "inspection") if succeeded and not scored else None,
    )
    return Job(**fields, links=links)


def batch_view(
    record: BatchRecord, counts: BatchCounts, states: Sequence[JobState | None], first: int, addresses: Addresses
) -> Batch:
    """A page of a batch: `states` are those of its items from `first` on; None where there is no job (any more)."""
    items = [
        BatchItemView(index=first + n, job=job_view(state, addresses) if state else None, error=item.error)
        for n, (item, state) in enumerate(zip(record.items[first : first + len(states)], states, strict=True))
    ]
    end = first + len(items)
    next_cursor = str(end) if end < len(record.items) else None
    return Batch(**dict(batch_summary(record, counts, addresses)), items=items, next_cursor=next_cursor)


def batch_summary(record: BatchRecord, counts: BatchCounts, addresses: Addresses) -> BatchSummary:
    return BatchSummary(
        id=record.id,
        created_at=record.created_at,
        callback_url=_shown(record.callback_url),
        counts=BatchCountsView(
            **{status.value: n for status, n in counts.by_status.items()}, purged=counts.purged, refused=counts.refused
        ),
        links=BatchLinks(
            self=addresses.batch(record.id),
            cancel=addresses.batch(record.id, "cancel"),
            callback=addresses.batch(record.id, "callback") if record.callback_url else None,
        ),
    )


def feed_view(changes: Changes, states: Sequence[JobState | None]) -> FeedPage:
    """`states` are those of the changes' jobs now; None where there is none any more."""
    items = []
    for change, state in zip(changes.items, states, strict=True):
        status = {ChangeType.CREATED: JobStatus.QUEUED, ChangeType.PURGED: None}.get(change.type, change.type.value)
        known = None if change.type is ChangeType.PURGED else state
        fields = {
            "id": change.id,
            "time": change.at,
            "type": f"lobewise.job.{change.type}",
            "job_id": change.job_id,
            "status": status,
            "client_reference": known.client_reference if known else None,
            "batch_id": known.batch_id if known else None,
            "severity": known.severity if known and change.type is ChangeType.SUCCEEDED else None,
        }
        items.append(FeedEvent.model_validate(fields))
    return FeedPage(items=items, next_cursor=changes.next_cursor, has_more=changes.has_more)


def report_view(report: Report, addresses: Addresses) -> Report:
    dicom = {product: addresses.job(report.job_id, "dicom", product) for product in report.dicom}
    return report.model_copy(update={"masks": _masks(report.job_id, addresses), "dicom": dicom})


def upload_view(state: MultipartUploadState, addresses: Addresses) -> Upload:
    record, completion = state.record, state.completion
    parts = []
    for part in state.parts:
        # S3's addresses come presigned and whole; for a folder there is a signature, and the gateway takes the part.
        url = addresses.part(record.id, part.number, part.url) if isinstance(part.url, UrlSignature) else part.url
        parts.append(UploadPart(number=part.number, size_bytes=part.size_bytes, received=part.is_received, url=url))
    return Upload(
        id=record.id,
        status="complete" if completion else "open",
        created_at=record.created_at,
        expires_at=record.expires_at,
        size_bytes=record.size_bytes,
        sha256=completion.sha256 if completion else record.sha256,
        part_bytes=record.part_bytes,
        parts=parts,
        urls_expire_at=state.urls_expire_at,
        links=UploadLinks(
            self=addresses.upload(record.id),
            complete=None if completion else addresses.upload(record.id, "complete"),
        ),
    )


def as_json(model: BaseModel) -> Any:
    return model.model_dump(mode="json", by_alias=True)


def json_response(model: BaseModel, status_code: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(as_json(model), status_code, headers)


def _shown(callback_url: str | None) -> str | None:
    """Without what may be a receiver's secret: everybody who may read the job would have it."""
    if callback_url is None:
        return None
    parts = urlsplit(callback_url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _masks(job_id: str, addresses: Addresses) -> dict[MaskName, str]:
    return {name: addresses.job(job_id, "masks", name) for name in MaskName}
