"""Where the gateway listens, and how it is asked from this machine. Light: the command line imports it, too."""

import logging
import resource
import socket
from typing import Final

from jobs.errors import SettingsError

logger = logging.getLogger("lobewise.api")

#: Scans on their way in, Redis, the store and what Python itself has open.
FILES_BESIDE_CONNECTIONS: Final = 512
#: These mean "all addresses" to a server and are none to connect to; the loopback is asked instead.
ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (where to ask, not where to listen)


def local_address(host: str, port: int) -> str:
    """The address by which this machine reaches a gateway that listens at `host`."""
    asked = ANY_ADDRESS.get(host, host)
    return f"http://[{asked}]:{port}" if ":" in asked else f"http://{asked}:{port}"


def require_free(host: str, port: int) -> None:
    """Look before anything is started: uvicorn finds it last of all, and says it in a line of the log.

    Raises:
        SettingsError: nobody can listen there, or somebody does.
    """
    try:
        # As asyncio does: a name may have several addresses, and all are listened at.
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{host!r} is no address of this machine to listen on: there is no such host.") from error
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            raise SettingsError(f"Nobody can listen on {host!r}, port {port}: {error.strerror}.") from error


def allow_connections(count: int) -> None:
    """Let this process hold so many connections open, as far as it may: systems begin with 1024 files for each."""
    wanted = count + FILES_BESIDE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    may = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < may:
        resource.setrlimit(resource.RLIMIT_NOFILE, (may, hard))
    if may < wanted:
        fit = max(may - FILES_BESIDE_CONNECTIONS, 1)
        sentence = "only %d files may be open (ulimit -Hn): LOBEWISE_API_MAX_CONNECTIONS should be at most %d"
        logger.warning(sentence, may, fit)
