"""Bearer tokens (JWT) of an OpenID Connect issuer, checked with the keys that it publishes."""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import httpx
from joserfc import jws, jwt
from joserfc.errors import JoseError, MissingKeyError
from joserfc.jwk import KeySet, RSAKey

from jobs.access.caller import DEFAULT_TENANT, TENANT_NAME, Caller, Role
from jobs.errors import ForbiddenError, IssuerUnavailableError, SettingsError, UnauthenticatedError
from jobs.proxies import AsyncRoutedTransport
from jobs.settings import AccessSettings

log = logging.getLogger(__name__)

#: Servers and proxies take headers of 8 KiB in all; what is longer is no token of theirs.
LONGEST_TOKEN: Final = 8192
#: The issuer's keys are read again then, so that one it has withdrawn opens nothing any more.
JWKS_SECONDS: Final = 600.0
#: While the issuer does not answer, its last known keys are good for so long.
STALE_SECONDS: Final = 3600.0
#: Between two readings, whatever key tokens name: who sends nonsense must not make us flood the issuer.
FLOOR_SECONDS: Final = 10.0
TIMEOUT_SECONDS: Final = 5.0
#: Of a discovery document or a set of keys.
LARGEST_ANSWER_BYTES: Final = 1 << 20
#: Tokens whose signature was checked, by their hash: a client polls with the same one for minutes.
KNOWN_TOKENS: Final = 4096
_PUBLIC_TYPES: Final = ("RSA", "EC", "OKP")
#: RSA below this is broken for good.
_LEAST_RSA_BITS: Final = 2048


class TokenChecker:
    """Of one issuer, in one event loop."""

    def __init__(self, settings: AccessSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`settings` have an issuer and an audience."""
        self._settings = settings
        self._http = httpx.AsyncClient(
            transport=transport or AsyncRoutedTransport(httpx.Limits(max_connections=2)),
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
        )
        self._claims = jwt.JWTClaimsRegistry(
            leeway=settings.oidc_leeway_seconds,
            iss={"essential": True, "value": settings.oidc_issuer or ""},
            aud={"essential": True, "value": settings.oidc_audience or ""},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._keys: KeySet | None = None
        self._published: Any = None
        self._read_at = self._tried_at = -STALE_SECONDS
        self._lock = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        await self._http.aclose()

    async def check(self, token: str) -> Caller:
        """Whose token it is.

        Raises:
            UnauthenticatedError: it is not the issuer's, not for us, or has ended.
            ForbiddenError: it names no tenant, where it should.
            IssuerUnavailableError: the issuer's keys cannot be had.
        """
        if len(token) > LONGEST_TOKEN:
            raise UnauthenticatedError(has_credentials=True)
        age_seconds = time.monotonic() - self._read_at
        if age_seconds > STALE_SECONDS:
            await self._read_keys()
        elif age_seconds > JWKS_SECONDS and (self._reading is None or self._reading.done()):
            # Beside the calls: an issuer that hangs holds up nobody whose key is known.
            self._reading = asyncio.create_task(self._read_keys())
        # A token that was checked holds until it ends, or until the issuer's keys have changed.
        digest = hashlib.sha256(token.encode()).digest()
        if (known := self._known.get(digest)) is not None:
            caller, ends_at = known
            if time.time() < ends_at and time.monotonic() - self._read_at < STALE_SECONDS:
                self._known.move_to_end(digest)
                return caller
            del self._known[digest]
        claims = await self._verified(token)
        caller = caller_from(claims, self._settings)
        self._known[digest] = caller, claims["exp"] + self._settings.oidc_leeway_seconds
        if len(self._known) > KNOWN_TOKENS:
            self._known.popitem(last=False)
        return caller

    async def _verified(self, token: str) -> dict[str, Any]:
        try:
            header = jws.extract_compact(token.encode()).headers()
            # Before a key is looked for: a token with another algorithm must not make us ask the issuer.
            if header.get("alg") not in self._settings.oidc_algorithms:
                raise UnauthenticatedError(has_credentials=True)
            if not self._has_key(header.get("kid")):
                await self._read_keys()
            if self._keys is None or time.monotonic() - self._read_at > STALE_SECONDS:
                raise IssuerUnavailableError("the issuer's keys cannot be had")
            if not self._has_key(header.get("kid")):
                raise UnauthenticatedError(has_credentials=True)
            decoded = jwt.decode(token, self._keys, algorithms=self._settings.oidc_algorithms)
            self._claims.validate(decoded.claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            # The kind of fault for the operator; neither the token nor its claims, which name a person.
            log.info("a token was refused: %s", type(error).__name__)
            raise UnauthenticatedError(has_credentials=True) from None
        return decoded.claims

    def _has_key(self, kid: object) -> bool:
        keys = list(self._keys or ())
        return len(keys) == 1 if kid is None else any(key.kid == kid for key in keys)

    async def _read_keys(self) -> None:
        """As often as the floor allows; what cannot be read leaves what is known."""
        async with self._lock:
            now = time.monotonic()
            if now - self._tried_at < FLOOR_SECONDS:
                return
            self._tried_at = now
            issuer = self._settings.oidc_issuer or ""
            try:
                found = await self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
                if found["issuer"] != issuer:
                    # Another's document, or a slash too many in the setting: its tokens would not fit either.
                    log.error("LOBEWISE_OIDC_ISSUER is %r, and its own document says %r", issuer, found["issuer"])
                    return
                published = await self._get(str(found["jwks_uri"]))
                keys = public_keys(published)
            except (
                httpx.HTTPError,
                httpx.InvalidURL,
                SettingsError,
                JoseError,
                ValueError,
                TypeError,
                KeyError,
            ) as error:
                log.warning("the issuer's keys cannot be read: %s", type(error).__name__)
                return
            if published != self._published:
                self._known.clear()
            self._keys, self._published, self._read_at = keys, published, now

    async def _get(self, url: str) -> dict[str, Any]:
        async with self._http.stream("GET", url, headers={"accept": "application/json"}) as answer:
            answer.raise_for_status()
            if answer.status_code != httpx.codes.OK:
                raise ValueError(f"the issuer answered {answer.status_code}")
            body = b""
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > LARGEST_ANSWER_BYTES:
                    raise ValueError("the issuer's answer is too large")
        content = json.loads(body)
        if not isinstance(content, dict):
            raise ValueError("the issuer's answer is no object")
        return content


def caller_from(claims: Mapping[str, Any], settings: AccessSettings) -> Caller:
    """Whom the claims of a good token name. Raises ForbiddenError: they name no tenant, where they should."""
    given = _claim(claims, settings.oidc_roles_claim)
    words = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
    ours = {f"{settings.oidc_role_prefix}{role}": role for role in Role}
    roles = frozenset(ours[word] for word in words if isinstance(word, str) and word in ours)
    tenant: object = DEFAULT_TENANT
    if settings.oidc_tenant_claim is not None:
        tenant = _claim(claims, settings.oidc_tenant_claim)
        if not isinstance(tenant, str) or not re.fullmatch(TENANT_NAME, tenant):
            raise ForbiddenError("the token names no tenant")
    # Hashed: it may be a person's name, and stands in logs and in the audit trail.
    subject = hashlib.sha256(f"{settings.oidc_issuer} {claims['sub']}".encode()).hexdigest()[:16]
    return Caller(str(tenant), f"token-{subject}", roles)


def public_keys(published: Mapping[str, Any]) -> KeySet:
    """Those of a JWKS that check signatures; others, a shared secret above all, are passed over."""
    keys = []
    for described in published["keys"]:
        if described.get("kty") not in _PUBLIC_TYPES or described.get("use", "sig") != "sig":
            continue
        try:
            (key,) = KeySet.import_key_set({"keys": [described]}).keys
        except (JoseError, ValueError):
            continue
        if isinstance(key, RSAKey) and key.public_key.key_size < _LEAST_RSA_BITS:
            continue
        keys.append(key)
    if not keys:
        raise MissingKeyError("the issuer publishes no key for signatures")
    return KeySet(keys)


def _claim(claims: Mapping[str, Any], name: str) -> object:
    """`a.b` is the claim of that name or, without one, `b` inside of `a`."""
    if name in claims:
        return claims[name]
    value: object = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
