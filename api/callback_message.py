"""What a receiver gets: a CloudEvent (1.0, structured JSON) signed as Standard Webhooks (1.0) say.

A message has one id however often it is sent. All secrets sign it, newest first, so that they can be changed without a
message that somebody cannot check.
"""

import json
import secrets
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from standardwebhooks import Webhook

from jobs.batches import BatchEnd
from jobs.callbacks import Delivery
from jobs.models import JobRecord, JobStatus
from jobs.settings import JobsSettings
from jobs.store.signed_urls import read_or_make_secret

CONTENT_TYPE: Final = "application/cloudevents+json"
SECRET_FILE: Final = "callback-secret"  # noqa: S105 (the name of the file)
SECRET_BYTES: Final = 32


@dataclass(frozen=True)
class Message:
    """A request's body and headers."""

    body: str
    headers: dict[str, str]


def signers(settings: JobsSettings) -> list[Webhook]:
    """One for each secret. Without a setting, for the one kept in the data folder.

    Raises:
        StorageUnavailableError: that cannot be read or written.
    """
    if settings.callback_secrets is not None:
        return [Webhook(secret) for secret in settings.callback_secrets.get_secret_value().split()]

    def new_secret() -> str:
        return f"whsec_{b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}"

    return [Webhook(read_or_make_secret(settings.data_dir / SECRET_FILE, new_secret))]


def compose(delivery: Delivery, signed_by: Sequence[Webhook], now: datetime, traceparent: str | None = None) -> Message:
    """The message about a job or a batch, signed at `now`; the receiver may go on with the trace."""
    # The id does not change with the attempt: a receiver knows a repetition by it.
    id_, body = f"msg_{delivery.record.id}", json.dumps(event_of(delivery), separators=(",", ":"))
    # Every secret signs, so that receivers may change over one after the other.
    signatures = " ".join(signer.sign(id_, now, body) for signer in signed_by)
    headers = {
        "content-type": CONTENT_TYPE,
        "webhook-id": id_,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signatures,
    }
    return Message(body, headers | ({"traceparent": traceparent} if traceparent else {}))


def event_of(delivery: Delivery) -> dict[str, Any]:
    """The event: how the job or the batch ended, and where the rest is. Nothing about the patient."""
    record, end = delivery.record, delivery.end
    # No file names and nothing of the scan's header: a receiver, and every log on the way, may read this.
    if isinstance(end, BatchEnd):
        address = record.address or f"/v1/batches/{record.id}"
        type_, time = "lobewise.batch.ended", end.ended_at
        counts = {status.value: end.by_status.get(status, 0) for status in JobStatus}
        data: dict[str, Any] = {
            "id": record.id,
            "ended_at": end.model_dump(mode="json", include={"ended_at"})["ended_at"],
            "counts": {**counts, "purged": end.purged, "refused": end.refused},
            "links": {"self": address},
        }
    else:
        address = record.address or f"/v1/jobs/{record.id}"
        type_, time = f"lobewise.job.{end.outcome}", end.finished_at
        has_report = end.outcome == "succeeded" and end.inspection_key is None
        data = {
            "id": record.id,
            "status": end.outcome,
            "client_reference": record.client_reference if isinstance(record, JobRecord) else None,
            **end.model_dump(mode="json", include={"severity", "error", "finished_at"}),
            "links": {"self": address, "report": f"{address}/report" if has_report else None},
        }
    return {
        "specversion": "1.0",
        "id": f"msg_{record.id}",
        "source": address.removesuffix(f"/{record.id}"),
        "type": type_,
        "subject": record.id,
        "time": time.isoformat(),
        "datacontenttype": "application/json",
        "data": data,
    }
