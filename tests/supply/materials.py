"""A CycloneDX bill of materials for each image: `make sbom`; `make images` writes that of what it built.

It comes from the image's own files where there are any (its distributions of Python and its packages of Debian), else
from what its Dockerfile installs, as constraints.txt pins it and `.venv` has it: without Debian's, and without our own.
Libraries that a wheel has inside (CUDA, OpenJPEG, Valkey) are parts of that wheel and not listed for themselves.
"""

import argparse
import json
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from email import message_from_string
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parents[2]
OUT: Final = ROOT / "build" / "sbom"
#: What each Dockerfile installs.
EXTRAS: Final = {"api": ("api", "tracing"), "worker": ("worker", "tracing")}


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", choices=[*EXTRAS, []], help="one image; both by default")
    for part in parser.parse_args().part or EXTRAS:
        path = write(part)
        count = len(json.loads(path.read_text())["components"])
        print(
            f"{path.relative_to(ROOT)}: {count} components, from constraints.txt; make images has them from the image"
        )
    return 0


def write(part: str, root: Path | None = None, out: Path = OUT) -> Path:
    """Write the bill of an image, whose files are below `root` if there are any. The answer is its file."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{part}.cdx.json"
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            packages = Path(folder) / "packages"
            packages.mkdir()
            for distribution in installed(part):
                # The folder of its metadata; `Distribution` has no public name for it.
                source = Path(str(distribution.locate_file(""))) / _metadata_folder(distribution)
                (packages / source.name).symlink_to(source)
        else:
            (packages,) = root.glob("opt/lobewise/lib/python3.*/site-packages")
        # cyclonedx-py asks an interpreter where its packages are. That of the image may not run here.
        interpreter = Path(folder) / "python"
        interpreter.write_text(f"#!/bin/sh\necho '{json.dumps([str(packages)])}'\n")
        interpreter.chmod(stat.S_IRWXU)
        program = str(Path(sys.executable).with_name("cyclonedx-py"))
        options = ["--no-validate", "--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible"]
        subprocess.run(
            [program, "environment", *options, "--output-file", str(path), str(interpreter)],
            check=True,
            capture_output=True,
        )
    bill: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    bill["metadata"]["component"]["name"] = f"lobewise-{part}"
    origin = "constraints" if root is None else "image"
    bill["metadata"].setdefault("properties", []).append({"name": "lobewise:origin", "value": origin})
    if root is not None:
        bill["components"] += debian(root)
    path.write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    return path


def installed(part: str) -> list[Distribution]:
    """What pip installs for an image, as `.venv` has it."""
    found: dict[str, Distribution] = {}
    asked = [("lobewise", extra) for extra in EXTRAS[part]]
    seen = set()
    while asked:
        name, extra = asked.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        distribution = Distribution.from_name(name)
        if name != "lobewise":
            found[name] = distribution
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                asked += [(canonicalize_name(requirement.name), more) for more in ("", *requirement.extras)]
    return [found[name] for name in sorted(found)]


def _metadata_folder(distribution: Distribution) -> str:
    (metadata,) = (file for file in distribution.files or () if file.name == "METADATA" and len(file.parts) == 2)
    return metadata.parts[0]


def debian(root: Path) -> list[dict[str, str]]:
    """Debian's packages of an image, as components."""
    release = dict(line.split("=", 1) for line in (root / "etc/os-release").read_text().splitlines() if "=" in line)
    distro = f"debian-{release.get('VERSION_ID', '').strip(chr(34))}"
    return [
        {
            "type": "library",
            "bom-ref": f"deb:{package['Package']}:{package['Architecture']}",
            "name": package["Package"],
            "version": package["Version"],
            "purl": f"pkg:deb/debian/{package['Package']}@{package['Version'].replace('+', '%2B')}"
            f"?arch={package['Architecture']}&distro={distro}",
        }
        for package in _dpkg(root)
    ]


def _dpkg(root: Path) -> Iterator[dict[str, str]]:
    for paragraph in (root / "var/lib/dpkg/status").read_text(encoding="utf-8").split("\n\n"):
        package = dict(message_from_string(paragraph).items())
        if package.get("Status", "").endswith(" installed"):
            yield package


if __name__ == "__main__":
    sys.exit(main())
