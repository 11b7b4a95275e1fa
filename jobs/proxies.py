"""Which proxy a request takes, as `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say.

httpx reads them too, but raises what names no variable on entries that other programs understand (`[::1]`), takes
networks (`10.0.0.0/8`) for names, and sends even what is meant for this machine to a proxy.
"""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

import httpx

from jobs.errors import SettingsError

if TYPE_CHECKING:
    import httpcore
    from obstore.store import ClientConfig

PORTS: Final = {"http": 80, "https": 443}
SCHEMES: Final = ("http", "https", "socks5", "socks5h")
_NAME: Final = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Proxy:
    """One that the environment names; its address may hold a password, the name of its variable does not."""

    address: str
    variable: str


def proxy_of(url: str) -> Proxy | None:
    """The proxy of a request to this address; None if it goes straight there.

    Raises:
        SettingsError: a variable that matters to this address cannot be understood, or its proxy not be used.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None  # no address at all, which whoever sends the request finds, and no variable is to blame for
    # First, so that a service on this machine works whatever the environment says.
    if is_loopback(parts.hostname or ""):
        return None
    given = getproxies()
    scheme = next((name for name in (parts.scheme, "all") if given.get(name)), None)
    if scheme is None or _is_excluded(parts, given.get("no", "")):
        return None
    variable, address = _variable(scheme), given[scheme]
    address = address if "://" in address else f"http://{address}"
    try:
        known = urlsplit(address)
        is_right = known.scheme in SCHEMES and bool(known.hostname) and known.port != 0
        httpx.Proxy(address)
    except (ValueError, httpx.InvalidURL):
        is_right = False
    if not is_right:
        # Not the value: it may hold a password.
        wanted = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise SettingsError(f"{variable} is no address of a proxy: it must be one of {wanted} and host:port.")
    if known.scheme.startswith("socks") and find_spec("socksio") is None:
        raise SettingsError(
            f"{variable} names a SOCKS proxy, which needs a package that is not installed: pip install 'httpx[socks]'"
        )
    return Proxy(address, variable)


def is_loopback(host: str) -> bool:
    """Whether this names the machine itself: 127.0.0.0/8, ::1, localhost and what is below it."""
    host = host.lower().rstrip(".")
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    # 0.0.0.0 and :: name no machine: the system connects to itself.
    return (mapped or address).is_loopback or address.is_unspecified


class RoutedTransport(httpx.BaseTransport):
    """Sends each request by the proxy that it is due.

    Args:
        straight: makes the connections of requests that take no proxy; httpcore's own by default.
        to_proxy: makes those to proxies.
    """

    def __init__(
        self,
        straight: "httpcore.NetworkBackend | None" = None,
        to_proxy: "httpcore.NetworkBackend | None" = None,
    ) -> None:
        self._straight, self._to_proxy = straight, to_proxy
        self._by_proxy: dict[Proxy | None, _Transport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        proxy = proxy_of(str(request.url))
        if proxy not in self._by_proxy:
            backend = self._to_proxy if proxy else self._straight
            self._by_proxy[proxy] = _Transport(backend, proxy.address if proxy else None)
        return self._by_proxy[proxy].handle_request(request)

    def close(self) -> None:
        for transport in self._by_proxy.values():
            transport.close()


class AsyncRoutedTransport(httpx.AsyncBaseTransport):
    """The same for an event loop; `straight` as there."""

    def __init__(self, limits: httpx.Limits, straight: "httpcore.AsyncNetworkBackend | None" = None) -> None:
        self._limits, self._straight = limits, straight
        self._by_proxy: dict[Proxy | None, _AsyncTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        proxy = proxy_of(str(request.url))
        if proxy not in self._by_proxy:
            backend = None if proxy else self._straight
            self._by_proxy[proxy] = _AsyncTransport(backend, proxy.address if proxy else None, self._limits)
        return await self._by_proxy[proxy].handle_async_request(request)

    async def aclose(self) -> None:
        for transport in self._by_proxy.values():
            await transport.aclose()


# httpx takes no backend, but its pools are httpcore's, which ask theirs for each connection
# (tests/jobs/test_outbound.py fails where that changes).


class _Transport(httpx.HTTPTransport):
    def __init__(self, backend: "httpcore.NetworkBackend | None", proxy: str | None) -> None:
        super().__init__(proxy=proxy)
        if backend is not None:
            self._pool._network_backend = backend


class _AsyncTransport(httpx.AsyncHTTPTransport):
    def __init__(self, backend: "httpcore.AsyncNetworkBackend | None", proxy: str | None, limits: httpx.Limits) -> None:
        super().__init__(proxy=proxy, limits=limits)
        if backend is not None:
            self._pool._network_backend = backend


def s3_endpoint() -> str | None:
    """Where the bucket is, as obstore reads it; None for AWS's own."""
    return os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or None


def obstore_options(endpoint: str | None) -> "ClientConfig":
    """Of a client of the bucket: obstore reads the same variables, and this keeps it off a proxy that is not due."""
    # obstore reads `AWS_ALLOW_HTTP` itself only where no option of the client is given.
    options: ClientConfig = {"allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")}
    is_asked = endpoint is not None and any(getproxies().get(name) for name in ("http", "https", "all"))
    if endpoint is None or not is_asked or proxy_of(endpoint) is not None:
        return options
    # With a proxy given it reads no variable, and this one serves no host at all: names, IPv4, IPv6.
    return {**options, "proxy_url": endpoint, "proxy_excludes": "*,0.0.0.0/0,::/0"}


def _variable(scheme: str) -> str:
    """The name under which the environment has it; the lower-case one goes first, as in other programs."""
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper())
    return next((name for name in names if os.environ.get(name)), names[-1])


def _is_excluded(parts: SplitResult, entries: str) -> bool:
    """Raises SettingsError: an entry is none."""
    # All of them are looked at: a wrong one behind the one that matches would come to light on another day.
    return any([_matches(entry, parts) for entry in re.split(r"[\s,]+", entries) if entry])  # noqa: C419


def _matches(entry: str, parts: SplitResult) -> bool:
    if entry == "*":
        return True
    port = parts.port or PORTS.get(parts.scheme)
    try:
        host = _spelt_for_dns(parts.hostname or "")
        scheme, _, rest = entry.rpartition("://")
        # `::1` has colons and no port; `[::1]:8000` has both.
        if rest.count(":") < 2 or rest.startswith("["):
            split = urlsplit(f"//{rest}") if "/" not in rest else None
            wanted, wanted_port = (rest, None) if split is None else (split.hostname or "", split.port)
        else:
            wanted, wanted_port = rest, None
        if scheme not in ("", "all", parts.scheme) or wanted_port not in (None, port):
            return False
        wanted = wanted.replace("[", "").replace("]", "")
        if ":" in wanted or "/" in wanted or re.fullmatch(r"[\d.]+", wanted):
            network = ip_network(wanted, strict=False)
            try:
                return ip_address(host) in network
            except ValueError:
                return False  # a name: who has its address is not asked
        domain = _spelt_for_dns(wanted.removeprefix("*").removeprefix("."))
        if not _NAME.fullmatch(domain):
            raise ValueError
    except ValueError:
        message = f"{_variable('no')} has {entry!r}, which is no host, address, network or *."
        raise SettingsError(message) from None
    return host == domain or host.endswith(f".{domain}")


def _spelt_for_dns(host: str) -> str:
    """Raises ValueError: letters that no host has."""
    return host.lower().rstrip(".").encode("idna" if not host.isascii() else "ascii").decode()
