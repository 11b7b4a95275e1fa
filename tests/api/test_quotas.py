"""Limits of tenants and keys: what is refused, what clients are told, and what happens without the broker."""

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from api.quotas import TELL_SECONDS, RequestCounter
from jobs.access.caller import ANONYMOUS
from jobs.bootstrap import connect
from jobs.live.keys import STORED
from jobs.quotas import Owner, Quota, Quotas
from jobs.settings import JobsSettings
from tests.api.conftest import Service, nifti, require_problem, running_service
from tests.support.processes import until

TENANT, KEY = Owner("tenant", "default"), Owner("key", "anonymous")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("quotas") / "quotas.toml"
    file.write_text("")
    return file


@pytest.fixture(scope="module")
def service(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("limited"), quotas_file=file) as service:
        yield service


@pytest.fixture
def limit(service: Service, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Write the file, and have it read; nothing was used so far."""
    monkeypatch.setattr("jobs.quotas.REREAD_SECONDS", 0.0)
    server = service.jobs.backends.live._redis
    written = [0]

    def limit(text: str) -> None:
        written[0] += 1
        file.write_text(text)
        # Within one tick of the file system's clock two contents would look like one.
        os.utime(file, (written[0], written[0] + time.time()))

    for key in server.scan_iter("lobewise:quota:*"):
        server.delete(key)
    server.delete(STORED)
    yield limit
    limit("")
    service.client.get("/v1/jobs")


def fields(header: str) -> dict[str, dict[str, int]]:
    """`"tenant";r=1;t=2` as data."""
    found = {}
    for item in header.split(", "):
        name, *parameters = item.split(";")
        found[name.strip('"')] = {k: int(v) for k, v in (parameter.split("=") for parameter in parameters)}
    return found


def test_without_limits_nothing_is_said_and_nothing_refused(service: Service) -> None:
    answer = service.client.get("/v1/jobs")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("ratelimit")]
    assert service.client.get("/v1/quota").json() == {"tenant": "default", "items": []}


def test_requests_beyond_the_limit_are_refused_and_answers_say_what_is_left(
    service: Service, limit: Callable[[str], None]
) -> None:
    limit("[tenants.default]\nrequests_per_minute = 5\n")
    answers = [service.client.get("/v1/jobs") for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert [fields(a.headers["RateLimit"])["tenant"]["r"] for a in answers] == [4, 3, 2, 1, 0, 0, 0]
    assert {a.headers["RateLimit-Policy"] for a in answers} == {'"tenant";q=5;w=60'}
    body = require_problem(answers[-1], 429, "quota-exceeded")
    assert body["evidence"] == {"quota": "requests_per_minute", "of": "tenant", "limit": 5}
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
    assert fields(answers[-1].headers["RateLimit"])["tenant"]["t"] <= 60
    # Probes and metrics are nobody's use.
    assert service.client.get("/healthz").status_code == 200
    text = service.client.get("/metrics").text
    refusals = re.search(r'lobewise_quota_refusals_total\{quota="requests_per_minute"\} (\S+)', text)
    assert refusals is not None
    assert float(refusals[1]) >= 2


def test_a_key_has_a_limit_of_its_own_within_that_of_its_tenant(service: Service, limit: Callable[[str], None]) -> None:
    limit("[tenants.default]\nrequests_per_minute = 50\n[keys.anonymous]\nrequests_per_minute = 2\n")
    answers = [service.client.get("/v1/jobs") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert require_problem(answers[-1], 429, "quota-exceeded")["evidence"]["of"] == "key"
    assert fields(answers[1].headers["RateLimit"])["tenant"]["r"] == 48
    assert fields(answers[1].headers["RateLimit"])["key"]["r"] == 0


def test_gateways_count_together(service: Service, limit: Callable[[str], None]) -> None:
    limit("[tenants.default]\nrequests_per_minute = 10\n")
    for _ in range(6):
        assert service.client.get("/v1/jobs").status_code == 200
    assert until(lambda: service.jobs.backends.live.usage.use(TENANT, Quota.REQUESTS, 10).remaining == 4, 5)
    # As another gateway does.
    service.jobs.backends.live.usage.add(TENANT, Quota.REQUESTS, 10, 4)
    service.client.get("/v1/jobs")
    time.sleep(3 * TELL_SECONDS)
    require_problem(service.client.get("/v1/jobs"), 429, "quota-exceeded")


def test_bytes_of_uploads_are_limited_before_they_are_read(service: Service, limit: Callable[[str], None]) -> None:
    limit("[tenants.default]\nupload_bytes_per_day = 5000\n")
    service.submit(nifti(2000))
    answer = service.client.post("/v1/jobs", files={"file": ("scan.nii", nifti(4000))})
    body = require_problem(answer, 429, "quota-exceeded")
    assert body["evidence"] == {"quota": "upload_bytes_per_day", "of": "tenant", "limit": 5000}
    assert int(answer.headers["Retry-After"]) > 3600
    # An upload in parts counts when it is announced.
    assert service.client.post("/v1/uploads", json={"size_bytes": 2000}).status_code == 201
    require_problem(service.client.post("/v1/uploads", json={"size_bytes": 2000}), 429, "quota-exceeded")
    (item,) = service.client.get("/v1/quota").json()["items"]
    assert item["quota"] == "upload_bytes_per_day"
    assert 4000 <= item["used"] <= 5000
    assert item["used"] + item["remaining"] == 5000


def test_a_refused_request_frees_its_idempotency_key(service: Service, limit: Callable[[str], None]) -> None:
    limit("[tenants.default]\nupload_bytes_per_day = 1000\n")
    request = {"files": {"file": ("scan.nii", nifti(2000))}, "headers": {"Idempotency-Key": "refused-once"}}
    require_problem(service.client.post("/v1/jobs", **request), 429, "quota-exceeded")
    limit("")
    answer = service.client.post("/v1/jobs", **request)
    assert answer.status_code == 202
    # And its repetition is answered whatever the limits are by then.
    limit("[tenants.default]\nwaiting_jobs = 1\n")
    again = service.client.post("/v1/jobs", **request)
    assert again.status_code == 202
    assert again.json()["id"] == answer.json()["id"]


def test_waiting_jobs_are_limited_for_single_scans_and_for_whole_batches(
    service: Service, limit: Callable[[str], None]
) -> None:
    waiting = service.client.get("/v1/jobs", params={"status": "queued", "limit": 200}).json()["items"]
    limit(f"[tenants.default]\nwaiting_jobs = {len(waiting) + 2}\n")
    service.submit()
    source = {"source": {"url": "https://pacs.example/ct/1.nii.gz"}}
    refused = service.client.post("/v1/batches", json={"items": [source, source]})
    require_problem(refused, 429, "quota-exceeded")
    assert service.client.post("/v1/batches", json={"items": [source]}).status_code == 202
    answer = service.client.post("/v1/jobs/from-source", json=source)
    assert require_problem(answer, 429, "quota-exceeded")["evidence"]["quota"] == "waiting_jobs"


def test_storage_is_counted_as_it_is_sent_and_listed_from_time_to_time(
    service: Service, limit: Callable[[str], None]
) -> None:
    limit("[tenants.default]\nstorage_bytes = 1000000000\n")
    stored = sum(f.stat().st_size for f in service.stored_files() if {"jobs", "uploads"} & set(f.parts))
    service.jobs.reconciler._cleaned_up_at = None
    service.jobs.reconciler.reconcile()
    assert service.jobs.backends.live.usage.stored_bytes("default") == stored
    used = service.jobs.backends.live.usage.stored_bytes("default")
    service.submit(nifti(3000))
    assert service.jobs.backends.live.usage.stored_bytes("default") >= used + 3000
    limit(f"[tenants.default]\nstorage_bytes = {used + 4000}\n")
    refused = service.client.post("/v1/jobs", files={"file": ("scan.nii", nifti(3000))})
    assert require_problem(refused, 429, "quota-exceeded")["evidence"]["quota"] == "storage_bytes"


def test_without_the_broker_nobody_is_refused(tmp_path: Path) -> None:
    settings = JobsSettings(data_dir=tmp_path, redis_url="redis://127.0.0.1:1/0", quota_requests_per_minute=1)
    jobs = connect(settings)
    try:
        counter = RequestCounter(Quotas(settings), jobs.backends.live.usage)

        async def ask() -> list[dict[str, str]]:
            found = [counter.count(ANONYMOUS)]
            await counter.close()
            return found + [counter.count(ANONYMOUS) for _ in range(3)]

        first, *others = asyncio.run(ask())
    finally:
        jobs.close()
    assert first
    assert others == [{}, {}, {}]


def test_the_client_library_waits_as_long_as_it_is_told(service: Service, limit: Callable[[str], None]) -> None:
    pytest.importorskip("lobewise_client")
    from lobewise_client.retries import retry_after_seconds

    limit("[tenants.default]\nrequests_per_minute = 1\n")
    service.client.get("/v1/jobs")
    answer: httpx.Response = service.client.get("/v1/jobs")
    seconds = retry_after_seconds(answer.headers["Retry-After"])
    assert seconds is not None
    assert 0 < seconds <= 60
