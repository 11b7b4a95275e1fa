"""Idempotency keys: the same request twice makes one job."""

from dataclasses import dataclass

from lobewise.jobs.models import JobRecord


def fingerprint(record: JobRecord) -> str:
    """What must be the same in a repeated request: the scan and every option, not the id or the time."""
    raise NotImplementedError


@dataclass(frozen=True)
class FirstAnswer:
    """The job that the first request with a key made."""

    job_id: str
    fingerprint: str

    def demand_same(self, record: JobRecord) -> None:
        """Compare the record that the repeated request would have made.

        Raises:
            IdempotencyMismatchError: the key came with another scan or other options.
        """
        raise NotImplementedError


class Idempotency:
    """`begin` before the upload, then `Jobs.accept`; `abandon` where the request fails. There is nothing to finish."""

    def begin(self, key: str, job_id: str) -> FirstAnswer | None:
        """None: go on and accept `job_id`. Otherwise the first answer: hash the body and `demand_same`.

        The mark expires (`in_flight_seconds`), so that a request that crashed does not block its key.

        Raises:
            IdempotencyInFlightError: the first request with this key is still being accepted.
        """
        raise NotImplementedError

    def abandon(self, key: str, job_id: str) -> None:
        """Free the key: the request failed and may be sent again, changed or not."""
        raise NotImplementedError
