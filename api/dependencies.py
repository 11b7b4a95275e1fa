"""What every route needs: the jobs, the settings, the metrics, and addresses to link to.

They are coroutines, although they wait for nothing: FastAPI calls other functions in a thread, one after the other.
"""

import re
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import Depends, Request

from api.metrics import Metrics
from api.upload_limits import UploadLimiter
from jobs.live.status_batcher import StatusBatcher
from jobs.service import JobService
from jobs.service_status import ServiceStatus
from jobs.settings import ApiSettings
from jobs.states import UrlSignature

_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


async def _jobs(request: Request) -> JobService:
    jobs: JobService = request.app.state.jobs
    return jobs


async def _service_status(request: Request) -> ServiceStatus:
    status: ServiceStatus = request.app.state.service_status
    return status


async def _status_batcher(request: Request) -> StatusBatcher:
    status_batcher: StatusBatcher = request.app.state.status_batcher
    return status_batcher


async def _settings(request: Request) -> ApiSettings:
    settings: ApiSettings = request.app.state.settings
    return settings


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


class Addresses:
    """Absolute addresses of jobs and uploads, and of what belongs to them."""

    def __init__(self, base: str) -> None:
        self._base = base

    def jobs(self, query: str = "") -> str:
        return f"{self._base}/v1/jobs" + (f"?{query}" if query else "")

    def job(self, job_id: str, *below: str) -> str:
        return "/".join((self.jobs(), job_id, *below))

    def batch(self, batch_id: str, *below: str) -> str:
        return "/".join((self._base, "v1/batches", batch_id, *below))

    def upload(self, upload_id: str, *below: str) -> str:
        return "/".join((self._base, "v1/uploads", upload_id, *below))

    def part(self, upload_id: str, number: int, signed: UrlSignature) -> str:
        """Where the gateway takes this part, for as long as its signature is valid."""
        query = urlencode({"expires": signed.expires, "signature": signed.signature})
        return f"{self.upload(upload_id, 'parts', str(number))}?{query}"


async def _addresses(request: Request) -> Addresses:
    """A Host header that cannot be one leaves the addresses relative."""
    settings = await _settings(request)
    if settings.public_url is not None:
        return Addresses(str(settings.public_url).rstrip("/"))
    host = request.headers.get("host", "")
    root = request.scope.get("root_path", "").rstrip("/")
    return Addresses(f"{request.url.scheme}://{host}{root}" if _HOST.fullmatch(host) else root)


async def _upload_limiter(request: Request) -> UploadLimiter:
    upload_limiter: UploadLimiter = request.app.state.upload_limiter
    return upload_limiter


JobsDep = Annotated[JobService, Depends(_jobs)]
UploadLimiterDep = Annotated[UploadLimiter, Depends(_upload_limiter)]
ServiceStatusDep = Annotated[ServiceStatus, Depends(_service_status)]
StatusBatcherDep = Annotated[StatusBatcher, Depends(_status_batcher)]
SettingsDep = Annotated[ApiSettings, Depends(_settings)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
AddressesDep = Annotated[Addresses, Depends(_addresses)]
