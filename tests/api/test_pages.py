"""The addresses of the pages, and the session that they are read with; what they show is for `tests/browser`."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api import access, pages
from api.app import create_app
from jobs.access.caller import Role
from jobs.access.doors import Doors
from jobs.access.keys import KeyRing, Keys
from jobs.access.sessions import Sessions
from jobs.bootstrap import Connection, connect
from jobs.settings import AccessSettings, ApiSettings, JobsSettings

from .conftest import Service, require_problem, serving

KEY = "k" * 40


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `make web` leaves, in small."""
    (folder := tmp_path / "web" / "assets").mkdir(parents=True)
    for name in ("index.html", "view.html"):
        (folder.parent / name).write_text('<!doctype html><base href="/" /><script src="./assets/a-1.js"></script>')
    (folder / "a-1.js").write_text("1")
    (folder / "a-1.js.gz").write_bytes(b"\x1f\x8bpacked")
    monkeypatch.setattr(pages, "FOLDER", folder.parent)
    return folder.parent


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Connection, str]]:
    """A gateway that wants a key, behind a prefix."""
    jobs = connect(JobsSettings(data_dir=tmp_path_factory.mktemp("guarded")))
    doors = Doors(AccessSettings(first_key=KEY), KeyRing(jobs.backends.store.blobs))  # type: ignore[arg-type]
    try:
        with serving(create_app(ApiSettings(root_path="/ct"), jobs, doors)) as address:
            yield jobs, address
    finally:
        jobs.close()


@pytest.fixture
def browser(guarded: tuple[Connection, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded[1]) as client:
        yield client


def test_pages_that_are_not_built_say_so(shared: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    for address in ("/", f"/view/{shared.submit()}"):
        answer = shared.client.get(address)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "text/plain; charset=utf-8")
        assert "make web" in answer.text
    require_problem(shared.client.get("/assets/a-1.js"), 404, "not-found")


def test_a_page_has_its_policy_and_no_script_of_its_own(shared: Service, built: Path) -> None:
    for address in ("/", f"/view/{shared.submit()}"):
        answer = shared.client.get(address)
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
    require_problem(shared.client.get("/view/no-id"), 404, "not-found")


def test_assets_come_packed_to_who_takes_that_and_are_kept(shared: Service, built: Path) -> None:
    plain = shared.client.get("/assets/a-1.js", headers={"Accept-Encoding": "identity"})
    assert (plain.text, plain.headers["content-type"]) == ("1", "text/javascript; charset=utf-8")
    assert "immutable" in plain.headers["cache-control"]
    with shared.client.stream("GET", "/assets/a-1.js", headers={"Accept-Encoding": "gzip"}) as packed:
        assert packed.headers["content-encoding"] == "gzip"
        assert b"".join(packed.iter_raw()) == b"\x1f\x8bpacked"
    for name in ("..%2fview.html", "a-1.js.gz", "%2e%2e", ".a", "%2fetc%2fpasswd", "none.js"):
        require_problem(shared.client.get(f"/assets/{name}"), 404, "not-found")


def test_a_prefix_stands_in_the_page_and_in_the_cookie(browser: httpx.Client, built: Path) -> None:
    assert '<base href="/ct/"' in browser.get("/ct/").text
    assert '<base href="/ct/"' in browser.get("/").text  # the proxy has taken it off
    answer = browser.post("/ct/session", json={"key": KEY})
    assert re.search(r"; Path=/ct(;|$)", answer.headers["set-cookie"])


def test_who_signs_in_reads_until_signing_out(browser: httpx.Client) -> None:
    require_problem(browser.get("/ct/v1/jobs"), 401, "unauthenticated")
    assert browser.get("/ct/session").json() == {"needs_key": True, "is_known": False, "tenant": None, "roles": []}
    answer = browser.post("/ct/session", json={"key": f" {KEY}\n"})
    assert (answer.status_code, answer.content) == (204, b"")
    cookie = answer.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Max-Age=28800"))
    assert KEY not in cookie
    assert browser.get("/ct/v1/jobs").status_code == 200
    session = browser.get("/ct/session").json()
    assert session == {"needs_key": True, "is_known": True, "tenant": "default", "roles": sorted(Role)}
    assert browser.delete("/ct/session").status_code == 204
    require_problem(browser.get("/ct/v1/jobs"), 401, "unauthenticated")


def test_over_tls_the_cookie_goes_no_other_way(browser: httpx.Client) -> None:
    plain, tls = ({}, {"X-Forwarded-Proto": "https"})
    for headers, is_secure in ((plain, False), (tls, True)):
        answer = browser.post("/ct/session", json={"key": KEY}, headers=headers)
        assert ("Secure" in answer.headers["set-cookie"]) is is_secure


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"key": 1}', b'{"key": ""}', b'{"key": "no key"}', b"x" * 20_000]
)
def test_what_is_no_key_gets_no_cookie(browser: httpx.Client, body: bytes) -> None:
    answer = browser.post("/ct/session", content=body)
    require_problem(answer, 401, "unauthenticated")
    assert "set-cookie" not in answer.headers


def test_another_sites_page_can_change_nothing(browser: httpx.Client) -> None:
    browser.post("/ct/session", json={"key": KEY}).raise_for_status()
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://elsewhere.example"}):
        for method, address in (("POST", "/ct/session"), ("DELETE", "/ct/session"), ("POST", "/ct/v1/jobs")):
            require_problem(browser.request(method, address, headers=headers), 403, "origin-not-allowed")


def test_a_session_ends_with_its_key_and_its_time(guarded: tuple[Connection, str], browser: httpx.Client) -> None:
    jobs, _ = guarded
    blobs = jobs.backends.store.blobs
    key, stored = Keys(blobs).create("reader", frozenset({Role.READ}))
    while browser.post("/ct/session", json={"key": key}).status_code != 204:
        time.sleep(0.1)  # until the gateway has read it
    assert browser.get("/ct/session").json()["roles"] == ["read"]
    assert browser.get("/ct/v1/jobs").status_code == 200
    require_problem(browser.post("/ct/v1/jobs", content=b""), 403, "forbidden")
    Keys(blobs).revoke(stored.id)
    while browser.get("/ct/v1/jobs").status_code == 200:
        time.sleep(0.1)
    require_problem(browser.get("/ct/v1/jobs"), 401, "unauthenticated")
    sessions = Sessions(blobs)
    for value in (sessions.seal(KEY, -1), sessions.seal(KEY, 60)[:-4] + "AAAA", "x.y.z", KEY):
        with httpx.Client(base_url=str(browser.base_url), cookies={access.COOKIE: value}) as other:
            require_problem(other.get("/ct/v1/jobs"), 401, "unauthenticated")
    # One gateway's cookie is good at all of them.
    assert Sessions(blobs).open(sessions.seal(KEY, 60)) == KEY


def test_a_key_in_the_header_goes_before_the_cookie(browser: httpx.Client) -> None:
    browser.post("/ct/session", json={"key": KEY}).raise_for_status()
    require_problem(browser.get("/ct/v1/jobs", headers={"X-API-Key": "wrong"}), 401, "unauthenticated")
