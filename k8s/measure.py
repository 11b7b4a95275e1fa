"""What a scan asks of bucket, broker and gateway: `.venv/bin/python -m k8s.measure`, after `make install`.

A gateway, a worker, a Valkey and an S3 server (SeaweedFS) run on this machine, and a proxy before the S3 server counts
requests. The scan is a phantom: requests are as with any scan, its bytes are not a patient's.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx
import redis

from jobs.bootstrap import connect
from jobs.settings import JobsSettings
from pipeline.io.write import write_ct
from pipeline.phantom import PhantomRecipe, make_phantom
from tests.support.seaweed import free_ports, seaweed

REQUEST: Final = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) (/[^ ]*) HTTP/1\.1\r\n")
MASKS: Final = ("lungs", "lobes", "lesions", "high-opacity")
SETTLE_SECONDS: Final = 1.0
Answer = TypeVar("Answer")


@dataclass
class Counts:
    """Requests and bytes that passed the proxy."""

    requests: Counter[str] = field(default_factory=Counter)
    up_bytes: int = 0
    down_bytes: int = 0


class Proxy:
    """Between the service and the bucket; it changes nothing."""

    def __init__(self, port: int, behind: int) -> None:
        self.counts = Counts()
        self._port, self._behind = port, behind
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._meet, "127.0.0.1", self._port)
        await server.serve_forever()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_connection("127.0.0.1", self._behind)
        await asyncio.gather(self._up(reader, ahead), self._down(behind, writer), return_exceptions=True)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rest = b""
        while piece := await reader.read(1 << 16):
            self.counts.up_bytes += len(piece)
            rest += piece
            end = 0
            for match in REQUEST.finditer(rest):
                self.counts.requests[_kind(match[1].decode(), match[2].decode())] += 1
                end = match.end()
            rest = rest[end:][-4096:]  # a request's first line may be cut in two
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            self.counts.down_bytes += len(piece)
            writer.write(piece)
            await writer.drain()
        writer.close()


def _kind(method: str, path: str) -> str:
    """As S3 bills it: listing is not getting."""
    return "LIST" if method == "GET" and "list-type=" in path else method


def told(proxy: Proxy, what: str, act: Callable[[], Answer]) -> Answer:
    """Do it, and print what it asked of the bucket."""
    proxy.counts = Counts()
    answer = act()
    time.sleep(SETTLE_SECONDS)
    counts = proxy.counts
    requests = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.requests.items())) or "nothing"
    print(f"{what}: {requests}; {counts.up_bytes} bytes up, {counts.down_bytes} down", flush=True)
    return answer


@contextmanager
def process(arguments: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as stream:
        child = subprocess.Popen([sys.executable, *arguments], env=environment, stderr=stream)  # noqa: S603 (our own)
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


def resident_mib(pid: int) -> str:
    """Now and at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, most = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) // 1024 for name in ("VmRSS", "VmHWM"))
    return f"{now} MiB, at most {most}"


def until(done: Callable[[], Any], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not done after {seconds:g} s")
        time.sleep(0.3)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False


def post(client: httpx.Client, scan: bytes) -> str:
    answer = client.post("/v1/jobs", files={"file": ("scan", scan)}).raise_for_status()
    return str(answer.json()["id"])


def fetch(client: httpx.Client, path: str) -> None:
    client.get(path).raise_for_status()


def measure(client: httpx.Client, proxy: Proxy, scan: bytes, start_worker: Callable[[], object]) -> None:
    """A scan from end to end."""
    job = told(proxy, "submit", lambda: post(client, scan))
    told(proxy, "poll", lambda: client.get(f"/v1/jobs/{job}"))
    start_worker()
    begun = time.monotonic()
    told(proxy, "score", lambda: until(lambda: client.get(f"/v1/jobs/{job}").json()["status"] == "succeeded"))
    print(f"(in {time.monotonic() - begun:.0f} s, loading included)")
    told(proxy, "report", partial(fetch, client, f"/v1/jobs/{job}/report"))
    for mask in MASKS:
        told(proxy, f"mask {mask}", partial(fetch, client, f"/v1/jobs/{job}/masks/{mask}"))
    told(proxy, "delete", lambda: client.delete(f"/v1/jobs/{job}").raise_for_status())


def main() -> None:
    """Print a line for each step."""
    options = _parser().parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_ct(folder / "ct.nii.gz", make_phantom(PhantomRecipe(seed=11, spacing_mm=tuple(options.spacing))).volume)
        scan = (folder / "ct.nii.gz").read_bytes()
        (folder / "s3").mkdir()
        bucket = stack.enter_context(seaweed(folder / "s3"))
        bucket.make_bucket("lobewise")
        port, api_port = free_ports(2)
        proxy = Proxy(port, urlsplit(bucket.endpoint).port or 0)
        settings = JobsSettings(data_dir=folder / "broker", redis_url=None, blob_url=folder.as_uri())
        broker = connect(settings)  # for its embedded Valkey alone
        stack.callback(broker.close)
        environment = {
            **os.environ,
            **bucket.environment,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "LOBEWISE_BLOB_URL": "s3://lobewise/scans",
            "LOBEWISE_REDIS_URL": broker.settings.redis_url or "",
            "LOBEWISE_DATA_DIR": str(folder / "data"),
            "LOBEWISE_API_PORT": str(api_port),
        }
        run = "from api.app import run; run()"
        api = stack.enter_context(process(["-c", run], environment, folder / "api.log"))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{api_port}", timeout=300))
        until(lambda: answers(client))
        time.sleep(SETTLE_SECONDS)
        told(proxy, "20 seconds of nothing", lambda: time.sleep(20))
        print(f"gateway: {resident_mib(api.pid)}")
        worker = ["-m", "worker"]
        with ExitStack() as workers:
            log = folder / "worker.log"
            measure(client, proxy, scan, lambda: workers.enter_context(process(worker, environment, log)))
        server = stack.enter_context(redis.Redis.from_url(environment["LOBEWISE_REDIS_URL"]))
        before = int(server.info("memory")["used_memory"])
        for _ in range(options.jobs):
            post(client, scan[:2000])
        print(f"broker: {(int(server.info('memory')['used_memory']) - before) / options.jobs:.0f} bytes a queued job")
        post(client, scan[:2000] + bytes(300 << 20))
        print(f"gateway after a scan of 300 MiB: {resident_mib(api.pid)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure what a scan asks for.")
    parser.add_argument("--spacing", type=float, nargs=3, default=(4.0, 4.0, 5.0), help="of the phantom: z, y, x in mm")
    parser.add_argument("--jobs", type=int, default=300, help="queued for the broker's figure")
    return parser


if __name__ == "__main__":
    main()
