"""What can go wrong. All of it is a LobewiseError, but for the files on your own disk, which raise OSError.

LobewiseError
  InvalidAddressError        the address of the service is none
  ConnectionFailedError      the service does not answer
  UnreadableAnswerError      what answered does not speak as the service does
  ProblemError               the service refuses; `type` says why
    InvalidRequestError        400, 403, 413, 415, 422: this request will never do
      ScanRefusedError           the file is too large, or no scan
      KeyReusedError             the Idempotency-Key belongs to another request
    NotFoundError              404
      DeletedError               410
    WrongStateError            409
    BusyError                  429, 502, 503, 504: and it was tried again for as long as `Retry` says
  JobFailedError             the job ended without scores; `problem` says why
  JobCancelledError          somebody stopped it
  NotFinishedError           it has not ended within `wait_seconds`
  DigestMismatchError        bytes were changed on their way
  CallbackNotVerifiedError   a callback that does not come from the service
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lobewise_client.models import FieldError, Job, JobProblem


class LobewiseError(Exception):
    """Whatever this package raises."""


class InvalidAddressError(LobewiseError, ValueError):
    """The address of the service is none."""


class ConnectionFailedError(LobewiseError):
    """Nobody answers at that address, or the line broke each time; the cause is httpx's own error."""


class UnreadableAnswerError(LobewiseError):
    """The answer is not what the service's interface says: perhaps something else listens there."""


class ProblemError(LobewiseError):
    """The service answered with a problem (RFC 9457), or something on the way to it with an error of its own.

    Attributes:
        type: stable name of the kind of problem, such as `/problems/lungs-not-found`; `about:blank` if there is none.
        retryable: whether the same call may succeed later.
        evidence: what was seen, as data.
        errors: what is wrong with each parameter.
        request_id: under which the service's log has the request; None if what answered gave none.
        retry_after_seconds: as the service asks; None if it does not.
    """

    def __init__(
        self,
        *,
        type: str,  # noqa: A002 (the problem's own word)
        title: str,
        status: int,
        detail: str,
        retryable: bool,
        evidence: dict[str, Any],
        errors: "list[FieldError]",
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"The service answered {status}: {detail or title}")
        self.type, self.title, self.status, self.detail = type, title, status, detail
        self.retryable, self.evidence, self.errors = retryable, evidence, errors
        self.request_id, self.retry_after_seconds = request_id, retry_after_seconds

    @property
    def slug(self) -> str:
        """The last word of the type: `lungs-not-found`."""
        return self.type.rpartition("/")[2]


class InvalidRequestError(ProblemError):
    """The request is refused and would be again; `errors` points at what to correct."""


class ScanRefusedError(InvalidRequestError):
    """The file is larger than the service takes, or does not begin as a scan does."""


class KeyReusedError(InvalidRequestError):
    """The Idempotency-Key was used before, for another scan or with other options."""


class NotFoundError(ProblemError):
    """There is no such job, batch, upload or mask."""


class DeletedError(NotFoundError):
    """There was such a job, and it was deleted."""


class WrongStateError(ProblemError):
    """What was asked for cannot be done as things stand: a report before the end, a stop after it."""


class BusyError(ProblemError):
    """The service cannot do it now, and could not for as long as it was tried again."""


class JobFailedError(LobewiseError):
    """The job ended without scores.

    Attributes:
        job: as it stands at its end.
        problem: why; its `type` is one of those that the service documents.
    """

    def __init__(self, job: "Job", problem: "JobProblem") -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.job, self.problem = job, problem


class JobCancelledError(LobewiseError):
    """The job was stopped before its end."""

    def __init__(self, job: "Job") -> None:
        super().__init__(f"Job {job.id} was cancelled.")
        self.job = job


class NotFinishedError(LobewiseError):
    """The job goes on; wait for it again by its id."""

    def __init__(self, job_id: str, wait_seconds: float) -> None:
        super().__init__(f"Job {job_id} has not ended within {wait_seconds:g} s.")
        self.job_id = job_id


class DigestMismatchError(LobewiseError):
    """What arrived is not what was sent: the sha256 of both differ."""

    def __init__(self, what: str, expected: str, found: str) -> None:
        super().__init__(f"{what} was changed on its way: its sha256 is {found}, and should be {expected}.")
        self.expected, self.found = expected, found


class CallbackNotVerifiedError(LobewiseError):
    """The request was not signed with the secret, or too long ago: answer 400 and do nothing."""
