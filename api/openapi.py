"""Completes the OpenAPI document: what FastAPI cannot see, such as problems, headers and streamed bodies."""

import copy
from typing import Any, Final

from fastapi import FastAPI

from api import access, examples, fhir
from api.errors import MEDIA_TYPE
from api.portable_schemas import make_portable
from api.schemas import BatchSubmission, ExportedReport, Problem, SourceSubmission, UploadRequest
from jobs import problems
from jobs.problems import ProblemType

Responses = dict[int | str, dict[str, Any]]

DESCRIPTION: Final = """
A chest CT goes in; the severity of its opacities comes out, overall and per lobe, with the masks that show them.

1. `POST /v1/jobs` with the scan. The answer is a job, not yet a result.
2. `GET /v1/jobs/{job_id}`, as often as `Retry-After` says, until `status` is final.
3. `GET /v1/jobs/{job_id}/report` and `GET /v1/jobs/{job_id}/masks/{name}`.

Every error is a problem (RFC 9457) whose `type` leads to a page that explains it. A scan that cannot be scored is no
error of a call: its job ends `failed`, with the problem inside.

Research use only; not a medical device.
"""
TAGS: Final = [
    {"name": "jobs", "description": "Submit scans and follow them."},
    {"name": "batches", "description": "Submit many scans in one call."},
    {"name": "uploads", "description": "Send large scans in parts, straight to the storage."},
    {"name": "callbacks", "description": "Be told how a job ended, instead of asking."},
    {"name": "results", "description": "Scores, masks and DICOM of succeeded jobs."},
    {"name": "service", "description": "What the service is made of and how it does."},
]
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "Accept-Ranges": {"description": "parts can be asked for", "schema": {"const": "bytes"}, "example": "bytes"},
    "Allow": {"description": "the methods the address takes", "example": "GET, POST"},
    "Content-Disposition": {
        "description": "a file name to save under",
        "example": 'attachment; filename="lungs.nii.gz"',
    },
    "Content-Range": {"description": "which bytes these are, or how many there are", "example": "bytes 0-99/52113"},
    "ETag": {"description": "changes when the answer does", "example": f'"{examples.REVISION}"'},
    "Idempotent-Replayed": {
        "description": "present when an earlier request with this key made the job",
        "schema": {"const": "true"},
        "example": "true",
    },
    "Last-Modified": {"description": "when it was stored", "example": "Mon, 02 Mar 2026 09:30:41 GMT"},
    "Link": {
        "description": 'the next page as `rel="next"`; absent on the last',
        "example": f'<{examples.ADDRESSES.jobs("cursor=" + examples.CURSOR)}>; rel="next"',
    },
    "Location": {"description": "address of the job or the upload", "example": examples.ADDRESSES.job(examples.JOB_ID)},
    "Preference-Applied": {"description": "how long the answer was held back", "example": "wait=20"},
    "Repr-Digest": {
        "description": "sha256 of the whole file (RFC 9530), for a part of it too",
        "example": "sha-256=:RBNvPEbU9ZgfH3oUK0eIFhE1kJOfyKfqpbTo0Fk8WEQ=:",
    },
    "Retry-After": {
        "description": "seconds to wait before the next try; absent when there is nothing to wait for",
        "schema": {"type": "integer", "minimum": 1},
        "example": 2,
    },
    "RateLimit": {
        "description": "of each limit of requests how many are left, and for how many seconds "
        "(draft-ietf-httpapi-ratelimit-headers); in all other answers too, where there is such a limit",
        "example": '"tenant";r=0;t=23',
    },
    "RateLimit-Policy": {
        "description": "the limits of requests, and in how many seconds",
        "example": '"tenant";q=600;w=60',
    },
    "WWW-Authenticate": {
        "description": "how to authenticate (RFC 6750), and which role is lacking",
        "example": 'Bearer realm="lobewise", error="insufficient_scope", scope="read"',
    },
    "X-Request-ID": {
        "description": "yours, if you sent one of 1 to 64 letters, digits, `.`, `_` and `-`; the log has it",
        "example": "4f1c0a6b2d",
    },
}
_UPLOAD: Final = {
    "title": "UploadSubmission",
    "type": "object",
    "description": "A scan and what can be said about it. The parts may come in any order.",
    "additionalProperties": False,
    "required": ["file"],
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "contentMediaType": "application/octet-stream",
            "description": "NIfTI (`.nii`, `.nii.gz`), NRRD, MetaImage (`.mha`), or a zip file of one DICOM series. "
            "Its name is not looked at.",
        },
        "priority": {"$ref": "#/components/schemas/Priority", "default": "routine"},
        "client_reference": SourceSubmission.model_json_schema()["properties"]["client_reference"]["anyOf"][0],
        "callback_url": SourceSubmission.model_json_schema()["properties"]["callback_url"]["anyOf"][0],
    },
}


#: Of each operation that reads JSON.
JSON_BODY_PROBLEMS: Final = (
    problems.MALFORMED_REQUEST,
    problems.REQUEST_TIMEOUT,
    problems.UPLOAD_TOO_LARGE,
    problems.UNSUPPORTED_CONTENT_TYPE,
    problems.INVALID_PARAMETERS,
)


def json_body(schema: str, examples: dict[str, Any]) -> dict[str, Any]:
    """The body of an operation that reads it itself, since FastAPI holds bodies of any length in memory."""
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}, "examples": examples}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def callbacks(*names: str) -> dict[str, Any]:
    """Messages to the receiver that a body names; `install` completes them."""
    return {name: {} for name in names}


def headers(*names: str) -> dict[str, Any]:
    return {name: {"schema": {"type": "string"}, **_HEADERS[name]} for name in names}


def json_answer(description: str, examples: dict[str, Any], *header_names: str) -> dict[str, Any]:
    """The success whose schema is the route's `response_model`."""
    content = {"application/json": {"examples": examples}}
    return {"description": description, "headers": headers(*header_names), "content": content}


def file_answer(description: str, *header_names: str, media_type: str = "application/octet-stream") -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {"description": description, "headers": headers(*header_names), "content": content}


def fhir_answer(description: str, *header_names: str) -> dict[str, Any]:
    """A success that is a FHIR resource, whose schema is HL7's."""
    bundle = fhir.bundle_of(examples.REPORT, examples.IDENTITY, examples.FINISHED_AT)
    content = {
        "schema": {"type": "object", "description": "as HL7 FHIR R4 (4.0.1) defines it", "additionalProperties": True},
        "examples": {"bundle": {"summary": "a mild case", "value": bundle}},
    }
    return {"description": description, "headers": headers(*header_names), "content": {fhir.MEDIA_TYPE: content}}


def text_answer(
    description: str, media_type: str, example: str, schema: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A success that is a text for people or other programs to read line by line."""
    content = {
        "schema": {"type": "string", **(schema or {})},
        "examples": {"lines": {"summary": "a job", "value": example}},
    }
    return {"description": description, "headers": headers("Content-Disposition"), "content": {media_type: content}}


def links(*operation_ids: str, parameter: str = "job_id") -> dict[str, Any]:
    """What can be done next with the job, or the upload, that an answer holds."""
    parameters = {parameter: "$response.body#/id"}
    return {name: {"operationId": name, "parameters": parameters} for name in operation_ids}


def not_modified(*header_names: str) -> dict[str, Any]:
    return {"description": "You have this version already.", "headers": headers("ETag", *header_names)}


def problem_answers(*types: ProblemType) -> Responses:
    """All problems that an operation may answer with; `internal-error` always may be."""
    answers: Responses = {}
    for problem in (*types, problems.INTERNAL_ERROR):
        schema = {"$ref": "#/components/schemas/Problem"}
        problem_answer = {"description": "", "headers": {}, "content": {MEDIA_TYPE: {"schema": schema, "examples": {}}}}
        answer = answers.setdefault(problem.status or 500, problem_answer)
        errors = []
        if problem is problems.INVALID_PARAMETERS:
            errors = [{"pointer": "/query/limit", "detail": "send a number of at most 200"}]
        value: dict[str, Any] = {
            "type": problem.uri,
            "title": problem.title,
            "status": problem.status,
            "detail": problem.meaning,
            "instance": "/v1/jobs",
            "retryable": problem.retryable,
            "evidence": {},
            "errors": errors,
        }
        answer["content"][MEDIA_TYPE]["examples"][problem.slug] = {"summary": problem.title, "value": value}
        if problem.retryable:
            answer["headers"].update(headers("Retry-After"))
        if problem.status == 401 or problem is problems.FORBIDDEN:
            answer["headers"].update(headers("WWW-Authenticate"))
        if problem is problems.RANGE_NOT_SATISFIABLE:
            answer["headers"].update(headers("Content-Range"))
        answer["description"] = " or ".join(e["summary"] for e in answer["content"][MEDIA_TYPE]["examples"].values())
    return answers


def _add_quota(responses: dict[str, Any]) -> None:
    """What every operation below /v1 may answer where the operator limits requests."""
    for status, answer in problem_answers(problems.QUOTA_EXCEEDED).items():
        if status == problems.QUOTA_EXCEEDED.status:
            answer["headers"].update(headers("RateLimit", "RateLimit-Policy"))
            responses.setdefault(str(status), answer)


def add_refusals(responses: dict[str, Any]) -> None:
    """What every operation may answer that needs a role."""
    for status, added in problem_answers(
        problems.UNAUTHENTICATED, problems.FORBIDDEN, problems.ISSUER_UNAVAILABLE, problems.STORAGE_UNAVAILABLE
    ).items():
        answer = responses.setdefault(str(status), added)
        examples = answer["content"][MEDIA_TYPE]["examples"]
        examples.update(added["content"][MEDIA_TYPE]["examples"])
        answer["description"] = " or ".join(example["summary"] for example in examples.values())
        answer["headers"].update(added["headers"])


def for_language_models(app: FastAPI) -> str:
    """What `/llms.txt` says, as https://llmstxt.org has it: what this is, and where more stands.

    The links are relative, so that they lead right behind a proxy that takes a prefix off, too.
    """
    return f"""# {app.title}

> {app.summary} Version {app.version}.
{app.description}
## More

- [OpenAPI document](openapi.json): every call, with its errors and examples
- [The same for people](docs)
- [The networks](v1/models) that scores come from
"""


def install(app: FastAPI) -> None:
    """Make `app.openapi()` return the completed document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schemas = document["components"]["schemas"]
            for model in (Problem, SourceSubmission, BatchSubmission, UploadRequest):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update({**schema.pop("$defs", {}), model.__name__: schema})
            # What FastAPI knows already is as it is answered.
            exported = ExportedReport.model_json_schema(
                mode="serialization", ref_template="#/components/schemas/{model}"
            )
            schemas.update({**exported.pop("$defs"), **schemas, "ExportedReport": exported})
            schemas["UploadSubmission"] = _UPLOAD
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            for schema in schemas.values():
                for name, field in schema.get("properties", {}).items():
                    # Of an integer without a format most languages make one of 32 bits, too few for 2 GiB.
                    for kind in field.get("anyOf", [field]) if name.endswith("_bytes") else ():
                        if kind["type"] == "integer":
                            kind["format"] = "int64"
            document["security"] = []
            document["components"]["securitySchemes"] = copy.deepcopy(access.SECURITY_SCHEMES)
            for address, path in document["paths"].items():
                for operation in path.values():
                    operation["security"] = access.security(operation["operationId"])
                    if operation["security"]:
                        add_refusals(operation["responses"])
                    if address.startswith("/v1/"):
                        _add_quota(operation["responses"])
                    for parameter in operation.get("parameters", ()):
                        # What may be left out of an address or a header is never null: some would send the word.
                        kinds = [kind for kind in parameter["schema"].get("anyOf", ()) if kind != {"type": "null"}]
                        if len(kinds) == 1:
                            parameter["schema"].update(kinds[0])
                            del parameter["schema"]["anyOf"]
                    # Drop FastAPI's own 422, which is never answered; every answer has a request id.
                    if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                        del operation["responses"]["422"]
                    for answer in operation["responses"].values():
                        answer.setdefault("headers", {}).update(headers("X-Request-ID"))
            # Messages to a receiver stand as callbacks of what names its address. Of webhooks, generators make methods
            # that nobody can call, in the place of others with their tag.
            # Each stands where it belongs, whole: generators do not follow a reference there.
            webhooks = document.pop("webhooks")
            for path in document["paths"].values():
                for operation in path.values():
                    for name in operation.get("callbacks", {}):
                        message = copy.deepcopy(webhooks[name]["post"])
                        (value,) = message["requestBody"]["content"].values()
                        message["requestBody"]["content"] = {"application/cloudevents+json": value}
                        message["responses"] = {
                            "204": {"description": "taken; any 2xx will do"},
                            "410": {"description": "nothing more is sent to this address, for any job"},
                        }
                        message["operationId"] = f"{operation['operationId']}_{message['operationId']}"
                        operation["callbacks"][name] = {"{$request.body#/callback_url}": {"post": message}}
            for route in app.state.routes:
                for method in route.methods or ():
                    operation = document["paths"][route.path][method.lower()]
                    # FastAPI drops every null from the document, also where an example means it.
                    for status, answer in route.responses.items():
                        for media_type, content in answer.get("content", {}).items():
                            if "examples" in content:
                                restored = operation["responses"][str(status)]["content"][media_type]
                                restored["examples"] = content["examples"]
            make_portable(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
