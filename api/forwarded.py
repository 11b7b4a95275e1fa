"""Takes from proxies that are trusted what their client asked for: scheme, host, prefix of the path, and its address.

What anybody else says of that changes nothing: a link or a callback would lead wherever a stranger likes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.connection_limits import TrustedAddresses, client_of
from api.dependencies import HOST
from jobs.settings import PREFIX, ApiSettings

#: One pair of `Forwarded` (RFC 7239, section 4), or none, and what follows it.
_PAIR: Final = re.compile(
    r"""\s*(?:(?P<name>[\w!#$%&'*+.^`|~-]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s",;]*)))?\s*(?P<end>[;,]|$)"""
)


@dataclass(frozen=True)
class Hop:
    """What one proxy says of the request that it got; empty where it says nothing.

    Attributes:
        address: of whom it got the request from, or a word in its place.
    """

    address: str = ""
    scheme: str = ""
    host: str = ""


class ForwardedHeaders:
    """Makes of each request what it was before the proxies, as far as they are trusted and `settings` names the header.

    The prefix that they took off, or left on, becomes ASGI's `root_path`, and stands before the path in either case.
    The request's state gets `client`, whom to count it for (empty where nobody knows), and `host_is_proxys` where a
    proxy has said the host.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._prefix = settings.prefix
        self._believed = frozenset(settings.forwarded_headers)
        self._trusted = TrustedAddresses(settings.forwarded_allow_ips)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(self._before_proxies(scope) if scope["type"] == "http" else scope, receive, send)

    def _before_proxies(self, scope: Scope) -> Scope:
        scope, prefix = dict(scope), self._prefix
        state = scope.setdefault("state", {})
        peer = scope["client"][0] if scope.get("client") else None
        state["client"] = self._trusted.client(peer)
        if self._trusted.are_all or (peer is not None and self._trusted.names(peer)):
            headers = Headers(scope=scope)
            hop = self._outermost(headers)
            if hop.address:
                scope["client"] = (hop.address, 0)
                state["client"] = "" if self._trusted.names(hop.address) else client_of(hop.address)
            if hop.scheme.lower() in ("http", "https"):
                scope["scheme"] = hop.scheme.lower()
            if HOST.fullmatch(hop.host):
                others = [header for header in scope["headers"] if header[0] != b"host"]
                scope["headers"] = [(b"host", hop.host.encode()), *others]
                state["host_is_proxys"] = True
            given = self._last(headers, "x-forwarded-prefix").rstrip("/")
            if given and PREFIX.fullmatch(given):
                prefix = given
        # A server that was told of a prefix itself has put it there already.
        if prefix and not scope.get("root_path"):
            scope["root_path"] = prefix
            if not f"{scope['path']}/".startswith(f"{prefix}/"):
                scope["path"] = prefix + scope["path"]
                scope["raw_path"] = prefix.encode() + (scope.get("raw_path") or b"")
        return scope

    def _outermost(self, headers: Headers) -> Hop:
        """What the trusted proxy that is nearest to the client says."""
        if "forwarded" in self._believed:
            hops = hops_of(", ".join(headers.getlist("forwarded")))
            return self._nearest_to_client(hops)
        addresses = self._values(headers, "x-forwarded-for")
        client = self._nearest_to_client([Hop(address=_without_port(address)) for address in addresses])
        return Hop(client.address, self._last(headers, "x-forwarded-proto"), self._last(headers, "x-forwarded-host"))

    def _nearest_to_client(self, hops: Sequence[Hop]) -> Hop:
        # Each adds itself at the end. What stands before an address that is not trusted may be anybody's invention.
        for hop in reversed(hops):
            if not self._trusted.names(hop.address):
                return hop
        return hops[0] if hops else Hop()

    def _values(self, headers: Headers, name: str) -> list[str]:
        if name not in self._believed:
            return []
        return [value.strip() for value in ",".join(headers.getlist(name)).split(",")]

    def _last(self, headers: Headers, name: str) -> str:
        """The proxy's own word, where it adds to a list."""
        return (self._values(headers, name) or [""])[-1]


def hops_of(forwarded: str) -> list[Hop]:
    """The elements of a `Forwarded` header, the client's first; none if it is malformed."""
    hops: list[Hop] = []
    pairs: dict[str, str] = {}
    at = 0
    while at < len(forwarded):
        match = _PAIR.match(forwarded, at)
        if match is None:
            return []
        if match["name"]:
            plain, quoted = match["plain"], match["quoted"]
            pairs[match["name"].lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = match.end()
        if pairs and (match["end"] == "," or at == len(forwarded)):
            hops.append(Hop(_without_port(pairs.get("for", "")), pairs.get("proto", ""), pairs.get("host", "")))
            pairs = {}
    return hops


def _without_port(node: str) -> str:
    """Of `1.2.3.4:80`, `[2001:db8::1]:80` or a bare address."""
    if node.startswith("["):
        return node[1:].partition("]")[0]
    return node.partition(":")[0] if node.count(":") == 1 else node
