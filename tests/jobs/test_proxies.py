"""Which way requests take: proxies of the environment are obeyed, and this machine is never asked by one."""

import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import httpx
import obstore
import pytest
from obstore.store import S3Store

from jobs.errors import SettingsError, StorageUnavailableError
from jobs.proxies import AsyncRoutedTransport, RoutedTransport, obstore_options, proxy_of
from jobs.store.s3_multipart import S3Bucket

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Recorder:
    """An HTTP server on the loopback that answers 404 to everything and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def __getattr__(self, name: str) -> Callable[[], None]:
                if name.startswith("do_"):
                    return self._answer
                raise AttributeError(name)

            def _answer(self) -> None:
                recorder.asked.append(self.path)
                self.rfile.read(int(self.headers.get("content-length") or 0))
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def recorders() -> Iterator[list[Recorder]]:
    """A proxy, and a server on this machine."""
    found = [Recorder(), Recorder()]
    yield found
    for recorder in found:
        recorder.server.shutdown()
        recorder.server.server_close()


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("", "https://pacs.example/", False),
        ("*", "https://pacs.example/", True),
        ("other.example, pacs.example", "https://pacs.example/", True),
        ("other.example pacs.example", "https://pacs.example/", True),
        (".example", "https://pacs.example/", True),
        ("*.example", "https://PACS.example./", True),
        ("acs.example", "https://pacs.example/", False),
        ("pacs.example:443", "https://pacs.example/", True),
        ("pacs.example:8443", "https://pacs.example/", False),
        ("https://pacs.example", "https://pacs.example/", True),
        ("http://pacs.example", "https://pacs.example/", False),
        ("10.0.0.0/8", "https://10.1.2.3:8443/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("10.0.0.0/8", "https://pacs.example/", False),
        ("10.1.2.3:8443", "https://10.1.2.3:8443/", True),
        ("10.1.2.3:8443", "https://10.1.2.3/", False),
        ("fd00::7", "https://[fd00::7]/", True),
        ("[fd00::7]", "https://[fd00::7]/", True),
        ("[fd00::7]:443", "https://[fd00::7]/", True),
        ("fd00::/8", "https://[fd00::7]/", True),
        ("[fd00::]/8", "https://[fd00::7]/", True),
        ("münchen.example", "https://gw.xn--mnchen-3ya.example/", True),
        ("xn--mnchen-3ya.example", "https://MÜNCHEN.example/", True),
        ("::1,[::1]", "https://[fd00::7]/", False),
        ("localhost,127.0.0.1", "https://pacs.example/", False),
    ],
)
def test_no_proxy_is_obeyed(no_proxy: str, url: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    proxy = proxy_of(url)
    assert (proxy is None) is is_direct
    assert proxy is None or proxy.address == "http://proxy.example:3128"


def test_a_scheme_has_its_own_proxy_or_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_of("https://pacs.example") is None
    monkeypatch.setenv("ALL_PROXY", "proxy.example:1")
    monkeypatch.setenv("http_proxy", "https://proxy.example:2")
    by = [proxy_of(f"{scheme}://pacs.example") for scheme in ("https", "http")]
    assert [(proxy.variable, proxy.address) for proxy in by if proxy] == [
        ("ALL_PROXY", "http://proxy.example:1"),
        ("http_proxy", "https://proxy.example:2"),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NO_PROXY", "a:b:c"),
        ("NO_PROXY", "[::1"),
        ("NO_PROXY", "10.0.0.0/99"),
        ("NO_PROXY", "pacs.example,host:port"),
        ("NO_PROXY", "pacs.example/ct"),
        ("HTTPS_PROXY", "foo://user:hunter2@proxy.example:1"),
        ("HTTPS_PROXY", "http://user:hunter2@proxy.example:port"),
        ("HTTPS_PROXY", "http://[::1"),
        ("HTTPS_PROXY", "http://"),
        ("ALL_PROXY", "socks4://proxy.example:1"),
    ],
)
def test_what_cannot_be_understood_is_a_sentence_with_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "NO_PROXY":
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name} ") as caught:
        proxy_of("https://pacs.example")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST.", "gw.localhost", "[::1]", "[::ffff:127.0.0.1]", "[::]"],
)
def test_this_machine_is_never_asked_by_a_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "no proxy at all ://")
    assert proxy_of(f"http://{host}:8000/readyz") is None


def test_a_socks_proxy_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy.example:1080")
    with pytest.raises(SettingsError, match=r"^ALL_PROXY .*pip install 'httpx\[socks\]'"):
        proxy_of("https://pacs.example")
    assert proxy_of("http://127.0.0.1:8000") is None


def test_requests_go_by_the_proxy_and_those_to_this_machine_do_not(
    recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = recorders
    monkeypatch.setenv("HTTP_PROXY", proxy.address)
    with httpx.Client(transport=RoutedTransport()) as client:
        client.get("http://pacs.example/ct")
        client.get(f"{server.address}/readyz")
    assert (proxy.asked, server.asked) == (["http://pacs.example/ct"], ["/readyz"])


def test_so_do_those_of_an_event_loop(recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, server = recorders
    monkeypatch.setenv("ALL_PROXY", proxy.address)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=AsyncRoutedTransport(httpx.Limits())) as client:
            await client.get("http://pacs.example/ended")
            await client.get(f"{server.address}/ended")

    anyio.run(ask)
    assert (proxy.asked, server.asked) == (["http://pacs.example/ended"], ["/ended"])


def test_a_bucket_on_this_machine_is_asked_without_a_proxy(
    recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = recorders
    for name in VARIABLES[:3]:
        monkeypatch.setenv(name, proxy.address)
    for name, value in (("ENDPOINT_URL", server.address), ("ALLOW_HTTP", "1"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    with pytest.raises(FileNotFoundError):
        obstore.get(S3Store.from_url("s3://scans", client_options=obstore_options(server.address)), "in/1")
    by_obstore = len(server.asked)
    with pytest.raises(StorageUnavailableError):
        S3Bucket("scans", "in").create("1")
    assert 0 < by_obstore < len(server.asked)
    assert not proxy.asked


def test_any_other_bucket_is_asked_by_the_proxy(recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", recorders[0].address)
    assert "proxy_url" not in obstore_options("http://s3.example")
    monkeypatch.setenv("NO_PROXY", "s3.example")
    assert "proxy_url" in obstore_options("http://s3.example")
