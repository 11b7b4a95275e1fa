"""One service for all clients: gateway, worker and sender, real scans, and what they may reach on this machine."""

import gzip
import hashlib
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from cli.local import free_port
from pipeline.geometry import Grid, Volume
from pipeline.io.write import write_ct
from pipeline.phantom import PhantomRecipe, make_phantom
from tests.support.processes import answers, running, until

ROOT: Final = Path(__file__).parents[2]
START_SECONDS: Final = 240.0
SCORE_SECONDS: Final = 300.0

#: Nobody allowed it.
REFUSED_URL: Final = "https://elsewhere.example/1.nii"

#: The smallest that the settings take, so that a scan of a few megabytes has several parts.
PART_BYTES: Final = 5 << 20


@dataclass(frozen=True)
class World:
    """What each driver is told, as JSON in the file that is its only argument.

    Attributes:
        scan: a file to submit by form, whose bytes are not those of the scored one.
        upload: a file of more than one part.
        source_url: where the worker can fetch `scan`.
        callback_url: a receiver that answers 204.
        scored: of the finished job that all may read: `job_id`, `percent_opacity`, and of the mask `lungs` the
            `sha256` and `size_bytes`.
    """

    address: str
    scan: str
    upload: str
    upload_sha256: str
    source_url: str
    source_sha256: str
    refused_url: str
    callback_url: str
    scored: dict[str, Any]


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """The service, once a scan has been scored by it.

    Raises:
        RuntimeError: it did not become ready, or the scan was not scored; the log is in the words.
    """
    scored, scan, upload = _scans(folder)
    with ExitStack() as stack:
        receiver = stack.enter_context(_receiver())
        files, certificate = stack.enter_context(_file_server(folder))
        port = free_port()
        environment = {
            "LOBEWISE_DATA_DIR": str(folder / "data"),
            "LOBEWISE_CALLBACK_ALLOWLIST": receiver,
            "LOBEWISE_SOURCE_ALLOWLIST": files,
            "LOBEWISE_UPLOAD_PART_BYTES": str(PART_BYTES),
            "SSL_CERT_FILE": str(certificate),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "cli", "serve", "--port", str(port), "--device", "cpu"]
        log = folder / "log"
        served = stack.enter_context(running(command, environment, log, ROOT))
        address = f"http://127.0.0.1:{port}"
        if not until(lambda: served.poll() is not None or answers(f"{address}/readyz"), START_SECONDS, 0.2):
            raise RuntimeError(f"not ready after {START_SECONDS:.0f} s\n{log.read_text()}")
        if served.poll() is not None:
            raise RuntimeError(log.read_text())
        yield World(
            address=address,
            scan=str(scan),
            upload=str(upload),
            upload_sha256=hashlib.sha256(upload.read_bytes()).hexdigest(),
            source_url=f"{files}{scan.name}",
            source_sha256=hashlib.sha256(scan.read_bytes()).hexdigest(),
            refused_url=REFUSED_URL,
            callback_url=receiver,
            scored=_score(address, scored),
        )


def document() -> dict[str, Any]:
    """The OpenAPI document, as a client would get it from `/openapi.json`."""
    from api.app import create_app

    made: dict[str, Any] = json.loads(json.dumps(create_app().openapi()))
    return made


def _scans(folder: Path) -> tuple[Path, Path, Path]:
    """One to score, one to submit, and one for an upload in parts: the same phantom in other bytes."""
    volume = make_phantom(PhantomRecipe(seed=11, spacing_mm=(3.0, 2.5, 4.0), percent_opacity=15.0)).volume
    scored, scan, upload = (folder / name for name in ("scored.nii.gz", "scan.nii.gz", "upload.nii"))
    write_ct(scored, volume)
    scan.write_bytes(gzip.compress(gzip.decompress(scored.read_bytes()), 1, mtime=1))
    grid = volume.grid
    shape, spacing = (tuple(n * 2 for n in grid.shape), tuple(mm / 2 for mm in grid.spacing_mm))
    finer = Grid(shape, spacing, grid.origin_mm, grid.direction)  # type: ignore[arg-type]
    write_ct(upload, Volume(np.repeat(np.repeat(np.repeat(volume.hu, 2, 0), 2, 1), 2, 2), finer))
    upload.write_bytes(gzip.decompress(upload.read_bytes()))
    if upload.stat().st_size <= PART_BYTES:
        raise RuntimeError("the upload has one part only")
    return scored, scan, upload


def _score(address: str, scan: Path) -> dict[str, Any]:
    with httpx.Client(base_url=address, timeout=90) as client:
        job = client.post("/v1/jobs", files={"file": scan.open("rb")}).raise_for_status().json()
        path = f"/v1/jobs/{job['id']}"

        def is_final() -> bool:
            return client.get(path).json()["status"] not in ("queued", "running")

        until(is_final, SCORE_SECONDS, 0.5)
        job = client.get(path).json()
        if job["status"] != "succeeded":
            raise RuntimeError(f"the scan was not scored: {job}")
        lungs = client.get(f"{path}/masks/lungs").raise_for_status().content
    return {
        "job_id": job["id"],
        "percent_opacity": job["severity"]["percent_opacity"],
        "sha256": hashlib.sha256(lungs).hexdigest(),
        "size_bytes": len(lungs),
    }


@contextmanager
def _receiver() -> Iterator[str]:
    """Answers each callback 204."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/ended"
        server.shutdown()


@contextmanager
def _file_server(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of the folder over https, since workers fetch from nowhere else, and the certificate to trust."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made_with = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    named = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run(
        ["openssl", *made_with, *named, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=os.fspath(folder))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}/", certificate
        server.shutdown()
