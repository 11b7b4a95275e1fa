"""A client of a running service: submit, follow, fetch."""

import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import httpx
from pydantic import BaseModel

from cli.output import bar, fail_refused, write_document
from jobs.errors import SettingsError
from jobs.models import MaskLabels, MaskName, Report
from jobs.proxies import RoutedTransport, proxy_of

#: Called with the bytes that were sent and the bytes there are.
OnSent = Callable[[int, int], None]


class ServiceError(Exception):
    """The service cannot be reached, refuses, ended or did not become ready; the message is for people."""


# Not the gateway's own schema: a client works without the extra `api`, and a newer service may send more.
class JobView(BaseModel):
    """What this client reads of a job."""

    id: str
    status: str
    stage: str | None = None
    progress: float | None = None
    queue_position: int | None = None
    error: dict[str, Any] | None = None


class ServiceClient:
    """Talks to one service. Raises ServiceError for whatever goes wrong on the way.

    Raises:
        SettingsError: the address is none, or the environment's proxy for it cannot be used.
    """

    def __init__(self, address: str, timeout_seconds: float = 60.0) -> None:
        self.address = address.rstrip("/")
        try:
            url = httpx.URL(self.address)
        except httpx.InvalidURL as error:
            raise SettingsError(f"{address!r} is no address of a service: {error}.") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise SettingsError(f"{address!r} is no address of a service: it must begin with http:// or https://.")
        self._proxy = proxy_of(self.address)
        self._http = httpx.Client(base_url=self.address, timeout=timeout_seconds, transport=RoutedTransport())

    def __enter__(self) -> "ServiceClient":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        """Whether a worker waits for jobs."""
        try:
            return self._http.get("/readyz", timeout=5).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def submit(self, scan: Path, priority: str, on_sent: OnSent) -> JobView:
        """Upload a file, or a folder as a zip."""
        with _as_upload(scan) as (stream, size):
            watched = _Watched(stream, size, on_sent)
            files = {"file": ("scan", watched, "application/octet-stream")}
            body = self._call("POST", "/v1/jobs", files=files, data={"priority": priority})
            return JobView.model_validate(body)

    def follow(self, job_id: str, every_seconds: float = 0.5) -> Iterator[JobView]:
        """The job again and again, until it is final."""
        while True:
            view = JobView.model_validate(self._call("GET", f"/v1/jobs/{job_id}"))
            yield view
            if view.status in ("succeeded", "failed", "cancelled"):
                return
            time.sleep(every_seconds)

    def report(self, job_id: str) -> Report:
        body = self._call("GET", f"/v1/jobs/{job_id}/report")
        return Report.model_validate({name: body[name] for name in Report.model_fields if name in body})

    def labels(self, job_id: str) -> MaskLabels | None:
        """What the numbers in the masks stand for; None of a service, or a job, that is older than labels."""
        try:
            response = self._http.get(f"/v1/jobs/{job_id}/labels")
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT):
            return None
        _check(response)
        return MaskLabels.read(response.content)

    def save_mask(self, job_id: str, name: MaskName, target: Path) -> None:
        try:
            with (
                self._http.stream("GET", f"/v1/jobs/{job_id}/masks/{name.value}") as response,
                target.open("wb") as file,
            ):
                _check(response)
                for block in response.iter_raw():
                    file.write(block)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        _check(response)
        return response.json()

    def _unreachable(self, error: httpx.TransportError) -> ServiceError:
        by = f", asked by the proxy that {self._proxy.variable} names" if self._proxy else ""
        return ServiceError(f"The service at {self.address} does not answer ({type(error).__name__}{by}).")


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        problem = response.json()
        words = problem.get("detail") or problem.get("title")
    except ValueError:
        words = response.text[:200]
    raise ServiceError(f"The service answered {response.status_code}: {words}")


@contextmanager
def _as_upload(scan: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The file itself, or the folder's files as a zip."""
    if scan.is_file():
        with scan.open("rb") as file:
            yield file, scan.stat().st_size
        return
    with TemporaryFile() as packed:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            regular = (path for path in scan.rglob("*") if path.is_file() and not path.is_symlink())
            # Under numbers, for the names of files may carry a patient's.
            for number, path in enumerate(sorted(regular)):
                archive.write(path, f"{number:06d}")
        size = packed.tell()
        packed.seek(0)
        yield packed, size


class _Watched:
    """A stream that reports how much of it was read."""

    def __init__(self, stream: IO[bytes], size: int, on_sent: OnSent) -> None:
        self._stream, self._size, self._on_sent = stream, size, on_sent

    def read(self, count: int = -1) -> bytes:
        block = self._stream.read(count)
        self._on_sent(self._stream.tell(), self._size)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    # httpx learns the length from it; without one it sends chunks, and the gateway could refuse nothing by its size.
    def fileno(self) -> int:
        return self._stream.fileno()


def score_remotely(client: ServiceClient, scan: Path, priority: str = "routine") -> tuple[str, Report]:
    """Upload, wait, and fetch the report; progress is shown meanwhile.

    Raises:
        ServiceError: the service refuses or does not answer.
        typer.Exit: the scan was refused.
    """
    with bar("uploading") as shown:
        job = client.submit(scan, priority, lambda sent, size: shown.show("uploading", sent / size if size else 1.0))
        shown.show("uploaded", 1.0)
    with bar("waiting for a worker") as shown:
        for view in client.follow(job.id):
            waiting = "waiting for a worker" + (f", number {view.queue_position}" if view.queue_position else "")
            shown.show(view.stage or (waiting if view.status == "queued" else view.status), view.progress or 0.0)
    if view.status == "failed":
        problem = view.error or {}
        title, detail = problem.get("title", "The job failed"), problem.get("detail", "")
        raise fail_refused(title, detail, problem.get("evidence") or {})
    if view.status != "succeeded":
        raise ServiceError(f"Job {view.id} was {view.status}.")
    return view.id, client.report(view.id)


def save_result(client: ServiceClient, job_id: str, report: Report, folder: Path) -> list[Path]:
    """Masks, their labels and the report, written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in MaskName:
        paths.append(folder / f"{name.value}.nii.gz")
        client.save_mask(job_id, name, paths[-1])
    labels = client.labels(job_id)
    if labels is not None:
        paths.append(write_document(labels, folder / "labels.json"))
    return [*paths, write_document(report, folder / "report.json")]
