"""What every route needs: the jobs, the settings, the metrics, and addresses to link to."""

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from anyio.to_thread import run_sync
from fastapi import Depends, Request

from api.errors import invalid_parameters, pointer
from api.metrics import Metrics
from api.schemas import FieldError
from api.upload_limits import Pace, UploadLimiter
from jobs.access.caller import ANONYMOUS, DEFAULT_TENANT, Caller
from jobs.live.status_batcher import StatusBatcher
from jobs.service import JobService
from jobs.settings import ApiSettings
from jobs.states import UrlSignature
from jobs.tenants import Tenants

#: Parameters that may be given several times.
_LISTS: Final = frozenset({"status"})
#: What a Host header may be.
HOST: Final = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


class Addresses:
    """Absolute addresses of jobs and uploads, and of what belongs to them."""

    def __init__(self, base: str) -> None:
        self._base = base

    def at(self, path: str) -> str:
        return self._base + path

    def jobs(self, query: str = "") -> str:
        return f"{self._base}/v1/jobs" + (f"?{query}" if query else "")

    def job(self, job_id: str, *below: str) -> str:
        return "/".join((self.jobs(), job_id, *below))

    def batches(self, query: str) -> str:
        return f"{self._base}/v1/batches?{query}"

    def batch(self, batch_id: str, *below: str) -> str:
        return "/".join((self._base, "v1/batches", batch_id, *below))

    def upload(self, upload_id: str, *below: str) -> str:
        return "/".join((self._base, "v1/uploads", upload_id, *below))

    def part(self, upload_id: str, number: int, signed: UrlSignature) -> str:
        """Where the gateway takes this part, for as long as its signature is valid."""
        # Whoever has the address sends the part, and says nothing else of whose it is.
        tenant = {} if signed.tenant == DEFAULT_TENANT else {"tenant": signed.tenant}
        query = urlencode({**tenant, "expires": signed.expires, "signature": signed.signature})
        return f"{self.upload(upload_id, 'parts', str(number))}?{query}"


async def _addresses(request: Request) -> Addresses:
    settings: ApiSettings = request.app.state.settings
    if settings.public_url is not None:
        return Addresses(str(settings.public_url).rstrip("/"))
    # The client writes Host, so what cannot be one is not repeated: the addresses are relative then.
    host = request.headers.get("host", "")
    root = request.scope.get("root_path", "").rstrip("/")
    return Addresses(f"{request.url.scheme}://{host}{root}" if HOST.fullmatch(host) else root)


async def _lasting_addresses(request: Request) -> Addresses:
    addresses = await _addresses(request)
    settings: ApiSettings = request.app.state.settings
    if settings.public_url is not None or getattr(request.state, "host_is_ours", False):
        return addresses
    return Addresses(request.scope.get("root_path", "").rstrip("/"))


async def one_of_each(request: Request) -> None:
    """Of parameters that are no lists the framework lets the last of several win, and says nothing.

    Raises:
        ApiError (invalid-parameters): a parameter is given more than once.
    """
    counts = Counter(name for name, _ in request.query_params.multi_items())
    repeated = [name for name, count in counts.items() if count > 1 and name not in _LISTS]
    if repeated:
        raise invalid_parameters(
            *(FieldError(pointer=pointer(("query", name)), detail="given more than once") for name in repeated)
        )


def _from_state(name: str) -> Callable[[Request], Awaitable[Any]]:
    # A coroutine, although it waits for nothing: FastAPI calls other functions in a thread, one after the other, and
    # polls would wait for a thread that uploads have taken.
    async def read(request: Request) -> Any:
        return getattr(request.app.state, name)

    return read


async def _pace(request: Request) -> Pace:
    settings: ApiSettings = request.app.state.settings
    return Pace(settings.idle_seconds, settings.least_bytes_per_second)


async def _client(request: Request) -> str:
    caller: Caller = request.state.caller
    # Many may come from one address, as behind a hospital's firewall; a key or a token is of one.
    if caller.subject != ANONYMOUS.subject:
        return f"{caller.tenant}/{caller.subject}"
    return getattr(request.state, "client", "")


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]


async def jobs_of(request: Request, tenant: str) -> JobService:
    """The jobs of a tenant, which is made known if this is its first call. Raises TooManyTenantsError."""
    tenants: Tenants = request.app.state.tenants
    found = tenants.opened(tenant)
    if found is None:
        found = await run_sync(tenants.of, tenant)
    return found.service


async def _jobs(request: Request) -> JobService:
    # All that is asked of the jobs goes through here: so no route can reach those of another tenant.
    caller: Caller = request.state.caller
    return await jobs_of(request, caller.tenant)


async def _status_batcher(request: Request, jobs: "JobsDep") -> StatusBatcher:
    batchers: dict[str, StatusBatcher] = request.app.state.status_batchers
    if jobs.tenant not in batchers:
        batchers[jobs.tenant] = jobs.open_status_batcher(beside=batchers[DEFAULT_TENANT])
    return batchers[jobs.tenant]


JobsDep = Annotated[JobService, Depends(_jobs)]
UploadLimiterDep = Annotated[UploadLimiter, Depends(_from_state("upload_limiter"))]
StatusBatcherDep = Annotated[StatusBatcher, Depends(_status_batcher)]
SettingsDep = Annotated[ApiSettings, Depends(_from_state("settings"))]
MetricsDep = Annotated[Metrics, Depends(_from_state("metrics"))]
AddressesDep = Annotated[Addresses, Depends(_addresses)]
#: What is told to others than who asks, signed even, begins with no host that the client alone has named.
LastingAddressesDep = Annotated[Addresses, Depends(_lasting_addresses)]
#: Of the request's body.
PaceDep = Annotated[Pace, Depends(_pace)]
#: Whom to count the request for; empty where nobody knows.
ClientDep = Annotated[str, Depends(_client)]
