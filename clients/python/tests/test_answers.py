"""Answers of services that are busy, newer, broken, or none; nothing listens here."""

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from lobewise_client import (
    BusyError,
    DigestMismatchError,
    InvalidAddressError,
    InvalidRequestError,
    Job,
    NotFinishedError,
    Priority,
    ProblemError,
    Retry,
    UnreadableAnswerError,
)
from lobewise_client.retries import Patience, retry_after_seconds

from api import examples

from .conftest import MakeClient

JOB: dict[str, Any] = {
    "id": "01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b11",
    "status": "queued",
    "created_at": "2026-03-02T09:30:00Z",
    "links": {"self": "http://service.example/v1/jobs/1"},
}
BUSY: dict[str, Any] = {
    "type": "/problems/too-many-uploads",
    "title": "Too many scans are on their way in",
    "status": 503,
    "detail": "2 scans are on their way in",
    "retryable": True,
    "evidence": {"limit": 2},
}


class Content(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Of an answer, in pieces; `error` is raised after them."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self._content, self._error = content, error

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        if self._error:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


class Script:
    """Answers one request after the other; the last answer stands for all that follow."""

    def __init__(self, *answers: Callable[[httpx.Request], httpx.Response] | httpx.Response) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(time.monotonic())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            return answer(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=Content(answer.content))


def problem(status: int = 503, headers: dict[str, str] | None = None, **members: Any) -> httpx.Response:
    return httpx.Response(status, headers=headers, json={**BUSY, "status": status, **members})


def accepted(request: httpx.Request, **members: Any) -> httpx.Response:
    """As a service that reads the form."""
    file = request.content.partition(b'filename="scan"')[2].partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
    return httpx.Response(202, json={**JOB, "input": {"sha256": hashlib.sha256(file).hexdigest()}, **members})


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_what_is_busy_is_asked_again_when_it_says(kind: str, make_client: MakeClient) -> None:
    in_two_seconds = format_datetime(datetime.now(UTC) + timedelta(seconds=2.5), usegmt=True)
    script = Script(problem(headers={"retry-after": "1" if kind == "seconds" else in_two_seconds}), accepted)
    job = make_client(handler=script).submit(b"scan")
    assert job.id == JOB["id"]
    assert 0.9 <= script.times[1] - script.times[0] < 5
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
    assert b"scan" in script.requests[1].content


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_is_busy_for_too_long_is_an_error(status: int, make_client: MakeClient) -> None:
    script = Script(httpx.Response(status, text="<html>over\nloaded</html>"))
    retry = Retry(seconds=0.2, first_pause_seconds=0.05)
    with pytest.raises(BusyError, match=f"{status}: <html>over loaded") as caught:
        make_client(handler=script, retry=retry).get("1")
    assert (caught.value.type, caught.value.status, caught.value.evidence) == ("about:blank", status, {})
    assert 3 <= len(script.requests) <= 10


def test_a_longer_wait_than_one_has_is_not_begun(make_client: MakeClient) -> None:
    script = Script(problem(headers={"retry-after": "3600"}))
    with pytest.raises(BusyError) as caught:
        make_client(handler=script).get("1")
    assert (len(script.requests), caught.value.retry_after_seconds) == (1, 3600.0)


def test_what_is_refused_for_good_is_not_repeated(make_client: MakeClient) -> None:
    script = Script(problem(422, headers={"x-request-id": "r1"}, retryable=False, errors=[{"pointer": "/body/x"}]))
    with pytest.raises(InvalidRequestError) as caught:
        make_client(handler=script).submit(b"scan")
    assert len(script.requests) == 1
    assert caught.value.request_id == "r1"
    assert caught.value.errors[0].pointer == "/body/x"


def test_the_first_request_with_a_key_is_waited_for(make_client: MakeClient) -> None:
    in_flight = problem(409, {"retry-after": "0"}, type="/problems/idempotency-in-flight")
    script = Script(in_flight, in_flight, accepted)
    assert make_client(handler=script).submit(b"scan").status == "queued"
    assert len(script.requests) == 3


def test_a_scan_that_arrives_changed_is_no_job(make_client: MakeClient) -> None:
    script = Script(httpx.Response(202, json={**JOB, "input": {"sha256": "0" * 64}}), httpx.Response(204))
    with pytest.raises(DigestMismatchError):
        make_client(handler=script).submit(b"scan")
    assert [request.method for request in script.requests] == ["POST", "DELETE"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_mask_that_arrives_changed_is_fetched_once_more(times: int, make_client: MakeClient, tmp_path: Path) -> None:
    digest = base64.b64encode(hashlib.sha256(b"right").digest()).decode()
    headers = {"repr-digest": f"sha-512=:AA==:, sha-256=:{digest}:", "etag": '"1"'}
    wrong, right = (httpx.Response(200, headers=headers, content=content) for content in (b"wrong", b"right"))
    script = Script(*[wrong] * times, right)
    client = make_client(handler=script)
    if times == 1:
        assert client.save_mask("1", "lungs", tmp_path / "mask").read_bytes() == b"right"
    else:
        with pytest.raises(DigestMismatchError):
            client.save_mask("1", "lungs", tmp_path / "mask")
        assert list(tmp_path.iterdir()) == []


def test_other_bytes_than_asked_for_are_no_mask(make_client: MakeClient) -> None:
    script = Script(
        lambda _request: httpx.Response(200, headers={"etag": '"1"'}, stream=Content(b"abc", httpx.ReadError("cut"))),
        httpx.Response(206, headers={"content-range": "bytes 0-2/6"}, content=b"abc"),
    )
    with pytest.raises(UnreadableAnswerError):
        make_client(handler=script).mask("1", "lungs")
    assert script.requests[1].headers["range"] == "bytes=3-"
    assert script.requests[1].headers["if-range"] == '"1"'


def test_a_newer_service_says_more(make_client: MakeClient) -> None:
    newer = {**JOB, "status": "paused", "priority": "tomorrow", "stage": "dreaming", "mood": "good", "progress": 0.5}
    newer["links"] = {**JOB["links"], "masks": {"heart": "http://service.example/heart"}}
    job = make_client(handler=Script(httpx.Response(200, json=newer))).get("1")
    assert (job.status, job.priority, job.stage) == ("paused", "tomorrow", "dreaming")
    assert job.model_extra == {"mood": "good"}
    assert not job.is_final
    assert json.loads(job.model_dump_json(by_alias=True))["mood"] == "good"
    assert Job.model_validate(JOB).status.name == "QUEUED"


@pytest.mark.parametrize("content", [b"<html>welcome</html>", b"{}", b"[]", b"", b"\xff"])
def test_what_is_no_answer_of_the_service_is_said_so(content: bytes, make_client: MakeClient) -> None:
    with pytest.raises(UnreadableAnswerError, match="no Job as this client knows it"):
        make_client(handler=Script(httpx.Response(200, content=content))).get("1")


def test_a_redirect_is_no_answer(make_client: MakeClient) -> None:
    with pytest.raises(ProblemError, match="301"):
        make_client(handler=Script(httpx.Response(301, headers={"location": "https://x"}))).get("1")


def test_polls_keep_to_retry_after_and_say_what_they_know(make_client: MakeClient) -> None:
    script = Script(
        httpx.Response(404),  # of the events: what stands before the service knows none
        httpx.Response(200, headers={"etag": '"a"', "retry-after": "1"}, json=JOB),
        httpx.Response(304, headers={"etag": '"a"', "retry-after": "0"}),
        httpx.Response(200, headers={"etag": '"b"'}, json={**JOB, "status": "succeeded"}),
    )
    script.answers[0] = httpx.Response(503)
    jobs = list(make_client(handler=script).follow("1"))
    assert [job.status for job in jobs] == ["queued", "succeeded"]
    assert [request.headers.get("if-none-match") for request in script.requests] == [None, None, '"a"', '"a"']
    assert 0.7 <= script.times[2] - script.times[1] < 3


def test_a_silent_poll_ends_with_the_time_that_was_given(make_client: MakeClient) -> None:
    script = Script(httpx.Response(200, headers={"retry-after": "3600"}, json=JOB))
    with pytest.raises(NotFinishedError):
        make_client(handler=script).wait("1", wait_seconds=0.3)


def test_headers_go_to_the_service_and_not_to_its_storage(make_client: MakeClient) -> None:
    upload = {
        "id": "u",
        "status": "open",
        "created_at": "2026-03-02T09:30:00Z",
        "expires_at": "2026-03-03T09:30:00Z",
        "size_bytes": 4,
        "part_bytes": 5,
        "parts": [{"number": 1, "size_bytes": 4, "received": False, "url": "https://bucket.example/part?X-Amz=1"}],
        "links": {"self": "http://service.example/lobewise/v1/uploads/u", "complete": None},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "bucket.example":
            return httpx.Response(200)
        if request.url.path == "/lobewise/v1/uploads/u/complete":
            return httpx.Response(200, json={**upload, "sha256": hashlib.sha256(b"scan").hexdigest()})
        return httpx.Response(201 if request.url.path == "/lobewise/v1/uploads" else 202, json={**upload, **JOB})

    script = Script(answer)
    client = make_client(
        "http://service.example/lobewise/",
        handler=script,
        headers={"Authorization": "Bearer key"},
        parts_above_bytes=1,
    )
    assert client.submit(b"scan").id == JOB["id"]
    sent = {request.url.host: request.headers.get("authorization") for request in script.requests}
    assert sent == {"service.example": "Bearer key", "bucket.example": None}
    put = next(request for request in script.requests if request.method == "PUT")
    assert (put.headers["content-length"], put.content) == ("4", b"scan")


def exported(number: int) -> bytes:
    report = examples.REPORT.model_dump(mode="json")
    when = "2026-03-02T09:30:00Z"
    line = {"job_id": str(number), "created_at": when, "finished_at": when, "report": report}
    return json.dumps(line).encode() + b"\n"


def test_an_export_that_breaks_off_goes_on_after_the_last_report(make_client: MakeClient) -> None:
    broken = exported(1) + exported(2) + exported(3)[:50]
    script = Script(
        lambda _request: httpx.Response(200, stream=Content(broken, httpx.ReadError("cut"))),
        problem(headers={"retry-after": "0"}),
        lambda _request: httpx.Response(200, stream=Content(exported(3))),
    )
    since = datetime(2026, 3, 1, tzinfo=UTC)
    reports = list(make_client(handler=script).export_reports(created_after=since, limit=3))
    assert [one.job_id for one in reports] == ["1", "2", "3"]
    assert reports[0].report.severity.percent_opacity == examples.SEVERITY.percent_opacity
    queries = [dict(request.url.params) for request in script.requests]
    begin = {"created_after": "2026-03-01T00:00:00+00:00"}
    assert queries == [{**begin, "limit": "3"}, *[{**begin, "after": "2", "limit": "1"}] * 2]


def test_changes_of_all_jobs_come_in_pages(make_client: MakeClient) -> None:
    change = {"id": "1-0", "time": "2026-03-02T09:30:00Z", "type": "lobewise.job.dreaming", "job_id": "1"}
    script = Script(httpx.Response(200, json={"items": [change], "next_cursor": "c", "has_more": True}))
    client = make_client(handler=script)
    page = client.list_events(start="newest")
    assert (page.items[0].type, page.next_cursor, page.has_more) == ("lobewise.job.dreaming", "c", True)
    client.list_events(page.next_cursor, wait_seconds=20)
    assert [str(request.url.query, "ascii") for request in script.requests] == ["start=newest", "cursor=c"]
    assert [request.headers.get("prefer") for request in script.requests] == [None, "wait=20"]


def test_batches_are_listed_over_all_pages(make_client: MakeClient) -> None:
    counts = {"queued": 1}
    batch = {"id": "b", "created_at": "2026-03-02T09:30:00Z", "counts": counts, "links": {}}
    script = Script(
        httpx.Response(200, json={"items": [batch], "next_cursor": "2"}),
        httpx.Response(200, json={"items": [batch, batch], "next_cursor": None}),
    )
    assert len(list(make_client(handler=script).list_batches(limit=1))) == 3
    assert [str(request.url.query, "ascii") for request in script.requests] == ["limit=1", "limit=1&cursor=2"]


def test_options_travel_as_what_they_are(make_client: MakeClient) -> None:
    client = make_client(handler=(script := Script(httpx.Response(202, json=JOB))))
    client.submit_source("https://pacs.example/1.nii", reuse=False, priority=Priority.STAT)
    assert json.loads(script.requests[0].content) == {
        "source": {"url": "https://pacs.example/1.nii"},
        "reuse": False,
        "priority": "stat",
    }
    client.submit(b"scan", reuse=False)
    assert b'name="reuse"\r\n\r\nfalse\r\n' in script.requests[1].content


@pytest.mark.parametrize("address", ["pacs.example", "ftp://pacs.example", "http://", "http://x:port", "http://::1:80"])
def test_an_address_that_is_none_is_said_so(address: str, make_client: MakeClient) -> None:
    with pytest.raises(InvalidAddressError, match="is no address of a service"):
        make_client(address)


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    given = {
        "120": 120.0,
        " 0 ": 0.0,
        "Mon, 02 Mar 2026 09:30:30 GMT": 30.0,
        "Mon, 02 Mar 2026 09:30:30 -0000": 30.0,
        "Monday, 02-Mar-26 09:30:30 GMT": 30.0,
        "Mon, 02 Mar 2026 09:00:00 GMT": 0.0,
        "soon": None,
        "-1": None,
        "1.5": None,
        "٣": None,
        "": None,
        None: None,
    }
    assert {value: retry_after_seconds(value, now) for value in given} == given


def test_pauses_grow_and_begin_anew_after_progress() -> None:
    patience = Patience(Retry(seconds=1000, first_pause_seconds=1, longest_pause_seconds=8))
    pauses = [patience.pause_seconds() or 0 for _ in range(6)]
    for pause, most in zip(pauses, (1, 2, 4, 8, 8, 8), strict=True):
        assert most / 2 <= pause <= most
    patience.progressed()
    assert (patience.pause_seconds() or 0) <= 1
    assert (patience.pause_seconds(60) or 0) >= 60
    assert Patience(Retry(seconds=0)).pause_seconds() is None
