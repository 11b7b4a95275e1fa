"""Watching jobs: nothing missed, nothing twice, over real gateways and a real Valkey."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import redis

from api import examples
from api.app import create_app
from jobs.bootstrap import connect
from jobs.models import Stage
from jobs.service import Jobs
from jobs.settings import ApiSettings

from .conftest import Service, require_problem, running_service, serving

QUICK = ApiSettings(keep_alive_seconds=0.2, max_streams=3)

pytestmark = pytest.mark.timeout(60)


class Watcher:
    """Reads a stream in a thread."""

    def __init__(self, answer: httpx.Response) -> None:
        self.events: list[dict[str, str]] = []
        self.comments = 0
        self._answer = answer
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with suppress(httpx.TransportError, httpx.StreamError):  # the test is over
            self._read_on()

    def _read_on(self) -> None:
        event: dict[str, str] = {}
        for line in self._answer.iter_lines():
            name, _, value = line.partition(": ")
            if line.startswith(":"):
                self.comments += 1
            elif line:
                event[name] = value
            elif event:
                self.events.append(event)
                event = {}

    def jobs(self) -> list[dict[str, object]]:
        return [json.loads(event["data"]) for event in self.events if event.get("event") == "job"]

    def ids(self) -> list[str]:
        return [event["id"] for event in self.events if "id" in event]

    def until(self, count: int) -> None:
        while len(self.jobs()) < count:
            assert self._thread.is_alive() or len(self.jobs()) >= count, "the stream ended early"
            time.sleep(0.01)

    def to_the_end(self) -> list[object]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return [job["status"] for job in self.jobs()]


@contextmanager
def watching(service: Service, job_id: str, after: str | None = None, address: str = "") -> Iterator[Watcher]:
    headers = {"Last-Event-ID": after} if after else {}
    url = f"{address or service.address}/v1/jobs/{job_id}/events"
    with httpx.Client(timeout=30) as client, client.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Watcher(answer)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "service", QUICK) as service:
        yield service


def work(jobs: Jobs, job_id: str) -> None:
    """Two stages, then failure."""
    with jobs.claim(job_id, "test") as lease:
        for stage in (Stage.READ, Stage.LUNGS):
            lease.report(stage, 0.5)
        jobs.fail(lease, examples.FAILURE)


def test_a_watcher_sees_every_change_and_the_stream_ends_with_the_job(service: Service) -> None:
    job_id = service.submit()
    with watching(service, job_id) as watcher:
        watcher.until(1)
        work(service.jobs, job_id)
        assert watcher.to_the_end() == ["queued", "running", "running", "running", "failed"]
    jobs = watcher.jobs()
    assert [job["stage"] for job in jobs] == [None, None, "read", "lungs", None]
    assert jobs[-1]["error"] == {**examples.FAILURE.model_dump(mode="json")}
    assert jobs[-1] == service.client.get(f"/v1/jobs/{job_id}").json()
    assert watcher.events[0]["retry"] == "3000"
    assert len(set(watcher.ids())) == 5
    assert watcher.ids() == sorted(watcher.ids(), key=lambda id_: [int(part) for part in id_.split("-")])


def test_whoever_comes_back_gets_exactly_what_was_missed(service: Service) -> None:
    job_id = service.submit()
    with watching(service, job_id) as first:
        first.until(1)
    work(service.jobs, job_id)
    with watching(service, job_id, after=first.ids()[-1]) as second:
        assert second.to_the_end() == ["running", "running", "running", "failed"]
    with watching(service, job_id, after=second.ids()[1]) as third:
        assert third.to_the_end() == ["running", "failed"]
    assert third.ids() == second.ids()[2:]


def test_whoever_has_the_last_event_is_told_not_to_come_back(service: Service) -> None:
    job_id = service.submit()
    work(service.jobs, job_id)
    with watching(service, job_id) as late:
        assert late.to_the_end() == ["failed"]
    answer = service.client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": late.ids()[-1]})
    assert answer.status_code == 204


@pytest.mark.parametrize("after", ["1-0", "nonsense", "99999999999999999-0", "*", "-", "9" * 40 + "-0"])
def test_an_unknown_event_gets_the_job_as_it_stands(service: Service, after: str) -> None:
    job_id = service.succeeded()
    with watching(service, job_id, after=after) as watcher:
        assert watcher.to_the_end() == ["succeeded"]


def test_after_a_wipe_the_job_as_it_stands_is_told_and_the_stream_goes_on(service: Service) -> None:
    job_id = service.submit()
    with watching(service, job_id) as watcher:
        watcher.until(1)
        with redis.Redis.from_url(service.jobs.settings.redis_url or "") as server:
            server.flushall()
        service.jobs.rebuild()
        work(service.jobs, job_id)
        assert watcher.to_the_end()[-1] == "failed"


def test_a_gateway_whose_ear_was_cut_off_hears_again(tmp_path: Path) -> None:
    with running_service(tmp_path / "service", ApiSettings(keep_alive_seconds=300)) as service:
        job_id = service.submit()
        with (
            watching(service, job_id) as watcher,
            redis.Redis.from_url(service.jobs.settings.redis_url or "", decode_responses=True) as server,
        ):
            watcher.until(1)
            (ear,) = server.client_list(_type="pubsub")
            server.client_kill_filter(_id=ear["id"])
            work(service.jobs, job_id)
            assert watcher.to_the_end() == ["queued", "running", "running", "running", "failed"]


def test_a_request_to_cancel_is_an_event(service: Service) -> None:
    job_id = service.submit()
    with watching(service, job_id) as watcher, service.jobs.claim(job_id, "test"):
        watcher.until(1)
        service.client.post(f"/v1/jobs/{job_id}/cancel")
        service.client.post(f"/v1/jobs/{job_id}/cancel")
        watcher.until(3)
        assert [job["cancel_requested"] for job in watcher.jobs()] == [False, False, True]
        service.client.delete(f"/v1/jobs/{job_id}")
        assert len(watcher.to_the_end()) == 3  # deleted: the stream ends, and a new one is 410
    require_problem(service.client.get(f"/v1/jobs/{job_id}/events"), 410, "job-purged")


def test_a_quiet_stream_says_that_it_is_still_there(service: Service) -> None:
    job_id = service.submit()
    with watching(service, job_id) as watcher:
        while watcher.comments < 2:
            time.sleep(0.02)
        assert len(watcher.jobs()) == 1
        service.jobs.purge(job_id)
        watcher.to_the_end()


def test_all_gateways_tell_what_one_worker_does(service: Service) -> None:
    other = connect(service.jobs.settings)
    job_id = service.submit()
    try:
        with (
            serving(create_app(QUICK, other)) as address,
            watching(service, job_id) as here,
            watching(service, job_id, address=address) as there,
        ):
            here.until(1)
            there.until(1)
            work(service.jobs, job_id)
            assert here.to_the_end() == there.to_the_end()
            assert here.ids() == there.ids()
    finally:
        other.close()


def test_streams_are_bounded_and_their_places_come_free(service: Service) -> None:
    job_id = service.submit()
    url = f"/v1/jobs/{job_id}/events"
    for _ in range(2):
        with watching(service, job_id) as a, watching(service, job_id) as b, watching(service, job_id) as c:
            for watcher in (a, b, c):
                watcher.until(1)
            body = require_problem(service.client.get(url), 503, "too-many-streams")
            assert body["evidence"] == {"limit": 3}
        time.sleep(2 * QUICK.keep_alive_seconds)  # a gateway sees that a client is gone when it sends something


def test_a_stream_ends_in_time_and_without_a_broker_tells_what_is_known(tmp_path: Path) -> None:
    settings = ApiSettings(keep_alive_seconds=0.1, stream_seconds=0.5)
    with running_service(tmp_path / "service", settings) as service:
        job_id = service.submit()
        deaf = connect(service.jobs.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
        try:
            with serving(create_app(settings, deaf)) as address, watching(service, job_id, address=address) as watcher:
                assert watcher.to_the_end() == ["queued"]
            assert watcher.ids() == []
        finally:
            deaf.close()


def test_a_job_that_is_none_is_404(service: Service) -> None:
    require_problem(service.client.get("/v1/jobs/none/events"), 404, "job-not-found")
