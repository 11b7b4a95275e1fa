"""The gateway installs and starts without the science's libraries."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
from lobewise.api.app import create_app
from lobewise.jobs.bootstrap import connect
from lobewise.jobs.settings import JobsSettings
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
    assert not installed & HEAVY
    assert {"numpy", "torch"} <= closure("lobewise", frozenset({"worker"}))
