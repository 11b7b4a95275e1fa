"""A whole service as people start it, once for all tests here."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.local import free_port
from tests.support.collector import Collector, collecting
from tests.support.processes import answers, until
from tests.support.receiver import Receiver, receiving

Run = Callable[..., "subprocess.CompletedProcess[str]"]

START_SECONDS = 240.0


@pytest.fixture(scope="session")
def service_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the service keeps its data and its log."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    """Where callbacks of the service may go."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the service sends its traces."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def service(service_folder: Path, receiver: Receiver, collector: Collector) -> Iterator[str]:
    environment = collector.environment(LOBEWISE_CALLBACK_ALLOWLIST=receiver.url)
    with serving(service_folder, **environment) as address:
        yield address


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[str]:
    """`lobewise serve` in a fresh data folder; at the end SIGTERM must stop it and all that it started."""
    port = free_port()
    with (folder / "log").open("wb") as log:
        served = subprocess.Popen(
            [sys.executable, "-m", "cli", "serve", "--port", str(port), "--device", "cpu"],
            env={**os.environ, "LOBEWISE_DATA_DIR": str(folder / "data"), **environment},
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _await_ready(served, address, folder / "log")
        family = descendants_of(served.pid)
        assert len(family) >= 5, "server, gateway, worker and its process, sender"
        yield address
        served.send_signal(signal.SIGTERM)
        assert served.wait(60) == 0
        assert [pid for pid in family if is_alive(pid)] == []
    finally:
        served.kill()
        served.wait()


@pytest.fixture(scope="session")
def lobewise() -> Run:
    """`lobewise("submit", path)` as people run it."""

    def run(*arguments: object, timeout: float = 280) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    return run


def _await_ready(served: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    def is_ready() -> bool:
        assert served.poll() is None, log.read_text()
        return answers(f"{address}/readyz")

    assert until(is_ready, START_SECONDS, 0.2), log.read_text()


def descendants_of(pid: int) -> list[int]:
    """Of a process, through /proc; the embedded server is one, although it has a session of its own."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [pid]
    for parent in found:
        found.extend(child for child, its_parent in parents.items() if its_parent == parent)
    return found[1:]


def is_alive(pid: int) -> bool:
    """Not counting what is dead and only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
