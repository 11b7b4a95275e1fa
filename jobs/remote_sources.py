"""Scans that the worker fetches itself, from addresses that the operator allows.

An address must begin with one of the allowed prefixes (`jobs.allowlist`), and so must each one that it redirects to;
its host must be at an address that may be connected to (`jobs.outbound`). The endpoint of a bucket is the operator's
own setting, and is asked wherever it is.
"""

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import httpx
import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from jobs.allowlist import is_allowed
from jobs.errors import (
    AddressRefusedError,
    SourceMismatchError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceTooSlowError,
    SourceUnavailableError,
)
from jobs.models import InputInfo, ScanSource
from jobs.outbound import LimitedBackend, OutboundRules, TimeLimit
from jobs.proxies import RoutedTransport, obstore_options, s3_endpoint
from jobs.store.object_store import PIECE_BYTES

log = logging.getLogger(__name__)

TIMEOUT: Final = httpx.Timeout(10.0, read=60.0)
#: Until the headers of an answer are there: they could drip, too.
HEADERS_SECONDS: Final = 90.0
#: How long a source may think before its rate counts.
GRACE_SECONDS: Final = 60.0
MOST_REDIRECTS: Final = 5


@dataclass(frozen=True)
class FetchLimits:
    """How much of a source is taken, how long, from where.

    Attributes:
        networks: of the operator's, whose addresses may be connected to though they are not public.
        seconds: for all of it, redirects too.
        bytes_per_second: the least, on average, after the first minute.
    """

    max_bytes: int
    networks: tuple[str, ...] = ()
    seconds: float = 900.0
    bytes_per_second: int = 0


def fetch(source: ScanSource, path: Path, *, allowlist: Iterable[str], limits: FetchLimits) -> InputInfo:
    """Fetch a scan to `path`.

    Raises:
        SourceError: it cannot be had, now or later.
        SourceUnavailableError: it may be had later.
    """
    allowlist = tuple(allowlist)
    if not is_allowed(source.url, allowlist):
        raise SourceNotAllowedError("The operator of this service does not allow this address.")
    begin = time.monotonic()
    limit = TimeLimit(begin + min(limits.seconds, HEADERS_SECONDS))
    digest, size_bytes = hashlib.sha256(), 0
    try:
        opened = _s3(source.url) if source.url.startswith("s3:") else _https(source.url, allowlist, limits, limit)
        with opened as pieces, path.open("wb") as file:
            limit.ends_at = begin + limits.seconds
            for piece in pieces:
                size_bytes += len(piece)
                if size_bytes > limits.max_bytes:
                    raise SourceTooLargeError(
                        f"The scan has more than {limits.max_bytes} bytes.", limit_bytes=limits.max_bytes
                    )
                counted = time.monotonic() - begin - GRACE_SECONDS
                if limit.is_over or size_bytes < counted * limits.bytes_per_second:
                    raise _too_slow(begin, size_bytes)
                digest.update(piece)
                file.write(piece)
    except (httpx.HTTPError, BaseError) as error:
        if limit.is_over:
            raise _too_slow(begin, size_bytes) from error
        # The class and not the sentence: that may have the address, with a secret of it.
        log.warning("the server of the scan failed: %s", type(error).__name__)
        raise SourceUnavailableError("The server of the scan did not answer, or not to the end.") from error
    except AddressRefusedError as error:
        log.warning("%s", error)
        raise SourceNotAllowedError("Its host is in a network that this service connects to nobody in.") from error
    sha256 = digest.hexdigest()
    if source.sha256 not in (None, sha256):
        evidence = {"expected_sha256": source.sha256, "found_sha256": sha256}
        raise SourceMismatchError("The bytes at this address have another sha256.", **evidence)
    return InputInfo(size_bytes=size_bytes, sha256=sha256, source=source)


def _too_slow(begin: float, size_bytes: int) -> SourceTooSlowError:
    seconds = round(time.monotonic() - begin, 1)
    return SourceTooSlowError(
        f"Its server gave {size_bytes} bytes in {seconds:.0f} seconds.", seconds=seconds, received_bytes=size_bytes
    )


@contextmanager
def _https(url: str, allowlist: tuple[str, ...], limits: FetchLimits, limit: TimeLimit) -> Iterator[Iterator[bytes]]:
    headers = {"Accept-Encoding": "identity", "Accept": "application/octet-stream, */*"}
    rules = OutboundRules.of(limits.networks)
    transport = RoutedTransport(straight=LimitedBackend(rules, limit), to_proxy=LimitedBackend(None, limit))
    with httpx.Client(transport=transport, follow_redirects=False, timeout=TIMEOUT) as client:
        for _ in range(1 + MOST_REDIRECTS):
            with client.stream("GET", url, headers=headers) as response:
                status = response.status_code
                if response.has_redirect_location:
                    url = _redirected(url, response.headers["location"], allowlist)
                    continue
                if response.is_redirect or response.is_client_error:
                    raise SourceNotFoundError(f"Its server answered {status}.", http_status=status)
                response.raise_for_status()
                yield response.iter_raw()
                return
        raise SourceNotFoundError(f"Its server redirects more than {MOST_REDIRECTS} times.", http_status=status)


def _redirected(url: str, location: str, allowlist: tuple[str, ...]) -> str:
    """Where the redirect leads. Raises SourceNotAllowedError: not to an address that the operator allows."""
    try:
        # A fragment is for browsers; servers give it in redirects all the same.
        target = str(httpx.URL(url).join(location).copy_with(fragment=None))
    except (httpx.InvalidURL, ValueError):
        target = ""
    if not (target.startswith("https:") and is_allowed(target, allowlist)):
        raise SourceNotAllowedError("Its server redirects to an address that the operator does not allow.")
    return target


@contextmanager
def _s3(url: str) -> Iterator[Iterator[bytes]]:
    parts = urlsplit(url)
    store = S3Store.from_url(f"s3://{parts.netloc}", client_options=obstore_options(s3_endpoint()))
    try:
        found = obstore.get(store, unquote(parts.path).lstrip("/"))
    except (FileNotFoundError, PermissionDeniedError, UnauthenticatedError) as error:
        raise SourceNotFoundError("There is no such object, or not for us.") from error
    yield (bytes(piece) for piece in found.stream(min_chunk_size=PIECE_BYTES))
