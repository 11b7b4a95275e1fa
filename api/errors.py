"""Every error of a call becomes `application/problem+json` here; what is no problem of the table is a 500.

ApiError                  a problem that the gateway finds itself
└── BodyTooLargeError     more bytes than the limit

The errors of `jobs` name their problem themselves. Everything else is a fault, and its answer says nothing of the
inside.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.schemas import FieldError, Problem
from jobs import problems
from jobs.errors import InvalidCursorError, JobsError
from jobs.problems import ProblemType

MEDIA_TYPE: Final = "application/problem+json"
#: A first request that is accepted at this moment is done soon, unlike a broker that is down.
IN_FLIGHT_SECONDS: Final = 1
#: What the framework answers by itself, before a route is found or called.
ROUTER_PROBLEMS: Final[Mapping[int, ProblemType]] = {
    400: problems.MALFORMED_REQUEST,
    404: problems.NOT_FOUND,
    405: problems.METHOD_NOT_ALLOWED,
}


class ApiError(Exception):
    """A call that is answered with a problem.

    Args:
        detail: a sentence for people about this one call.
        evidence: what was seen, as data.
        errors: each parameter that was refused.
    """

    def __init__(
        self,
        problem: ProblemType,
        detail: str,
        *,
        evidence: Mapping[str, Any] | None = None,
        errors: Iterable[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.evidence = dict(evidence or {})
        self.errors = list(errors)
        self.headers = dict(headers or {})


class BodyTooLargeError(ApiError):
    def __init__(self, limit_bytes: int) -> None:
        evidence = {"limit_bytes": limit_bytes}
        super().__init__(problems.UPLOAD_TOO_LARGE, f"the limit is {limit_bytes} bytes", evidence=evidence)


def invalid_parameters(*errors: FieldError) -> ApiError:
    detail = "; ".join(f"{error.pointer}: {error.detail}" for error in errors)
    return ApiError(problems.INVALID_PARAMETERS, detail, errors=errors)


def unsupported_content_type(detail: str) -> ApiError:
    """`detail` says what to send, and where what was sent belongs."""
    errors = [FieldError(pointer="/header/Content-Type", detail=detail)]
    return ApiError(problems.UNSUPPORTED_CONTENT_TYPE, detail, errors=errors)


def invalid_parameter(pointer: str, detail: str) -> ApiError:
    return invalid_parameters(FieldError(pointer=pointer, detail=detail))


def field_errors(error: ValidationError | RequestValidationError, root: str = "") -> list[FieldError]:
    """Each value that pydantic refused, named by a pointer below `root`."""
    return [FieldError(pointer=root + pointer(e["loc"]), detail=_what_to_send(e)) for e in error.errors()]


#: What pydantic calls a fault, in words that tell what to send instead.
_WANTED: Final = {
    "missing": "send it, it is required",
    "extra_forbidden": "leave it out, there is no such field",
    "string_type": "send a text",
    "int_type": "send a whole number",
    "int_parsing": "send a whole number",
    "int_from_float": "send a whole number",
    "float_type": "send a number",
    "float_parsing": "send a number",
    "bool_type": "send true or false",
    "bool_parsing": "send true or false",
    "list_type": "send an array",
    "dict_type": "send an object",
    "model_type": "send an object",
    "model_attributes_type": "send an object",
    "greater_than_equal": "send a number of at least {ge}",
    "less_than_equal": "send a number of at most {le}",
    "string_too_long": "send at most {max_length} characters",
    "string_pattern_mismatch": "send a text of the form {pattern}",
    "too_short": "send at least {min_length}",
    "too_long": "send at most {max_length}",
}
#: Kinds whose fault names the words that there are.
_WORDS: Final = ("enum", "literal_error")


def _what_to_send(fault: Mapping[str, Any]) -> str:
    kind, given, context = fault["type"], fault.get("input"), fault.get("ctx", {})
    if kind in _WORDS:
        words = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        sentence: str = f"send one of {', '.join(words)}"
        if isinstance(given, str) and given not in words and given.strip().lower() in [word.lower() for word in words]:
            sentence += f'; "{given}" differs in case or blanks only'
        return sentence
    if kind == "string_too_short" and context["min_length"] == 1:
        return "leave it out, or send a text that is not empty"
    if kind == "extra_forbidden" and fault["loc"][-1] in ELSEWHERE:
        return f"leave it out: {ELSEWHERE[fault['loc'][-1]]}"
    sentence = _WANTED[kind].format(**context) if kind in _WANTED else fault["msg"]
    if kind.endswith("_type"):
        sentence += f", not {_NAMES.get(type(given), 'something else')}"
    return sentence


#: Fields that belong to another operation.
ELSEWHERE: Final = {
    "file": "a file goes to POST /v1/jobs or POST /v1/validate, as multipart/form-data",
    "source": "an address or an upload goes to POST /v1/jobs/from-source or POST /v1/validate/from-source, as JSON",
    "url": "it belongs into `source`, as JSON to POST /v1/jobs/from-source",
    "upload_id": "it belongs into `source`, as JSON to POST /v1/jobs/from-source",
}
_NAMES: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def pointer(location: Iterable[str | int]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def problem_of(error: ApiError | JobsError) -> ProblemType:
    """The type of a problem. An error that has none, or none for a call, is a fault of the service, and raised."""
    if error.problem is None or error.problem.status is None:
        raise error
    return error.problem


def problem_of_call(
    problem: ProblemType,
    detail: str,
    path: str,
    evidence: Mapping[str, Any] | None = None,
    errors: Iterable[FieldError] = (),
) -> Problem:
    """The body of an answer to a call of `path`; empty where the path was not understood."""
    return Problem(
        type=problem.uri,
        title=problem.title,
        status=problem.status or 500,
        detail=detail,
        instance=quote(path),
        retryable=problem.retryable,
        evidence=dict(evidence or {}),
        errors=list(errors),
    )


def problem_response(request: Request, error: ApiError) -> JSONResponse:
    problem = error.problem
    body = problem_of_call(problem, error.detail, request.url.path, error.evidence, error.errors)
    is_in_flight = problem is problems.IDEMPOTENCY_IN_FLIGHT
    seconds = IN_FLIGHT_SECONDS if is_in_flight else request.app.state.settings.unavailable_seconds
    retry = {"Retry-After": str(seconds)} if problem.retryable else {}
    return JSONResponse(body.model_dump(mode="json"), body.status, retry | error.headers, MEDIA_TYPE)


def internal_error(request: Request) -> Response:
    """The answer to a fault of the service. Says nothing of the inside."""
    return problem_response(request, ApiError(problems.INTERNAL_ERROR, "The fault has been logged."))


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem."""
    handlers: dict[type[Exception], Callable[[Request, Any], Response]] = {
        ApiError: problem_response,
        JobsError: _on_jobs_error,
        RequestValidationError: _on_validation_error,
        HTTPException: _on_http_exception,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _on_jobs_error(request: Request, error: JobsError) -> Response:
    problem = problem_of(error)
    if isinstance(error, InvalidCursorError):
        return problem_response(request, invalid_parameter("/query/cursor", str(error) or "not a cursor"))
    # What a broken part says of itself is for the log: it may name hosts of the inside.
    detail = problem.meaning if problem.retryable else str(error)
    return problem_response(request, ApiError(problem, detail or problem.meaning, evidence=error.evidence))


def _on_validation_error(request: Request, error: RequestValidationError) -> Response:
    # An id in the path that cannot be one leads to a page that does not exist.
    if any(e["loc"][0] == "path" for e in error.errors()):
        return problem_response(request, ApiError(problems.NOT_FOUND, problems.NOT_FOUND.meaning))
    return problem_response(request, invalid_parameters(*field_errors(error)))


def _on_http_exception(request: Request, error: HTTPException) -> Response:
    problem = ROUTER_PROBLEMS.get(error.status_code)
    if problem is None:
        raise error
    headers = dict(error.headers or {})
    if problem is problems.METHOD_NOT_ALLOWED:
        # The router names the methods of the first route with this path; a path may have several routes.
        routes = [route for route in request.app.state.routes if route.matches(request.scope)[0] is not Match.NONE]
        # A path that stands as it is goes before the ids that it might be taken for.
        routes = [route for route in routes if "{" not in route.path] or routes
        methods = {method for route in routes for method in getattr(route, "methods", None) or ()}
        headers["Allow"] = ", ".join(sorted(methods))
    return problem_response(request, ApiError(problem, problem.meaning, headers=headers))
