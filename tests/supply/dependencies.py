"""Asks pip-audit for vulnerabilities of all that constraints.txt pins: `make audit-dependencies`.

An index without such data answers as one that knows of none. So a release that is known to be vulnerable is asked
for, too: where that is not told, nothing was audited, and the answer says so.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
#: Nothing of ours: it has some dozens of vulnerabilities since 2018.
CANARY: Final = "django==2.0"
FOUND, NOT_AUDITED = 1, 3
TRIES_SECONDS: Final = 300


def main() -> int:
    """The exit code: 0 where each was audited and none is vulnerable, 1 where one is, 3 where that is not known."""
    report = audit((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    code, text = result(report)
    print(text, file=sys.stderr if code else sys.stdout)
    return code


def audit(pins: str) -> dict[str, Any] | None:
    """pip-audit's report of these pins and the canary; None where it gave none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pins.txt"
        path.write_text(f"{pins}\n{CANARY}\n", encoding="utf-8")
        program = str(Path(sys.executable).with_name("pip-audit"))
        command = [program, "--requirement", str(path), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        try:
            done = subprocess.run(
                [*command, "--format", "json"], capture_output=True, text=True, check=False, timeout=TRIES_SECONDS
            )
            report: dict[str, Any] = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError):
            return None
        return report


def result(report: dict[str, Any] | None) -> tuple[int, str]:
    """The exit code, and what is said."""
    canary, *_ = CANARY.split("==")
    entries = report["dependencies"] if report is not None else []
    ours = [entry for entry in entries if entry["name"] != canary]
    silent = sorted(entry["name"] for entry in ours if "vulns" not in entry or "skip_reason" in entry)
    knows = any(entry["name"] == canary and entry.get("vulns") for entry in entries)
    vulnerable = [
        f"{entry['name']} {entry['version']}: {one['id']}, mended in {', '.join(one['fix_versions']) or 'no release'}"
        for entry in ours
        for one in entry.get("vulns", ())
    ]
    if vulnerable:
        return FOUND, "\n".join(["VULNERABLE:", *vulnerable])
    if not knows:
        return NOT_AUDITED, (
            "NOT AUDITED: the index here has no vulnerability data (it knows nothing of a release that is known to be "
            f"vulnerable, {CANARY}). Whether what constraints.txt pins is vulnerable is NOT KNOWN: this is no clean "
            "result."
        )
    if silent:
        return NOT_AUDITED, f"NOT AUDITED: {len(silent)} of {len(ours)} are not known there: {', '.join(silent)}."
    return 0, f"{len(ours)} pinned distributions audited: no known vulnerability."


if __name__ == "__main__":
    sys.exit(main())
