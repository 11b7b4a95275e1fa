"""Scans that the worker fetches itself, from addresses that the operator allows.

An address must begin with one of the allowed prefixes (`jobs.allowlist`). Redirects are not followed, so an allowed
server cannot send us elsewhere. What remains: whoever runs an allowed host, or answers for its name in DNS, decides
which machine we talk to; so allow only hosts of your own, and let the network policy of the workers say the rest.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import httpx
import obstore
from obstore.exceptions import PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from jobs.allowlist import is_allowed
from jobs.errors import SourceMismatchError, SourceNotAllowedError, SourceNotFoundError, SourceTooLargeError
from jobs.models import InputInfo, ScanSource
from jobs.proxies import RoutedTransport, obstore_options, s3_endpoint
from jobs.store.object_store import PIECE_BYTES

TIMEOUT: Final = httpx.Timeout(10.0, read=60.0)


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


@contextmanager
def _https(url: str) -> Iterator[Iterator[bytes]]:
    headers = {"Accept-Encoding": "identity", "Accept": "application/octet-stream, */*"}
    with (
        httpx.Client(transport=RoutedTransport(), follow_redirects=False, timeout=TIMEOUT) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        if response.is_redirect or response.is_client_error:
            status = response.status_code
            raise SourceNotFoundError(f"Its server answered {status}.", http_status=status)
        response.raise_for_status()
        yield response.iter_raw(PIECE_BYTES)


@contextmanager
def _s3(url: str) -> Iterator[Iterator[bytes]]:
    parts = urlsplit(url)
    store = S3Store.from_url(f"s3://{parts.netloc}", client_options=obstore_options(s3_endpoint()))
    try:
        found = obstore.get(store, unquote(parts.path).lstrip("/"))
    except (FileNotFoundError, PermissionDeniedError, UnauthenticatedError) as error:
        raise SourceNotFoundError("There is no such object, or not for us.") from error
    yield (bytes(piece) for piece in found.stream(min_chunk_size=PIECE_BYTES))
