"""A gateway as it is shipped, in a folder of its own, with the Valkey that it starts for itself."""

import http.client
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).resolve().parents[1]
START_SECONDS: Final = 30
BOUNDARY: Final = "load-7b1f"
NIFTI: Final = (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0").ljust(1024, b"\0")
"""Begins as a scan does; the gateway looks no deeper."""
_HEAD: Final = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'.encode()
_TAIL: Final = f"\r\n--{BOUNDARY}--\r\n".encode()


@dataclass
class Gateway:
    """A running gateway; `valkey` is the server that it started."""

    host: str
    port: int
    process: psutil.Process
    valkey: psutil.Process
    folder: Path

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    def post(self, pieces: Iterator[bytes], size_bytes: int) -> str:
        """Send a form of this size; the answer is the job's id."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        try:
            headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "Content-Length": str(size_bytes)}
            connection.request("POST", "/v1/jobs", body=pieces, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 202:
                raise RuntimeError(f"the gateway answered {answer.status}: {body[:500]!r}")
            return str(json.loads(body)["id"])
        finally:
            connection.close()

    def submit(self, size_bytes: int) -> str:
        """Post a scan of about this size."""
        return self.post(*form(size_bytes))


def form(size_bytes: int) -> tuple[Iterator[bytes], int]:
    """A multipart form with a file of at least `size_bytes`, in pieces, and its length."""
    piece = os.urandom(1 << 20)
    count = max(size_bytes - len(NIFTI), 0) // len(piece)

    def pieces() -> Iterator[bytes]:
        yield _HEAD + NIFTI
        for _ in range(count):
            yield piece
        yield _TAIL

    return pieces(), len(_HEAD) + len(NIFTI) + count * len(piece) + len(_TAIL)


@contextmanager
def running(python: Path, folder: Path) -> Iterator[Gateway]:
    """Start a gateway whose data lie in a new folder below `folder`; both end here."""
    with tempfile.TemporaryDirectory(prefix="lobewise-load-", dir=folder) as data:
        log = Path(data) / "gateway.log"
        environment = {
            **os.environ,
            "LOBEWISE_DATA_DIR": data,
            "LOBEWISE_API_PORT": "0",
            "LOBEWISE_LOG_FORMAT": "json",
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(python), "-m", "lobewise.api"], cwd=data, env=environment, stdout=output, stderr=output
            )
        started = psutil.Process(process.pid)
        children: list[psutil.Process] = []
        try:
            gateway = _started(process, log, Path(data))
            children = started.children(recursive=True)
            yield gateway
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            psutil.wait_procs(children, 30)  # Valkey writes to the folder until it has ended


def _started(process: "subprocess.Popen[bytes]", log: Path, folder: Path) -> Gateway:
    url = _address(process, log)
    host, _, port = url.removeprefix("http://").rpartition(":")
    ours = psutil.Process(process.pid)
    valkey = next(p for p in ours.children(recursive=True) if "valkey-server" in p.name())
    return Gateway(host, int(port), ours, valkey, folder)


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    for _ in range(START_SECONDS * 20):
        for line in log.read_text().splitlines():
            if "running on" in line:
                return line.split("running on ")[1].split()[0].strip('"')
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        break
    raise RuntimeError(f"the gateway did not start:\n{log.read_text()[-2000:]}")
