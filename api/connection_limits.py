"""What one connection may ask of the server before a request is understood, and how many of them there may be."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final
from uuid import uuid4

from api.errors import MEDIA_TYPE, ApiError, problem_of_call
from jobs import problems
from jobs.problems import ProblemType
from jobs.settings import ApiSettings

#: Connections that are told that they are too many, at once. Those beyond are closed without a word: whoever makes so
#: many does not read.
MAX_TOLD: Final = 64
#: Of an IPv6 client, who has all addresses of its network.
IPV6_CLIENT_BITS: Final = 64


class TrustedAddresses:
    """Addresses and networks, and `*` for all, separated by commas."""

    def __init__(self, entries: str) -> None:
        found = [entry.strip() for entry in entries.split(",") if entry.strip()]
        self.are_all = "*" in found
        self._networks = [ip_network(entry, strict=False) for entry in found if entry != "*"]
        # A gateway hears of few proxies, and asks about each of them with every request.
        self.names: Callable[[str], bool] = lru_cache(maxsize=4096)(self.look_up)

    def look_up(self, address: str) -> bool:
        """Whether it is one of them by name; `*` names none."""
        try:
            parsed = ip_address(address)
        except ValueError:  # `unknown`, or a word that hides who it is
            return False
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:  # of a server that listens on `::`
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks)

    def client(self, address: str | None) -> str:
        """Whom to count it for; empty where nobody knows: a proxy stands for all its clients, a socket file for any.

        The proxy, or the firewall before it, bounds what each of its clients may open (`deploy/proxies`).
        """
        return "" if address is None or self.are_all or self.names(address) else client_of(address)


@lru_cache(maxsize=4096)
def client_of(address: str) -> str:
    """Whom to count an address for: itself, or the network of an IPv6 client, who may choose among its addresses."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or ip_network((int(parsed), IPV6_CLIENT_BITS), strict=False))
    return address


class ClientShares:
    """How much of one thing each client has at once. For one event loop alone."""

    def __init__(self, of: str, limit: int) -> None:
        """`of` names the thing, in the plural."""
        self._of, self._limit = of, limit
        self._taken: Counter[str] = Counter()

    def has_room(self, client: str) -> bool:
        """Whether the client may have one more. Nobody knows who the empty one is."""
        return not client or self._taken[client] < self._limit

    @contextmanager
    def share(self, client: str) -> Iterator[None]:
        """One more, until the block ends. Raises ApiError (client-limit)."""
        if not self.has_room(client):
            detail = f"{self._limit} {self._of} of this client are open"
            raise ApiError(problems.CLIENT_LIMIT, detail, evidence={"limit": self._limit, "of": self._of})
        self._taken[client] += 1
        try:
            yield
        finally:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]


@dataclass
class Connections:
    """The open connections of one server, and what each may send. For one event loop alone.

    Attributes:
        answered: is told the status of each answer that no application gave.
    """

    settings: ApiSettings
    answered: Callable[[int], None] = lambda _status: None
    _by_client: Counter[str] = field(default_factory=Counter)
    _open: int = 0
    _told: int = 0

    def __post_init__(self) -> None:
        self._trusted = TrustedAddresses(self.settings.forwarded_allow_ips)

    def count(self) -> int:
        """How many are open."""
        return self._open

    def enter(self, address: str | None) -> "Refusal | None":
        """One more; `leave` ends it, refused or not. Why it is one too many, if it is."""
        self._open += 1
        client = self._trusted.client(address)
        self._by_client[client] += 1
        if self._open > self.settings.max_connections:
            limit = self.settings.max_connections
            return Refusal(problems.TOO_MANY_CONNECTIONS, f"{limit} connections are open", {"limit": limit})
        limit = self.settings.max_connections_per_client
        if client and self._by_client[client] > limit:
            return Refusal(
                problems.CLIENT_LIMIT,
                f"{limit} connections of this client are open",
                {"limit": limit, "of": "connections"},
            )
        return None

    def leave(self, address: str | None) -> None:
        self._open -= 1
        client = self._trusted.client(address)
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]

    def may_tell(self) -> bool:
        """Whether one more refused connection is answered, and not just closed; if so, `has_told` ends it."""
        if self._told >= MAX_TOLD:
            return False
        self._told += 1
        return True

    def has_told(self) -> None:
        self._told -= 1


@dataclass(frozen=True)
class Refusal:
    """An answer that the server gives by itself, before an application has heard of the request."""

    problem: ProblemType
    detail: str
    evidence: dict[str, int | float | str]

    @property
    def status(self) -> int:
        return self.problem.status or 500

    def written(self, phrase: bytes, retry_seconds: int, headers: dict[str, str]) -> bytes:
        """The whole answer, after which the connection ends."""
        body = json.dumps(
            problem_of_call(self.problem, self.detail, "", self.evidence).model_dump(mode="json")
        ).encode()
        fields = headers | {
            "Content-Type": MEDIA_TYPE,
            "Content-Length": str(len(body)),
            "X-Request-ID": uuid4().hex,
            "Connection": "close",
        }
        if self.problem.retryable:
            fields["Retry-After"] = str(retry_seconds)
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("ascii")
        return phrase + head + b"\r\n" + body
