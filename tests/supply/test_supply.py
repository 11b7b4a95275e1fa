"""The looks at code, pins and materials see what they must, and never call unknown what is clean."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tests.images.look import SCIENCE, pins
from tests.supply import code, dependencies, materials

ROOT = Path(__file__).parents[2]


def test_a_finding_needs_its_reason_and_its_own(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import subprocess\n"
        "subprocess.run('ls', shell=True)\n"
        "subprocess.run('ls', shell=True)  # noqa: S602, S607 (of no use)\n"
        "subprocess.run('ls', shell=True)  # noqa: S602\n"
        "eval('1')  # noqa: S602 (of another)\n"
        "subprocess.run(\n    'ls',\n    shell=True,  # noqa: S602, S607 (on any line of it)\n)\n"
    )
    found = [line.split(": ")[:2] for line in code.unexplained(code.bandit(path))]
    lines = [(int(where.rpartition(":")[2]), what.split()[0]) for where, what in found]
    assert {(2, "B602"), (4, "B602"), (5, "B307")} <= set(lines)
    assert not {3, 6, 7, 8} & {line for line, what in lines if what == "B602"}


CLEAN = {"name": "httpx", "version": "1", "vulns": []}
BAD = {"name": "httpx", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
SILENT = {"name": "httpx", "skip_reason": "Dependency not found on PyPI and could not be audited: httpx (1)"}
KNOWN = {"name": "django", "version": "2.0", "vulns": [{"id": "PYSEC-2", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "django", "version": "2.0", "vulns": []}


@pytest.mark.parametrize(
    ("entries", "exit_code", "words"),
    [
        ([CLEAN, KNOWN], 0, "1 pinned distributions audited"),
        ([BAD, KNOWN], 1, "httpx 1: PYSEC-1, mended in 2"),
        ([BAD], 1, "VULNERABLE"),
        ([CLEAN, UNKNOWN], 3, "NOT KNOWN"),
        ([CLEAN], 3, "NOT KNOWN"),
        ([CLEAN, {"name": "django", "skip_reason": "not found"}], 3, "NOT KNOWN"),
        ([CLEAN, SILENT, KNOWN], 3, "1 of 2 are not known there: httpx"),
        (None, 3, "NOT KNOWN"),
    ],
)
def test_what_nobody_audited_is_never_called_clean(
    entries: list[dict[str, Any]] | None, exit_code: int, words: str
) -> None:
    report = None if entries is None else {"dependencies": entries}
    found, text = dependencies.result(report)
    assert found == exit_code
    assert words in text
    assert ("no known vulnerability" in text) is (exit_code == 0)


def test_the_release_that_is_known_to_be_bad_is_none_of_ours() -> None:
    assert dependencies.CANARY.partition("==")[0] not in dict(pins(ROOT / "constraints.txt"))


@pytest.mark.parametrize("part", materials.EXTRAS)
def test_what_an_image_installs_is_pinned_and_is_that_of_its_dockerfile(part: str) -> None:
    extras = ",".join(materials.EXTRAS[part])
    assert f'".[{extras}]"' in (ROOT / f"Dockerfile.{part}").read_text()
    found = {canonicalize_name(one.metadata["Name"]): one.version for one in materials.installed(part)}
    pinned = dict(pins(ROOT / "constraints.txt"))
    assert {name: version.partition("+")[0] for name, version in found.items()} == {
        name: pinned[name] for name in found
    }
    assert {"httpx", "obstore"} <= found.keys()
    assert (found.keys() >= SCIENCE) is (part == "worker")
    assert not found.keys() & {"pytest", "bandit", "pip"}


def test_a_bill_has_what_is_in_the_image(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name, version in (("Alpha", "1.0"), ("beta", "2.0")):
        folder = root / f"opt/lobewise/lib/python3.11/site-packages/{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text('NAME="Debian"\nVERSION_ID="12"\n')
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u9\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n"
    )
    bill = json.loads(materials.write("api", root, tmp_path / "out").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "lobewise-api")
    assert {"name": "lobewise:origin", "value": "image"} in bill["metadata"]["properties"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert bill["metadata"]["component"]["version"] == version
    assert {component["purl"] for component in bill["components"]} == {
        "pkg:pypi/alpha@1.0",
        "pkg:pypi/beta@2.0",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64&distro=debian-12",
    }
