"""Addresses that an operator allows: each entry is a prefix, the same scheme, host and port, and a path below its."""

import re
import socket
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

#: Those that a scan is fetched by, each with its usual port.
SOURCE_SCHEMES: Final[Mapping[str, int | None]] = {"https": 443, "s3": None}
#: Plain HTTP is for receivers in the operator's own network: an allowed prefix must say so.
CALLBACK_SCHEMES: Final[Mapping[str, int | None]] = {"https": 443, "http": 80}

_NEVER: Final = re.compile(r'[^\x21-\x7e]|[ \\"<>^`{|}#]')
#: Hosts where everybody can have files: a bucket, or an owner, must stand in the path.
_SHARED: Final = re.compile(
    r"s3([.-](dualstack\.)?[a-z]{2}(-[a-z]+)+-\d)?\.amazonaws\.com(\.cn)?|s3\.dualstack\.[a-z0-9-]+\.amazonaws\.com"
    r"|storage\.googleapis\.com|storage\.cloud\.google\.com|(raw|gist)\.githubusercontent\.com"
)


def is_allowed(url: str, allowlist: Iterable[str], schemes: Mapping[str, int | None] = SOURCE_SCHEMES) -> bool:
    """Whether `url` begins with an allowed prefix; the gateway asks the same question when the job is posted."""
    try:
        parts = urlsplit(url)
        prefixes = [urlsplit(prefix) for prefix in allowlist]
        # No credentials, no tricks with the path, nothing that two parsers could read differently.
        is_plain = not _NEVER.search(url) and parts.username is None and not _has_dots(parts.path) and parts.port != 0
        return is_plain and any(_is_below(parts, prefix, schemes) for prefix in prefixes)
    except ValueError:  # no address at all, such as a port that is no number
        return False


def checked(entry: str, schemes: Mapping[str, int | None]) -> str:
    """An entry as it is compared: a host of other letters than ASCII's as DNS has it.

    Raises:
        ValueError: no address could ever match it, or files of everybody would; the sentence says why.
    """
    try:
        parts = urlsplit(entry)
        port, host = parts.port, parts.hostname or ""
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
        "0 is no port": port == 0,
        "its host is none that DNS has": parts.scheme != "s3" and not _is_host(host),
        "it names a network, and an entry is of one host: LOBEWISE_OUTBOUND_NETWORKS takes networks": _is_network(
            host + parts.path
        ),
        "its path has . or ..": _has_dots(parts.path),
        "it has characters that must be written as %XX": bool(
            _NEVER.search(entry if entry.isascii() or parts.scheme == "s3" else parts.path)  # hosts: see below
        ),
    }
    if reason := next((reason for reason, is_so in reasons.items() if is_so), None):
        raise ValueError(f"{entry!r} can never match: {reason}")
    if _SHARED.fullmatch(host.rstrip(".")) and parts.path in ("", "/"):
        raise ValueError(f"{entry!r} allows the files of everybody: name the bucket, or the owner, in its path")
    if not entry.isascii():
        import httpx  # not at the top: the settings are read by programs that ask nobody

        try:
            return str(httpx.URL(entry).copy_with(host=httpx.URL(entry).raw_host.decode()))
        except httpx.InvalidURL as error:
            raise ValueError(f"{entry!r} can never match: {error}") from error
    return entry


def _has_dots(path: str) -> bool:
    """Whether some server takes a part of the path for `.` or `..`, or the path has a control character."""
    for _ in range(4):
        path, before = unquote(path), path
        if path == before:
            break
    else:
        return True  # encoded so often that only a trick needs it
    # Wide dots and slashes become plain ones in some file systems.
    path = unicodedata.normalize("NFKC", path)
    # `..;x` is `..` to Java's servers, `..\\` is `../` to Windows, which drops spaces at the end of a name, too.
    parts = (part.partition(";")[0].strip() for part in re.split(r"[/\\]", path))
    return any(part in (".", "..") for part in parts) or bool(re.search(r"[\x00-\x1f\x7f]", path))


def _is_host(host: str) -> bool:
    """Whether DNS could have it, or it is an address as people write it."""
    if _is_address(host):
        return not ip_address(host).is_unspecified
    with suppress(OSError):
        # 2130706433, 0x7f.1, 0177.0.0.1 and 127.1, which the system takes for 127.0.0.1.
        socket.inet_aton(host)
        return False
    # Letters other than ASCII's are spelt for DNS later, and are checked then.
    return all(0 < len(label) < 64 for label in host.removesuffix(".").split(".")) and not re.search(r"[^\w.-]", host)


def _is_network(text: str) -> bool:
    """Whether it is more than one address, as people write that."""
    try:
        return ip_network(text).num_addresses > 1
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


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
