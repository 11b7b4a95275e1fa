"""Generates clients, compiles them, drives them: `make test-clients`, or `python -m tests.clients --help`."""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from tests.clients import matrix
from tests.clients.generators import CLIENTS, Client, Command
from tests.clients.matrix import Outcome
from tests.clients.service import ROOT, document, world

HERE: Final = Path(__file__).parent
BUILD: Final = HERE / "build"
VENV: Final = ROOT / ".venv-clients"
STEP_SECONDS: Final = 240.0


def main(arguments: Sequence[str] | None = None) -> int:
    """0: each client did what it can; 1: one did not, or the page is another."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--only", default="", help="clients whose name has these letters")
    parser.add_argument("--all", action="store_true", help="a missing toolchain is a fault")
    parser.add_argument("--write", action="store_true", help=f"write {matrix.PAGE.relative_to(ROOT)}")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    BUILD.mkdir(exist_ok=True)
    (BUILD / "openapi.json").write_text(json.dumps(document(), indent=1))
    clients = [client for client in CLIENTS if given.only in client.name]
    versions = _versions()
    cannot = matrix.known_impossibilities()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        # Java's and TypeScript's compilers are at work while the worker scores.
        building = [pool.submit(_build, client, versions[client.package]) for client in clients]
        with world(Path(folder)) as told:
            (BUILD / "world.json").write_text(json.dumps(dataclasses.asdict(told)))
            outcomes = [future.result() for future in building]
            outcomes = list(pool.map(_drive, outcomes))
    print(matrix.table(outcomes))
    missing = [outcome for outcome in outcomes if outcome.missing]
    for outcome in missing:
        print(f"NOT TRIED: {outcome.client.name}: there is no {', '.join(outcome.missing)} on this machine")
    found = matrix.faults(outcomes, cannot)
    found += [f"{outcome.client.name} was not tried" for outcome in missing if given.all]
    if not missing and not given.only:
        page = matrix.page(outcomes, cannot)
        if given.write:
            matrix.PAGE.write_text(page)
        elif not matrix.PAGE.exists() or matrix.PAGE.read_text() != page:
            found.append(f"{matrix.PAGE.relative_to(ROOT)} says something else: make test-clients WRITE=1")
    for fault in found:
        print(f"FAULT: {fault}")
    operations = sum(len(outcome.results) for outcome in outcomes)
    print(f"{len(clients) - len(missing)} clients, {operations} operations in {time.monotonic() - began:.0f} s")
    return 1 if found else 0


def _build(client: Client, version: str) -> Outcome:
    outcome = Outcome(client, version)
    outcome.missing = tuple(need for need in client.needs if shutil.which(need, path=_environment()["PATH"]) is None)
    folder = _folder(client)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    for command in () if outcome.missing else (*client.generate, *client.build):
        done = _run(command, folder)
        if done.returncode:
            outcome.fault = f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}"
            break
    outcome.seconds = time.monotonic() - began
    return outcome


def _drive(outcome: Outcome) -> Outcome:
    if outcome.missing or outcome.fault or not outcome.client.drive:
        return outcome
    began = time.monotonic()
    done = _run((*outcome.client.drive, "../world.json"), _folder(outcome.client))
    for line in done.stdout.splitlines():
        if line.startswith('{"operation"'):
            said = json.loads(line)
            outcome.results[said["operation"]] = "" if said["ok"] else said["detail"] or "it failed"
    if done.returncode:
        outcome.fault = f"its driver ended with {done.returncode}\n{done.stderr[-3000:]}"
    outcome.seconds += time.monotonic() - began
    return outcome


def _run(command: Command, folder: Path) -> "subprocess.CompletedProcess[str]":
    (jar,) = VENV.glob("lib/python3*/site-packages/openapi_generator_cli/openapi-generator.jar")
    # The generator's own jar has Jackson inside; the rest are Debian's.
    jars = (jar, "/usr/share/java/jakarta-annotation-api.jar", "/usr/share/java/httpmime.jar")
    places = {
        "drivers": str(HERE / "drivers"),
        "python": str(VENV / "bin" / "python"),
        "java": ":".join(map(str, jars)),
    }
    filled = [argument.format(**places) for argument in command]
    return subprocess.run(
        filled, cwd=folder, env=_environment(), capture_output=True, text=True, check=False, timeout=STEP_SECONDS
    )


def _environment() -> dict[str, str]:
    places = [VENV / "bin", HERE / "node_modules" / ".bin", os.environ["PATH"]]
    return {**os.environ, "PATH": os.pathsep.join(map(str, places)), "PYTHONPATH": ".", "GOFLAGS": "-mod=mod"}


def _folder(client: Client) -> Path:
    return BUILD / client.name.replace(" ", "-")


def _versions() -> dict[str, str]:
    """Of the generators, by package: npm's as package.json pins them, and those in `.venv-clients`."""
    pinned: dict[str, str] = json.loads((HERE / "package.json").read_text())["dependencies"]
    (packages,) = VENV.glob("lib/python3*/site-packages")
    return {found.name: found.version for found in distributions(path=[str(packages)])} | pinned


if __name__ == "__main__":
    sys.exit(main())
