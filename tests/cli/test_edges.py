"""Commands where the network, the disk or the address is not as it should be: a sentence, and nothing left running."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cli.client import connected
from jobs.errors import SettingsError
from tests.support.processes import answers, free_ports, running, until

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("LOBEWISE_REDIS_URL", raising=False)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii"
    path.write_bytes(b"\x5c\x01\0\0" + bytes(340) + b"n+1\0" + bytes(500))
    return path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def processes_of(folder: Path) -> list[str]:
    """What runs with this folder in its command or its environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in words and entry.name != str(os.getpid()):
            found.append(words[:80].decode(errors="replace"))
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    [("NO_PROXY", "a:b:c"), ("HTTP_PROXY", "http://proxy.example:port"), ("ALL_PROXY", "gopher://proxy.example")],
)
def test_a_proxy_that_cannot_be_understood_ends_with_2_and_its_variable(
    name: str, value: str, scan: Path, lobewise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY" if name == "NO_PROXY" else name, "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    result = lobewise("submit", scan, "-s", "http://pacs.example")
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith(f"{name} ")
    assert "Traceback" not in result.stderr


def test_a_socks_proxy_without_its_package_ends_with_2_and_what_installs_it(scan: Path) -> None:
    program = (
        f"import sys; sys.modules['socksio'] = None; sys.argv[1:] = ['submit', {str(scan)!r}, '-s', sys.argv[1]]\n"
    )
    program += "import cli; cli.main()"
    environment = {**os.environ, "ALL_PROXY": "socks5://127.0.0.1:9"}

    def submit(address: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", program, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)

    away, here = submit("http://pacs.example"), submit(f"http://127.0.0.1:{free_ports(1)[0]}")
    assert (away.returncode, here.returncode) == (2, 4)
    assert "pip install 'httpx[socks]'" in away.stderr
    assert "does not answer (ConnectError)" in here.stderr


def test_a_proxy_that_does_not_answer_is_named_by_its_variable(
    scan: Path, lobewise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_ports(1)[0]}")
    result = lobewise("submit", scan, "-s", "http://pacs.example")
    assert result.returncode == 4
    assert "asked by the proxy that HTTP_PROXY names" in result.stderr


@pytest.mark.parametrize("address", ["pacs.example", "ftp://pacs.example", "http://", "http://x:port", "http://::1:80"])
def test_an_address_that_is_none_is_said_so(address: str) -> None:
    with pytest.raises(SettingsError, match="is no address of a service"), connected(address):
        pass


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_a_gateway_listens_on_ipv6_and_links_to_itself(host: str, scan: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    address = f"http://[::1]:{port}"
    environment = {
        "LOBEWISE_DATA_DIR": str(tmp_path / "data"),
        "LOBEWISE_API_HOST": host,
        "LOBEWISE_API_PORT": str(port),
        "LOBEWISE_ACCESS": "open",  # beyond the loopback it wants a key else
    }
    with running([sys.executable, "-m", "api"], environment, tmp_path / "log"):
        assert until(lambda: answers(f"{address}/healthz"), 60), (tmp_path / "log").read_text()
        assert answers(f"{address}/docs")
        probe = subprocess.run(
            [sys.executable, "-m", "api.health"], env={**os.environ, **environment}, timeout=60, check=False
        )
        assert probe.returncode == 0
        with connected(address + "/") as client:
            job_id = client.submit(scan).id
        link = httpx.get(f"{address}/v1/jobs/{job_id}").json()["links"]["self"]
        assert link == f"{address}/v1/jobs/{job_id}"


@pytest.mark.parametrize("command", ["api", "serve"])
@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid", "taken"])
def test_where_nobody_can_listen_is_a_sentence_and_nothing_stays(
    command: str, host: str, taken_port: int, lobewise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOBEWISE_DATA_DIR", str(tmp_path / "data"))
    result = lobewise(command, "--port", taken_port, "--host", "127.0.0.1" if host == "taken" else host)
    assert result.returncode == 2, result.stderr
    assert "listen" in result.stderr
    assert "Traceback" not in result.stderr
    assert not processes_of(tmp_path / "data")


@pytest.mark.parametrize("command", ["api", "serve", "sender", "rebuild", "worker"])
@pytest.mark.parametrize("folder", ["file", "/proc/no-such-folder"])
def test_a_data_folder_that_cannot_be_used_is_a_sentence_and_nothing_stays(
    command: str, folder: str, lobewise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / folder
    monkeypatch.setenv("LOBEWISE_DATA_DIR", str(path))
    result = lobewise(command, *(["--port", free_ports(1)[0]] if command in ("api", "serve") else []))
    assert result.returncode == 4, result.stderr
    assert f"The folder {path}" in result.stderr
    assert "Traceback" not in result.stderr
    assert not processes_of(path)


def test_a_folder_of_the_embedded_server_that_cannot_be_used_is_one_too(
    lobewise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOBEWISE_DATA_DIR", str(tmp_path))
    (tmp_path / "valkey").write_text("no folder")
    result = lobewise("api", "--port", free_ports(1)[0])
    assert result.returncode == 4, result.stderr
    assert f"cannot use its folder {tmp_path / 'valkey'}" in result.stderr
