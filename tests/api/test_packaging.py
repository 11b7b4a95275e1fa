"""The gateway installs and starts without the science's libraries."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jobs.liveness import STALE_SECONDS

HEAVY = {"numpy", "torch", "simpleitk", "scipy", "pydicom", "safetensors"}

PROGRAM = """
import sys
heavy = set(sys.argv[1:])
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].lower() in heavy:
            raise ImportError(f"{name} is not for the gateway")
sys.meta_path.insert(0, Wall())
try:
    import numpy
except ImportError:
    pass
else:
    raise SystemExit("the wall does not hold")
from api.app import create_app
from jobs.bootstrap import connect
from jobs.settings import JobsSettings
jobs = connect(JobsSettings())
assert create_app(jobs=jobs).openapi()["paths"]
jobs.close()
"""


def test_the_gateway_runs_without_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *HEAVY],
        env={**os.environ, "LOBEWISE_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def closure(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """All that an installation brings in, by what is installed here."""
    found: set[str] = set()
    todo = [(canonicalize_name(name), extras)]
    seen = set()
    while todo:
        if (item := todo.pop()) in seen:
            continue
        seen.add(item)
        found.add(item[0])
        try:
            lines = requires(item[0]) or []
        except PackageNotFoundError:  # not needed on this platform
            continue
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in item[1] | {""}):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def test_the_gateway_installs_without_them() -> None:
    installed = closure("lobewise", frozenset({"api"}))
    assert {"fastapi", "uvicorn", "celery", "obstore", "starlette"} <= installed
    assert "packaging" in installed, "kombu imports it where its broker is Redis, and asks for it in an extra alone"
    assert not installed & HEAVY
    assert {"numpy", "torch"} <= closure("lobewise", frozenset({"worker"}))


def test_the_image_starts_the_gateway_as_its_settings_say(tmp_path: Path) -> None:
    """Port, shutdown and proxies come from the environment, and a wrong value stops it with a sentence."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "LOBEWISE_DATA_DIR": str(tmp_path), "LOBEWISE_API_PORT": str(port)}
    command = [sys.executable, "-m", "api"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with suppress(httpx.TransportError):
                assert httpx.get(f"http://127.0.0.1:{port}/healthz").json() == {"status": "ok"}
                break
            time.sleep(0.1)
        else:
            raise AssertionError("the gateway does not answer")
        asked = {**environment, "LOBEWISE_API_HOST": "0.0.0.0", "http_proxy": "http://127.0.0.1:9"}  # noqa: S104 (it listens there in the image)
        assert check_health(asked, "api.health") == 0  # and no proxy was asked
    finally:
        process.terminate()
        assert process.wait(20) in (0, -signal.SIGTERM)  # uvicorn ends as it was told to, in the end
    assert check_health(environment, "api.health") == 1
    wrong = {**environment, "LOBEWISE_API_SHUTDOWN_SECONDS": "soon"}
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("LOBEWISE_API_SHUTDOWN_SECONDS is 'soon'")


def check_health(environment: dict[str, str], module: str) -> int:
    command = [sys.executable, "-m", module]
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode


@pytest.mark.parametrize("module", ["api.health", "jobs.liveness"])
def test_health_of_what_has_no_port_is_its_file(tmp_path: Path, module: str) -> None:
    """A sender in the gateway's image, and a worker."""
    file = tmp_path / "alive"
    environment = {**os.environ, "LOBEWISE_LIVENESS_FILE": str(file)}
    assert check_health(environment, module) == 1
    file.touch()
    assert check_health(environment, module) == 0
    long_ago = time.time() - STALE_SECONDS - 1
    os.utime(file, (long_ago, long_ago))
    assert check_health(environment, module) == 1


def test_a_worker_without_a_file_has_no_health() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LOBEWISE_LIVENESS_FILE"}
    assert check_health(environment, "jobs.liveness") == 1
