"""Whatever a command starts ends with it, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.local import Child, free_port, started, terminated_like_interrupted, wait_until
from cli.output import ServiceError
from tests.support.processes import until


def is_alive(pid: int) -> bool:
    """Not counting what is dead and only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_command_runs_and_its_words_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started("version", ["--version"], {}, log) as child:
        assert child.process.wait(60) == 0
        assert "lobewise" in child.words()
        assert "ended with 0" in child.words()


def test_a_child_that_ends_early_is_reported_with_its_words(tmp_path: Path) -> None:
    with (
        started("worker", ["no-such-command"], {}, tmp_path / "log") as child,
        pytest.raises(ServiceError, match="worker ended with 2") as caught,
    ):
        wait_until(lambda: False, [child], 60)
    assert "no-such-command" in str(caught.value)


def test_a_child_that_never_gets_ready_is_reported(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        with pytest.raises(ServiceError, match=r"Not ready after 0 s\.\nThe sleeper is running"):
            wait_until(lambda: False, [Child("sleeper", sleeper, None)], 0.0)
    finally:
        sleeper.kill()
        sleeper.wait()


SUPERVISOR = """
import sys, time
from cli import local
local.GRACE_SECONDS = 0.5
with local.terminated_like_interrupted(), local.started("child", sys.argv[1:], {}, None) as child:
    print(child.process.pid, flush=True)
    time.sleep(600)
"""
"""Starts one command and waits; the command is a gateway that waits, too."""


@pytest.fixture
def waiting_command(tmp_path: Path) -> list[str]:
    """A real command that does not end: the client of a service that accepts and never answers."""
    (tmp_path / "scan").write_bytes(b"x")
    return ["submit", str(tmp_path / "scan")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_children_end_with_their_supervisor(
    number: signal.Signals, waiting_command: list[str], silent_service: str
) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, *waiting_command, "--service", silent_service],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert supervisor.stdout is not None
    child = int(supervisor.stdout.readline())
    try:
        until(lambda: b"submit" in Path(f"/proc/{child}/cmdline").read_bytes())
        time.sleep(1)  # it arms itself on start
        assert is_alive(child)
        os.kill(supervisor.pid, number)
        supervisor.wait(60)
        until(lambda: not is_alive(child))
    finally:
        supervisor.kill()
        supervisor.stdout.close()
        supervisor.wait()
        if is_alive(child):
            os.kill(child, signal.SIGKILL)


def test_the_handler_of_sigterm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        terminate_oneself()
    assert signal.getsignal(signal.SIGTERM) == before


def terminate_oneself() -> None:
    with terminated_like_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_free_ports_can_be_listened_on() -> None:
    assert 1024 <= free_port() <= 65535
