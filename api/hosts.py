"""Whom a request takes this service for, and which site's page sends it.

A name that a stranger gives to this machine (DNS rebinding) makes a browser take the stranger's page for one of ours; a
page of another site can send forms here, though it cannot read the answers.
"""

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import ApiError, problem_response
from jobs import problems
from jobs.settings import ApiSettings

#: This machine, whatever it is called elsewhere.
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
#: What a browser says where a page of ours, or its user by hand, sends a request.
_OUR_PAGES: Final = frozenset({"same-origin", "none"})
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Asked by probes, by whatever address a pod has, and telling nothing of any job.
_PROBES: Final = ("/healthz", "/readyz")


class HostAndOrigin:
    """Refuses hosts that are not ours, and what pages of other sites send to change something.

    The request's state gets `host_is_ours`: whether links to its host lead here for certain.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._origins = frozenset(settings.allowed_origins)
        own = settings.public_url
        self._hosts = LOOPBACK | {_bare(name) for name in settings.allowed_hosts} | {_bare(settings.host)}
        if own is not None:
            self._hosts |= {_bare(own.host or "")}
            # Without the port that goes without saying, as browsers have it.
            self._origins |= {f"{own.scheme}://{urlsplit(str(own)).netloc.lower()}"}
        self._domains = tuple(name[1:] for name in self._hosts if name.startswith("*."))
        self._refuses = bool(settings.allowed_hosts) or is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._fault(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await problem_response(Request(scope), error)(scope, receive, send)

    def _fault(self, scope: Scope) -> ApiError | None:
        headers, state = Headers(scope=scope), scope.setdefault("state", {})
        host = headers.get("host", "").lower()
        # Without the port, and the dot that a whole name may end with.
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].removesuffix(".")
        is_told = state.get("host_is_proxys", False)
        is_listed = name in self._hosts or name.endswith(self._domains)
        # Where the gateway listens at this very address, which no domain can change.
        is_here = bool(scope.get("server")) and name == scope["server"][0]
        state["host_is_ours"] = is_listed or is_here or is_told
        # Without the header, as in HTTP/1.0, no name was asked for; and a name that the proxy gives is its choice.
        if self._refuses and host and not state["host_is_ours"] and not scope["path"].endswith(_PROBES):
            detail = "this name is none of the service's: its operator lists them in LOBEWISE_ALLOWED_HOSTS"
            return ApiError(problems.HOST_NOT_ALLOWED, detail)
        if scope["method"] not in _READING and not self.may_change(headers, host):
            detail = "a page of another site sends this request, and the operator has not allowed that site"
            return ApiError(problems.ORIGIN_NOT_ALLOWED, detail)
        return None

    def may_change(self, headers: Headers, host: str) -> bool:
        # Browsers set both, and no page can change them; programs send neither.
        site, origin = headers.get("sec-fetch-site", ""), headers.get("origin")
        if origin is not None and origin.lower() in self._origins:
            return True
        if site:
            return site in _OUR_PAGES
        if origin is None:
            return True
        # An older browser. The scheme is the proxy's business, which may tell it or not.
        parts = urlsplit(origin.lower())
        return bool(parts.netloc) and host in (
            parts.netloc,
            f"{parts.netloc}:{80 if parts.scheme == 'http' else 443}",
        )


def is_loopback(host: str) -> bool:
    """Whether a server that listens at this address hears this machine alone."""
    try:
        return ip_address(_bare(host)).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _bare(name: str) -> str:
    return name.lower().removeprefix("[").removesuffix("]")
