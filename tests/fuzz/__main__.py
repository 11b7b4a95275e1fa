"""Fuzz one format or all, one after the other, and say how many files were tried of each.

    python -m tests.fuzz --minutes 60 [--only nifti,zip] [--runs 1000000] [--corpus build/fuzz]

What breaks is kept in `tests/fuzz/crashes`, from where `tests/fuzz/test_fuzz.py` reads it; mend it, and keep the file.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

from tests.fuzz import FORMAT_NAMES

HERE = Path(__file__).parent
CRASHES = HERE / "crashes"
#: A file takes milliseconds; one that takes this long is a finding.
SLOWEST_SECONDS = 10
MOST_MIB = 2048
LONGEST_BYTES = 8192


def fuzz_in_this_process(name: str, found: Path, arguments: list[str]) -> None:
    """libFuzzer's loop; it ends the process, at the first fault, which is left in the folder `found`."""
    import atheris

    with atheris.instrument_imports(
        include=["pipeline.io.formats", "pydicom.filereader", "pydicom.fileutil", "zipfile"]
    ):
        from tests.fuzz.targets import FORMATS, Reader
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    reader = Reader(name)
    for seed in FORMATS[name][1]:
        (Path(arguments[-1]) / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)

    def try_one(content: bytes) -> None:
        try:
            reader.look(content)
            # Headers are where files differ; what follows them is tried with every 16th.
            if zlib.crc32(content) % 16 == 0:
                reader.read(content)
        except Exception:
            (found / f"broke-{hashlib.sha256(content).hexdigest()[:12]}").write_bytes(content)
            raise

    atheris.Setup([sys.argv[0], *arguments], try_one)
    atheris.Fuzz()


def fuzz(name: str, seconds: int, runs: int, corpus: Path) -> dict[str, object]:
    """One format in processes of its own, each of which ends at its first finding."""
    seeds = corpus / name
    seeds.mkdir(parents=True, exist_ok=True)
    began, done, found = time.monotonic(), 0, []
    while (left := seconds - (time.monotonic() - began)) > 1 and (not runs or done < runs):
        crashes = corpus / "found" / name
        crashes.mkdir(parents=True, exist_ok=True)
        before = set(crashes.iterdir())
        arguments = [
            f"-max_total_time={int(left)}",
            f"-max_len={LONGEST_BYTES}",
            f"-timeout={SLOWEST_SECONDS}",
            f"-rss_limit_mb={MOST_MIB}",
            f"-artifact_prefix={crashes}/",
            "-print_final_stats=1",
            *([f"-runs={runs - done}"] if runs else []),
            str(seeds),
        ]
        command = [sys.executable, "-m", "tests.fuzz", "--inside", name, "--found", str(crashes), "--", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", ended.stderr)
        done += int(counted[1]) if counted else 0
        if ended.returncode == 0:
            break
        kept = sorted(set(crashes.iterdir()) - before)
        if not kept:
            print(ended.stderr[-4000:], ended.stdout[-4000:], file=sys.stderr)
            raise SystemExit(f"the fuzzer of {name} ended by itself")
        CRASHES.mkdir(exist_ok=True)
        for path in kept:
            content = path.read_bytes()
            target = CRASHES / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
            target.write_bytes(content)
            said = re.findall(r"^\w*(?:Error|Exception|Warning)\b.*", ended.stdout + ended.stderr, re.M)
            found.append({"file": target.name, "said": said[-1][:300] if said else ended.stderr[-300:]})
            print(f"{name}: {found[-1]}", flush=True)
    return {
        "format": name,
        "executions": done,
        "seconds": round(time.monotonic() - began),
        "corpus": len(list(seeds.iterdir())),
        "findings": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=10, help="for all formats together")
    parser.add_argument("--only", default="", help="formats, divided by commas")
    parser.add_argument("--runs", type=int, default=0, help="at most, of each format")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        fuzz_in_this_process(chosen.inside, chosen.found, chosen.rest)
        return 0
    names = [name for name in FORMAT_NAMES if not chosen.only or name in chosen.only.split(",")]
    told = []
    for name in names:
        told.append(fuzz(name, int(chosen.minutes * 60 / len(names)), chosen.runs, chosen.corpus))
        print(json.dumps(told[-1]), flush=True)
    return 1 if any(result["findings"] for result in told) else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
