"""Scans that come in parts: POST /v1/uploads and what follows."""

from functools import partial
from typing import Annotated, Any, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api import examples, openapi
from api.dependencies import (
    AddressesDep,
    CallerDep,
    ClientDep,
    JobsDep,
    PaceDep,
    UploadLimiterDep,
    jobs_of,
    one_of_each,
)
from api.quotas import AllowanceDep
from api.request_body import MAX_JSON_BYTES, read_json, receive_part
from api.schemas import Upload, UploadRequest
from api.views import json_response, upload_view
from jobs import problems
from jobs.access.caller import ANONYMOUS, DEFAULT_TENANT, TENANT_NAME
from jobs.errors import UrlNotValidError
from jobs.service import JobService
from jobs.states import UrlSignature
from jobs.tenants import Tenants

router = APIRouter(tags=["uploads"])

UploadId = Annotated[str, Path(description="`id` of the upload", examples=[examples.UPLOAD_ID])]
Number = Annotated[int, Path(ge=1, le=10_000, description="`number` of the part", examples=[2])]
Expires = Annotated[
    int,
    Query(
        ge=0,
        le=1 << 40,
        description="as it stands in the part's `url`",
        examples=[1772444700],
        json_schema_extra={"format": "int64"},
    ),
]
Signature = Annotated[
    str,
    Query(min_length=1, max_length=128, description="as it stands in the part's `url`", examples=[examples.SHA256]),
]
Tenant = Annotated[
    str | None,
    Query(
        pattern=rf"^{TENANT_NAME}$",
        description="as it stands in the part's `url`; absent in those of the tenant `default`",
        examples=["radiology"],
    ),
]


async def jobs_of_part(request: Request, caller: CallerDep, tenant: Tenant = None) -> JobService:
    """Whoever has the address of a part may send it, whoever they are: its signature says so, for its tenant.

    Raises UrlNotValidError: there is no such tenant.
    """
    # One without any role has shown no good key, though keys are asked for: here the signature is enough.
    if caller.roles and caller.subject != ANONYMOUS.subject:
        return await jobs_of(request, caller.tenant)
    tenants: Tenants = request.app.state.tenants
    found = await run_sync(tenants.find, tenant or DEFAULT_TENANT)
    if found is None:
        raise UrlNotValidError("the signature is not one of this service")
    return found.service


_PROBLEMS: Final = (problems.UPLOAD_NOT_FOUND, problems.STORAGE_UNAVAILABLE)
_ANNOUNCEMENT: Final = {
    "scan": {"summary": "a scan of 20 MB", "value": {"size_bytes": 20_000_000, "sha256": examples.SHA256}}
}
_PART: Final[dict[str, Any]] = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}


@router.post(
    "/v1/uploads",
    operation_id="create_upload",
    summary="Begin an upload in parts",
    status_code=201,
    response_model=Upload,
    responses={
        201: openapi.json_answer("Send the parts to their addresses.", examples.upload_examples("open"), "Location")
        | {"links": openapi.links("get_upload", "complete_upload", "abort_upload", parameter="upload_id")},
        **openapi.problem_answers(*openapi.JSON_BODY_PROBLEMS, problems.STORAGE_UNAVAILABLE),
    },
    openapi_extra=openapi.json_body("UploadRequest", _ANNOUNCEMENT),
)
async def create_upload(
    request: Request, jobs: JobsDep, pace: PaceDep, addresses: AddressesDep, allowance: AllowanceDep
) -> Response:
    """For scans too large for one request, or over lines that break.

    PUT each part to its `url`, in any order and as many at once as you like, then complete the upload and create a job
    from it. With S3 as storage the parts go straight there.
    """
    wanted = await read_json(request, UploadRequest, MAX_JSON_BYTES, pace)
    await run_sync(allowance.require, 0, wanted.size_bytes)
    state = await run_sync(jobs.uploads.create, wanted.size_bytes, wanted.sha256)
    # In full, now: the parts may go past the gateway, straight to the bucket.
    await run_sync(partial(allowance.count_bytes, wanted.size_bytes, is_stored=True))
    return json_response(upload_view(state, addresses), 201, {"Location": addresses.upload(state.record.id)})


@router.get(
    "/v1/uploads/{upload_id}",
    operation_id="get_upload",
    summary="Look at an upload",
    response_model=Upload,
    responses={
        200: openapi.json_answer("The upload as it stands.", examples.upload_examples("open", "complete")),
        **openapi.problem_answers(*_PROBLEMS),
    },
)
def get_upload(upload_id: UploadId, jobs: JobsDep, addresses: AddressesDep) -> Response:
    """Which parts have arrived, and new addresses for the others: so an interrupted upload goes on."""
    return json_response(upload_view(jobs.uploads.get(upload_id), addresses))


@router.put(
    "/v1/uploads/{upload_id}/parts/{number}",
    operation_id="put_upload_part",
    dependencies=[Depends(one_of_each)],
    summary="Send a part",
    status_code=204,
    responses={
        204: {"description": "The part is stored."},
        **openapi.problem_answers(
            *_PROBLEMS,
            problems.NOT_FOUND,
            problems.MALFORMED_REQUEST,
            problems.URL_NOT_VALID,
            problems.REQUEST_TIMEOUT,
            problems.UPLOAD_CLOSED,
            problems.INVALID_PARAMETERS,
            problems.WRONG_PART_SIZE,
            problems.TOO_MANY_UPLOADS,
            problems.CLIENT_LIMIT,
        ),
    },
    openapi_extra={"requestBody": _PART},
)
async def put_upload_part(
    upload_id: UploadId,
    number: Number,
    expires: Expires,
    signature: Signature,
    request: Request,
    jobs: Annotated[JobService, Depends(jobs_of_part)],
    client: ClientDep,
    pace: PaceDep,
    upload_limiter: UploadLimiterDep,
) -> Response:
    """Where the addresses of parts lead if the storage is a local folder. A part sent again replaces the first."""
    # A slot first, so that too many at once is 503 before the body is read.
    with upload_limiter.take(client, pace) as slot:
        signed = UrlSignature(expires, signature)
        sink, expected_bytes = await run_sync(jobs.uploads.open_part, upload_id, number, signed)
        await receive_part(request, slot, sink, expected_bytes, pace)
        await run_sync(jobs.uploads.require_part_in_time, upload_id, number)
    return Response(status_code=204)


@router.post(
    "/v1/uploads/{upload_id}/complete",
    operation_id="complete_upload",
    summary="Check an upload and close it",
    response_model=Upload,
    responses={
        200: openapi.json_answer("Size and digest are right.", examples.upload_examples("complete")),
        **openapi.problem_answers(*_PROBLEMS, problems.UPLOAD_INCOMPLETE, problems.UPLOAD_MISMATCH),
    },
)
def complete_upload(upload_id: UploadId, jobs: JobsDep, addresses: AddressesDep) -> Response:
    """All bytes are read once for their sha256, which takes seconds for a large scan. May be repeated."""
    return json_response(upload_view(jobs.uploads.complete(upload_id), addresses))


@router.delete(
    "/v1/uploads/{upload_id}",
    operation_id="abort_upload",
    summary="Abort an upload",
    status_code=204,
    responses={
        204: {"description": "All its parts are gone, and their addresses lead nowhere."},
        **openapi.problem_answers(*_PROBLEMS),
    },
)
def abort_upload(upload_id: UploadId, jobs: JobsDep) -> Response:
    """Also deletes a complete one that no job has taken."""
    jobs.uploads.abort(upload_id)
    return Response(status_code=204)
