"""What a caller may still do: requests, bytes, waiting jobs and storage, against the limits of `jobs.quotas`.

Requests are counted in this process, and told to Redis for all gateways together some times a second: so a request
waits for nobody, and a tenant may go over its limit by what comes to several gateways within `TELL_SECONDS`. While the
broker is away nobody is refused, and nothing is counted.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final

from anyio.to_thread import run_sync
from fastapi import Depends, Request

from api.dependencies import CallerDep, JobsDep, MetricsDep
from api.errors import ApiError
from api.schemas import QuotaUse
from jobs import problems
from jobs.access.caller import Caller
from jobs.errors import BrokerUnavailableError
from jobs.live.usage import Usage
from jobs.models import JobStatus
from jobs.quotas import MINUTE_SECONDS, Owner, Quota, Quotas

logger = logging.getLogger("lobewise.api")

#: How often Redis is told of the requests that came.
TELL_SECONDS: Final = 0.5
#: Once Redis did not answer it is left alone for so long.
SILENT_SECONDS: Final = 5.0
#: When to try again where it depends on workers, or on the operator, and not on a window's end.
RETRY_SECONDS: Final = 60


def owners_of(caller: Caller) -> tuple[Owner, Owner]:
    return Owner("tenant", caller.tenant), Owner("key", caller.subject)


def exceeded(owner: Owner, quota: Quota, limit: int, retry_seconds: float) -> ApiError:
    """The refusal of a call."""
    retry_after = max(1, math.ceil(retry_seconds))
    sentence = f"this {owner.scope} may have {limit} {_WORDS[quota]}; try again in {retry_after} s"
    evidence = {"quota": str(quota), "of": owner.scope, "limit": limit}
    return ApiError(problems.QUOTA_EXCEEDED, sentence, evidence=evidence, headers={"Retry-After": str(retry_after)})


_WORDS: Final = {
    Quota.REQUESTS: "requests a minute",
    Quota.UPLOAD_BYTES: "bytes of uploads a day",
    Quota.WAITING_JOBS: "waiting jobs",
    Quota.STORAGE_BYTES: "bytes in storage",
}


@dataclass
class _Window:
    """Requests of one owner.

    Attributes:
        told: those that Redis knows of, of all gateways.
        waiting: those that it is to be told of.
    """

    limit: int
    ends_at: float
    waiting: int = 0
    told: int = 0

    @property
    def remaining(self) -> int:
        return max(self.limit - self.told - self.waiting, 0)


class RequestCounter:
    """Of one event loop."""

    def __init__(self, quotas: Quotas, usage: Usage) -> None:
        self._quotas, self._usage = quotas, usage
        self._windows: dict[Owner, _Window] = {}
        self._teller: asyncio.Task[None] | None = None
        self._silent_until = -math.inf

    def count(self, caller: Caller) -> dict[str, str]:
        """Count one request of a caller; the headers that tell what is left. Empty where nothing limits it.

        Raises ApiError (quota-exceeded): it is not counted then.
        """
        now = time.monotonic()
        limits = ((owner, self._quotas.limit(owner, Quota.REQUESTS)) for owner in owners_of(caller))
        limited = [(owner, limit) for owner, limit in limits if limit]
        if not limited or now < self._silent_until:
            return {}
        windows = [(owner, self._window(owner, limit, now)) for owner, limit in limited]
        for owner, window in windows:
            if not window.remaining:
                refusal = exceeded(owner, Quota.REQUESTS, window.limit, window.ends_at - now)
                refusal.headers |= _headers(windows, now)
                raise refusal
        for _, window in windows:
            window.waiting += 1
        if self._teller is None or self._teller.done():
            self._teller = asyncio.create_task(self._tell())
        return _headers(windows, now)

    def _window(self, owner: Owner, limit: int, now: float) -> _Window:
        window = self._windows.get(owner)
        if window is None or window.limit != limit or now >= window.ends_at:
            # Until Redis says when it began and what others counted: as if nobody had.
            window = self._windows[owner] = _Window(limit, now + MINUTE_SECONDS)
        return window

    async def close(self) -> None:
        """Tell what was not told yet."""
        if self._teller is not None:
            await asyncio.wait({self._teller})

    async def _tell(self) -> None:
        """Until there is nothing to tell."""
        while any(window.waiting for window in self._windows.values()):
            await asyncio.sleep(TELL_SECONDS)
            told = [(owner, window, window.waiting) for owner, window in self._windows.items() if window.waiting]
            counts = {owner: (window.limit, amount) for owner, window, amount in told}
            try:
                uses = await run_sync(self._usage.add_all, Quota.REQUESTS, counts)
            except BrokerUnavailableError as error:
                logger.warning("requests are not counted for %g s: %s", SILENT_SECONDS, error)
                self._silent_until = time.monotonic() + SILENT_SECONDS
                self._windows.clear()
                return
            now = time.monotonic()
            for owner, window, amount in told:
                window.waiting -= amount
                window.told = window.limit - uses[owner].remaining
                window.ends_at = now + uses[owner].resets_in_seconds
            # Who does not come any more is not remembered.
            self._windows = {o: w for o, w in self._windows.items() if w.waiting or w.ends_at > now}


def _headers(windows: Iterable[tuple[Owner, _Window]], now: float) -> dict[str, str]:
    """As draft-ietf-httpapi-ratelimit-headers has them."""
    policies = [f'"{owner.scope}";q={window.limit};w={MINUTE_SECONDS}' for owner, window in windows]
    left = [
        f'"{owner.scope}";r={window.remaining};t={max(0, math.ceil(window.ends_at - now))}' for owner, window in windows
    ]
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}


async def count_request(request: Request) -> None:
    """A dependency of every operation below /v1.

    Raises ApiError (quota-exceeded).
    """
    route = request.scope["route"]
    # A part goes to an address that a counted request was given, and its sender may say nothing else of who it is.
    if not route.path.startswith("/v1/") or route.operation_id == "put_upload_part":
        return
    counter: RequestCounter = request.app.state.request_counter
    metrics = request.app.state.metrics
    try:
        found = counter.count(request.state.caller)
    except ApiError:
        metrics.quota_refusals.labels(Quota.REQUESTS.value).inc()
        raise
    if found:
        add_headers(request, found)


def add_headers(request: Request, found: dict[str, str]) -> None:
    """With whatever this request is answered."""
    request.state.headers = getattr(request.state, "headers", {}) | found


@dataclass(frozen=True)
class Allowance:
    """What the caller of one request may still send. What cannot be asked of the broker refuses nobody."""

    request: Request
    caller: CallerDep
    jobs: JobsDep
    metrics: MetricsDep

    def require(self, jobs: int = 0, size_bytes: int = 0) -> None:
        """That the caller may have so many more jobs, and send so many bytes more.

        Raises ApiError (quota-exceeded).
        """
        if not self._has_limits:
            return
        with suppress(BrokerUnavailableError):
            refusal = self._refusal(jobs, size_bytes)
            if refusal is not None:
                self.metrics.quota_refusals.labels(refusal.evidence["quota"]).inc()
                raise refusal

    def count_bytes(self, size_bytes: int, *, is_stored: bool) -> None:
        """Of a scan that came, or was announced; `is_stored` if it was kept."""
        if not size_bytes or not self._has_limits:
            return
        with suppress(BrokerUnavailableError):
            for owner in owners_of(self.caller):
                if limit := self._quotas.limit(owner, Quota.UPLOAD_BYTES):
                    self._usage.add(owner, Quota.UPLOAD_BYTES, limit, size_bytes)
            if is_stored and self._quotas.limit(owners_of(self.caller)[0], Quota.STORAGE_BYTES):
                self._usage.add_stored_bytes(self.caller.tenant, size_bytes)

    def uses(self) -> list[QuotaUse]:
        """Every limit that the caller has, and how much of it is used. Raises BrokerUnavailableError."""
        found = []
        for owner in owners_of(self.caller):
            for quota in Quota:
                if not (limit := self._quotas.limit(owner, quota)):
                    continue
                resets_in_seconds = None
                if quota.window_seconds is not None:
                    use = self._usage.use(owner, quota, limit)
                    used, resets_in_seconds = limit - use.remaining, math.ceil(use.resets_in_seconds)
                elif quota is Quota.STORAGE_BYTES:
                    used = self._usage.stored_bytes(owner.name)
                else:
                    used = self.jobs.monitoring.counts()[_STATUSES[quota]]
                found.append(
                    QuotaUse(
                        quota=quota,
                        of=owner.scope,
                        limit=limit,
                        used=used,
                        remaining=max(limit - used, 0),
                        window_seconds=quota.window_seconds,
                        resets_in_seconds=resets_in_seconds,
                    )
                )
        return found

    def _refusal(self, jobs: int, size_bytes: int) -> ApiError | None:
        for owner in owners_of(self.caller):
            if size_bytes and (limit := self._quotas.limit(owner, Quota.UPLOAD_BYTES)):
                use = self._usage.use(owner, Quota.UPLOAD_BYTES, limit)
                if size_bytes > use.remaining:
                    return exceeded(owner, Quota.UPLOAD_BYTES, limit, use.resets_in_seconds or RETRY_SECONDS)
        tenant = owners_of(self.caller)[0]
        limit = self._quotas.limit(tenant, Quota.WAITING_JOBS)
        if jobs and limit and self.jobs.monitoring.counts()[JobStatus.QUEUED] + jobs > limit:
            return exceeded(tenant, Quota.WAITING_JOBS, limit, RETRY_SECONDS)
        limit = self._quotas.limit(tenant, Quota.STORAGE_BYTES)
        if limit and self._usage.stored_bytes(tenant.name) + max(size_bytes, 1) > limit:
            return exceeded(tenant, Quota.STORAGE_BYTES, limit, RETRY_SECONDS)
        return None

    @property
    def _quotas(self) -> Quotas:
        quotas: Quotas = self.request.app.state.quotas
        return quotas

    @property
    def _usage(self) -> Usage:
        usage: Usage = self.request.app.state.usage
        return usage

    @property
    def _has_limits(self) -> bool:
        return any(self._quotas.limit(owner, quota) for owner in owners_of(self.caller) for quota in Quota)


AllowanceDep = Annotated[Allowance, Depends()]
_STATUSES: Final = {Quota.WAITING_JOBS: JobStatus.QUEUED, Quota.RUNNING_JOBS: JobStatus.RUNNING}
