"""Who is connected to on a client's word: looked at once and then held to, not longer than it may take."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs import outbound, remote_sources
from jobs.errors import (
    AddressRefusedError,
    JobsError,
    SettingsError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooSlowError,
    SourceUnavailableError,
)
from jobs.models import ScanSource
from jobs.outbound import METADATA, AsyncPinnedBackend, LimitedBackend, OutboundRules, TimeLimit, doubts, kind_of
from jobs.proxies import AsyncRoutedTransport, RoutedTransport
from jobs.remote_sources import FetchLimits, fetch
from jobs.settings import JobsSettings, read_settings
from tests.support import outbound_world
from tests.support.certificates import make
from tests.support.outbound_servers import DATA, Reached, serve

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("1.2.3.4", ""),
        ("2600::7", ""),
        ("::ffff:1.2.3.4", ""),
        ("64:ff9b::1.2.3.4", ""),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("0.0.0.0", "unspecified"),  # noqa: S104 (nobody listens)
        ("::", "unspecified"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        *((str(address), "a metadata service") for address in sorted(METADATA, key=str)),
        ("::ffff:169.254.169.254", "a metadata service"),
        ("64:ff9b::a9fe:a9fe", "a metadata service"),
        *(
            (address, "private or reserved")
            for address in (
                "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "192.0.0.1", "192.0.2.1", "192.88.99.1",
                "198.18.0.1", "240.0.0.1", "255.255.255.255", "fd00::1", "fec0::1", "2001:db8::1", "2001::1",
                "2002:0102:0304::1", "3fff::1", "::1.2.3.4", "64:ff9b:1::1", "100::1", "4000::1",
            )
        ),
    ],
)  # fmt: skip
def test_every_range_that_is_not_the_internet_is_known(address: str, kind: str) -> None:
    assert kind_of(ip_address(address)) == kind


@pytest.mark.parametrize(
    ("host", "address", "networks", "is_allowed"),
    [
        ("pacs.example", "10.1.2.3", (), False),
        ("pacs.example", "10.1.2.3", ("10.0.0.0/8",), True),
        ("pacs.example", "::ffff:10.1.2.3", ("10.0.0.0/8",), True),
        ("pacs.example", "11.1.2.3", ("10.0.0.0/8",), True),
        ("pacs.example", "fd00::1%eth0", ("fd00::/8",), True),
        ("10.1.2.3", "10.1.2.3", (), True),
        ("10.1.2.3", "10.1.2.4", (), False),
        ("localhost", "127.0.0.1", (), True),
        ("localhost", "10.1.2.3", (), False),
        ("pacs.example", "127.0.0.1", ("10.0.0.0/8",), False),
        ("pacs.example", "169.254.169.254", ("169.254.0.0/16",), False),
        ("pacs.example", "fd00:ec2::254", ("fd00::/8",), False),
        ("169.254.169.254", "169.254.169.254", (), False),
        ("pacs.example", "169.254.169.254", ("169.254.169.254/32",), True),
    ],
)
def test_who_is_connected_to(host: str, address: str, networks: tuple[str, ...], is_allowed: bool) -> None:
    refusal = OutboundRules.of(networks).refusal(host, address)
    assert (refusal == "") is is_allowed
    assert is_allowed or "LOBEWISE_OUTBOUND_NETWORKS" in refusal


@pytest.mark.parametrize(
    ("value", "reason"),
    [("pacs.example", "is no network"), ("10.0.0.0/33", "is no network"), ("0.0.0.0/0", "is a large part"),
     ("10.0.0.0/8 ::/0", "is a large part")],
)  # fmt: skip
def test_networks_that_are_none_or_the_world_stop_the_start(
    value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOBEWISE_OUTBOUND_NETWORKS", value)
    with pytest.raises(SettingsError, match=f"^LOBEWISE_OUTBOUND_NETWORKS is .*{reason}"):
        read_settings(JobsSettings)


def test_networks_are_kept_as_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_OUTBOUND_NETWORKS", "10.20.1.1/16 fd12:3456::/32 192.168.1.7")
    found = read_settings(JobsSettings).outbound_networks
    assert found == ("10.20.0.0/16", "fd12:3456::/32", "192.168.1.7/32")


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names lead to, each look-up the next of them; of those that are not here the system is asked."""
    answers: dict[str, list[str]] = {}

    def look_up(host: str, port: int, **more: Any) -> Any:
        if host in answers:
            host = answers[host].pop(0)
        return socket.getaddrinfo(host, port, **more)

    async def look_up_meanwhile(_loop: object, host: str, port: int, **more: Any) -> Any:
        return look_up(host, port, **more)

    monkeypatch.setattr(outbound, "getaddrinfo", look_up)
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up_meanwhile)
    return answers


@pytest.fixture
def plain() -> Iterator[tuple[Reached, int]]:
    """A server without TLS, and its port."""
    reached = Reached()
    server = serve("127.0.0.1", 0, reached)
    yield reached, server.server_port
    server.shutdown()
    server.server_close()


def ask(url: str, *networks: str) -> int:
    """With httpx, as a source is asked."""
    backend = LimitedBackend(OutboundRules.of(networks), TimeLimit())
    with httpx.Client(transport=RoutedTransport(straight=backend)) as client:
        return client.get(url).status_code


def ask_in_a_loop(url: str, *networks: str) -> int:
    """The same as a receiver is asked."""

    async def get() -> int:
        transport = AsyncRoutedTransport(httpx.Limits(), AsyncPinnedBackend(OutboundRules.of(networks)))
        async with httpx.AsyncClient(transport=transport) as client:
            return (await client.get(url)).status_code

    return asyncio.run(get())


@pytest.mark.parametrize("asked", [ask, ask_in_a_loop])
def test_a_name_is_looked_up_once_and_what_was_found_is_held_to(
    asked: Callable[..., int], lookups: dict[str, list[str]], plain: tuple[Reached, int]
) -> None:
    """A second look-up, by whoever makes the connection, would lead elsewhere: there is none."""
    reached, port = plain
    lookups["pacs.example"] = ["127.0.0.1"]
    url = f"http://pacs.example:{port}/ct/scan"
    assert asked(url, "127.0.0.0/8") == 200
    assert [(address, host) for address, host, *_ in reached.got] == [("127.0.0.1", f"pacs.example:{port}")]
    lookups["pacs.example"] = ["127.0.0.1"]
    with pytest.raises(AddressRefusedError, match=r"pacs\.example is at 127\.0\.0\.1, which is loopback"):
        asked(url)
    assert len(reached.got) == 1


@pytest.mark.parametrize("asked", [ask, ask_in_a_loop])
def test_a_name_that_is_not_found_is_a_fault_of_the_connection(asked: Callable[..., int]) -> None:
    for host in ("nowhere.invalid", f"{'x' * 64}.invalid"):
        with pytest.raises(httpx.ConnectError):
            asked(f"http://{host}/")


def test_a_silent_address_leaves_time_for_the_next(
    lookups: dict[str, list[str]], plain: tuple[Reached, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, port = plain
    with socket.create_server(("127.0.0.2", port), backlog=0) as silent:
        # Its queue is full: the next connection gets no answer.
        full = [socket.socket() for _ in range(3)]
        for one in full:
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
        both = [socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0] for address in ("127.0.0.2", "127.0.0.1")]
        monkeypatch.setattr(outbound, "getaddrinfo", lambda *_, **__: both)
        monkeypatch.setattr(outbound, "FIRST_TRIES_SECONDS", 0.2)
        assert ask(f"http://pacs.example:{port}/ct/scan", "127.0.0.0/8") == 200
        for one in full:
            one.close()
    assert len(reached.got) == 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reached, str, Path]]:
    """A real server of scans with TLS on this machine, which an allow-list may name."""
    reached = Reached()
    context, trusted = make(tmp_path_factory.mktemp("tls"), "DNS:localhost")
    server = serve("127.0.0.1", 0, reached, context)
    yield reached, f"https://localhost:{server.server_port}/ct", trusted
    server.shutdown()
    server.server_close()


class TestSources:
    """What it does, and what becomes of the scan."""

    @pytest.fixture
    def get(
        self, server: tuple[Reached, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., bytes]:
        _, origin, trusted = server
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))

        def get(path: str, **limits: Any) -> bytes:
            source = ScanSource(url=f"{origin}/{path}")
            fetch(source, tmp_path / "scan", allowlist=(origin,), limits=FetchLimits(1 << 20, **limits))
            return (tmp_path / "scan").read_bytes()

        return get

    def test_it_is_fetched_also_by_way_of_redirects(
        self, get: Callable[..., bytes], server: tuple[Reached, str, Path]
    ) -> None:
        assert get("scan") == DATA
        assert get(f"to/{f'{server[1]}/scan#top'.encode().hex()}") == DATA
        assert get(f"to/{b'scan/../../scan'.hex()}") == DATA, "as its server resolves it"

    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("cut", SourceUnavailableError),
            ("failing", SourceUnavailableError),
            ("loop", SourceNotFoundError),
            (f"to/{b'https://evil.example/'.hex()}", SourceNotAllowedError),
            (f"to/{b'/elsewhere'.hex()}", SourceNotAllowedError),
            (f"to/{b's3://scans/in'.hex()}", SourceNotAllowedError),
            (f"to/{b'https://[::1'.hex()}", SourceUnavailableError),
        ],
    )
    def test_what_its_server_does_is_its_fault(
        self, path: str, error: type[JobsError], get: Callable[..., bytes]
    ) -> None:
        with pytest.raises(error):
            get(path)

    @pytest.mark.parametrize("path", ["drip", "drip-headers"])
    def test_one_that_drips_is_left_when_its_time_is_over(self, path: str, get: Callable[..., bytes]) -> None:
        begin = time.monotonic()
        with pytest.raises(SourceTooSlowError) as caught:
            get(path, seconds=0.6)
        assert 0.5 < time.monotonic() - begin < 3
        assert caught.value.evidence["received_bytes"] < 100

    def test_one_that_drips_is_left_for_its_rate(
        self, get: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote_sources, "GRACE_SECONDS", 0.2)
        begin = time.monotonic()
        with pytest.raises(SourceTooSlowError):
            get("drip", bytes_per_second=1000)
        assert 0.2 < time.monotonic() - begin < 3
        assert get("scan", bytes_per_second=1000) == DATA

    def test_nobody_there_is_its_fault(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            url = f"https://localhost:{closed.getsockname()[1]}/"
        for address in (url, "https://nowhere.invalid/"):
            with pytest.raises(SourceUnavailableError):
                fetch(ScanSource(url=address), tmp_path / "scan", allowlist=(address,), limits=FetchLimits(1))


def test_hosts_that_nobody_will_connect_to_are_told_at_the_start(lookups: dict[str, list[str]]) -> None:
    lookups |= {"pacs.example": ["10.1.2.3", "10.1.2.3"], "far.example": ["1.2.3.4"]}
    allowed = (
        "https://pacs.example/ct",
        "https://far.example",
        "s3://scans",
        "http://127.0.0.1:9000",
        "https://x.invalid",
    )
    (sentence,) = doubts(allowed, ())
    assert "pacs.example is at 10.1.2.3, which is private" in sentence
    assert doubts(allowed[:1], ("10.0.0.0/8",)) == []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each case in a network of its own (tests/support/outbound_world.py)."""
    command = ["unshare", "--map-root-user", "--net", "--mount"]
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare and ip are not here: no network of its own can be made")
    tried = subprocess.run([*command, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this machine allows no network of its own: {tried.stderr.strip()}")
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    line = [*command, sys.executable, "-m", "tests.support.outbound_world", str(tmp_path_factory.mktemp("world"))]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def addresses(case: dict[str, Any]) -> list[str]:
    return [address for address, *_ in case["reached"]]


class TestInANetworkOfItsOwn:
    """Names of a DNS server, hosts with addresses of every kind, all of them with a server that would answer."""

    def test_names_that_lead_out_are_fetched_from_there(self, world: dict[str, dict[str, Any]]) -> None:
        for host in ("public", "other", "public6", "mixed", "half-dead"):
            name = f"{host}.scans.example"
            address = "2600::7" if host == "public6" else "1.2.3.4"
            assert world[host] == {"outcome": f"{len(DATA)} bytes", "reached": [[address, name, name, "/ct/scan"]]}

    def test_names_that_lead_in_reach_nobody(self, world: dict[str, dict[str, Any]]) -> None:
        inward = set(outbound_world.HOSTS) - {"public", "other", "public6", "mixed", "half-dead"}
        inward = {host for host in inward if not host.startswith("rebinding")}
        assert len(inward) == 16
        for host in inward:
            assert world[host] == {"outcome": "SourceNotAllowedError", "reached": []}, host

    def test_networks_of_the_operator_are_reached(self, world: dict[str, dict[str, Any]]) -> None:
        assert addresses(world["private, listed"]) == addresses(world["private, by number"]) == ["10.9.8.7"]
        assert addresses(world["private6, listed"]) == addresses(world["private6, by number"]) == ["fd00::7"]

    def test_credentials_of_the_cloud_are_not_in_them(self, world: dict[str, dict[str, Any]]) -> None:
        for case in ("metadata, its network listed", "metadata6, its network listed", "metadata, by number"):
            assert world[case] == {"outcome": "SourceNotAllowedError", "reached": []}, case
        assert addresses(world["metadata, itself listed"]) == ["169.254.169.254"]

    def test_a_name_that_changes_its_mind_leads_nowhere_else(self, world: dict[str, dict[str, Any]]) -> None:
        assert addresses(world["rebinding, unpinned"]) == ["127.0.0.1"], "without the pin it would"
        assert addresses(world["rebinding"]) == ["1.2.3.4"]
        assert world["rebinding, again"] == {"outcome": "SourceNotAllowedError", "reached": []}
        assert addresses(world["redirect, rebinding"]) == ["1.2.3.4"]

    def test_redirects_are_followed_inside_the_allow_list_alone(self, world: dict[str, dict[str, Any]]) -> None:
        assert [host for _, host, *_ in world["redirect, allowed"]["reached"]] == [
            "public.scans.example",
            "other.scans.example",
        ]
        outward = [case for case in world if case.startswith("redirect, ") and case != "redirect, allowed"]
        assert len(outward) == 6
        for case in outward:
            assert (world[case]["outcome"], len(world[case]["reached"])) == ("SourceNotAllowedError", 1), case

    def test_tls_asks_for_the_name_and_not_for_the_address(self, world: dict[str, dict[str, Any]]) -> None:
        assert world["another's certificate"] == {"outcome": "SourceUnavailableError", "reached": []}
        assert world["no such host"] == {"outcome": "SourceUnavailableError", "reached": []}

    def test_so_it_is_with_callbacks(self, world: dict[str, dict[str, Any]]) -> None:
        for host in ("public", "mixed", "rebinding-receiver"):
            assert (world[f"callback, {host}"]["outcome"], addresses(world[f"callback, {host}"])) == (
                "200",
                ["1.2.3.4"],
            )
        for host in ("private", "loopback", "metadata", "rebinding-receiver, again"):
            assert world[f"callback, {host}"] == {"outcome": "connection", "reached": []}, host
        assert addresses(world["callback, private, listed"]) == ["10.9.8.7"]
