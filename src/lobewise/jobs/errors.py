"""What can go wrong between both sides of a job.

JobsError
├── JobNotFoundError          no such job was ever accepted
├── JobPurgedError            it was deleted, with all that belonged to it
├── WrongStateError           the job's status does not allow this
├── IdempotencyError
│   ├── IdempotencyMismatchError   the key was used with another request
│   └── IdempotencyInFlightError   the first request with this key is still being accepted
├── LeaseError
│   ├── LeaseLostError        another worker owns the job now; its work must not be published
│   └── CancelRequestedError  someone asked to stop the job
├── InvalidCursorError        a page cursor that this service did not make
├── UploadTooLargeError       more bytes than the limit
└── UnavailableError          a part that we depend on does not answer; try again later
    ├── BrokerUnavailableError
    └── BlobStoreUnavailableError
"""


class JobsError(Exception):
    """Base of all errors of this package."""


class JobNotFoundError(JobsError):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id}")
        self.job_id = job_id


class JobPurgedError(JobsError):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} was deleted")
        self.job_id = job_id


class WrongStateError(JobsError):
    """The status at the time is in `status`."""

    def __init__(self, job_id: str, status: str, detail: str) -> None:
        super().__init__(detail)
        self.job_id = job_id
        self.status = status


class IdempotencyError(JobsError):
    pass


class IdempotencyMismatchError(IdempotencyError):
    pass


class IdempotencyInFlightError(IdempotencyError):
    pass


class LeaseError(JobsError):
    pass


class LeaseLostError(LeaseError):
    pass


class CancelRequestedError(LeaseError):
    pass


class InvalidCursorError(JobsError):
    pass


class UploadTooLargeError(JobsError):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the upload is larger than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class UnavailableError(JobsError):
    pass


class BrokerUnavailableError(UnavailableError):
    pass


class BlobStoreUnavailableError(UnavailableError):
    pass
