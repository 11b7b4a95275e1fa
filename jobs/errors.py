"""What can go wrong between both sides of a job.

JobsError
├── JobNotFoundError              no such job was ever accepted
├── JobPurgedError                it was deleted, with all that belonged to it
├── UnauthenticatedError          a call without a valid key or token
├── ForbiddenError                a caller without the role, or whose token names no tenant
├── WrongStateError               the job's status does not allow this
├── ImageNotKeptError             a succeeded job without the image that is asked for
├── BatchNotFoundError            no such batch was ever accepted
├── TooManyTenantsError           one more than the operator allows
├── NoCallbackError               the job, or the batch, tells nobody how it ended
├── IdempotencyMismatchError      the key was used with another request
├── IdempotencyInFlightError      the first request with this key is still being accepted
├── InvalidCursorError            a page cursor that this service did not make
├── CursorExpiredError            a cursor of the feed after which changes are gone
│   an attempt must stop:
├── LeaseLostError                another worker owns the job now; its work must not be published
├── RequeueRequestedError         the worker has to stop: another shall do it
├── CancelRequestedError          someone asked to stop the job
│   an upload cannot go on like this:
├── UploadTooLargeError           more bytes than the limit
├── UploadNotFoundError           there is none, or no longer
├── UploadIncompleteError         parts are missing or have the wrong size
├── UploadClosedError             it is complete and takes no more parts
├── UploadMismatchError           other bytes than announced; it is deleted
├── WrongPartSizeError            a part with more or fewer bytes than it must have
├── UrlNotValidError              the address of a part is expired or not one of ours
├── SettingsError                 the operator set a value that cannot be; the process does not start
├── SourceError                   a scan that the worker should fetch cannot be had; the job fails
│   ├── SourceNotAllowedError         its address is not one that the operator allows
│   ├── SourceNotFoundError           its server says that there is no such scan, or not for us
│   ├── SourceTooLargeError           more bytes than the limit
│   ├── SourceTooSlowError            not all of it within the time, or fewer bytes in a second than the least
│   └── SourceMismatchError           other bytes than its sha256 says
├── AddressRefusedError           an allowed host is at an address that no connection goes to
└── UnavailableError              a part that we depend on does not answer; try again later
    ├── BrokerUnavailableError
    ├── StorageUnavailableError
    ├── IssuerUnavailableError
    ├── SourceUnavailableError        the server of a scan does not answer, or not to the end
    └── NewerSchemaError              a document that only a newer version of this software can read
"""

from typing import ClassVar

from jobs import problems
from jobs.problems import ProblemType


class JobsError(Exception):
    """Base of all errors of this package.

    Args:
        detail: a sentence for people.
        evidence: what was seen, as data.

    Attributes:
        problem: how it is put to a client; None for one that no client may meet.
    """

    problem: ClassVar[ProblemType | None] = None

    def __init__(self, detail: str = "", **evidence: object) -> None:
        super().__init__(detail)
        self.evidence = evidence


class JobNotFoundError(JobsError):
    problem = problems.JOB_NOT_FOUND

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id}")


class JobPurgedError(JobsError):
    problem = problems.JOB_PURGED

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} was deleted")


class UnauthenticatedError(JobsError):
    """`has_credentials` says whether there was a key or token at all, and nothing says what is wrong with it."""

    problem = problems.UNAUTHENTICATED

    def __init__(self, *, has_credentials: bool) -> None:
        sentence = "the key or token is not valid" if has_credentials else "the call has no key and no token"
        super().__init__(sentence)
        self.has_credentials = has_credentials


class ForbiddenError(JobsError):
    problem = problems.FORBIDDEN


class TooManyTenantsError(JobsError):
    problem = problems.FORBIDDEN


class WrongStateError(JobsError):
    problem = problems.WRONG_STATE

    def __init__(self, status: str, detail: str) -> None:
        """`status` is the one that the job had at the time."""
        super().__init__(detail, status=status)


class ImageNotKeptError(JobsError):
    problem = problems.IMAGE_NOT_KEPT

    def __init__(self, job_id: str, name: str) -> None:
        super().__init__(f"there is no {name} of job {job_id}", image=name)


class BatchNotFoundError(JobsError):
    problem = problems.BATCH_NOT_FOUND

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"there is no batch {batch_id}")


class NoCallbackError(JobsError):
    problem = problems.NO_CALLBACK

    def __init__(self, id_: str) -> None:
        super().__init__(f"{id_} was posted without a callback_url")


class IdempotencyMismatchError(JobsError):
    problem = problems.IDEMPOTENCY_KEY_REUSED


class IdempotencyInFlightError(JobsError):
    problem = problems.IDEMPOTENCY_IN_FLIGHT


class LeaseLostError(JobsError):
    pass


class RequeueRequestedError(JobsError):
    pass


class CancelRequestedError(JobsError):
    pass


class InvalidCursorError(JobsError):
    problem = problems.INVALID_PARAMETERS


class CursorExpiredError(JobsError):
    problem = problems.CURSOR_EXPIRED

    def __init__(self) -> None:
        super().__init__("what followed this cursor is not all known any more")


class SettingsError(JobsError):
    """Its text says which variable to set, and to what."""


class UploadTooLargeError(JobsError):
    problem = problems.UPLOAD_TOO_LARGE

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the upload is larger than {limit_bytes} bytes", limit_bytes=limit_bytes)


class UploadNotFoundError(JobsError):
    problem = problems.UPLOAD_NOT_FOUND

    def __init__(self) -> None:
        super().__init__("there is no such upload, or no longer")


class UploadIncompleteError(JobsError):
    problem = problems.UPLOAD_INCOMPLETE

    def __init__(self, missing_parts: list[int], wrong_parts: list[dict[str, int]]) -> None:
        detail = f"{len(missing_parts)} parts are missing and {len(wrong_parts)} have the wrong size"
        super().__init__(detail, missing_parts=missing_parts, wrong_parts=wrong_parts)


class UploadClosedError(JobsError):
    problem = problems.UPLOAD_CLOSED

    def __init__(self) -> None:
        super().__init__("the upload is complete and takes no more parts")


class UploadMismatchError(JobsError):
    problem = problems.UPLOAD_MISMATCH


class WrongPartSizeError(JobsError):
    problem = problems.WRONG_PART_SIZE

    def __init__(self, expected_bytes: int, found_bytes: int | None) -> None:
        found = {} if found_bytes is None else {"found_bytes": found_bytes}
        super().__init__(f"this part must have {expected_bytes} bytes", expected_bytes=expected_bytes, **found)


class UrlNotValidError(JobsError):
    problem = problems.URL_NOT_VALID


class SourceError(JobsError):
    """Ends the job `failed`: trying again would end the same way."""

    problem: ClassVar[ProblemType]


class SourceNotAllowedError(SourceError):
    problem = problems.SOURCE_NOT_ALLOWED


class SourceNotFoundError(SourceError):
    problem = problems.SOURCE_NOT_FOUND


class SourceTooLargeError(SourceError):
    problem = problems.SOURCE_TOO_LARGE


class SourceTooSlowError(SourceError):
    """At once, not after other attempts: each would hold a worker as long."""

    problem = problems.SOURCE_UNAVAILABLE


class SourceMismatchError(SourceError):
    problem = problems.SOURCE_MISMATCH


class AddressRefusedError(JobsError):
    """Its sentence has the address: it is for the operator's log, and not for a client."""


class UnavailableError(JobsError):
    pass


class BrokerUnavailableError(UnavailableError):
    problem = problems.BROKER_UNAVAILABLE


class StorageUnavailableError(UnavailableError):
    problem = problems.STORAGE_UNAVAILABLE


class IssuerUnavailableError(UnavailableError):
    problem = problems.ISSUER_UNAVAILABLE


class SourceUnavailableError(UnavailableError):
    """Another attempt may get the scan; a job whose attempts all end with it fails with this problem."""

    problem = problems.SOURCE_UNAVAILABLE


class NewerSchemaError(UnavailableError):
    """Leave such a job alone: whoever wrote it is there, and goes on with it."""

    problem = problems.NEWER_SCHEMA

    def __init__(self, document: str, version: str) -> None:
        super().__init__(f"{document} has schema {version}, which needs a newer version of this software")
