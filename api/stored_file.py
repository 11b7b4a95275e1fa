"""Answers with a stored file: whole or in part, with its digest, or that the client has it already."""

import base64
from email.utils import format_datetime
from typing import Annotated, Final

from fastapi import Header, Response
from fastapi.responses import StreamingResponse

from api.conditional import is_known, parse_range, quoted, range_applies
from jobs.service import StoredFile

#: Not application/gzip, which some clients would unpack or not know; the file name says what it is.
MEDIA_TYPE: Final = "application/octet-stream"
FILE_HEADERS: Final = ("ETag", "Last-Modified", "Accept-Ranges", "Repr-Digest", "Content-Disposition")

Range = Annotated[
    str | None,
    Header(alias="Range", description="one range of bytes; several are answered with all", examples=["bytes=0-1023"]),
]
IfRange = Annotated[
    str | None,
    Header(
        alias="If-Range", description="the ETag or Last-Modified of the part you have: all of the file if it changed"
    ),
]


def stored_file(
    file: StoredFile, file_name: str, if_none_match: str | None, asked: str | None, if_range: str | None
) -> Response:
    """The file, or the one range of it that is asked for. Raises ApiError (range-not-satisfiable)."""
    headers = file_headers(file, file_name)
    if is_known(headers["ETag"], if_none_match):
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    applies = range_applies(if_range, headers["ETag"], headers["Last-Modified"])
    part = parse_range(asked, file.size_bytes) if applies else None
    begin, end = part or (0, file.size_bytes)
    headers |= {"Content-Length": str(end - begin)}
    if part is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{file.size_bytes}"
    return StreamingResponse(file.read(begin, end), 206 if part else 200, headers, MEDIA_TYPE)


def file_headers(file: StoredFile, file_name: str) -> dict[str, str]:
    """What GET and HEAD say of it."""
    # The sha256 of the whole file, for a part of it too (RFC 9530): a download in parts can be checked.
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    return {
        "ETag": quoted(file.sha256),
        "Last-Modified": format_datetime(file.last_modified, usegmt=True),
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{digest}:",
        "Content-Disposition": f'attachment; filename="{file_name}"',
    }
