"""By which names the service may be called, what other sites' pages may do, and what browsers may do with answers."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from obstore.store import MemoryStore

from api.app import create_app
from jobs.access.doors import Doors
from jobs.access.keys import KeyRing
from jobs.errors import SettingsError
from jobs.settings import AccessSettings, ApiSettings, read_settings
from jobs.store.object_store import ObjectStore
from tests.api.conftest import nifti, require_problem, running_service

EVERYWHERE = {"LOBEWISE_API_HOST": "0.0.0.0"}  # noqa: S104 (nothing listens)
PUBLIC = {"LOBEWISE_API_PUBLIC_URL": "https://ct.example.org/lobewise"}
LISTED = EVERYWHERE | {"LOBEWISE_ALLOWED_HOSTS": "Gateway *.intern.example"}
#: A method that the address does not take: whoever gets that far was let in.
LET_IN = 405


async def asked(
    monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], method: str = "GET", **headers: str
) -> httpx.Response:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    doors = Doors(AccessSettings(access="open"), KeyRing(ObjectStore(MemoryStore())))
    app = create_app(read_settings(ApiSettings), doors=doors)
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
        return await client.request(method, "/problems/poison", headers=headers)


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "localhost.:8000"])
async def test_a_gateway_of_this_machine_goes_by_its_names(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    assert (await asked(monkeypatch, {}, Host=host)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "a b", "192.0.2.7"],
)
@pytest.mark.parametrize("environment", [{}, PUBLIC, LISTED])
async def test_by_any_other_name_it_answers_nothing(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], host: str
) -> None:
    """DNS rebinding: a browser takes a stranger's page for one of the service's."""
    require_problem(await asked(monkeypatch, environment, Host=host), 421, "host-not-allowed")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("environment", "headers"),
    [
        (PUBLIC, {"Host": "CT.example.org"}),
        (LISTED, {"Host": "gateway:8000"}),
        (LISTED, {"Host": "a.b.intern.example"}),
        (LISTED, {"Host": "localhost"}),
        (LISTED | PUBLIC, {"Host": "ct.example.org"}),
        ({"LOBEWISE_API_HOST": "127.9.9.9"}, {"Host": "127.9.9.9:80"}),
        # Whoever listens to a network is called by many names, and has probes by address.
        (EVERYWHERE, {"Host": "whatever.example"}),
        # The word of a trusted proxy, which the operator has said to believe.
        (
            {"LOBEWISE_API_FORWARDED_HEADERS": "x-forwarded-host"},
            {"Host": "ct.example.org", "X-Forwarded-Host": "ct.example.org"},
        ),
    ],
)
async def test_names_that_the_operator_gave_are_its_own(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], headers: dict[str, str]
) -> None:
    assert (await asked(monkeypatch, environment, **headers)).status_code == 200


CROSS = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "headers",
    [
        CROSS,
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:9000"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9000"},
        {"Origin": "http://localhost"},
    ],
)
async def test_pages_of_other_sites_change_nothing(
    monkeypatch: pytest.MonkeyPatch, method: str, headers: dict[str, str]
) -> None:
    require_problem(await asked(monkeypatch, {}, method, **headers), 403, "origin-not-allowed")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("environment", "headers"),
    [
        ({}, {}),  # a program
        ({}, {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8000"}),
        ({}, {"Sec-Fetch-Site": "none"}),
        ({}, {"Origin": "http://localhost:8000"}),
        # A proxy that calls it by another name: the browser knows where its page came from.
        ({}, {"Sec-Fetch-Site": "same-origin", "Origin": "https://ct.example.org"}),
        (PUBLIC, {"Origin": "https://ct.example.org"}),
        ({"LOBEWISE_API_ALLOWED_ORIGINS": "https://viewer.example https://evil.example"}, CROSS),
    ],
)
async def test_programs_and_its_own_pages_do(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], headers: dict[str, str]
) -> None:
    assert (await asked(monkeypatch, environment, "POST", **headers)).status_code == LET_IN


@pytest.mark.anyio
async def test_pages_of_other_sites_may_lead_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cannot read the answer: no header lets them."""
    answer = await asked(monkeypatch, {}, **CROSS)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.anyio
async def test_a_browser_is_told_to_keep_answers_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (await asked(monkeypatch, {}), await asked(monkeypatch, {}, Host="evil.example")):
        expected = {
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin",
            "cross-origin-opener-policy": "same-origin",
        }
        assert {name: answer.headers[name] for name in expected} == expected
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe-inline" not in answer.headers["content-security-policy"]


def test_scripts_of_pages_run_and_no_others(tmp_path: Path) -> None:
    """The policy names each script and style that stands in a page by its digest."""
    import base64
    import hashlib

    with running_service(tmp_path / "service") as service:
        for path, element, directive in (("/docs", "script", "script-src"), ("/problems/poison", "style", "style-src")):
            answer = service.client.get(path)
            policy = answer.headers["content-security-policy"]
            allowed = next(part for part in policy.split("; ") if part.startswith(directive))
            texts = re.findall(f"<{element}>(.*?)</{element}>", answer.text, re.DOTALL)
            digests = {f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts}
            assert digests
            assert {word for word in allowed.split() if word.startswith("'sha256-")} == digests


@pytest.mark.parametrize(
    ("host", "is_kept"), [("evil.example", False), ("localhost:8000", True), ("ct.example.org", True)]
)
def test_a_host_that_nobody_vouches_for_is_told_to_no_receiver(tmp_path: Path, host: str, is_kept: bool) -> None:
    """Callbacks are signed: their `source` and `links` must not be what the client wrote into `Host`."""
    receiver: Any = ("https://receiver.example/",)
    settings = ApiSettings(host="0.0.0.0", forwarded_headers=("x-forwarded-host",))  # noqa: S104 (it listens elsewhere)
    with running_service(tmp_path / "service", settings, callback_allowlist=receiver) as service:
        headers = {"Host": host} | ({"X-Forwarded-Host": host} if host == "ct.example.org" else {})
        job = service.client.post(
            "/v1/jobs",
            files={"file": ("scan.nii", nifti())},
            data={"callback_url": "https://receiver.example/done"},
            headers=headers,
        ).json()
        address = service.jobs.backends.store.record(job["id"]).address
        batch = service.client.post(
            "/v1/batches",
            json={
                "items": [{"source": {"url": "https://pacs.example/ct/1.nii.gz"}}],
                "callback_url": "https://receiver.example/done",
            },
            headers=headers,
        ).json()
        kept = service.jobs.service.batches.get(batch["id"]).address
    prefix = f"http://{host}" if is_kept else ""
    assert address == f"{prefix}/v1/jobs/{job['id']}"
    assert kept == f"{prefix}/v1/batches/{batch['id']}"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LOBEWISE_ALLOWED_HOSTS", "http://ct.example.org"),
        ("LOBEWISE_ALLOWED_HOSTS", "ct.example.org:443"),
        ("LOBEWISE_ALLOWED_HOSTS", "*"),
        ("LOBEWISE_API_ALLOWED_ORIGINS", "viewer.example"),
        ("LOBEWISE_API_ALLOWED_ORIGINS", "https://viewer.example/"),
        ("LOBEWISE_API_ALLOWED_ORIGINS", "*"),
        ("LOBEWISE_API_ALLOWED_ORIGINS", "null"),
    ],
)
def test_what_could_not_work_stops_the_start(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        read_settings(ApiSettings)
