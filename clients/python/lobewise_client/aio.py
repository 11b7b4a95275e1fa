"""The client for programs with an event loop (asyncio): the same calls as `client`, with `await`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

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
from lobewise_client.client import PARTS_ABOVE_BYTES, USER_AGENT, body_of
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

T = TypeVar("T")


class AsyncClient:
    """Talks to one service; tasks of one event loop may share it. Arguments and errors are those of `Client`."""

    def __init__(
        self,
        address: str,
        *,
        api_key: ApiKey | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 60.0,
        retry: Retry = Retry(),  # noqa: B008 (frozen)
        transport: httpx.AsyncBaseTransport | None = None,
        parts_above_bytes: int = PARTS_ABOVE_BYTES,
        parallel_parts: int = 4,
    ) -> None:
        self._calls = Calls(Settings(address, headers or {}, api_key, retry, parts_above_bytes, parallel_parts))
        self._http = httpx.AsyncClient(
            timeout=timeout_seconds, transport=transport, headers={"user-agent": USER_AGENT}, follow_redirects=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # From a scan to its scores

    async def score(
        self,
        scan: ScanLike,
        *,
        wait_seconds: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> "AsyncResult":
        """Send a scan, wait for its scores, and fetch the report; masks are fetched when they are asked for."""
        return AsyncResult(self, *await self._run(self._calls.score(scan, wait_seconds, on_progress, options)))

    async def validate(
        self,
        scan: ScanLike,
        *,
        wait_seconds: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[Options],
    ) -> Inspection:
        """Have a scan read and not scored."""
        return await self._run(self._calls.validate(scan, wait_seconds, on_progress, options))

    # One step at a time

    async def submit(self, scan: ScanLike, *, on_progress: OnProgress | None = None, **options: Unpack[Options]) -> Job:
        """Send a scan: the job, which is durable once this returns."""
        return await self._run(self._calls.submit(scan, options, on_progress=on_progress))

    async def submit_source(self, url: str, sha256: str | None = None, **options: Unpack[Options]) -> Job:
        """Let the service fetch a scan from an address that its operator allows."""
        return await self._run(self._calls.submit_source(url, sha256, options))

    async def submit_upload(self, upload_id: str, **options: Unpack[Options]) -> Job:
        """Make a job of an upload that is complete."""
        return await self._run(self._calls.submit_upload(upload_id, options))

    async def upload(
        self, scan: ScanLike, *, resume: str | None = None, on_progress: OnProgress | None = None
    ) -> Upload:
        """Send a scan in parts. `resume` is the id of an upload of this very scan that did not come to its end."""
        return await self._run(self._calls.upload(scan, resume, on_progress))

    async def get_upload(self, upload_id: str) -> Upload:
        return await self._run(self._calls.get_upload(upload_id))

    async def abort_upload(self, upload_id: str) -> None:
        """Delete an upload that no job has taken."""
        await self._run(self._calls.abort_upload(upload_id))

    async def get(self, job_id: str) -> Job:
        return await self._run(self._calls.get(job_id))

    async def follow(self, job_id: str, *, wait_seconds: float | None = None) -> AsyncIterator[Job]:
        """The job as it stands, and again whenever it changes, until it is final."""
        async for job in _Run(self._http).iterate(self._calls.follow(job_id, wait_seconds), []):
            yield job

    async def wait(
        self, job_id: str, *, wait_seconds: float | None = None, on_progress: OnProgress | None = None
    ) -> Job:
        """The job once it has succeeded."""
        return await self._run(self._calls.wait(job_id, wait_seconds, on_progress))

    async def result(self, job_id: str) -> "AsyncResult":
        """Of a job that has succeeded."""
        return AsyncResult(self, await self.get(job_id), await self.report(job_id))

    async def report(self, job_id: str) -> Report:
        return await self._run(self._calls.report(job_id))

    async def inspection(self, job_id: str) -> Inspection:
        """What was seen in a validated scan."""
        return await self._run(self._calls.inspection(job_id))

    async def labels(self, job_id: str) -> MaskLabels:
        """What the numbers in its masks stand for."""
        return await self._run(self._calls.labels(job_id))

    async def mask(self, job_id: str, name: str) -> bytes:
        """A gzipped NIfTI, in memory."""
        file = BytesIO()
        await self._run(self._calls.write_mask(job_id, name, file))
        return file.getvalue()

    async def save_mask(self, job_id: str, name: str, path: str | PathLike[str]) -> Path:
        """Write a mask to a file, which is there once it is whole and its sha256 is right."""
        return await self._run(self._calls.save_mask(job_id, name, Path(path)))

    async def save(self, job_id: str, folder: str | PathLike[str], report: Report | None = None) -> list[Path]:
        """Write a job's masks, as `{name}.nii.gz`, their labels.json, and report.json: all that was written."""
        return await self._run(self._calls.save(job_id, Path(folder), report))

    async def cancel(self, job_id: str) -> Job:
        """Stop a job: at once if it waits, within seconds if it runs."""
        return await self._run(self._calls.cancel(job_id))

    async def delete(self, job_id: str) -> None:
        """Delete a job with its scan, report and masks."""
        await self._run(self._calls.delete(job_id))

    # Many

    async def list_jobs(self, **filters: Unpack[Filters]) -> AsyncIterator[Job]:
        """All jobs that fit, page after page; see `Filters`."""
        async for job in _Run(self._http).iterate(self._calls.list_jobs(filters), []):
            yield job

    async def export_reports(self, **filters: Unpack[ReportFilters]) -> AsyncIterator[ExportedReport]:
        """All reports that fit, oldest first, as the service streams them; see `ReportFilters`."""
        async for one in _Run(self._http).iterate(self._calls.export_reports(filters), []):
            yield one

    async def list_events(
        self, cursor: str | None = None, *, start: str = "oldest", wait_seconds: int = 0
    ) -> ChangePage:
        """What happened to all jobs after a cursor; without one, from the `oldest` that is kept, or the `newest` on.

        Keep `next_cursor` once you are done with a page, and ask again with it.

        Args:
            wait_seconds: for a change, where there is none.

        Raises:
            DeletedError: some changes are gone: begin again, and list the jobs.
        """
        return await self._run(self._calls.list_events(cursor, start, wait_seconds))

    async def list_batches(self, **filters: Unpack[BatchFilters]) -> AsyncIterator[Batch]:
        """Batches with their counts, page after page, newest first; see `BatchFilters`."""
        async for one in _Run(self._http).iterate(self._calls.list_batches(filters), []):
            yield one

    async def create_batch(
        self,
        scans: Iterable[BatchScan],
        *,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Submit up to 1000 scans that the service fetches, or that were uploaded; see `BatchScan`.

        `callback_url` is told once all of them have ended.
        """
        return await self._run(self._calls.create_batch(scans, callback_url, idempotency_key))

    async def get_batch(self, batch_id: str) -> Batch:
        """Its counts, and the first page of its items."""
        return await self._run(self._calls.get_batch(batch_id))

    async def batch_items(self, batch_id: str) -> AsyncIterator[BatchItem]:
        """All of them, page after page."""
        async for item in _Run(self._http).iterate(self._calls.batch_items(batch_id), []):
            yield item

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Stop all of its jobs that have not ended."""
        return await self._run(self._calls.cancel_batch(batch_id))

    # The service

    async def get_callback(self, job_id: str) -> Callback:
        """Each attempt to tell the job's `callback_url` how it ended."""
        return await self._run(self._calls.get_callback(job_id))

    async def redeliver_callback(self, job_id: str) -> Callback:
        """Have the callback sent again."""
        return await self._run(self._calls.redeliver_callback(job_id))

    async def models(self) -> list[NetworkInfo]:
        """The networks that the workers have loaded."""
        return await self._run(self._calls.models())

    async def ready(self) -> Ready:
        """Raises BusyError: a part is missing that jobs need; `evidence` says which."""
        return await self._run(self._calls.ready())

    async def health(self) -> None:
        """Asks once whether the service answers. Raises ConnectionFailedError: it does not."""
        await self._run(self._calls.health())

    async def _run(self, steps: Steps[T]) -> T:
        return await _Run(self._http).run(steps)


@dataclass(frozen=True)
class AsyncMask:
    """One mask of a result; nothing of it is fetched before it is asked for."""

    client: AsyncClient = field(repr=False)
    job_id: str
    name: str

    async def read(self) -> bytes:
        """A gzipped NIfTI on the scan's own grid."""
        return await self.client.mask(self.job_id, self.name)

    async def save(self, path: str | PathLike[str]) -> Path:
        return await self.client.save_mask(self.job_id, self.name, path)


@dataclass(frozen=True)
class AsyncResult:
    """What a scan came to."""

    client: AsyncClient = field(repr=False)
    job: Job
    report: Report

    @property
    def masks(self) -> dict[str, AsyncMask]:
        """By name: lungs, lobes, lesions and high-opacity."""
        return {str(name): AsyncMask(self.client, self.job.id, str(name)) for name in self.report.masks}

    async def save(self, folder: str | PathLike[str]) -> list[Path]:
        """Write the masks, as `{name}.nii.gz`, their labels.json, and report.json: all that was written."""
        return await self.client.save(self.job.id, folder, self.report)


class _Run:
    """Takes the steps of one call, in the event loop; what waits for the disk is done in threads."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._open: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def run(self, steps: Steps[T]) -> T:
        results: list[T] = []
        async for _given in self.iterate(steps, results):
            pass
        return results[0]

    async def iterate(self, steps: Steps[T], results: list[T]) -> AsyncGenerator[Any, None]:
        """`results` gets the result, which an asynchronous generator cannot return."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Give):
                    yield step.value
                    step = steps.send(None)
                    continue
                try:
                    result = await self._take(step)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as stop:
            results.append(stop.value)
        finally:
            steps.close()
            await self._close()

    async def _take(self, step: Any) -> Any:
        if isinstance(step, Send):
            response = await self._http.send(self._request(step.request))
            return Reply(response.status_code, response.headers, response.content)
        if isinstance(step, Open):
            await self._close()
            self._open = await self._http.send(self._request(step.request), stream=True)
            self._pieces = self._open.aiter_raw()
            return Reply(self._open.status_code, self._open.headers)
        if isinstance(step, Read):
            return b"" if self._pieces is None else await anext(self._pieces, b"")
        if isinstance(step, Close):
            return await self._close()
        if isinstance(step, Sleep):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Together):
            return await self._together(step)
        assert isinstance(step, Call)  # noqa: S101 (there are no other steps that come here)
        return await asyncio.to_thread(step.function)

    def _request(self, request: Request) -> httpx.Request:
        headers, body = body_of(request)
        timeout = self._http.timeout if request.silence_seconds is None else httpx.Timeout(request.silence_seconds)
        content = body if body is None or isinstance(body, bytes) else _counted(body)
        return self._http.build_request(request.method, request.url, headers=headers, content=content, timeout=timeout)

    async def _together(self, step: Together) -> list[Any]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_Run(self._http).run(steps)) for steps in step.calls]
        except BaseExceptionGroup as errors:
            # The first that went wrong; the others were stopped because of it.
            raise errors.exceptions[0] from None
        finally:
            step.stop()
        return [task.result() for task in tasks]

    async def _close(self) -> None:
        if self._open is not None:
            await self._open.aclose()
        self._open, self._pieces = None, None


async def _counted(body: Any) -> AsyncIterator[bytes]:
    pieces = body.pieces()
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece
        body.sent(len(piece))
