"""A client of a running service: submit, follow, fetch."""

import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final

import httpx

from cli.output import Exit, bar, fail
from jobs.models import MaskName, Report

#: Called with the bytes that were sent and the bytes there are.
OnSent = Callable[[int, int], None]

FINAL: Final = ("succeeded", "failed", "cancelled")


class ServiceError(Exception):
    """The service cannot be reached or refuses; the message is for people."""


@dataclass(frozen=True)
class JobView:
    """What the table of progress needs of a job."""

    id: str
    status: str
    stage: str | None
    progress: float
    queue_position: int | None
    error: dict[str, Any] | None

    @classmethod
    def of(cls, body: dict[str, Any]) -> "JobView":
        return cls(
            id=body["id"],
            status=body["status"],
            stage=body.get("stage"),
            progress=float(body.get("progress") or 0),
            queue_position=body.get("queue_position"),
            error=body.get("error"),
        )

    @property
    def is_final(self) -> bool:
        return self.status in FINAL


class ServiceClient:
    """Talks to one service. Raises ServiceError for whatever goes wrong on the way."""

    def __init__(self, address: str, timeout_seconds: float = 60.0) -> None:
        self.address = address.rstrip("/")
        self._http = httpx.Client(base_url=self.address, timeout=timeout_seconds)

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
            return JobView.of(self._call("POST", "/v1/jobs", files=files, data={"priority": priority}))

    def follow(self, job_id: str, every_seconds: float = 0.5) -> Iterator[JobView]:
        """The job again and again, until it is final."""
        while True:
            view = JobView.of(self._call("GET", f"/v1/jobs/{job_id}"))
            yield view
            if view.is_final:
                return
            time.sleep(every_seconds)

    def report(self, job_id: str) -> Report:
        body = self._call("GET", f"/v1/jobs/{job_id}/report")
        return Report.model_validate({name: body[name] for name in Report.model_fields if name in body})

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

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        _check(response)
        body: dict[str, Any] = response.json()
        return body

    def _unreachable(self, error: httpx.TransportError) -> ServiceError:
        return ServiceError(f"The service at {self.address} does not answer ({type(error).__name__}).")


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
    """The file itself, or the folder's files zipped under numbers: names may carry a patient's."""
    if scan.is_file():
        with scan.open("rb") as file:
            yield file, scan.stat().st_size
        return
    with TemporaryFile() as packed:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            regular = (path for path in scan.rglob("*") if path.is_file() and not path.is_symlink())
            for number, path in enumerate(sorted(regular)):
                archive.write(path, f"{number:06d}")
        size = packed.tell()
        packed.seek(0)
        yield packed, size


class _Watched:
    """A stream that tells how much of it was read."""

    def __init__(self, stream: IO[bytes], size: int, on_sent: OnSent) -> None:
        self._stream, self._size, self._on_sent = stream, size, on_sent

    def read(self, count: int = -1) -> bytes:
        block = self._stream.read(count)
        self._on_sent(self._stream.tell(), self._size)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

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
            shown.show(view.stage or (waiting if view.status == "queued" else view.status), view.progress)
    if view.status == "failed":
        raise refused(view)
    if view.status != "succeeded":
        raise ServiceError(f"Job {view.id} was {view.status}.")
    return view.id, client.report(view.id)


def bring_home(client: ServiceClient, job_id: str, report: Report, folder: Path) -> list[Path]:
    """Masks and report, written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name.value}.nii.gz" for name in MaskName]
    for name, path in zip(MaskName, paths, strict=True):
        client.save_mask(job_id, name, path)
    return [*paths, write_report(report, folder)]


def write_report(report: Report, folder: Path) -> Path:
    path = folder / "report.json"
    path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def refused(view: JobView) -> Exception:
    """The job failed: say why, in the words of its problem."""
    error = view.error or {}
    # The sentence names the findings already.
    evidence = error.get("evidence") or {}
    seen = ", ".join(f"{name} {value}" for name, value in evidence.items() if name != "findings")
    hints = (f"What was seen: {seen}",) if seen else ()
    return fail(Exit.SCAN_REFUSED, f"{error.get('title', 'The job failed')}: {error.get('detail', '')}", *hints)
