"""What a succeeded job found: its report and its masks."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Path, Response

from api import examples, openapi
from api.conditional import is_known, quoted
from api.dependencies import AddressesDep, JobsDep
from api.routes.jobs import READ_PROBLEMS, IfNoneMatch, JobId
from api.schemas import MaskAddress
from api.stored_file import FILE_HEADERS, MEDIA_TYPE, IfRange, Range, file_headers, stored_file
from api.views import as_json, json_response, report_view
from jobs import problems
from jobs.models import Inspection, MaskLabels, MaskName, Report

router = APIRouter(tags=["results"])

Name = Annotated[MaskName, Path(description="which mask")]
_PROBLEMS: Final = (*READ_PROBLEMS, problems.NOT_FOUND, problems.WRONG_STATE)


@router.get(
    "/v1/jobs/{job_id}/report",
    operation_id="get_report",
    summary="Get the scores",
    response_model=Report,
    responses={
        200: openapi.json_answer(
            "The scores.", {"report": {"summary": "a mild case", "value": examples.report_example()}}, "ETag"
        ),
        304: openapi.not_modified(),
        **openapi.problem_answers(*READ_PROBLEMS, problems.WRONG_STATE),
    },
)
def get_report(job_id: JobId, jobs: JobsDep, addresses: AddressesDep, if_none_match: IfNoneMatch = None) -> Response:
    """Severity overall and per lobe, volumes, landmarks, findings about the scan's quality, provenance, mask addresses.

    409 until the job has succeeded.
    """
    response = json_response(report_view(jobs.report(job_id), addresses))
    etag = quoted(hashlib.sha256(response.body).hexdigest()[:32])
    if is_known(etag, if_none_match):
        return Response(status_code=304, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return response


@router.get(
    "/v1/jobs/{job_id}/inspection",
    operation_id="get_inspection",
    summary="Get what was seen in a scan",
    response_model=Inspection,
    responses={
        200: openapi.json_answer(
            "What the reader saw.",
            {"inspection": {"summary": "a NIfTI of two forms", "value": as_json(examples.INSPECTION)}},
        ),
        **openapi.problem_answers(*READ_PROBLEMS, problems.WRONG_STATE),
    },
)
def get_inspection(job_id: JobId, jobs: JobsDep) -> Response:
    """Format, geometry and the fields that it comes from, findings and histogram of a scan that was sent to
    `POST /v1/validate`. Nothing about the patient.

    409 until the job has succeeded, and of a job that scores its scan.
    """
    return json_response(jobs.inspection(job_id))


@router.get(
    "/v1/jobs/{job_id}/labels",
    operation_id="get_labels",
    summary="Get what the masks' numbers stand for",
    response_model=MaskLabels,
    responses={
        200: openapi.json_answer(
            "The labels of each mask.", {"labels": {"summary": "of all masks", "value": as_json(examples.LABELS)}}
        ),
        **openapi.problem_answers(*READ_PROBLEMS, problems.WRONG_STATE),
    },
)
def get_labels(job_id: JobId, jobs: JobsDep) -> Response:
    """Number, name, colour and SNOMED CT concept of each label. The masks' own headers have names and colours, too.

    409 until the job has succeeded, of a job that only validated its scan, and of one that a version before labels
    scored.
    """
    return json_response(jobs.labels(job_id))


@router.get(
    "/v1/jobs/{job_id}/masks/{name}",
    operation_id="get_mask",
    summary="Get a mask",
    response_class=Response,
    responses={
        200: openapi.file_answer("All of the file.", *FILE_HEADERS),
        206: openapi.file_answer("The part that `Range` asks for.", *FILE_HEADERS, "Content-Range"),
        304: openapi.not_modified(),
        **openapi.problem_answers(*_PROBLEMS, problems.RANGE_NOT_SATISFIABLE),
    },
)
def get_mask(
    job_id: JobId,
    name: Name,
    jobs: JobsDep,
    if_none_match: IfNoneMatch = None,
    range: Range = None,  # noqa: A002  # the header's name
    if_range: IfRange = None,
) -> Response:
    """A gzipped NIfTI on the scan's own grid. `lobes` has 1 left upper, 2 left lower, 3 right upper, 4 right middle
    and 5 right lower; the others have 1 inside.
    """
    return stored_file(jobs.mask(job_id, name), f"{name}.nii.gz", if_none_match, range, if_range)


@router.get(
    "/v1/jobs/{job_id}/masks/{name}/url",
    operation_id="get_mask_url",
    summary="Get an address of a mask",
    response_model=MaskAddress,
    responses={
        200: openapi.json_answer(
            "Where this mask can be had.",
            {"lungs": {"summary": "the gateway's own address", "value": examples.mask_address_example()}},
        ),
        **openapi.problem_answers(*_PROBLEMS),
    },
)
def get_mask_url(job_id: JobId, name: Name, jobs: JobsDep, addresses: AddressesDep) -> Response:
    """An address for a viewer or a download manager.

    On S3 it is presigned, for this file alone and a short time, and its bytes do not pass through this service. Whoever
    has it can read the mask: do not store it. On a local folder it is the address of `get_mask`.
    """
    mask, expires_at = jobs.mask(job_id, name), datetime.now(UTC) + timedelta(seconds=jobs.settings.url_seconds)
    signed = mask.signed_url(jobs.settings.url_seconds)
    address = MaskAddress(
        url=signed or addresses.job(job_id, "masks", name),
        expires_at=expires_at if signed else None,
        size_bytes=mask.size_bytes,
        sha256=mask.sha256,
    )
    return json_response(address)


@router.head(
    "/v1/jobs/{job_id}/masks/{name}",
    operation_id="head_mask",
    summary="Ask about a mask",
    response_class=Response,
    responses={
        200: {"description": "The headers that GET would answer with.", "headers": openapi.headers(*FILE_HEADERS)},
        304: openapi.not_modified(),
        **openapi.problem_answers(*_PROBLEMS),
    },
)
def head_mask(job_id: JobId, name: Name, jobs: JobsDep, if_none_match: IfNoneMatch = None) -> Response:
    """Size, digest and version, without the file."""
    headers = file_headers(mask := jobs.mask(job_id, name), f"{name}.nii.gz")
    if is_known(headers["ETag"], if_none_match):
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    return Response(headers=headers | {"Content-Length": str(mask.size_bytes), "Content-Type": MEDIA_TYPE})
