"""Is a callback the service's own? Standard Webhooks (1.0), with the standard library alone."""

import hashlib
import hmac
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from lobewise_client.errors import CallbackNotVerifiedError
from lobewise_client.models import BatchEnded, JobEnded

PREFIX: Final = "whsec_"
M = TypeVar("M", bound=BaseModel)


def verify_callback(
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str | Iterable[str],
    tolerance_seconds: float = 300.0,
    *,
    now: float | None = None,
) -> JobEnded:
    """What the callback says, once it is known to come from the service.

    Args:
        body: of the request, as it came: JSON that was read and written again has another signature.
        headers: of the request, in whatever case.
        secret: `whsec_…` as the operator gave it, or several while they are changed: one must fit.
        tolerance_seconds: how old, or how far in the future, it may be.
        now: in seconds since 1970; the clock's by default.

    Raises:
        CallbackNotVerifiedError: a header is missing, it is too old, or no signature fits.
        ValueError: a secret is none.
    """
    return _verified(JobEnded, body, headers, secret, tolerance_seconds, now)


def verify_batch_callback(
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str | Iterable[str],
    tolerance_seconds: float = 300.0,
    *,
    now: float | None = None,
) -> BatchEnded:
    """The same for what is sent to the `callback_url` of a batch."""
    return _verified(BatchEnded, body, headers, secret, tolerance_seconds, now)


def _verified(
    model: type[M],
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str | Iterable[str],
    tolerance_seconds: float,
    now: float | None,
) -> M:
    given = {name.lower(): value for name, value in headers.items()}
    try:
        id_, stamp, signatures = (given[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
        seconds = int(stamp)
    except (KeyError, ValueError) as error:
        raise CallbackNotVerifiedError("It lacks the headers of a signed message.") from error
    if abs((time.time() if now is None else now) - seconds) > tolerance_seconds:
        raise CallbackNotVerifiedError(f"It was signed more than {tolerance_seconds:g} s from now.")
    content = body.encode() if isinstance(body, str) else body
    signed = b".".join((id_.encode(), stamp.encode(), content))
    keys = [_key(text) for text in ([secret] if isinstance(secret, str) else secret)]
    expected = [b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    found = [text.partition(",")[2].encode() for text in signatures.split() if text.startswith("v1,")]
    # Each with each, and none left out: the time that it takes says nothing about what fits.
    if not any([hmac.compare_digest(one, other) for one in expected for other in found]):  # noqa: C419
        raise CallbackNotVerifiedError("No signature fits the secret.")
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise CallbackNotVerifiedError(f"It is signed, but is no {model.__name__}.") from error


def _key(secret: str) -> bytes:
    try:
        key = b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError as error:
        raise ValueError("a secret is base64, with whsec_ before it") from error
    if not key:
        # HMAC takes an empty key, which everybody has.
        raise ValueError("the secret is empty")
    return key
