"""What a result is looked at with: the scan itself, and pictures of it."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Response

from api import examples, openapi
from api.conditional import is_known
from api.dependencies import JobsDep, one_of_each
from api.routes.jobs import READ_PROBLEMS, IfNoneMatch, JobId
from api.stored_file import FILE_HEADERS, IfRange, Range, file_headers, stored_file
from jobs import problems
from jobs.models import ImageName

router = APIRouter(tags=["results"])

_PROBLEMS = (*READ_PROBLEMS, problems.WRONG_STATE, problems.IMAGE_NOT_KEPT)
PictureName = Literal["axial", "coronal", "sagittal", "glass"]


@router.get(
    "/v1/jobs/{job_id}/scan",
    operation_id="get_scan",
    dependencies=[Depends(one_of_each)],
    summary="Get the scan",
    response_class=Response,
    responses={
        200: openapi.file_answer("All of the file.", *FILE_HEADERS),
        206: openapi.file_answer("The part that `Range` asks for.", *FILE_HEADERS, "Content-Range"),
        304: openapi.not_modified(),
        **openapi.problem_answers(*_PROBLEMS, problems.RANGE_NOT_SATISFIABLE, problems.INVALID_PARAMETERS),
    },
)
def get_scan(
    job_id: JobId,
    jobs: JobsDep,
    size: Annotated[
        Literal["full", "preview"],
        Query(description="`preview`: 3 mm or more between voxels, for a first look"),
    ] = "full",
    if_none_match: IfNoneMatch = None,
    range: Range = None,  # noqa: A002  # the header's name
    if_range: IfRange = None,
) -> Response:
    """A gzipped NIfTI in Hounsfield units on the masks' grid, whatever form the scan came in, and nothing about the
    patient but what the scan itself shows. Not the bytes that were submitted.
    """
    name = ImageName.PREVIEW if size == "preview" else ImageName.SCAN
    return stored_file(jobs.image(job_id, name), f"{name}.nii.gz", if_none_match, range, if_range)


@router.get(
    "/v1/jobs/{job_id}/pictures/{name}.png",
    operation_id="get_picture",
    summary="Get a picture",
    response_class=Response,
    responses={
        200: {
            "description": "The picture.",
            "headers": openapi.headers("ETag", "Last-Modified", "Repr-Digest", "Content-Disposition"),
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        },
        304: openapi.not_modified(),
        **openapi.problem_answers(*_PROBLEMS, problems.NOT_FOUND),
    },
)
def get_picture(
    job_id: JobId,
    name: Annotated[PictureName, Path(description="which picture", examples=[examples.PICTURE])],
    jobs: JobsDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """`axial`, `coronal` and `sagittal`: the slices with most opacity, or else lung, lobes outlined, opacities red.
    `glass`: the opacities projected from the front onto the lungs.

    1 mm a pixel; the patient's right is on the picture's left, in the sagittal slice the front is; the head is up.
    """
    picture = jobs.image(job_id, ImageName(name))
    headers = file_headers(picture, f"{name}.png")
    if is_known(headers["ETag"], if_none_match):
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    # It is shown in a page, and always whole.
    headers["Content-Disposition"] = f'inline; filename="{name}.png"'
    del headers["Accept-Ranges"]
    return Response(b"".join(picture.read()), headers=headers, media_type="image/png")
