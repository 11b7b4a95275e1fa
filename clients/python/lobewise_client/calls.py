"""Every call of the service, as steps: what is sent, what is tried again, what the answer means."""

import hashlib
import http
import json
import os
import random
import time
import uuid
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Literal, TypedDict, TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from lobewise_client import errors
from lobewise_client.models import (
    Batch,
    BatchPage,
    Callback,
    ChangePage,
    ExportedReport,
    FieldError,
    Inspection,
    Job,
    JobPage,
    JobStatus,
    MaskLabels,
    NetworkInfo,
    NetworkList,
    Ready,
    Report,
    Upload,
)
from lobewise_client.retries import Patience, Retry, retry_after_seconds
from lobewise_client.scans import Form, PartBody, PartQueue, Scan, ScanLike
from lobewise_client.sse import EventParser
from lobewise_client.steps import Call, Close, Give, Open, Read, Reply, Request, Send, Sleep, Steps, Together

M = TypeVar("M", bound=BaseModel)

#: A stream that says nothing for so long is broken, or held back on its way: the service says every 15 s that it lives.
SILENCE_SECONDS: Final = 40.0
#: Streams in a row that brought no event, until the job is polled instead.
STREAM_TRIES: Final = 3
#: Between two polls where no `Retry-After` came.
POLL_SECONDS: Final = 2.0
#: Of a problem; what is longer is no problem of this service.
PROBLEM_BYTES: Final = 1 << 20
#: Statuses which pass, whoever answers them.
PASSING: Final = (429, 502, 503, 504)

Task = Literal["score", "validate"]
#: A key or token, or what gives one.
ApiKey = str | Callable[[], str]
#: Whose key is sent where none was given.
KEY_VARIABLE: Final = "LOBEWISE_API_KEY"


@dataclass(frozen=True)
class Progress:
    """How far a scan has come.

    Attributes:
        stage: `upload`, `queued`, then what the worker does (`fetch`, `read`, `landmarks`, `lungs`, `lesions`,
            `severity`, `store`), then how it ended.
        fraction: 0 to 1: of the upload, then of the work.
        queue_position: 1 is next; None when it does not wait, or is not known.
    """

    stage: str
    fraction: float
    queue_position: int | None = None


OnProgress = Callable[[Progress], None]


class Options(TypedDict, total=False):
    """What can be said about a scan, however it comes.

    Attributes:
        priority: stat, routine or batch.
        client_reference: your own name for it, given back with the job. Put no patient data in it.
        callback_url: an address that the operator allows; told how the job ended.
        not_after: a job that nobody has begun by then fails (`deadline-passed`) and is never computed.
        reuse: whether an equal scan that was scored before, by the same weights, may be given that result; the service
            does so unless this is False.
        idempotency_key: of the request: repeated with it, it makes no second job. A new one for each call by default.
    """

    priority: str | None
    client_reference: str | None
    callback_url: str | None
    not_after: datetime | None
    reuse: bool | None
    idempotency_key: str | None


class BatchScan(TypedDict, total=False):
    """One scan of a batch: a `url` (and its `sha256`) or an `upload_id`, and its options."""

    url: str
    sha256: str | None
    upload_id: str
    priority: str | None
    client_reference: str | None
    callback_url: str | None
    not_after: datetime | None
    reuse: bool | None


class BatchFilters(TypedDict, total=False):
    """Which batches a list has.

    Attributes:
        created_after: at this time or later.
        limit: how many a page has.
    """

    created_after: datetime | None
    created_before: datetime | None
    limit: int | None


class ReportFilters(TypedDict, total=False):
    """Which jobs an export has. All may be given together.

    Attributes:
        created_after: at this time or later.
        after: only jobs that come after this one: the last `job_id` that you have.
        limit: how many at most.
    """

    client_reference: str | None
    created_after: datetime | None
    created_before: datetime | None
    priority: str | None
    after: str | None
    limit: int | None


class Filters(TypedDict, total=False):
    """Which jobs a list has, and in which order. All may be given together.

    Attributes:
        status: one, or several: jobs with any of them.
        created_after: at this time or later.
        sort: `-created_at` (newest first, the default), `created_at`, or `severity`.
        limit: how many a page has.
    """

    status: str | list[str] | None
    client_reference: str | None
    created_after: datetime | None
    created_before: datetime | None
    priority: str | None
    sort: str | None
    limit: int | None


@dataclass(frozen=True)
class Settings:
    """Of a client.

    Attributes:
        address: of the service, with a path where a proxy serves it below one.
        headers: sent with every request to the service, and to no other server.
        api_key: see `Client`.
        parts_above_bytes: larger scans go in parts.
        parallel_parts: so many at once.
    """

    address: str
    headers: Mapping[str, str]
    api_key: ApiKey | None
    retry: Retry
    parts_above_bytes: int
    parallel_parts: int

    def __post_init__(self) -> None:
        """Raises InvalidAddressError."""
        try:
            url = httpx.URL(self.address)
        except httpx.InvalidURL as error:
            raise errors.InvalidAddressError(f"{self.address!r} is no address of a service: {error}.") from error
        if url.scheme not in ("http", "https") or not url.host:
            words = "it must begin with http:// or https://"
            raise errors.InvalidAddressError(f"{self.address!r} is no address of a service: {words}.")


class Calls:
    """The calls of one service. Each returns its steps; what it raises is in `errors`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._root = settings.address.rstrip("/")

    # Submitting

    def submit(
        self, source: ScanLike, options: Options, *, task: Task = "score", on_progress: OnProgress | None = None
    ) -> Steps[Job]:
        options = _with_key(options)
        scan: Scan = yield Call(partial(Scan.open, source))
        try:
            if scan.size_bytes > self.settings.parts_above_bytes:
                upload = yield from self._upload_parts(scan, None, on_progress)
                return (yield from self.submit_upload(upload.id, options, task=task))
            form = Form(scan, _fields(options), _of_upload(on_progress))
            headers = {"content-type": form.content_type, **_key_header(options)}
            reply = yield from self._send(Request("POST", self._url(["v1", _NOUNS[task]]), headers, form))
        finally:
            scan.close()
        job = _read(Job, reply)
        if job.input.sha256 not in (None, form.sha256):
            # Its scores would be those of no scan.
            yield from self.delete(job.id)
            raise errors.DigestMismatchError("The scan", form.sha256, str(job.input.sha256))
        return job

    def submit_source(self, url: str, sha256: str | None, options: Options, *, task: Task = "score") -> Steps[Job]:
        source = {"url": url} if sha256 is None else {"url": url, "sha256": sha256}
        return self._submit_json(source, _with_key(options), task)

    def submit_upload(self, upload_id: str, options: Options, *, task: Task = "score") -> Steps[Job]:
        return self._submit_json({"upload_id": upload_id}, _with_key(options), task)

    def _submit_json(self, source: dict[str, str], options: Options, task: Task) -> Steps[Job]:
        body = {"source": source, **_fields(options)}
        return _read(Job, (yield from self._post_json(["v1", _NOUNS[task], "from-source"], body, _key_header(options))))

    def upload(
        self, source: ScanLike, resume: str | None = None, on_progress: OnProgress | None = None
    ) -> Steps[Upload]:
        scan: Scan = yield Call(partial(Scan.open, source))
        try:
            return (yield from self._upload_parts(scan, resume, on_progress))
        finally:
            scan.close()

    def get_upload(self, upload_id: str) -> Steps[Upload]:
        return self._get(Upload, "v1", "uploads", upload_id)

    def abort_upload(self, upload_id: str) -> Steps[None]:
        return self._delete("upload-not-found", "v1", "uploads", upload_id)

    def _upload_parts(self, scan: Scan, resume: str | None, on_progress: OnProgress | None) -> Steps[Upload]:
        """Rounds: whatever a part fails of, the service is asked what has arrived, and the others are sent again."""
        if resume is None:
            # Without its sha256, which would take a reading of its own: it is computed on the way, and compared.
            upload = _read(Upload, (yield from self._post_json(["v1", "uploads"], {"size_bytes": scan.size_bytes})))
        else:
            upload = yield from self.get_upload(resume)
            if upload.size_bytes != scan.size_bytes:
                raise ValueError(f"upload {resume} is of {upload.size_bytes} bytes, this scan has {scan.size_bytes}")
        parts = PartQueue(scan, upload, _of_upload(on_progress))
        patience, arrived_bytes = Patience(self.settings.retry), -1
        while True:
            lanes = [self._send_parts(parts) for _ in range(self.settings.parallel_parts)]
            faults: list[errors.LobewiseError | None] = yield Together(lanes, parts.stop)
            fault = next(filter(None, faults), None)
            if fault is None:
                try:
                    return (yield from self._complete(upload.id, parts.sha256))
                except errors.WrongStateError as error:
                    if error.slug != "upload-incomplete":
                        raise
                    fault = error  # a part was lost on the other side, or is no longer whole
            upload = yield from self.get_upload(upload.id)
            now_bytes = parts.refill(upload)
            if now_bytes > arrived_bytes:
                patience.progressed()
            arrived_bytes = now_bytes
            pause = patience.pause_seconds(_asked_seconds(fault))
            if pause is None:
                raise fault
            yield Sleep(pause)

    def _send_parts(self, parts: PartQueue) -> Steps[errors.LobewiseError | None]:
        """Send parts until there are none, or one fails: its fault, where it may pass."""
        while True:
            taken = yield Call(parts.take)
            if taken is None:
                return None
            part, body = taken
            try:
                yield from self._put_part(str(part.url), body)
            except errors.LobewiseError as error:
                # 403: the address has expired; 409 and 404 are found out when the upload is asked for.
                may_pass = not isinstance(error, errors.ProblemError) or error.retryable
                if may_pass or (isinstance(error, errors.ProblemError) and error.status in (403, 404, 408, 409)):
                    return error
                raise

    def _put_part(self, url: str, body: PartBody) -> Steps[None]:
        try:
            reply: Reply = yield Send(self._request("PUT", urljoin(f"{self._root}/", url), {}, body))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if reply.status >= 300:
            raise problem_of(reply)

    def _complete(self, upload_id: str, sha256: str) -> Steps[Upload]:
        reply = yield from self._send(Request("POST", self._url(["v1", "uploads", upload_id, "complete"])))
        upload = _read(Upload, reply)
        if upload.sha256 not in (None, sha256):
            yield from self.abort_upload(upload_id)
            raise errors.DigestMismatchError("The scan", sha256, str(upload.sha256))
        return upload

    # A job on its way

    def get(self, job_id: str) -> Steps[Job]:
        return self._get(Job, "v1", "jobs", job_id)

    def cancel(self, job_id: str) -> Steps[Job]:
        return _read(Job, (yield from self._send(Request("POST", self._url(["v1", "jobs", job_id, "cancel"])))))

    def delete(self, job_id: str) -> Steps[None]:
        return self._delete("job-purged", "v1", "jobs", job_id)

    def follow(
        self, job_id: str, wait_seconds: float | None = None, on_progress: OnProgress | None = None
    ) -> Steps[Job]:
        """Gives the job as it stands and whenever it changes; the result is the job at its end."""
        told = _Told(job_id, wait_seconds, on_progress)
        yield from self._watch(told)
        if told.job is None or not told.job.is_final:
            yield from self._poll(told)
        return told.final()

    def _watch(self, told: "_Told") -> Steps[None]:
        """By server-sent events, until the job is final or there are no events to be had."""
        last_id: str | None = None
        fruitless, retry_seconds = 0, 3.0
        while fruitless < STREAM_TRIES:
            headers = {"accept": "text/event-stream", "cache-control": "no-store"}
            if last_id is not None:
                headers["last-event-id"] = last_id
            silence = min(SILENCE_SECONDS, told.left_seconds())
            url = self._url(["v1", "jobs", told.job_id, "events"])
            fruitless += 1
            parser = EventParser()
            try:
                opened: Reply = yield Open(self._request("GET", url, headers, silence_seconds=silence))
                if opened.status != 200 or not opened.headers.get("content-type", "").startswith("text/event-stream"):
                    yield from self._require_known(opened)
                    return  # 204: it is final; too many streams, or what knows none: polls
                while data := (yield Read()):
                    for event in parser.feed(data):
                        if event.is_comment:
                            yield from self._look_at_queue(told)
                        elif event.name == "job":
                            fruitless, is_new = 0, told.job is None
                            last_id = event.id
                            yield from told.tell(_read(Job, Reply(200, {}, event.data.encode())))
                            if is_new:
                                yield from self._look_at_queue(told)
                    if told.job is not None and told.job.is_final:
                        yield Close()
                        return
                    told.left_seconds()
            except httpx.TransportError:
                told.left_seconds()
            except (ValueError, errors.UnreadableAnswerError):
                break  # something on the way makes of the stream what is none
            yield Close()
            retry_seconds = parser.retry_seconds
            yield Sleep(min(retry_seconds * random.uniform(0.8, 1.2), told.left_seconds()))  # noqa: S311 (no secret)
        yield Close()

    def _require_known(self, opened: Reply) -> Steps[None]:
        """Raises NotFoundError: the job is not there, and polling it would not help."""
        if opened.status in (404, 410):
            raise problem_of(Reply(opened.status, opened.headers, (yield from _rest())))
        yield Close()

    def _look_at_queue(self, told: "_Told") -> Steps[None]:
        """Events do not say how many jobs are before one that waits."""
        if told.job is None or told.job.status != JobStatus.QUEUED:
            return
        try:
            reply: Reply = yield Send(self._request("GET", self._url(["v1", "jobs", told.job_id])))
        except httpx.TransportError:
            return  # the stream goes on, or will be found broken
        if reply.status == 200:
            job = _read(Job, reply)
            if job.status == JobStatus.QUEUED:
                yield from told.tell(job)

    def _poll(self, told: "_Told") -> Steps[None]:
        etag: str | None = None
        while True:
            headers = {} if etag is None else {"if-none-match": etag}
            reply = yield from self._send(Request("GET", self._url(["v1", "jobs", told.job_id]), headers))
            etag = reply.headers.get("etag")
            if reply.status != 304:
                yield from told.tell(_read(Job, reply))
            if told.job is not None and told.job.is_final:
                return
            asked = retry_after_seconds(reply.headers.get("retry-after"))
            pause = (POLL_SECONDS if asked is None else asked) * random.uniform(0.8, 1.2)  # noqa: S311 (no secret)
            yield Sleep(min(pause, told.left_seconds()))

    def wait(self, job_id: str, wait_seconds: float | None, on_progress: OnProgress | None = None) -> Steps[Job]:
        """Raises JobFailedError, JobCancelledError, NotFinishedError."""
        job = yield from self.follow(job_id, wait_seconds, on_progress)
        if job.status == JobStatus.CANCELLED:
            raise errors.JobCancelledError(job)
        if job.error is not None:
            raise errors.JobFailedError(job, job.error)
        return job

    def score(
        self, source: ScanLike, wait_seconds: float | None, on_progress: OnProgress | None, options: Options
    ) -> Steps[tuple[Job, Report]]:
        job = yield from self.submit(source, options, on_progress=on_progress)
        job = yield from self.wait(job.id, wait_seconds, on_progress)
        return job, (yield from self.report(job.id))

    def validate(
        self, source: ScanLike, wait_seconds: float | None, on_progress: OnProgress | None, options: Options
    ) -> Steps[Inspection]:
        job = yield from self.submit(source, options, task="validate", on_progress=on_progress)
        job = yield from self.wait(job.id, wait_seconds, on_progress)
        return (yield from self.inspection(job.id))

    # What a job found

    def report(self, job_id: str) -> Steps[Report]:
        return self._get(Report, "v1", "jobs", job_id, "report")

    def inspection(self, job_id: str) -> Steps[Inspection]:
        return self._get(Inspection, "v1", "jobs", job_id, "inspection")

    def labels(self, job_id: str) -> Steps[MaskLabels]:
        return self._get(MaskLabels, "v1", "jobs", job_id, "labels")

    def save(self, job_id: str, folder: Path, report: Report | None = None) -> Steps[list[Path]]:
        """Masks, labels and report; what this version does not know of the latter two is in the files, too."""
        if report is None:
            report = yield from self.report(job_id)
        yield Call(partial(folder.mkdir, parents=True, exist_ok=True))
        paths = []
        for name in report.masks:
            # The last part alone: a name may not lead out of the folder.
            path = folder / f"{Path(name).name}.nii.gz"
            paths.append((yield from self.save_mask(job_id, name, path)))
        documents: dict[str, BaseModel] = {"report.json": report}
        # A service, or a job, may be older than labels.
        with suppress(errors.NotFoundError, errors.WrongStateError):
            documents = {"labels.json": (yield from self.labels(job_id)), **documents}
        for file_name, document in documents.items():
            paths.append(folder / file_name)
            text = document.model_dump_json(by_alias=True, indent=2) + "\n"
            yield Call(partial(paths[-1].write_text, text, encoding="utf-8"))
        return paths

    def save_mask(self, job_id: str, name: str, path: Path) -> Steps[Path]:
        """To a file beside it first, so that what has the right name is whole."""
        partial_path = path.with_name(f"{path.name}.part")
        file: IO[bytes] = yield Call(partial(partial_path.open, "wb"))
        try:
            try:
                yield from self.write_mask(job_id, name, file)
            finally:
                file.close()
            yield Call(partial(partial_path.replace, path))
        finally:
            partial_path.unlink(missing_ok=True)
        return path

    def write_mask(self, job_id: str, name: str, file: IO[bytes]) -> Steps[None]:
        """Where it breaks off it goes on; at the end its sha256 must be the one that the service names."""
        url, start = self._url(["v1", "jobs", job_id, "masks", name]), file.tell()
        patience, has_begun_again = Patience(self.settings.retry), False
        digest, got_bytes, etag = hashlib.sha256(), 0, ""
        while True:
            # Neither the bytes nor their count would be those of the file, if a proxy compressed them once more.
            headers = {"accept-encoding": "identity"}
            if got_bytes and etag:
                headers |= {"range": f"bytes={got_bytes}-", "if-range": etag}
            fault: errors.LobewiseError
            try:
                opened: Reply = yield Open(self._request("GET", url, headers))
                if opened.status not in (200, 206):
                    raise problem_of(Reply(opened.status, opened.headers, (yield from _rest())))
                if opened.status == 200 or not opened.headers.get("content-range", "").startswith(
                    f"bytes {got_bytes}-"
                ):
                    if opened.status == 206:
                        raise errors.UnreadableAnswerError(
                            "The service sent other bytes of the mask than were asked for."
                        )
                    digest, got_bytes = hashlib.sha256(), 0
                    yield Call(partial(_rewind, file, start))
                etag = opened.headers.get("etag", "")
                while data := (yield Read()):
                    yield Call(partial(file.write, data))
                    digest.update(data)
                    got_bytes += len(data)
                    patience.progressed()
            except httpx.TransportError as error:
                fault = self._unreachable(error)
                fault.__cause__ = error
            except errors.ProblemError as error:
                if not error.retryable:
                    raise
                fault = error
            else:
                expected = _digest_in(opened.headers.get("repr-digest", ""))
                if expected in (None, digest.hexdigest()):
                    return
                fault = errors.DigestMismatchError(f"The mask {name}", str(expected), digest.hexdigest())
                if has_begun_again:
                    raise fault
                has_begun_again, got_bytes = True, 0
            pause = patience.pause_seconds(_asked_seconds(fault))
            if pause is None:
                raise fault
            yield Close()
            yield Sleep(pause)

    # Many jobs

    def list_jobs(self, filters: Filters) -> Steps[None]:
        return self._pages(JobPage, ["v1", "jobs"], _known(Filters, filters))

    def export_reports(self, filters: ReportFilters) -> Steps[None]:
        """Gives each report of a stream of lines; where it breaks off, it goes on after the last one that came."""
        query, patience = _known(ReportFilters, filters), Patience(self.settings.retry)
        left = filters.get("limit")
        while True:
            url = "/".join([self._root, "v1", "reports.ndjson"]) + (f"?{urlencode(query)}" if query else "")
            rest = b""
            fault: errors.LobewiseError
            try:
                opened: Reply = yield Open(self._request("GET", url, {"accept": "application/x-ndjson"}))
                if opened.status != 200:
                    raise problem_of(Reply(opened.status, opened.headers, (yield from _rest())))
                while data := (yield Read()):
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        report = _read(ExportedReport, Reply(200, {}, line))
                        query["after"], left = report.job_id, None if left is None else left - 1
                        patience.progressed()
                        yield Give(report)
                yield Close()
                return
            except httpx.TransportError as error:
                fault = self._unreachable(error)
                fault.__cause__ = error
            except errors.ProblemError as error:
                if not error.retryable:
                    raise
                fault = error
            if left is not None:
                if left <= 0:
                    return
                query["limit"] = left
            pause = patience.pause_seconds(_asked_seconds(fault))
            if pause is None:
                raise fault
            yield Close()
            yield Sleep(pause)

    def list_events(self, cursor: str | None, start: str, wait_seconds: int) -> Steps[ChangePage]:
        """One page of the feed of all changes."""
        query = {"start": start} if cursor is None else {"cursor": cursor}
        headers = {"prefer": f"wait={wait_seconds}"} if wait_seconds else {}
        silence = wait_seconds + SILENCE_SECONDS if wait_seconds else None
        url = f"{self._url(['v1', 'events'])}?{urlencode(query)}"
        return _read(ChangePage, (yield from self._send(Request("GET", url, headers, silence_seconds=silence))))

    def list_batches(self, filters: BatchFilters) -> Steps[None]:
        return self._pages(BatchPage, ["v1", "batches"], _known(BatchFilters, filters))

    def create_batch(
        self, scans: Iterable[BatchScan], callback_url: str | None = None, idempotency_key: str | None = None
    ) -> Steps[Batch]:
        items = []
        for scan in scans:
            given = _known(BatchScan, scan)
            source = {name: given.pop(name) for name in ("url", "sha256", "upload_id") if name in given}
            items.append({"source": source, **given})
        headers = _key_header({"idempotency_key": idempotency_key or str(uuid.uuid4())})
        body = {"items": items} | ({} if callback_url is None else {"callback_url": callback_url})
        return _read(Batch, (yield from self._post_json(["v1", "batches"], body, headers)))

    def get_batch(self, batch_id: str) -> Steps[Batch]:
        return self._get(Batch, "v1", "batches", batch_id)

    def batch_items(self, batch_id: str) -> Steps[None]:
        return self._pages(Batch, ["v1", "batches", batch_id], {"limit": 200})

    def cancel_batch(self, batch_id: str) -> Steps[Batch]:
        return _read(Batch, (yield from self._send(Request("POST", self._url(["v1", "batches", batch_id, "cancel"])))))

    # The rest

    def get_callback(self, job_id: str) -> Steps[Callback]:
        return self._get(Callback, "v1", "jobs", job_id, "callback")

    def redeliver_callback(self, job_id: str) -> Steps[Callback]:
        url = self._url(["v1", "jobs", job_id, "callback", "redeliver"])
        return _read(Callback, (yield from self._send(Request("POST", url))))

    def models(self) -> Steps[list[NetworkInfo]]:
        networks = yield from self._get(NetworkList, "v1", "models")
        return networks.items

    def ready(self) -> Steps[Ready]:
        """Not tried again: whoever asks wants to know how it is now."""
        return _read(Ready, (yield from self._ask_once("readyz")))

    def health(self) -> Steps[None]:
        yield from self._ask_once("healthz")

    # How all of them ask

    def _ask_once(self, path: str) -> Steps[Reply]:
        try:
            reply: Reply = yield Send(self._request("GET", self._url([path]), silence_seconds=5.0))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if reply.status >= 300:
            raise problem_of(reply)
        return reply

    def _get(self, model: type[M], *path: str) -> Steps[M]:
        return _read(model, (yield from self._send(Request("GET", self._url(path)))))

    def _post_json(self, path: Iterable[str], body: Any, headers: Mapping[str, str] | None = None) -> Steps[Reply]:
        content = json.dumps(body).encode()
        given = {"content-type": "application/json", **(headers or {})}
        return (yield from self._send(Request("POST", self._url(path), given, content)))

    def _delete(self, gone: str, *path: str) -> Steps[None]:
        yield from self._send(Request("DELETE", self._url(path)), done_if=gone)

    def _pages(
        self, model: type[Batch | BatchPage | JobPage], path: list[str], query: Mapping[str, Any]
    ) -> Steps[None]:
        """Gives each item of all pages."""
        cursor: str | None = None
        while True:
            given = {**query, **({} if cursor is None else {"cursor": cursor})}
            url = self._url(path) + (f"?{urlencode(given, doseq=True)}" if given else "")
            page = _read(model, (yield from self._send(Request("GET", url))))
            for item in page.items:
                yield Give(item)
            cursor = page.next_cursor
            if cursor is None:
                return

    def _send(self, request: Request, *, done_if: str | None = None) -> Steps[Reply]:
        """Until it is answered well, or for good. Every call may be repeated: those that make something have a key.

        Args:
            done_if: a problem that means, of a repeated request, that the first one did it.
        """
        patience = Patience(self.settings.retry)
        request = self._request(
            request.method, request.url, request.headers, request.body, silence_seconds=request.silence_seconds
        )
        while True:
            fault: errors.LobewiseError
            try:
                reply: Reply = yield Send(request)
            except httpx.TransportError as error:
                fault = self._unreachable(error)
                fault.__cause__ = error
                may_pass = not isinstance(error, httpx.UnsupportedProtocol | httpx.ProxyError)
            else:
                if reply.status < 300 or reply.status == 304:
                    return reply
                fault = problem = problem_of(reply)
                if patience.failures and problem.slug == done_if:
                    return reply
                may_pass = problem.retryable
            pause = patience.pause_seconds(_asked_seconds(fault)) if may_pass else None
            if pause is None:
                raise fault
            yield Sleep(pause)

    def _request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        silence_seconds: float | None = None,
    ) -> Request:
        """With the headers of this client, where it goes to the service itself and not to its storage."""
        given = {"accept": "application/json"}
        if _origin(url) == _origin(self._root):
            given |= {name.lower(): value for name, value in self.settings.headers.items()}
            asked = self.settings.api_key
            if key := asked() if callable(asked) else os.environ.get(KEY_VARIABLE) if asked is None else asked:
                # A proxy may want the one header for itself.
                name, value = ("x-api-key", key) if "authorization" in given else ("authorization", f"Bearer {key}")
                given.setdefault(name, value)
        given |= headers or {}
        return Request(method, url, given, body, silence_seconds)

    def _url(self, path: Iterable[str]) -> str:
        return "/".join([self._root, *(quote(part, safe="") for part in path)])

    def _unreachable(self, error: httpx.TransportError) -> errors.ConnectionFailedError:
        return errors.ConnectionFailedError(f"The service at {self._root} does not answer ({type(error).__name__}).")


class _Told:
    """What was said of a job so far, and for how long it is waited for."""

    def __init__(self, job_id: str, wait_seconds: float | None, on_progress: OnProgress | None) -> None:
        self.job_id = job_id
        self.job: Job | None = None
        self._wait_seconds, self._on_progress = wait_seconds, on_progress
        self._deadline = None if wait_seconds is None else time.monotonic() + wait_seconds

    def left_seconds(self) -> float:
        """Raises NotFinishedError: there is no time left."""
        if self._deadline is None:
            return float("inf")
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise errors.NotFinishedError(self.job_id, self._wait_seconds or 0.0)
        return left

    def tell(self, job: Job) -> Steps[None]:
        """What is not new is not said."""
        before = self.job
        if before is not None and job.queue_position is None and before.status == job.status == JobStatus.QUEUED:
            job = job.model_copy(update={"queue_position": before.queue_position})
        if job == before:
            return
        self.job = job
        if self._on_progress is not None:
            stage = job.stage if job.stage is not None and job.status == JobStatus.RUNNING else str(job.status)
            self._on_progress(Progress(stage, job.progress, job.queue_position))
        yield Give(job)

    def final(self) -> Job:
        if self.job is None:
            raise errors.UnreadableAnswerError(f"Nothing was said of job {self.job_id}.")
        return self.job


_NOUNS: Final[Mapping[Task, str]] = {"score": "jobs", "validate": "validate"}


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _known(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, as it travels. Raises TypeError: a name is none."""
    if unknown := given.keys() - kind.__annotations__.keys():
        raise TypeError(
            f"{', '.join(sorted(unknown))}: there is no such option; there are {', '.join(kind.__annotations__)}"
        )
    return {name: _as_sent(value) for name, value in given.items() if value is not None}


def _as_sent(value: Any) -> Any:
    """As text, an enumeration's member and a time, too, whose zone is this machine's if it says none."""
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_sent(one) for one in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value if isinstance(value, bool) else str(value)


def _with_key(options: Options) -> Options:
    key = options.get("idempotency_key")
    return {**options, "idempotency_key": str(uuid.uuid4()) if key is None else key}


def _key_header(options: Options) -> dict[str, str]:
    return {"idempotency-key": str(options["idempotency_key"])}


def _fields(options: Options) -> dict[str, Any]:
    fields = _known(Options, options)
    del fields["idempotency_key"]
    return fields


def _of_upload(on_progress: OnProgress | None) -> Callable[[int, int], None]:
    def tell(sent: int, size: int) -> None:
        if on_progress is not None:
            on_progress(Progress("upload", sent / size if size else 1.0))

    return tell


def _rest() -> Steps[bytes]:
    """Of an answer that is no success."""
    content = b""
    while len(content) < PROBLEM_BYTES and (data := (yield Read())):
        content += data
    yield Close()
    return content


def _rewind(file: IO[bytes], start: int) -> None:
    file.seek(start)
    file.truncate()


def _digest_in(header: str) -> str | None:
    """The sha256 that a `Repr-Digest` (RFC 9530) names, in hexadecimal; None if it names none."""
    for member in header.split(","):
        name, _, value = member.strip().partition("=")
        if name.lower() == "sha-256":
            try:
                return b64decode(value.split(";")[0].strip().strip(":"), validate=True).hex()
            except ValueError:
                return None
    return None


def _read(model: type[M], reply: Reply) -> M:
    try:
        return model.model_validate_json(reply.content)
    except ValidationError as error:
        where = ", ".join(".".join(map(str, one["loc"])) or one["type"] for one in error.errors()[:3])
        raise errors.UnreadableAnswerError(
            f"The answer is no {model.__name__} as this client knows it: {where}."
        ) from error


class _ProblemBody(BaseModel):
    """Each member may be missing: what stands before the service answers with problems of its own."""

    type: str = "about:blank"
    title: str | None = None
    detail: str | None = None
    retryable: bool | None = None
    evidence: dict[str, Any] = {}
    errors: list[FieldError] = []


def problem_of(reply: Reply) -> errors.ProblemError:
    """The problem that an answer is, of the class that callers handle."""
    status = reply.status
    try:
        body = _ProblemBody.model_validate_json(reply.content)
    except ValidationError:
        # The page of a proxy, or the XML of S3.
        words = " ".join(reply.content[:200].decode("utf-8", errors="replace").split())
        body = _ProblemBody(detail=words)
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "an unknown status"
    return _kind_of(status, body.type.rpartition("/")[2])(
        type=body.type,
        title=body.title or phrase,
        status=status,
        detail=body.detail or "",
        retryable=status in PASSING if body.retryable is None else body.retryable,
        evidence=body.evidence,
        errors=body.errors,
        request_id=reply.headers.get("x-request-id"),
        retry_after_seconds=retry_after_seconds(reply.headers.get("retry-after")),
    )


def _kind_of(status: int, slug: str) -> type[errors.ProblemError]:
    if slug in ("upload-too-large", "unsupported-format"):
        return errors.ScanRefusedError
    if slug == "idempotency-key-reused":
        return errors.KeyReusedError
    if status in (400, 403, 413, 415, 422):
        return errors.InvalidRequestError
    kinds = {404: errors.NotFoundError, 410: errors.DeletedError, 409: errors.WrongStateError}
    return errors.BusyError if status in PASSING else kinds.get(status, errors.ProblemError)


def _asked_seconds(fault: errors.LobewiseError) -> float | None:
    return fault.retry_after_seconds if isinstance(fault, errors.ProblemError) else None
