"""Uploads far larger than the memory they may take, in a gateway process of its own."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from .conftest import nifti

MIB = 1 << 20
SIZE_BYTES = 300 * MIB
ALLOWED_GROWTH_BYTES = 50 * MIB
PIECE = os.urandom(MIB)
BOUNDARY = b"--stream"


@contextmanager
def gateway(folder: Path) -> Iterator[tuple[str, int]]:
    """Its address and process id."""
    program = "from lobewise.api.app import run; run(port=0)"
    environment = {**os.environ, "LOBEWISE_DATA_DIR": str(folder), "LOBEWISE_MAX_UPLOAD_BYTES": str(400 * MIB)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield _address(process), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def _address(process: subprocess.Popen[str]) -> str:
    for line in process.stderr or ():
        if "running on" in line:
            return line.split("running on ")[1].split()[0]
    raise AssertionError("the gateway did not start")


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def body(digest: "hashlib._Hash") -> Iterator[bytes]:
    yield BOUNDARY + b'\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    for piece in (nifti(MIB), *[PIECE] * (SIZE_BYTES // MIB - 1)):
        digest.update(piece)
        yield piece
    yield b"\r\n" + BOUNDARY + b"--\r\n"


def test_memory_does_not_grow_with_the_upload(tmp_path: Path) -> None:
    with gateway(tmp_path) as (address, pid), httpx.Client(base_url=address, timeout=60) as client:
        small = client.post("/v1/jobs", files={"file": nifti()})  # what a first upload loads and keeps
        assert small.status_code == 202
        before = peak_bytes(pid)
        digest = hashlib.sha256()
        headers = {"Content-Type": "multipart/form-data; boundary=stream"}
        answer = client.post("/v1/jobs", content=body(digest), headers=headers)
        grown = peak_bytes(pid) - before
        assert answer.status_code == 202, answer.text
        assert answer.json()["input"]["sha256"] == digest.hexdigest()
        assert answer.json()["input"]["size_bytes"] == SIZE_BYTES
        assert grown < ALLOWED_GROWTH_BYTES
        print(f"grew by {grown / MIB:.1f} MiB")


def test_a_body_that_stands_still_ends_in_408(tmp_path: Path) -> None:
    from lobewise.api.settings import ApiSettings

    from .conftest import demand_problem, running_service

    def stalling() -> Iterator[bytes]:
        yield next(body(hashlib.sha256())) + nifti()
        time.sleep(1.5)

    with running_service(tmp_path / "service", ApiSettings(idle_seconds=0.3)) as service:
        headers = {"Content-Type": "multipart/form-data; boundary=stream"}
        answer = service.client.post("/v1/jobs", content=stalling(), headers=headers)
        assert demand_problem(answer, 408, "request-timeout")["evidence"] == {"idle_seconds": 0.3}
        assert not service.stored_files()
