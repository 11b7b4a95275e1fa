"""What can go wrong between both sides of a job.

JobsError
├── JobNotFoundError          no such job was ever accepted
├── JobPurgedError            it was deleted, with all that belonged to it
├── WrongStateError           the job's status does not allow this
├── BatchNotFoundError        no such batch was ever accepted
├── NoCallbackError           the job tells nobody how it ended
├── IdempotencyError
│   ├── IdempotencyMismatchError   the key was used with another request
│   └── IdempotencyInFlightError   the first request with this key is still being accepted
├── LeaseError
│   ├── LeaseLostError        another worker owns the job now; its work must not be published
│   ├── HandBackError         the worker has to stop: another shall do it
│   └── CancelRequestedError  someone asked to stop the job
├── InvalidCursorError        a page cursor that this service did not make
├── UploadTooLargeError       more bytes than the limit
├── UploadError               an upload in parts cannot go on like this
│   ├── UploadNotFoundError       there is none, or no longer
│   ├── UploadIncompleteError     parts are missing or have the wrong size
│   ├── UploadClosedError         it is complete and takes no more parts
│   ├── UploadMismatchError       other bytes than announced; it is deleted
│   ├── WrongPartSizeError        a part with more or fewer bytes than it must have
│   └── UrlNotValidError               the address of a part is expired or not one of ours
├── SettingsError             the operator set a value that cannot be; the process does not start
├── SourceError               a scan that the worker should fetch cannot be had; the job fails
│   ├── SourceNotAllowedError     its address is not one that the operator allows
│   ├── SourceNotFoundError       its server says that there is no such scan, or not for us
│   ├── SourceTooLargeError       more bytes than the limit
│   └── SourceMismatchError       other bytes than its sha256 says
└── UnavailableError          a part that we depend on does not answer; try again later
    ├── BrokerUnavailableError
    ├── StorageUnavailableError
    └── NewerSchemaError      a document that only a newer version of this software can read
"""

from collections.abc import Mapping
from typing import ClassVar


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


class BatchNotFoundError(JobsError):
    def __init__(self, batch_id: str) -> None:
        super().__init__(f"there is no batch {batch_id}")


class NoCallbackError(JobsError):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} was posted without a callback_url")


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


class HandBackError(LeaseError):
    pass


class CancelRequestedError(LeaseError):
    pass


class InvalidCursorError(JobsError):
    pass


class SettingsError(JobsError):
    """Its text says which variable to set, and to what."""


class UploadTooLargeError(JobsError):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the upload is larger than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class UploadError(JobsError):
    """What was seen is in `evidence`."""

    def __init__(self, detail: str, **evidence: object) -> None:
        super().__init__(detail)
        self.evidence = evidence


class UploadNotFoundError(UploadError):
    def __init__(self) -> None:
        super().__init__("there is no such upload, or no longer")


class UploadIncompleteError(UploadError):
    def __init__(self, missing_parts: list[int], wrong_parts: list[dict[str, int]]) -> None:
        detail = f"{len(missing_parts)} parts are missing and {len(wrong_parts)} have the wrong size"
        super().__init__(detail, missing_parts=missing_parts, wrong_parts=wrong_parts)


class UploadClosedError(UploadError):
    def __init__(self) -> None:
        super().__init__("the upload is complete and takes no more parts")


class UploadMismatchError(UploadError):
    pass


class WrongPartSizeError(UploadError):
    def __init__(self, expected_bytes: int, found_bytes: int | None) -> None:
        found = {} if found_bytes is None else {"found_bytes": found_bytes}
        super().__init__(f"this part must have {expected_bytes} bytes", expected_bytes=expected_bytes, **found)


class UrlNotValidError(UploadError):
    pass


class SourceError(JobsError):
    """Ends the job `failed`: trying again would end the same way. Has what a `JobError` needs."""

    code: ClassVar[str] = "source"
    title: ClassVar[str] = "The scan could not be fetched"

    def __init__(self, detail: str, *, evidence: Mapping[str, object] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.evidence: dict[str, object] = dict(evidence or {})


class SourceNotAllowedError(SourceError):
    code = "source-not-allowed"
    title = "The scan's address is not allowed"


class SourceNotFoundError(SourceError):
    code = "source-not-found"
    title = "There is no scan at this address"


class SourceTooLargeError(SourceError):
    code = "source-too-large"
    title = "The scan is larger than this service fetches"


class SourceMismatchError(SourceError):
    code = "source-mismatch"
    title = "The scan at this address is not the one announced"


class UnavailableError(JobsError):
    pass


class BrokerUnavailableError(UnavailableError):
    pass


class StorageUnavailableError(UnavailableError):
    pass


class NewerSchemaError(UnavailableError):
    """Leave it alone: who wrote it is there and goes on with it."""

    def __init__(self, document: str, version: str) -> None:
        super().__init__(f"{document} has schema {version}, which needs a newer version of this software")
        self.version = version
