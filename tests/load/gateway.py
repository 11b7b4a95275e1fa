"""A gateway as it is shipped, in a folder of its own, with the Valkey that it starts for itself."""

import http.client
import io
import json
import os
import signal
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

ROOT: Final = Path(__file__).resolve().parents[2]
BOUNDARY: Final = "load-7b1f"

#: Begins as a scan does; the gateway looks no deeper.
NIFTI: Final = (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0").ljust(1024, b"\0")
_POLL: Final = 'method="GET",route="/v1/jobs/{job_id}"'
_HEAD: Final = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'.encode()
_TAIL: Final = f"\r\n--{BOUNDARY}--\r\n".encode()


@dataclass
class Gateway:
    """A running gateway; `valkey` is the server that it started."""

    host: str
    port: int
    process: psutil.Process
    valkey: psutil.Process

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

    def within(self, milliseconds: int) -> float | None:
        """The share of all polls that the gateway answered in this time, by its own clock; None without polls."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=30) as answer:  # noqa: S310 (our own, http)
            lines = answer.read().decode().splitlines()
        found = {}
        for line in lines:
            name, _, value = line.rpartition(" ")
            if name.startswith("lobewise_http_request_seconds_bucket") and _POLL in name:
                found[name.partition('le="')[2].partition('"')[0]] = float(value)
        return found[str(milliseconds / 1000)] / found["+Inf"] if found else None

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
        process = _start(python, data)
        ours, children = psutil.Process(process.pid), list[psutil.Process]()
        try:
            host, port = _address(process.stderr or io.StringIO())
            children = ours.children(recursive=True)
            valkey = next(child for child in children if "valkey-server" in child.name())
            yield Gateway(host, port, ours, valkey)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            psutil.wait_procs(children, 30)  # Valkey writes to the folder until it has ended


def _start(python: Path, data: str) -> "subprocess.Popen[str]":
    given = {
        "LOBEWISE_DATA_DIR": data,
        "LOBEWISE_API_PORT": "0",
        "LOBEWISE_LOG_FORMAT": "json",
        "LOBEWISE_REUSE_RESULTS": "false",
    }
    return subprocess.Popen(
        [str(python), "-m", "api"], cwd=data, env={**os.environ, **given}, stderr=subprocess.PIPE, text=True
    )


def _address(log: IO[str]) -> tuple[str, int]:
    """Where it listens. The rest of its log is read, as by whoever collects logs, and forgotten."""
    said = []
    for line in log:
        said.append(line)
        if "running on http://" in line:
            threading.Thread(target=lambda: all(True for _ in log), daemon=True).start()
            host, _, port = line.split("running on http://")[1].split()[0].partition(":")
            return host, int(port)
    raise RuntimeError("the gateway did not start:\n" + "".join(said[-20:]))
