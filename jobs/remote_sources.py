"""Scans that the worker fetches itself, from addresses that the operator allows.

An address must begin with one of the allowed prefixes: the same scheme, host and port, and a path below the
prefix's. Redirects are not followed, so an allowed server cannot send us elsewhere. What remains: whoever runs an
allowed host, or answers for its name in DNS, decides which machine we talk to; so allow only hosts of your own, and
let the network policy of the workers say the rest.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

import httpx
import obstore
from obstore.exceptions import PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from jobs.errors import SourceMismatchError, SourceNotAllowedError, SourceNotFoundError, SourceTooLargeError
from jobs.models import InputInfo, ScanSource
from jobs.store.object_store import PIECE_BYTES

TIMEOUT: Final = httpx.Timeout(10.0, read=60.0)
_SCHEMES: Final = {"https": 443, "s3": None}


def is_allowed(url: str, allowlist: Iterable[str], schemes: Mapping[str, int | None] = _SCHEMES) -> bool:
    """Whether `url` begins with an allowed prefix; the gateway asks the same question when the job is posted.

    `schemes` are those that may be, each with its usual port.
    """
    try:
        parts = urlsplit(url)
        prefixes = [urlsplit(prefix) for prefix in allowlist]
        # No credentials, no tricks with the path, nothing that two parsers could read differently.
        printable = url.isascii() and url.isprintable() and not any(c in url for c in ' \\"<>^`{|}#')
        segments = unquote(unquote(parts.path)).split("/")
        is_plain = printable and parts.username is None and not {".", ".."} & set(segments)
        return is_plain and any(_is_below(parts, prefix, schemes) for prefix in prefixes)
    except ValueError:  # no address at all, such as a port that is no number
        return False


def fetch(source: ScanSource, path: Path, *, allowlist: Iterable[str], limit_bytes: int) -> InputInfo:
    """Fetch a scan to `path`. Raises SourceError: it cannot be had, now or later.

    httpx.HTTPError and obstore.exceptions.BaseError: it may be had later.
    """
    if not is_allowed(source.url, allowlist):
        raise SourceNotAllowedError("The operator of this service does not allow this address.")
    opened = _s3(source.url) if source.url.startswith("s3:") else _https(source.url)
    digest, size_bytes = hashlib.sha256(), 0
    with opened as pieces, path.open("wb") as file:
        for piece in pieces:
            size_bytes += len(piece)
            if size_bytes > limit_bytes:
                raise SourceTooLargeError(f"The scan has more than {limit_bytes} bytes.", limit_bytes=limit_bytes)
            digest.update(piece)
            file.write(piece)
    sha256 = digest.hexdigest()
    if source.sha256 not in (None, sha256):
        evidence = {"expected_sha256": source.sha256, "found_sha256": sha256}
        raise SourceMismatchError("The bytes at this address have another sha256.", **evidence)
    return InputInfo(size_bytes=size_bytes, sha256=sha256, source=source)


def _is_below(parts: SplitResult, prefix: SplitResult, schemes: Mapping[str, int | None]) -> bool:
    if parts.scheme not in schemes or parts.scheme != prefix.scheme or not parts.hostname:
        return False
    default = schemes[parts.scheme]
    if (parts.hostname, parts.port or default) != (prefix.hostname, prefix.port or default):
        return False
    return parts.path == prefix.path or parts.path.startswith(prefix.path.rstrip("/") + "/")


@contextmanager
def _https(url: str) -> Iterator[Iterator[bytes]]:
    headers = {"Accept-Encoding": "identity", "Accept": "application/octet-stream, */*"}
    with httpx.stream("GET", url, headers=headers, follow_redirects=False, timeout=TIMEOUT) as response:
        if response.is_redirect or response.is_client_error:
            status = response.status_code
            raise SourceNotFoundError(f"Its server answered {status}.", http_status=status)
        response.raise_for_status()
        yield response.iter_raw(PIECE_BYTES)


@contextmanager
def _s3(url: str) -> Iterator[Iterator[bytes]]:
    parts = urlsplit(url)
    store = S3Store.from_url(f"s3://{parts.netloc}")
    try:
        found = obstore.get(store, unquote(parts.path).lstrip("/"))
    except (FileNotFoundError, PermissionDeniedError, UnauthenticatedError) as error:
        raise SourceNotFoundError("There is no such object, or not for us.") from error
    yield (bytes(piece) for piece in found.stream(min_chunk_size=PIECE_BYTES))
