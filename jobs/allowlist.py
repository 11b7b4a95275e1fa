"""Addresses that an operator allows: each entry is a prefix, the same scheme, host and port, and a path below its."""

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

#: Those that a scan is fetched by, each with its usual port.
SOURCE_SCHEMES: Final[Mapping[str, int | None]] = {"https": 443, "s3": None}
#: Plain HTTP is for receivers in the operator's own network: an allowed prefix must say so.
CALLBACK_SCHEMES: Final[Mapping[str, int | None]] = {"https": 443, "http": 80}

_NEVER: Final = re.compile(r'[^\x21-\x7e]|[ \\"<>^`{|}#]')


def is_allowed(url: str, allowlist: Iterable[str], schemes: Mapping[str, int | None] = SOURCE_SCHEMES) -> bool:
    """Whether `url` begins with an allowed prefix; the gateway asks the same question when the job is posted."""
    try:
        parts = urlsplit(url)
        prefixes = [urlsplit(prefix) for prefix in allowlist]
        # No credentials, no tricks with the path, nothing that two parsers could read differently.
        is_plain = not _NEVER.search(url) and parts.username is None and not _has_dots(parts.path)
        return is_plain and any(_is_below(parts, prefix, schemes) for prefix in prefixes)
    except ValueError:  # no address at all, such as a port that is no number
        return False


def checked(entry: str, schemes: Mapping[str, int | None]) -> str:
    """An entry as it is compared: a host of other letters than ASCII's as DNS has it.

    Raises:
        ValueError: no address could ever match it; the sentence says why.
    """
    try:
        parts = urlsplit(entry)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{entry!r} can never match: {error}") from error
    reasons = {
        f"it must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}": "://" not in entry
        or parts.scheme not in schemes,
        "it has no host": not parts.hostname,
        "it has credentials, which no allowed address has": "@" in parts.netloc,
        "* is no wildcard here: a prefix allows all that is below it": "*" in entry,
        "it has a query or a fragment, and only paths are compared": "?" in entry or "#" in entry,
        "a bucket has no port": parts.scheme == "s3" and ":" in parts.netloc,
        "its path has . or ..": _has_dots(parts.path),
        "it has characters that must be written as %XX": bool(
            _NEVER.search(entry if entry.isascii() or parts.scheme == "s3" else parts.path)  # hosts: see below
        ),
    }
    if reason := next((reason for reason, is_so in reasons.items() if is_so), None):
        raise ValueError(f"{entry!r} can never match: {reason}")
    if not entry.isascii():
        import httpx  # not at the top: the settings are read by programs that ask nobody

        try:
            return str(httpx.URL(entry).copy_with(host=httpx.URL(entry).raw_host.decode()))
        except httpx.InvalidURL as error:
            raise ValueError(f"{entry!r} can never match: {error}") from error
    return entry


def _has_dots(path: str) -> bool:
    return bool({".", ".."} & set(unquote(unquote(path)).split("/")))


def _is_below(parts: SplitResult, prefix: SplitResult, schemes: Mapping[str, int | None]) -> bool:
    if parts.scheme not in schemes or parts.scheme != prefix.scheme or not parts.hostname:
        return False
    default = schemes[parts.scheme]
    if default is None:
        # A bucket is no host: capitals make another one of it.
        is_there = parts.netloc == prefix.netloc
    else:
        # Port 0 is no port at all, and not the usual one.
        port, allowed = (default if part.port is None else part.port for part in (parts, prefix))
        is_there = (parts.hostname, port) == (prefix.hostname, allowed)
    return is_there and (parts.path == prefix.path or parts.path.startswith(prefix.path.rstrip("/") + "/"))
