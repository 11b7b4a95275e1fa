"""Send every hostile file through a whole service, and say what it cost.

    python -m tests.support.hostile [--only zip] [--store FOLDER]

Each file goes to POST /v1/validate, as a client would send it; the gateway refuses it, or a worker reads it in the
sandbox. The command fails where an answer is not the expected one, is a 5xx or quotes what it must not, where a file
takes longer than `LONGEST_SECONDS`, or where a worker dies.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import httpx

from cli.local import free_port
from tests.support.hostile.cases import CASES, READ, Case
from tests.support.processes import answers, running, until

LONGEST_SECONDS = 10.0
#: What differs between a quick machine and the gateway's own turns.
START_SECONDS = 240.0


def faults_of(case: Case, content: bytes, client: httpx.Client) -> tuple[list[str], float]:
    """What is wrong with the service's answer, and the seconds that it took."""
    if not content:  # a form with an empty file is one without a file: the gateway says so
        case = replace(case, status=422, problem="invalid-parameters")
    began = time.monotonic()
    answer = client.post("/v1/validate", files={"file": ("scan", content)}, headers={"Prefer": "wait=60"})
    faults = []
    if answer.status_code not in (200, 202, case.status):
        faults.append(f"answered {answer.status_code}, not {case.status}")
    told = answer.json()
    while "status" in told and told["status"] in ("queued", "running"):
        time.sleep(0.1)
        told = client.get(f"/v1/jobs/{told['id']}").json()
    seconds = time.monotonic() - began
    if case.status == 202:
        ended = told["error"]["type"] if told.get("error") else READ if told.get("status") == "succeeded" else str(told)
    else:
        ended = told["type"]
    if ended.rpartition("/")[2] != case.problem:
        faults.append(f"ended as {ended}, not {case.problem}")
    if "ENAJ" in json.dumps(told, ensure_ascii=False):
        faults.append("the answer quotes a name")
    if seconds > LONGEST_SECONDS:
        faults.append(f"took {seconds:.1f} s")
    return faults, seconds


def _peak_mib(pid: int) -> dict[int, int]:
    """Of the process and all below it that live: the most memory each has had."""
    from tests.e2e.conftest import descendants_of

    found = {}
    for one in (pid, *descendants_of(pid)):
        try:
            status = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        found[one] = next((int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.hostile")
    parser.add_argument("--only", default="", help="files whose name has this in it")
    chosen = parser.parse_args()
    cases = [case for case in CASES if chosen.only in case.name]
    with tempfile.TemporaryDirectory(prefix="lobewise-hostile-") as name:
        folder, port = Path(name), free_port()
        command = [sys.executable, "-m", "cli", "serve", "--port", str(port), "--device", "cpu"]
        with running(command, {"LOBEWISE_DATA_DIR": str(folder / "data")}, folder / "log") as served:
            address = f"http://127.0.0.1:{port}"
            if not until(lambda: answers(f"{address}/readyz"), START_SECONDS, 0.2):
                raise SystemExit((folder / "log").read_text())
            before = _peak_mib(served.pid)
            wrong, slowest = 0, ("", 0.0)
            with httpx.Client(base_url=address, timeout=120) as client:
                for case in cases:
                    faults, seconds = faults_of(case, case.make(), client)
                    wrong += bool(faults)
                    slowest = max(slowest, (case.name, seconds), key=lambda pair: pair[1])
                    if faults:
                        print(f"{case.name}: {'; '.join(faults)}", flush=True)
                ready = client.get("/readyz").status_code
            after = _peak_mib(served.pid)
            died = sorted(set(before) - set(after))
            wrong += bool(died) + (ready != 200)
            report = {
                "files": len(cases),
                "wrong": wrong,
                "slowest": {"file": slowest[0], "seconds": round(slowest[1], 1)},
                "processes_that_died": len(died),
                "peak_mib": max(after.values()),
                "ready_at_the_end": ready == 200,
            }
            print(json.dumps(report))
            log = (folder / "log").read_text(errors="replace")
            if "Traceback" in log:
                print(log[-4000:])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
