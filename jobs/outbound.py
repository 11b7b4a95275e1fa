"""Connections to hosts that a client named: only to addresses that were looked at, and not longer than they may take.

An allow-list says which names a client may give; who answers for a name in DNS decides where it leads, and may answer
differently a moment later. So a name is looked up once, each address is looked at, and the connection goes to one of
those: TLS and `Host` keep the name.

A proxy of the environment looks names up itself: then its rules decide, and only the time is ours.
"""

import asyncio
import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import SOCK_STREAM, getaddrinfo
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore

from jobs.errors import AddressRefusedError, SettingsError
from jobs.proxies import PORTS, is_loopback, proxy_of

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

#: Where clouds give credentials to whoever asks: AWS, ECS and EKS, Google, Azure, Alibaba, Oracle. Not all of them are
#: in a range that is private.
METADATA: Final = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200", "192.0.0.192",
        "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
    )
)  # fmt: skip
METADATA_KIND: Final = "a metadata service"
_IPV6_UNICAST: Final = ip_network("2000::/3")
#: Not public, whatever Python's tables say: IETF's own, 6to4's relays; 6to4, Teredo and ORCHID, documentation.
_SPECIAL: Final = tuple(
    ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
)
#: IPv4 hosts as a network of IPv6 alone sees them (RFC 6052).
_NAT64: Final = ip_network("64:ff9b::/96")
#: How long an address is tried when there are others.
FIRST_TRIES_SECONDS: Final = 3.0


def kind_of(address: Address) -> str:
    """What an address is if it is not a public one; empty for those of the internet."""
    plain = _plain(address)
    if plain in METADATA:
        return METADATA_KIND
    for kind in ("unspecified", "loopback", "link_local", "multicast"):
        if getattr(plain, f"is_{kind}"):
            return kind.replace("_", "-")
    is_public = plain.is_global and not plain.is_reserved and not any(plain in network for network in _SPECIAL)
    return "" if is_public and (plain.version == 4 or plain in _IPV6_UNICAST) else "private or reserved"


def _plain(address: Address) -> Address:
    """The IPv4 address inside one of IPv6, where that is who is reached in the end."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


@dataclass(frozen=True)
class OutboundRules:
    """Which addresses of allowed hosts are connected to: public, those of `networks`, and those named by number."""

    networks: tuple[IPv4Network | IPv6Network, ...]

    @staticmethod
    def of(networks: Iterable[str]) -> "OutboundRules":
        return OutboundRules(tuple(map(ip_network, networks)))

    def refusal(self, host: str, address: str) -> str:
        """Why no connection goes to this address of the host, as a sentence for the operator; empty if one does."""
        # What follows % is an interface of this machine, and no part of the address.
        found = _plain(ip_address(address.partition("%")[0]))
        kind = kind_of(found)
        around = [network for network in self.networks if found in network]
        if kind == METADATA_KIND:
            # In no larger network: an operator who lists a range does not think of the one address in it.
            is_allowed = any(network.num_addresses == 1 for network in around)
        else:
            is_allowed = not kind or bool(around) or _is_named(host, found)
        if is_allowed:
            return ""
        advice = "that very address" if kind == METADATA_KIND else "its network"
        return f"{host} is at {found}, which is {kind}: LOBEWISE_OUTBOUND_NETWORKS does not list {advice}."

    def addresses(self, host: str, found: Iterable[Any]) -> list[str]:
        """Those of getaddrinfo's answer that may be connected to, in its order.

        Raises AddressRefusedError: none of them.
        """
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        refusals = {address: self.refusal(host, address) for address in addresses}
        if all(refusals.values()):
            raise AddressRefusedError(" ".join(refusals.values()))
        return [address for address in addresses if not refusals[address]]


def _is_named(host: str, address: Address) -> bool:
    """Whether the host is this address as a number, or the name of this machine: then the allow-list has it itself."""
    try:
        return _plain(ip_address(host.strip("[]"))) == address
    except ValueError:
        return is_loopback(host) and address.is_loopback


@dataclass
class TimeLimit:
    """When an exchange must be over, by `time.monotonic()`; it may be set anew on the way."""

    ends_at: float = field(default=float("inf"))

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.ends_at

    def within(self, timeout: float | None) -> float | None:
        """Of both the shorter. Raises httpcore.ReadTimeout: it is over."""
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the exchange takes too long")
        return timeout if left == float("inf") else left if timeout is None else min(timeout, left)


class LimitedBackend(httpcore.NetworkBackend):
    """Connects to addresses that the rules allow, all of it within the limit.

    Args:
        rules: None lets every address be connected to: to a proxy's, which is the operator's own word.
    """

    def __init__(self, rules: OutboundRules | None, limit: TimeLimit) -> None:
        self._rules, self._limit, self._inner = rules, limit, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Raises AddressRefusedError, and httpcore.ConnectError and httpcore.ConnectTimeout as its own backend."""
        addresses = [host]
        if self._rules is not None:
            with _lookup_errors():
                found = getaddrinfo(host, port, type=SOCK_STREAM)
            addresses = self._rules.addresses(host, found)
        for address, seconds in _tries(addresses, timeout):
            try:
                within = self._limit.within(seconds)
                stream = self._inner.connect_tcp(address, port, within, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if address == addresses[-1]:
                    raise
            else:
                return _LimitedStream(stream, self._limit)
        raise AssertionError  # there is one address at least, or none was found


class _LimitedStream(httpcore.NetworkStream):
    """Reads and writes within the limit: bytes that drip would begin each timeout of httpx anew."""

    def __init__(self, inner: httpcore.NetworkStream, limit: TimeLimit) -> None:
        self._inner, self._limit = inner, limit

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._limit.within(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._limit.within(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, self._limit.within(timeout))
        return _LimitedStream(inner, self._limit)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class AsyncPinnedBackend(httpcore.AsyncNetworkBackend):
    """The same for an event loop, without a limit: `asyncio.timeout` around a request is one."""

    def __init__(self, rules: OutboundRules) -> None:
        self._rules, self._inner = rules, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises as LimitedBackend does."""
        with _lookup_errors():
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=SOCK_STREAM)
        addresses = self._rules.addresses(host, found)
        for address, seconds in _tries(addresses, timeout):
            try:
                return await self._inner.connect_tcp(address, port, seconds, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise AssertionError  # there is one address at least, or none was found

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@contextlib.contextmanager
def _lookup_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:  # the latter for a label that is too long
        raise httpcore.ConnectError(str(error)) from error


def _tries(addresses: list[str], timeout: float | None) -> Iterator[tuple[str, float | None]]:
    """Each address with how long it is tried: a first one that is silent leaves time for the others."""
    for address in addresses:
        is_last = address == addresses[-1]
        yield address, timeout if is_last else min(FIRST_TRIES_SECONDS, timeout or FIRST_TRIES_SECONDS)


def doubts(allowlist: Iterable[str], networks: Iterable[str]) -> list[str]:
    """A sentence about each host of an allow-list that no connection goes to as DNS has it now.

    A name that is not found, a bucket, and a host that is asked by a proxy give none.
    """
    rules, sentences = OutboundRules.of(networks), []
    for prefix in allowlist:
        parts = urlsplit(prefix)
        if parts.scheme not in PORTS or parts.hostname is None:
            continue
        try:
            if proxy_of(prefix) is None:
                rules.addresses(parts.hostname, getaddrinfo(parts.hostname, parts.port, type=SOCK_STREAM))
        except AddressRefusedError as refused:
            sentences.append(str(refused))
        except (OSError, UnicodeError, SettingsError):
            continue  # what cannot be looked up now is found by whoever asks for it
    return sentences


def warn_of_refused(allowlist: Iterable[str], networks: Iterable[str]) -> None:
    """Log those doubts, meanwhile: a DNS server that is silent must not hold up the start."""

    def look() -> None:
        for sentence in doubts(allowlist, networks):
            log.warning("%s Nothing will be fetched from there, or sent there.", sentence)

    threading.Thread(target=look, name="outbound-doubts", daemon=True).start()
