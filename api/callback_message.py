"""What a receiver gets: a CloudEvent (1.0, structured JSON) signed as Standard Webhooks (1.0) say.

A message has one id however often it is sent. All secrets sign it, newest first, so that they can be changed without a
message that somebody cannot check.
"""

import json
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from standardwebhooks import Webhook

from jobs.access.caller import DEFAULT_TENANT
from jobs.batches import BatchEnd
from jobs.callbacks import Delivery
from jobs.models import JobRecord, JobStatus
from jobs.settings import JobsSettings
from jobs.store.signed_urls import read_or_make_secret

CONTENT_TYPE: Final = "application/cloudevents+json"
SECRET_FILE: Final = "callback-secret"  # noqa: S105 (the name of the file)
SECRET_BYTES: Final = 32
_PREFIX: Final = "whsec_"


@dataclass(frozen=True)
class Message:
    """A request's body and headers."""

    body: str
    headers: dict[str, str]


def callback_secrets(settings: JobsSettings, tenant: str = DEFAULT_TENANT) -> list[str]:
    """Those that sign a tenant's messages, newest first. Without a setting, the one kept in the data folder.

    That is how those of `default` stand there; those of another tenant are derived from them, so that each has its own
    and there is one to keep. Nobody gets from one tenant's to another's, or to the one that is kept.

    Raises:
        StorageUnavailableError: the data folder cannot be read or written.
    """
    if settings.callback_secrets is not None:
        kept = settings.callback_secrets.get_secret_value().split()
    else:
        kept = [read_or_make_secret(settings.data_dir / SECRET_FILE, lambda: _text(secrets.token_bytes(SECRET_BYTES)))]
    if tenant == DEFAULT_TENANT:
        return kept
    purpose = f"lobewise callbacks of tenant {tenant}".encode()
    keys = [b64decode(secret.removeprefix(_PREFIX)) for secret in kept]
    return [_text(HKDF(SHA256(), SECRET_BYTES, salt=None, info=purpose).derive(key)) for key in keys]


def _text(secret: bytes) -> str:
    """As Standard Webhooks write it."""
    return _PREFIX + b64encode(secret).decode()


def signers(settings: JobsSettings, tenant: str = DEFAULT_TENANT) -> list[Webhook]:
    """One for each of a tenant's secrets. Raises StorageUnavailableError."""
    return [Webhook(secret) for secret in callback_secrets(settings, tenant)]


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
