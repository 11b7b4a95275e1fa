"""Whether a call needs a key, and whose it is."""

import asyncio
import hashlib
import hmac
import logging
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from jobs.access.caller import ANONYMOUS, DEFAULT_TENANT, Caller, Role
from jobs.access.keys import KeyRing
from jobs.errors import SettingsError, StorageUnavailableError, UnauthenticatedError
from jobs.proxies import is_loopback
from jobs.settings import AccessSettings

if TYPE_CHECKING:
    from jobs.access.tokens import TokenChecker

log = logging.getLogger(__name__)

WHY_CLOSED: Final = (
    "The gateway would listen on {host!r}, where other machines reach it, and nothing says who may call: anybody there "
    "could read and delete patients' scans. Make a key (`lobewise keys create`), or set LOBEWISE_FIRST_KEY, or "
    "LOBEWISE_OIDC_ISSUER and LOBEWISE_OIDC_AUDIENCE. With LOBEWISE_ACCESS=required it starts before there is a key, "
    "and refuses every call until then. Only where the network itself is closed: LOBEWISE_ACCESS=open."
)


class Doors:
    """Of one gateway: open, or shut to those without key or token."""

    def __init__(self, settings: AccessSettings, ring: KeyRing) -> None:
        self._settings = settings
        self._ring = ring
        self._tokens: TokenChecker | None = None
        self._is_shut = settings.access == "required" or settings.oidc_issuer is not None or self._has_own_keys()
        # Digests, so that the comparison takes as long whatever was sent.
        self._own = [
            (_digest(key.get_secret_value()), Caller(DEFAULT_TENANT, name, roles))
            for key, name, roles in (
                (settings.first_key, "first-key", frozenset(Role)),
                (settings.metrics_key, "metrics-key", frozenset({Role.METRICS})),
            )
            if key is not None
        ]

    @property
    def are_open(self) -> bool:
        """Whether calls need no key now."""
        if self._settings.access == "open":
            return True
        # Whoever removes the keys' blobs does not open the doors of a gateway that runs; nor is one open that does not
        # know yet whether there are keys.
        self._is_shut = self._is_shut or self._ring.has_keys
        return not self._is_shut and self._ring.is_known

    def require_guarded(self, host: str) -> None:
        """Raises SettingsError: other machines would reach a gateway that asks nobody who they are."""
        if self._settings.access == "open":
            if self._ring.has_keys or self._has_own_keys() or self._settings.oidc_issuer is not None:
                log.warning("LOBEWISE_ACCESS is open: keys and tokens are not looked at, and everybody may do all")
            return
        if not is_loopback_alone(host):
            with suppress(StorageUnavailableError):  # not known: shut, until it is
                self._ring.refresh()
            if self.are_open:
                raise SettingsError(WHY_CLOSED.format(host=host))
            self._is_shut = True
        if self._is_shut and not (self._ring.has_keys or self._has_own_keys() or self._settings.oidc_issuer):
            log.warning("there is no key yet, so that every call is refused: lobewise keys create")

    def words(self) -> str:
        """How things stand, for people."""
        if self._settings.access == "open":
            return "open to everybody (LOBEWISE_ACCESS)"
        if self.are_open:
            return "open to this machine alone: there is no key and no issuer"
        return "a key or a token is required"

    async def caller_of(self, authorization: str | None, api_key: str | None, host: str | None = None) -> Caller:
        """Who sends these headers, `Authorization` and `X-API-Key`, to this address of ours (None: no network's).

        Raises:
            UnauthenticatedError: nobody that is known.
            ForbiddenError: a token that names no tenant.
            UnavailableError: it cannot be checked now.
        """
        if self.are_open:
            # Another server than ours may listen anywhere, and has not asked `require_guarded`.
            if self._settings.access is None and host is not None and not is_loopback(host):
                log.error(WHY_CLOSED.format(host=host))
                raise UnauthenticatedError(has_credentials=False)
            return ANONYMOUS
        if not self._is_shut:
            raise StorageUnavailableError("it is not known yet whether there are keys")
        given = api_key or None  # an empty header is none: some clients send all that the document names
        if given is None and authorization is not None:
            scheme, _, rest = authorization.partition(" ")
            given = rest.strip() if scheme.lower() == "bearer" else None
        if not given:
            raise UnauthenticatedError(has_credentials=False)
        digest = _digest(given)
        # All of them, whichever fits.
        fitting = [caller for own, caller in self._own if hmac.compare_digest(own, digest)]
        if fitting:
            return fitting[0]
        if self._settings.oidc_issuer is not None and given.count(".") == 2:
            if self._tokens is None:
                from jobs.access.tokens import TokenChecker  # cryptography takes a while, and few have an issuer

                self._tokens = TokenChecker(self._settings)
            return await self._tokens.check(given)
        caller = self._ring.find(given)
        if caller is None:
            raise UnauthenticatedError(has_credentials=True)
        return caller

    def start(self) -> None:
        """Begin to watch the keys."""
        self._ring.start()

    async def close(self) -> None:
        """Stop watching them."""
        await asyncio.to_thread(self._ring.stop)
        if self._tokens is not None:
            await self._tokens.close()

    def _has_own_keys(self) -> bool:
        return self._settings.first_key is not None or self._settings.metrics_key is not None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def is_loopback_alone(host: str) -> bool:
    """Whether only this machine reaches who listens there; a name may have several addresses."""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)}
    except (OSError, UnicodeError):
        return False
    return all(ip_address(address.partition("%")[0]).is_loopback for address in addresses)
