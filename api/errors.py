"""What can be wrong with a call, and the only place that knows error status codes.

ApiError                        a problem found before the jobs were asked
├── MalformedRequestError       the body is not what its Content-Type says
├── InvalidParametersError      well-formed, but a value is missing or wrong
├── RequestTimeoutError         the body stood still
├── BodyTooLargeError           more bytes than the limit
├── UnsupportedContentTypeError neither a form nor JSON
├── UnsupportedFormatError      not a file that could hold a CT
├── SourceNotAllowedError       an address that the operator does not allow
├── CallbackNotAllowedError     the same, of a receiver
├── RangeNotSatisfiableError    bytes after the end
├── NotFoundError               no such page
├── TooManyStreamsError         as many streams of events are open as may be
├── TooManyUploadsError         as many scans come in as may
└── NotReadyError               a part of the service is missing

They and the errors of `jobs` become `application/problem+json`; everything else is a 500 that says nothing of the
inside.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.schemas import TAGS, FieldError, Problem
from jobs import errors as jobs_errors
from jobs import problems
from jobs.problems import ProblemType

MEDIA_TYPE: Final = "application/problem+json"
IN_FLIGHT_SECONDS: Final = 1

STATUS: Final[Mapping[ProblemType, int]] = {
    problems.MALFORMED_REQUEST: 400,
    problems.URL_NOT_VALID: 403,
    problems.NOT_FOUND: 404,
    problems.JOB_NOT_FOUND: 404,
    problems.UPLOAD_NOT_FOUND: 404,
    problems.BATCH_NOT_FOUND: 404,
    problems.NO_CALLBACK: 409,
    problems.METHOD_NOT_ALLOWED: 405,
    problems.REQUEST_TIMEOUT: 408,
    problems.WRONG_STATE: 409,
    problems.UPLOAD_INCOMPLETE: 409,
    problems.UPLOAD_CLOSED: 409,
    problems.IDEMPOTENCY_IN_FLIGHT: 409,
    problems.JOB_PURGED: 410,
    problems.UPLOAD_TOO_LARGE: 413,
    problems.UNSUPPORTED_CONTENT_TYPE: 415,
    problems.UNSUPPORTED_FORMAT: 415,
    problems.RANGE_NOT_SATISFIABLE: 416,
    problems.INVALID_PARAMETERS: 422,
    problems.IDEMPOTENCY_KEY_REUSED: 422,
    problems.SOURCE_NOT_ALLOWED: 422,
    problems.CALLBACK_NOT_ALLOWED: 422,
    problems.UPLOAD_MISMATCH: 422,
    problems.WRONG_PART_SIZE: 422,
    problems.INTERNAL_ERROR: 500,
    problems.BROKER_UNAVAILABLE: 503,
    problems.STORAGE_UNAVAILABLE: 503,
    problems.NEWER_SCHEMA: 503,
    problems.NOT_READY: 503,
    problems.TOO_MANY_STREAMS: 503,
    problems.TOO_MANY_UPLOADS: 503,
}
"""Types that are missing here only ever end a job; no call is answered with them."""


class ApiError(Exception):
    problem: ClassVar[ProblemType] = problems.INTERNAL_ERROR

    def __init__(
        self,
        detail: str,
        *,
        evidence: Mapping[str, Any] | None = None,
        errors: Iterable[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.evidence = dict(evidence or {})
        self.errors = list(errors)
        self.headers = dict(headers or {})


class MalformedRequestError(ApiError):
    problem = problems.MALFORMED_REQUEST


class InvalidParametersError(ApiError):
    problem = problems.INVALID_PARAMETERS

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{error.pointer}: {error.detail}" for error in errors), errors=errors)

    @classmethod
    def one(cls, pointer: str, detail: str) -> "InvalidParametersError":
        return cls([FieldError(pointer=pointer, detail=detail)])

    @classmethod
    def from_pydantic(cls, error: ValidationError | RequestValidationError, root: str = "") -> "InvalidParametersError":
        """Name each refused value by a pointer below `root`."""
        return cls([FieldError(pointer=root + pointer(e["loc"]), detail=e["msg"]) for e in error.errors()])


class RequestTimeoutError(ApiError):
    problem = problems.REQUEST_TIMEOUT

    def __init__(self, idle_seconds: float) -> None:
        super().__init__(
            f"no byte arrived for {idle_seconds:g} seconds",
            evidence={"idle_seconds": idle_seconds},
            headers={"Connection": "close"},
        )


class BodyTooLargeError(ApiError):
    problem = problems.UPLOAD_TOO_LARGE

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the limit is {limit_bytes} bytes", evidence={"limit_bytes": limit_bytes})


class UnsupportedContentTypeError(ApiError):
    problem = problems.UNSUPPORTED_CONTENT_TYPE


class UnsupportedFormatError(ApiError):
    problem = problems.UNSUPPORTED_FORMAT


class SourceNotAllowedError(ApiError):
    problem = problems.SOURCE_NOT_ALLOWED


class CallbackNotAllowedError(ApiError):
    problem = problems.CALLBACK_NOT_ALLOWED


class TooManyStreamsError(ApiError):
    problem = problems.TOO_MANY_STREAMS

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} streams are open", evidence={"limit": limit})


class TooManyUploadsError(ApiError):
    problem = problems.TOO_MANY_UPLOADS

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} scans are on their way in", evidence={"limit": limit})


class RangeNotSatisfiableError(ApiError):
    problem = problems.RANGE_NOT_SATISFIABLE

    def __init__(self, size_bytes: int) -> None:
        super().__init__(
            f"the file has {size_bytes} bytes",
            evidence={"size_bytes": size_bytes},
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )


class NotFoundError(ApiError):
    problem = problems.NOT_FOUND


class NotReadyError(ApiError):
    problem = problems.NOT_READY


JOBS_PROBLEMS: Final[Mapping[type[jobs_errors.JobsError], ProblemType]] = {
    jobs_errors.JobNotFoundError: problems.JOB_NOT_FOUND,
    jobs_errors.JobPurgedError: problems.JOB_PURGED,
    jobs_errors.WrongStateError: problems.WRONG_STATE,
    jobs_errors.BatchNotFoundError: problems.BATCH_NOT_FOUND,
    jobs_errors.NoCallbackError: problems.NO_CALLBACK,
    jobs_errors.IdempotencyMismatchError: problems.IDEMPOTENCY_KEY_REUSED,
    jobs_errors.IdempotencyInFlightError: problems.IDEMPOTENCY_IN_FLIGHT,
    jobs_errors.UploadTooLargeError: problems.UPLOAD_TOO_LARGE,
    jobs_errors.UploadNotFoundError: problems.UPLOAD_NOT_FOUND,
    jobs_errors.UploadIncompleteError: problems.UPLOAD_INCOMPLETE,
    jobs_errors.UploadClosedError: problems.UPLOAD_CLOSED,
    jobs_errors.UploadMismatchError: problems.UPLOAD_MISMATCH,
    jobs_errors.WrongPartSizeError: problems.WRONG_PART_SIZE,
    jobs_errors.UrlNotValidError: problems.URL_NOT_VALID,
    jobs_errors.InvalidCursorError: problems.INVALID_PARAMETERS,
    jobs_errors.BrokerUnavailableError: problems.BROKER_UNAVAILABLE,
    jobs_errors.StorageUnavailableError: problems.STORAGE_UNAVAILABLE,
    jobs_errors.NewerSchemaError: problems.NEWER_SCHEMA,
}
"""An error of `jobs` that is not here is meant for workers; that the gateway meets it is a fault, a 500."""


def pointer(location: Iterable[str | int]) -> str:
    """RFC 6901."""
    location = (part for part in location if part not in TAGS)
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def problem_response(
    request: Request,
    problem: ProblemType,
    detail: str,
    *,
    evidence: Mapping[str, Any] | None = None,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body = Problem(
        type=problem.uri,
        title=problem.title,
        status=STATUS[problem],
        detail=detail,
        instance=quote(request.url.path),
        retryable=problem.retryable,
        evidence=dict(evidence or {}),
        errors=list(errors),
    )
    retry = {"Retry-After": str(_retry_seconds(request, problem))} if problem.retryable else {}
    return JSONResponse(
        body.model_dump(mode="json"), body.status, headers={**retry, **(headers or {})}, media_type=MEDIA_TYPE
    )


def internal_error(request: Request) -> Response:
    """The answer to a fault of ours. Says nothing of the inside."""
    return problem_response(request, problems.INTERNAL_ERROR, "The fault has been logged.")


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem."""
    handlers: dict[type[Exception], Callable[[Request, Any], Response]] = {
        ApiError: _on_api_error,
        jobs_errors.JobsError: _on_jobs_error,
        RequestValidationError: _on_validation_error,
        HTTPException: _on_http_exception,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _on_api_error(request: Request, error: ApiError) -> Response:
    return problem_response(
        request,
        error.problem,
        error.detail,
        evidence=error.evidence,
        errors=error.errors,
        headers=error.headers,
    )


def problem_of(error: ApiError | jobs_errors.JobsError) -> ProblemType:
    """The type of a problem. An error that has none is a fault of ours, and raised."""
    if isinstance(error, ApiError):
        return error.problem
    problem = next((JOBS_PROBLEMS[kind] for kind in type(error).__mro__ if kind in JOBS_PROBLEMS), None)
    if problem is None:
        raise error
    return problem


def _on_jobs_error(request: Request, error: jobs_errors.JobsError) -> Response:
    problem = problem_of(error)
    if isinstance(error, jobs_errors.InvalidCursorError):
        return _on_api_error(request, InvalidParametersError.one("/query/cursor", str(error) or "not a cursor"))
    evidence = {name: value for name, value in vars(error).items() if name in ("status", "limit_bytes")}
    if isinstance(error, jobs_errors.UploadError):
        evidence = error.evidence
    detail = str(error) if not problem.retryable else problem.meaning
    return problem_response(request, problem, detail or problem.meaning, evidence=evidence)


def _on_validation_error(request: Request, error: RequestValidationError) -> Response:
    """A value in the path that cannot be is a page that does not exist."""
    if any(e["loc"][0] == "path" for e in error.errors()):
        return _on_api_error(request, NotFoundError(problems.NOT_FOUND.meaning))
    return _on_api_error(request, InvalidParametersError.from_pydantic(error))


def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """What the router itself answers, such as 404 and 405."""
    problem = next((problem for problem, status in STATUS.items() if status == error.status_code), None)
    if problem is None or error.status_code >= 500:
        raise error
    headers = dict(error.headers or {})
    if problem is problems.METHOD_NOT_ALLOWED:
        matching = (route for route in request.app.state.routes if route.matches(request.scope)[0] is not Match.NONE)
        allowed_methods = {method for route in matching for method in getattr(route, "methods", None) or ()}
        headers["Allow"] = ", ".join(sorted(allowed_methods))
    return problem_response(request, problem, problem.meaning, headers=headers)


def _retry_seconds(request: Request, problem: ProblemType) -> int:
    if problem is problems.IDEMPOTENCY_IN_FLIGHT:
        return IN_FLIGHT_SECONDS
    seconds: int = request.app.state.settings.unavailable_seconds
    return seconds
