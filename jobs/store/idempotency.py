"""Idempotency keys: the same request twice makes one job.

A key is a numbered row of create-only marks, each naming the job that its request means to make. The last mark
counts. If its job was accepted, that is the first answer. If not, the request is in flight until the mark is old;
then the next request first makes sure that the old one can no longer be accepted (its id is voided), and adds its
own mark. So a crash at any point leaves a key that works, and never two jobs.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from jobs import states
from jobs.errors import IdempotencyInFlightError, IdempotencyMismatchError
from jobs.models import SCHEMA_VERSION, JobRecord, Model, SchemaVersion
from jobs.store.job_store import JobStore
from jobs.store.keys import hashed


def fingerprint(record: JobRecord) -> str:
    """What must be the same in a repeated request: the scan and every option, not the id or the time.

    An upload is named by its id, since its bytes are gone once the first request has made a job of it.
    """
    beside = {"id", "created_at", "schema_version", "address", "traceparent"}
    return hashed(record.model_dump_json(exclude=beside | ({"input"} if record.upload_id else set())))


@dataclass(frozen=True)
class FirstAnswer:
    """The job that the first request with a key made."""

    job_id: str
    #: None when the job was purged meanwhile: then nothing is left to compare.
    fingerprint: str | None

    def require_same(self, record: JobRecord) -> None:
        """Raises IdempotencyMismatchError: the repeated request would make another record than the first."""
        if self.fingerprint not in (None, fingerprint(record)):
            raise IdempotencyMismatchError("this idempotency key was used with another request")


class _Mark(Model):
    schema_version: SchemaVersion = SCHEMA_VERSION
    job_id: str
    begun_at: datetime


@dataclass(frozen=True)
class Idempotency:
    """`begin` before the upload, then `Jobs.accept`; `abandon` where the request fails. There is nothing to finish."""

    store: JobStore
    in_flight_seconds: float

    def begin(self, key: str, job_id: str) -> FirstAnswer | None:
        """None: go on and accept `job_id`. Otherwise the first answer: hash the body and `require_same`.

        Raises IdempotencyInFlightError: the first request with this key is still being accepted.
        """
        number, last = self._last(key)
        answer = self._answer(last) if last else None
        if answer is not None:
            return answer
        mark = _Mark(job_id=job_id, begun_at=states.now())
        # Of several requests that overtake the same mark, one creates the next number.
        if not self.store.blobs.create(self._name(key, number + 1), mark.stored()):
            raise IdempotencyInFlightError("another request with this idempotency key is being accepted")
        return None

    def abandon(self, key: str, job_id: str) -> None:
        """Free the key: the request failed and may be sent again, changed or not. A job that was accepted keeps it."""
        number, mark = self._last(key)
        if mark is not None and mark.job_id == job_id and self.store.void(job_id):
            self.store.blobs.delete(self._name(key, number))
            self.store.delete_all_but_tombstone(job_id)

    def _answer(self, mark: _Mark) -> FirstAnswer | None:
        """None when the mark's request may be overtaken."""
        files = self.store.files(mark.job_id)
        if files.is_purged:
            return FirstAnswer(mark.job_id, None)
        age = states.now() - mark.begun_at
        if not files.is_job and age < timedelta(seconds=self.in_flight_seconds):
            raise IdempotencyInFlightError("the first request with this idempotency key is still being accepted")
        if self.store.void(mark.job_id):
            return None
        return FirstAnswer(mark.job_id, fingerprint(self.store.record(mark.job_id)))

    def _name(self, key: str, number: int | None = None) -> str:
        """Of a mark, or of the folder of all."""
        return f"idempotency/{hashed(key)}/" + ("" if number is None else f"{number}.json")

    def _last(self, key: str) -> tuple[int, _Mark | None]:
        """The last mark and its number, which is 0 if there is none."""
        names = (name.rsplit("/", 1)[1] for name in self.store.blobs.keys(self._name(key)))
        number = max((int(name.removesuffix(".json")) for name in names), default=0)
        return number, self.store.blobs.read_document(_Mark, self._name(key, number)) if number else None
