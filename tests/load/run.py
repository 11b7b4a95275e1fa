"""Put a gateway under load and report how it does: `make load`, or `.venv-load/bin/python -m tests.load.run --help`.

A real gateway with its embedded Valkey and a folder of blobs; the clients are k6's (`load.js`). All on this machine
and over loopback: the clients take their share of its CPU, which the report tells.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from tests.load.gateway import BOUNDARY, ROOT, Gateway, form, running
from tests.load.phases import FULL, LIGHT, MIB, PROBES, Phase
from tests.load.report import markdown
from tests.load.watch import Watched, watching

SCAN_BYTES: Final = 60 * MIB
LARGE_BYTES: Final = 600 * MIB
POLLED_JOBS: Final = 100
MAX_GROWTH_BYTES: Final = 32 * MIB

#: Free space that a full run must leave.
SPARE_BYTES: Final = 10 << 30

#: Of the clients that post: they copy 60 MiB for each scan, which must not delay those who poll.
POSTS_NICENESS: Final = 10

#: How eagerly k6 collects it. Those who post copy each scan that they send, some GB for 50; those who poll hold
#: little, and would measure their own collector (p99 of 33 ms in place of 10 to 20).
GARBAGE: Final[dict[str, dict[str, str]]] = {"posts": {"GOGC": "20"}, "polls": {}}

#: The exit code that k6 has for it.
THRESHOLDS_CROSSED: Final = 99


@dataclass
class Outcome:
    """A phase as it went: k6's metrics, and what the machine had to do for it.

    Attributes:
        seconds: how long those who post, and those who poll, took.
        served: share of the polls that were answered in time by the gateway's own clock.
        is_passed: k6's thresholds hold, and memory grew by no more than it may.
    """

    phase: Phase
    metrics: dict[str, Any]
    watched: Watched
    seconds: dict[str, float]
    served: float | None
    is_passed: bool


@dataclass(frozen=True)
class Tools:
    """Where things are."""

    python: Path
    k6: Path
    folder: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """0: everything holds; 1: a threshold was crossed."""
    given = _parser().parse_args(arguments)
    tools = Tools(given.python, Path(sys.executable).with_name("k6"), given.folder)
    phases = LIGHT if given.light else FULL if given.no_probes else FULL + PROBES
    exact = tuple(phase for phase in phases if phase.name == given.only)
    phases = exact or tuple(phase for phase in phases if phase.name.startswith(given.only))
    scan_bytes = 2 * MIB if given.light else SCAN_BYTES
    _require_space(tools.folder, max(phase.uploaders * phase.uploads_each for phase in phases) * scan_bytes)
    growth = None if given.only else _growth(tools, 40 * MIB if given.light else LARGE_BYTES)
    outcomes = _played(tools, phases, scan_bytes)
    found = {
        "machine": {
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "scan_bytes": scan_bytes,
        "large_upload": growth,
        "phases": [asdict(outcome) for outcome in outcomes],
    }
    given.report.mkdir(parents=True, exist_ok=True)
    (given.report / "report.json").write_text(json.dumps(found, indent=1))
    (given.report / "report.md").write_text(text := markdown(found))
    print(text)
    is_small = growth is None or growth["growth_bytes"] < MAX_GROWTH_BYTES
    return 0 if is_small and all(outcome.is_passed or outcome.phase.is_probe for outcome in outcomes) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--light", action="store_true", help="a few clients for a few seconds: does it work at all")
    parser.add_argument("--no-probes", action="store_true", help="do not look for the point of saturation")
    parser.add_argument("--only", default="", help="the phase of this name, or phases whose names begin so")
    parser.add_argument(
        "--report", type=Path, default=ROOT / "out" / "load", help="folder of report.md and report.json"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the scans; a real disk")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv" / "bin" / "python", help="with the gateway")
    return parser


def _require_space(folder: Path, needed_bytes: int) -> None:
    if shutil.disk_usage(folder).free < needed_bytes + min(SPARE_BYTES, needed_bytes):
        sys.exit(f"{folder} has no room for {needed_bytes >> 30} GiB of scans: name another --folder")


def _growth(tools: Tools, size_bytes: int) -> dict[str, int]:
    """Memory that one large upload costs, after a small one has loaded what there is to load."""
    with running(tools.python, tools.folder) as gateway:
        gateway.submit(2 * MIB)
        with watching(gateway.process, {}) as watched:
            gateway.submit(size_bytes)
    return {"size_bytes": size_bytes, "growth_bytes": watched.growth_bytes, "start_bytes": watched.start_bytes}


def _played(tools: Tools, phases: Sequence[Phase], scan_bytes: int) -> list[Outcome]:
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="lobewise-load-", dir=tools.folder) as folder:
        pieces, _ = form(scan_bytes)
        with (Path(folder) / "scan").open("wb") as file:
            file.writelines(pieces)
        for phase in phases:
            outcomes.append(_play(tools, phase, Path(folder)))
            print(f"{phase.name}: {'holds' if outcomes[-1].is_passed else 'CROSSED'}", file=sys.stderr)
    return outcomes


def _play(tools: Tools, phase: Phase, folder: Path) -> Outcome:
    """One phase, with a gateway of its own."""
    with running(tools.python, tools.folder) as gateway:
        jobs = [gateway.submit(1) for _ in range(POLLED_JOBS)]
        gateway.submit(2 * MIB)
        (folder / "jobs.json").write_text(json.dumps(jobs))
        with watching(gateway.process, {"valkey": gateway.valkey}) as watched:
            results = _clients(tools, phase, gateway, folder)
        served = gateway.within(phase.p99_ms)
    watched.cpu_seconds |= {f"k6 {name}": result.cpu_seconds for name, result in results.items()}
    metrics = {name: value for result in results.values() for name, value in result.metrics.items() if "{" in name}
    seconds = {name: result.seconds for name, result in results.items()}
    is_passed = all(result.is_passed for result in results.values()) and watched.growth_bytes < MAX_GROWTH_BYTES
    return Outcome(phase, metrics, watched, seconds, served, is_passed)


@dataclass(frozen=True)
class _Result:
    """What one k6 process found."""

    metrics: dict[str, Any]
    seconds: float
    cpu_seconds: float
    is_passed: bool


def _clients(tools: Tools, phase: Phase, gateway: Gateway, folder: Path) -> dict[str, _Result]:
    """A process each for those who post and those who poll, as they would be on machines of their own."""
    started = {
        name: subprocess.Popen(
            _command(tools, name, phase, gateway, folder), stdout=sys.stderr, env={**os.environ, **GARBAGE[name]}
        )
        for name in phase.parts
    }
    return {name: _result(process, folder / f"{name}.json") for name, process in started.items()}


def _result(process: "subprocess.Popen[bytes]", summary: Path) -> _Result:
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, THRESHOLDS_CROSSED):
        raise RuntimeError(f"k6 ended with {process.returncode}")
    found = json.loads(summary.read_text())
    seconds = found["state"]["testRunDurationMs"] / 1000
    return _Result(found["metrics"], seconds, usage.ru_utime + usage.ru_stime, process.returncode == 0)


def _command(tools: Tools, name: str, phase: Phase, gateway: Gateway, folder: Path) -> list[str]:
    part = phase.parts[name]
    environment = {
        "BASE": gateway.address,
        "PHASE": json.dumps({**asdict(part), "begin_seconds": phase.begin_seconds}),
        "SCAN": str(folder / "scan"),
        "BOUNDARY": BOUNDARY,
        "JOBS": str(folder / "jobs.json"),
        "SUMMARY": str(folder / f"{name}.json"),
    }
    given = [part for name, value in environment.items() for part in ("-e", f"{name}={value}")]
    patience = ["nice", "-n", str(POSTS_NICENESS)] if name == "posts" else []
    quietly = ["run", "--quiet", "--no-usage-report", "--address", ""]
    return [*patience, str(tools.k6), *quietly, *given, str(Path(__file__).with_name("load.js"))]


if __name__ == "__main__":
    sys.exit(main())
