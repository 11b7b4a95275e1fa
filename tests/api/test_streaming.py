"""Uploads far larger than the memory they may take, in a gateway process of its own."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from .conftest import nifti

MIB = 1 << 20
SIZE_BYTES = 300 * MIB
ALLOWED_GROWTH_BYTES = 32 * MIB
PIECE = os.urandom(MIB)
BOUNDARY = b"--stream"


@contextmanager
def gateway(folder: Path) -> Iterator[tuple[str, int]]:
    """Its address and process id."""
    program = "from api.app import run; run(port=0)"
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


def test_polls_are_answered_while_many_scans_come_in(tmp_path: Path) -> None:
    """More than there are threads for them, all in the middle of their bodies."""
    count, begun, finish = 60, threading.Semaphore(0), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield next(body(hashlib.sha256())) + nifti(MIB)
        begun.release()
        assert finish.wait(60)
        yield b"\r\n" + BOUNDARY + b"--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=stream"}
    with gateway(tmp_path) as (address, _), ThreadPoolExecutor(count) as pool, httpx.Client(base_url=address) as client:
        job = client.post("/v1/jobs", files={"file": nifti()}).json()["links"]["self"]
        posts = [
            pool.submit(httpx.post, f"{address}/v1/jobs", content=slowly(), headers=headers, timeout=60)
            for _ in range(count)
        ]
        assert all(begun.acquire(timeout=30) for _ in range(count))
        assert [client.get(job, timeout=5).status_code for _ in range(20)] == [200] * 20
        finish.set()
        assert [post.result().status_code for post in posts] == [202] * count


def test_a_body_that_stands_still_ends_in_408(tmp_path: Path) -> None:
    from jobs.settings import ApiSettings

    from .conftest import require_problem, running_service

    def stalling() -> Iterator[bytes]:
        yield next(body(hashlib.sha256())) + nifti()
        time.sleep(1.5)

    with running_service(tmp_path / "service", ApiSettings(idle_seconds=0.3)) as service:
        headers = {"Content-Type": "multipart/form-data; boundary=stream"}
        answer = service.client.post("/v1/jobs", content=stalling(), headers=headers)
        assert require_problem(answer, 408, "request-timeout")["evidence"] == {"idle_seconds": 0.3}
        assert not service.stored_files()


def test_scans_past_the_limit_are_refused_and_told_when_to_come_back(tmp_path: Path) -> None:
    from jobs.settings import ApiSettings

    from .conftest import require_problem, running_service

    begun, finish = threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield next(body(hashlib.sha256())) + nifti()
        begun.set()
        assert finish.wait(30)
        yield b"\r\n" + BOUNDARY + b"--\r\n"

    with running_service(tmp_path / "service", ApiSettings(max_uploads=1)) as service, ThreadPoolExecutor() as pool:
        headers = {"Content-Type": "multipart/form-data; boundary=stream"}
        first = pool.submit(httpx.post, f"{service.address}/v1/jobs", content=slowly(), headers=headers, timeout=30)
        assert begun.wait(30)
        refused = until_refused(service.client)
        assert require_problem(refused, 503, "too-many-uploads")["evidence"] == {"limit": 1}
        finish.set()
        job_id = first.result().json()["id"]
        assert service.client.get(f"/v1/jobs/{job_id}").status_code == 200  # polls are never refused
        assert service.submit()


def until_refused(client: httpx.Client) -> httpx.Response:
    """The first upload may take a moment to arrive."""
    for _ in range(100):
        answer = client.post("/v1/jobs", files={"file": nifti()})
        if answer.status_code == 503:
            return answer
        time.sleep(0.02)
    raise AssertionError("the limit refuses nobody")
