"""Conditional requests, ranges (RFC 9110, sections 13 and 14), and preferences (RFC 7240)."""

import re
from email.utils import parsedate_to_datetime
from typing import Final

from api.errors import ApiError
from jobs import problems

_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)", re.IGNORECASE | re.ASCII)
#: If-None-Match compares weakly (RFC 9110, section 13.1.2), so a `W/` is left out of what is compared.
_TAG: Final = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_WAIT: Final = re.compile(r'(?:^|,)\s*wait\s*=\s*"?(\d{1,6})"?\s*(?=[,;]|$)', re.IGNORECASE)


def wait_seconds(prefer: str | None, most: int) -> int:
    """How long the client lets its answer be held back; 0 if it asks for no wait. What is not understood is ignored."""
    match = _WAIT.search(prefer or "")
    return min(int(match.group(1)), most) if match else 0


def quoted(tag: str) -> str:
    """`tag` as a strong ETag."""
    return f'"{tag}"'


def is_known(etag: str, if_none_match: str | None) -> bool:
    """Whether the client has this version already: then 304."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)


def range_applies(if_range: str | None, etag: str, last_modified: str) -> bool:
    """Whether the client's part is of this version. Weak tags never match; dates only exactly."""
    if if_range is None:
        return True
    value = if_range.strip()
    if value.startswith(('"', "W/")):
        return value == etag
    try:
        # Exactly, not "not later than": a file may change twice within the second that an HTTP date can tell.
        return parsedate_to_datetime(value) == parsedate_to_datetime(last_modified)
    except (ValueError, TypeError):
        return False


def parse_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """The one range of bytes asked for, as begin and end (exclusive).

    None, which means all of it, for several ranges and for what is no range of bytes, as the RFC allows.

    Raises:
        ApiError (range-not-satisfiable): it begins after the end.
    """
    # Several ranges would need a multipart answer, which no client of large files asks for: they get the whole file.
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        begin, end = max(size_bytes - int(last), 0), size_bytes
    else:
        begin, end = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
        if last and int(last) < int(first):
            return None
    if begin >= end:
        raise ApiError(
            problems.RANGE_NOT_SATISFIABLE,
            f"the file has {size_bytes} bytes",
            evidence={"size_bytes": size_bytes},
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
    return begin, end
