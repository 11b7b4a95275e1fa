"""Runs bandit over what ships; each finding is mended, or has its reason on its line: `make audit-code`.

ruff knows bandit's rules as S101 and so on, and a line says `noqa: S603 (why)` to it. The same words count here, so
that an exception stands once, with its reason.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
ROOMS: Final = ("api", "jobs", "worker", "pipeline", "cli", "training", "evaluation", "clients/python/lobewise_client")
#: What imports a module, and not what is done with it, which has rules of its own: subprocess, pickle, XML.
IMPORTS: Final = ("B403", "B404", "B405")
_REASON: Final = re.compile(r"noqa: ([A-Z0-9, ]+) \(.+\)")


def main() -> int:
    """The exit code."""
    report = bandit(*(ROOT / room for room in ROOMS))
    found = list(unexplained(report))
    lines = sum(file["loc"] for name, file in report["metrics"].items() if name != "_totals")
    print(*found, f"bandit: {lines} lines, {len(report['results'])} findings, {len(found)} without a reason", sep="\n")
    return 1 if found or report["errors"] else 0


def bandit(*paths: Path) -> dict[str, Any]:
    """Its report of these files and folders."""
    program = Path(sys.executable).with_name("bandit")
    command = [program, "--quiet", "--format", "json", "--skip", ",".join(IMPORTS), "--recursive", *paths]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"bandit failed: {done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def unexplained(report: dict[str, Any]) -> Iterator[str]:
    """A line for each finding whose statement does not say why it is as it should be."""
    for issue in report["results"]:
        lines = Path(issue["filename"]).read_text(encoding="utf-8").splitlines()
        comments = (_REASON.search(lines[number - 1]) for number in issue["line_range"])
        said = {name.strip() for comment in comments if comment for name in comment[1].split(",")}
        if issue["test_id"].replace("B", "S", 1) not in said:
            yield f"{issue['filename']}:{issue['line_number']}: {issue['test_id']} {issue['issue_text']}"


if __name__ == "__main__":
    sys.exit(main())
