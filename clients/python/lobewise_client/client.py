"""The client for programs without an event loop. `aio` has the same calls with `await`."""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, Final, Self, TypeVar, Unpack

import httpx

from lobewise_client.calls import (
    ApiKey,
    BatchFilters,
    BatchScan,
    Calls,
    Filters,
    OnProgress,
    Options,
    ReportFilters,
    Settings,
)
from lobewise_client.models import (
    Batch,
    BatchItem,
    Callback,
    ChangePage,
    ExportedReport,
    Inspection,
    Job,
    MaskLabels,
    NetworkInfo,
    Ready,
    Report,
    Upload,
)
from lobewise_client.retries import Retry
from lobewise_client.scans import ScanLike
from lobewise_client.steps import Call, Close, Give, Open, Read, Reply, Request, Send, Sleep, Steps, Together
from lobewise_client.version import __version__

T = TypeVar("T")

#: A scan is sent whole up to here: above, a broken line would cost too much of it.
PARTS_ABOVE_BYTES: Final = 64 << 20
USER_AGENT: Final = f"lobewise-client/{__version__}"


class Client:
    """Talks to one service; threads may share it.

    Every call may raise what `errors` lists. What failed and may succeed later is tried again first.

    Args:
        address: of the service: `https://lobewise.example`.
        api_key: the key or token that the service wants, or what gives one, asked before every request: for tokens that
            end. By default the variable `LOBEWISE_API_KEY`. Sent to the service alone.
        headers: sent with every request to the service, such as what a proxy before it wants; with an `Authorization`
            of yours the key goes as `X-API-Key`.
        timeout_seconds: so long may the service say nothing in the middle of a call.
        retry: for how long a call is tried again.
        transport: httpx's, for proxies and certificates of your own; by default httpx follows the environment.
        parts_above_bytes: larger scans are sent in parts, and go on where they broke off.
        parallel_parts: so many at once.

    Raises:
        InvalidAddressError: the address is none.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: ApiKey | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 60.0,
        retry: Retry = Retry(),  # noqa: B008 (frozen)
        transport: httpx.BaseTransport | None = None,
        parts_above_bytes: int = PARTS_ABOVE_BYTES,
        parallel_parts: int = 4,
    ) -> None:
        self._calls = Calls(Settings(address, headers or {}, api_key, retry, parts_above_bytes, parallel_parts))
        self._http = httpx.Client(
            timeout=timeout_seconds, transport=transport, headers={"user-agent": USER_AGENT}, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # From a scan to its scores

    def score(
        self,
        scan: ScanLike,
        *,
        wait_seconds: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> "Result":
        """Send a scan, wait for its scores, and fetch the report; masks are fetched when they are asked for.

        Args:
            scan: a file, a folder of DICOM files (zipped on the way, without its names), an open file, or bytes.
            wait_seconds: for the end of the job, once it was accepted; None: as long as it takes.
            on_progress: called again and again, one call at a time, also from threads that send parts.
            options: see `Options`.

        Raises:
            JobFailedError: the scan cannot be scored.
            NotFinishedError: the job goes on; `wait` for it again.
        """
        return Result(self, *self._run(self._calls.score(scan, wait_seconds, on_progress, options)))

    def validate(
        self,
        scan: ScanLike,
        *,
        wait_seconds: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> Inspection:
        """Have a scan read and not scored. Raises as `score` does."""
        return self._run(self._calls.validate(scan, wait_seconds, on_progress, options))

    # One step at a time

    def submit(self, scan: ScanLike, *, on_progress: OnProgress | None = None, **options: Unpack[Options]) -> Job:
        """Send a scan: the job, which is durable once this returns."""
        return self._run(self._calls.submit(scan, options, on_progress=on_progress))

    def submit_source(self, url: str, sha256: str | None = None, **options: Unpack[Options]) -> Job:
        """Let the service fetch a scan from an address that its operator allows."""
        return self._run(self._calls.submit_source(url, sha256, options))

    def submit_upload(self, upload_id: str, **options: Unpack[Options]) -> Job:
        """Make a job of an upload that is complete."""
        return self._run(self._calls.submit_upload(upload_id, options))

    def upload(self, scan: ScanLike, *, resume: str | None = None, on_progress: OnProgress | None = None) -> Upload:
        """Send a scan in parts. `resume` is the id of an upload of this very scan that did not come to its end."""
        return self._run(self._calls.upload(scan, resume, on_progress))

    def get_upload(self, upload_id: str) -> Upload:
        return self._run(self._calls.get_upload(upload_id))

    def abort_upload(self, upload_id: str) -> None:
        """Delete an upload that no job has taken."""
        self._run(self._calls.abort_upload(upload_id))

    def get(self, job_id: str) -> Job:
        return self._run(self._calls.get(job_id))

    def follow(self, job_id: str, *, wait_seconds: float | None = None) -> Iterator[Job]:
        """The job as it stands, and again whenever it changes, until it is final.

        Raises:
            NotFinishedError: it is not final after `wait_seconds`.
        """
        yield from _Run(self._http).iterate(self._calls.follow(job_id, wait_seconds))

    def wait(self, job_id: str, *, wait_seconds: float | None = None, on_progress: OnProgress | None = None) -> Job:
        """The job once it has succeeded. Raises as `score` does."""
        return self._run(self._calls.wait(job_id, wait_seconds, on_progress))

    def result(self, job_id: str) -> "Result":
        """Of a job that has succeeded. Raises WrongStateError: it has not."""
        return Result(self, self.get(job_id), self.report(job_id))

    def report(self, job_id: str) -> Report:
        return self._run(self._calls.report(job_id))

    def inspection(self, job_id: str) -> Inspection:
        """What was seen in a validated scan."""
        return self._run(self._calls.inspection(job_id))

    def labels(self, job_id: str) -> MaskLabels:
        """What the numbers in its masks stand for."""
        return self._run(self._calls.labels(job_id))

    def mask(self, job_id: str, name: str) -> bytes:
        """A gzipped NIfTI, in memory."""
        file = BytesIO()
        self._run(self._calls.write_mask(job_id, name, file))
        return file.getvalue()

    def save_mask(self, job_id: str, name: str, path: str | PathLike[str]) -> Path:
        """Write a mask to a file, which is there once it is whole and its sha256 is right."""
        return self._run(self._calls.save_mask(job_id, name, Path(path)))

    def save(self, job_id: str, folder: str | PathLike[str], report: Report | None = None) -> list[Path]:
        """Write a job's masks, as `{name}.nii.gz`, their labels.json, and report.json: all that was written."""
        return self._run(self._calls.save(job_id, Path(folder), report))

    def cancel(self, job_id: str) -> Job:
        """Stop a job: at once if it waits, within seconds if it runs. Raises WrongStateError: it has ended."""
        return self._run(self._calls.cancel(job_id))

    def delete(self, job_id: str) -> None:
        """Delete a job with its scan, report and masks."""
        self._run(self._calls.delete(job_id))

    # Many

    def list_jobs(self, **filters: Unpack[Filters]) -> Iterator[Job]:
        """All jobs that fit, page after page; see `Filters`."""
        yield from _Run(self._http).iterate(self._calls.list_jobs(filters))

    def export_reports(self, **filters: Unpack[ReportFilters]) -> Iterator[ExportedReport]:
        """All reports that fit, oldest first, as the service streams them; see `ReportFilters`."""
        yield from _Run(self._http).iterate(self._calls.export_reports(filters))

    def list_events(self, cursor: str | None = None, *, start: str = "oldest", wait_seconds: int = 0) -> ChangePage:
        """What happened to all jobs after a cursor; without one, from the `oldest` that is kept, or the `newest` on.

        Keep `next_cursor` once you are done with a page, and ask again with it.

        Args:
            wait_seconds: for a change, where there is none.

        Raises:
            DeletedError: some changes are gone: begin again, and list the jobs.
        """
        return self._run(self._calls.list_events(cursor, start, wait_seconds))

    def list_batches(self, **filters: Unpack[BatchFilters]) -> Iterator[Batch]:
        """Batches with their counts, page after page, newest first; see `BatchFilters`."""
        yield from _Run(self._http).iterate(self._calls.list_batches(filters))

    def create_batch(
        self,
        scans: Iterable[BatchScan],
        *,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Submit up to 1000 scans that the service fetches, or that were uploaded; see `BatchScan`.

        `callback_url` is told once all of them have ended.
        """
        return self._run(self._calls.create_batch(scans, callback_url, idempotency_key))

    def get_batch(self, batch_id: str) -> Batch:
        """Its counts, and the first page of its items."""
        return self._run(self._calls.get_batch(batch_id))

    def batch_items(self, batch_id: str) -> Iterator[BatchItem]:
        """All of them, page after page."""
        yield from _Run(self._http).iterate(self._calls.batch_items(batch_id))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Stop all of its jobs that have not ended."""
        return self._run(self._calls.cancel_batch(batch_id))

    # The service

    def get_callback(self, job_id: str) -> Callback:
        """Each attempt to tell the job's `callback_url` how it ended."""
        return self._run(self._calls.get_callback(job_id))

    def redeliver_callback(self, job_id: str) -> Callback:
        """Have the callback sent again."""
        return self._run(self._calls.redeliver_callback(job_id))

    def models(self) -> list[NetworkInfo]:
        """The networks that the workers have loaded."""
        return self._run(self._calls.models())

    def ready(self) -> Ready:
        """Raises BusyError: a part is missing that jobs need; `evidence` says which."""
        return self._run(self._calls.ready())

    def health(self) -> None:
        """Asks once whether the service answers. Raises ConnectionFailedError: it does not."""
        self._run(self._calls.health())

    def _run(self, steps: Steps[T]) -> T:
        return _Run(self._http).run(steps)


@dataclass(frozen=True)
class Mask:
    """One mask of a result; nothing of it is fetched before it is asked for."""

    client: Client = field(repr=False)
    job_id: str
    name: str

    def read(self) -> bytes:
        """A gzipped NIfTI on the scan's own grid."""
        return self.client.mask(self.job_id, self.name)

    def save(self, path: str | PathLike[str]) -> Path:
        return self.client.save_mask(self.job_id, self.name, path)


@dataclass(frozen=True)
class Result:
    """What a scan came to."""

    client: Client = field(repr=False)
    job: Job
    report: Report

    @property
    def masks(self) -> dict[str, Mask]:
        """By name: lungs, lobes, lesions and high-opacity."""
        return {str(name): Mask(self.client, self.job.id, str(name)) for name in self.report.masks}

    def save(self, folder: str | PathLike[str]) -> list[Path]:
        """Write the masks, as `{name}.nii.gz`, their labels.json, and report.json: all that was written."""
        return self.client.save(self.job.id, folder, self.report)


def body_of(request: Request) -> tuple[dict[str, str], Any]:
    """The headers of a request, and its body's pieces or bytes."""
    headers, body = dict(request.headers), request.body
    if body is None or isinstance(body, bytes):
        return headers, body
    # httpx would send chunks without a length, and the service could refuse nothing by its size.
    return headers | {"content-length": str(body.size_bytes)}, body


class _Run:
    """Takes the steps of one call, in this thread."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._open: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def run(self, steps: Steps[T]) -> T:
        walk = self.iterate(steps)
        while True:
            try:
                next(walk)  # what is given to those who iterate
            except StopIteration as stop:
                result: T = stop.value
                return result

    def iterate(self, steps: Steps[T]) -> Generator[Any, None, T]:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Give):
                    yield step.value
                    step = steps.send(None)
                    continue
                try:
                    result = self._take(step)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            steps.close()
            self._close()

    def _take(self, step: Any) -> Any:
        if isinstance(step, Send):
            response = self._http.send(self._request(step.request))
            return Reply(response.status_code, response.headers, response.content)
        if isinstance(step, Open):
            self._close()
            self._open = self._http.send(self._request(step.request), stream=True)
            self._pieces = self._open.iter_raw()
            return Reply(self._open.status_code, self._open.headers)
        if isinstance(step, Read):
            return next(self._pieces, b"")
        if isinstance(step, Close):
            return self._close()
        if isinstance(step, Sleep):
            return time.sleep(step.seconds)
        if isinstance(step, Together):
            return self._together(step)
        assert isinstance(step, Call)  # noqa: S101 (there are no other steps that come here)
        return step.function()

    def _request(self, request: Request) -> httpx.Request:
        headers, body = body_of(request)
        timeout = self._http.timeout if request.silence_seconds is None else httpx.Timeout(request.silence_seconds)
        content = body if body is None or isinstance(body, bytes) else _counted(body)
        return self._http.build_request(request.method, request.url, headers=headers, content=content, timeout=timeout)

    def _together(self, step: Together) -> list[Any]:
        with ThreadPoolExecutor(len(step.calls), "lobewise-upload") as pool:
            try:
                return list(pool.map(lambda steps: _Run(self._http).run(steps), step.calls))
            except BaseException:
                step.stop()
                raise

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open, self._pieces = None, iter(())


def _counted(body: Any) -> Iterator[bytes]:
    for piece in body.pieces():
        yield piece
        body.sent(len(piece))
