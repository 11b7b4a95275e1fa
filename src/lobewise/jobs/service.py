"""Jobs, as the API and the workers see them: accept, look, cancel, purge; claim, report, finish."""

from pathlib import Path
from typing import Any

from lobewise.jobs.answers import JobPage, Readiness, Sort, StoredMask, UploadSink
from lobewise.jobs.idempotency import Idempotency
from lobewise.jobs.models import JobRecord, JobState, JobStatus, MaskName, Priority, Report
from lobewise.jobs.settings import JobsSettings


class Jobs:
    """All calls are synchronous and thread-safe; only the upload sink is async.

    What cannot be reached raises UnavailableError: BlobStoreUnavailableError always, BrokerUnavailableError only
    where it says so; all else works without the broker, if more slowly.
    """

    settings: JobsSettings
    idempotency: Idempotency

    # The gateway's side

    def new_id(self) -> str:
        """An id that sorts by time (UUIDv7) and cannot be guessed."""
        raise NotImplementedError

    async def open_upload(self, job_id: str) -> UploadSink:
        """Where the scan of a job to come is written to."""
        raise NotImplementedError

    def discard_upload(self, job_id: str) -> None:
        """Forget a finished upload that will not become a job, such as the body of a replayed request."""
        raise NotImplementedError

    def accept(self, record: JobRecord) -> JobState:
        """Make the job durable, then queue it. Once this returns, the job is never lost, broker or not.

        Raises:
            IdempotencyInFlightError: its idempotency key was taken over meanwhile; the job is not accepted.
        """
        raise NotImplementedError

    def get(self, job_id: str) -> JobState:
        """Raises JobNotFoundError, JobPurgedError."""
        raise NotImplementedError

    def list(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        status: JobStatus | None = None,
        sort: Sort = "-created_at",
        priority: Priority | None = None,
    ) -> JobPage:
        """A page of jobs. `severity` puts the highest percentage of opacity first and has succeeded jobs only.

        Raises:
            InvalidCursorError: not a cursor of this service, or one of another sort or filter.
        """
        raise NotImplementedError

    def wait(self, job_id: str, timeout_seconds: float) -> JobState:
        """The job once it is final, or as it stands after the timeout."""
        raise NotImplementedError

    def cancel(self, job_id: str) -> JobState:
        """Queued: cancelled at once. Running: requested. Already requested: as it stands.

        Raises:
            WrongStateError: it is final already.
        """
        raise NotImplementedError

    def purge(self, job_id: str) -> None:
        """Delete the job and all that belongs to it, running or not; later reads raise JobPurgedError."""
        raise NotImplementedError

    def report(self, job_id: str) -> Report:
        """Raises WrongStateError unless succeeded."""
        raise NotImplementedError

    def mask(self, job_id: str, name: MaskName) -> StoredMask:
        """Raises WrongStateError unless succeeded."""
        raise NotImplementedError

    def check_broker(self) -> None:
        """Raises BrokerUnavailableError within about a second when the broker does not answer."""
        raise NotImplementedError

    def readiness(self) -> Readiness:
        """Never raises."""
        raise NotImplementedError

    def start_reaper(self) -> None:
        """Look for lost jobs in a background thread until `close`; one process at a time does it."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop threads and connections, and the embedded server if this process started it."""
        raise NotImplementedError

    # The workers' side

    def claim(self, job_id: str, worker: str) -> Any:
        raise NotImplementedError

    def fetch_input(self, lease: Any, folder: Path) -> Path:
        raise NotImplementedError
