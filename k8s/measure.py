"""What a scan asks of bucket, broker and gateway: `.venv/bin/python -m k8s.measure`, after `make install`.

A gateway, a worker, a Valkey and an S3 server (SeaweedFS) run on this machine, and a proxy before the S3 server counts
requests. The scan is a phantom: requests are as with any scan, its bytes are not a patient's.
"""

import argparse
import re
import sys
import tempfile
import time
from asyncio import StreamWriter
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import httpx
import redis

from jobs.bootstrap import connect
from jobs.settings import JobsSettings
from pipeline.io.write import write_ct
from pipeline.phantom import PhantomRecipe, make_phantom
from tests.support.processes import answers, free_ports, running, until
from tests.support.proxy import Proxy
from tests.support.seaweed import seaweed

REQUEST: Final = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) (/[^ ]*) HTTP/1\.1\r\n")
MASKS: Final = ("lungs", "lobes", "lesions", "high-opacity")
SETTLE_SECONDS: Final = 1.0
LIMIT_SECONDS: Final = 600.0
Answer = TypeVar("Answer")


@dataclass
class Counts:
    """Requests and bytes that passed the proxy."""

    requests: Counter[str] = field(default_factory=Counter)
    up_bytes: int = 0
    down_bytes: int = 0


class CountingProxy(Proxy):
    """Between the service and the bucket; it changes nothing."""

    def __init__(self, target_port: int) -> None:
        self.counts = Counts()
        self._rest: dict[StreamWriter, bytes] = {}
        super().__init__(target_port)

    async def ask(self, data: bytes, server: StreamWriter, client: StreamWriter) -> bool:
        self.counts.up_bytes += len(data)
        rest, end = self._rest.get(server, b"") + data, 0
        for match in REQUEST.finditer(rest):
            self.counts.requests[_kind(match[1].decode(), match[2].decode())] += 1
            end = match.end()
        self._rest[server] = rest[end:][-4096:]  # a request's first line may be cut in two
        return await super().ask(data, server, client)

    async def answer(self, data: bytes, client: StreamWriter) -> bool:
        self.counts.down_bytes += len(data)
        return await super().answer(data, client)


def _kind(method: str, path: str) -> str:
    """As S3 bills it: listing is not getting."""
    return "LIST" if method == "GET" and "list-type=" in path else method


def told(proxy: CountingProxy, what: str, act: Callable[[], Answer]) -> Answer:
    """Do it, and print what it asked of the bucket."""
    proxy.counts = Counts()
    answer = act()
    time.sleep(SETTLE_SECONDS)
    counts = proxy.counts
    requests = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.requests.items())) or "nothing"
    print(f"{what}: {requests}; {counts.up_bytes} bytes up, {counts.down_bytes} down", flush=True)
    return answer


def resident_mib(pid: int) -> str:
    """Now and at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, most = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) // 1024 for name in ("VmRSS", "VmHWM"))
    return f"{now} MiB, at most {most}"


def await_that(is_so: Callable[[], bool]) -> None:
    if not until(is_so, LIMIT_SECONDS, 0.3):
        raise TimeoutError(f"not done after {LIMIT_SECONDS:g} s")


def post(client: httpx.Client, scan: bytes) -> str:
    answer = client.post("/v1/jobs", files={"file": ("scan", scan)}).raise_for_status()
    return str(answer.json()["id"])


def fetch(client: httpx.Client, path: str) -> None:
    client.get(path).raise_for_status()


def measure(client: httpx.Client, proxy: CountingProxy, scan: bytes, start_worker: Callable[[], object]) -> None:
    """A scan from end to end."""
    job = told(proxy, "submit", lambda: post(client, scan))
    told(proxy, "poll", lambda: client.get(f"/v1/jobs/{job}"))
    start_worker()
    begun = time.monotonic()
    told(proxy, "score", lambda: await_that(lambda: client.get(f"/v1/jobs/{job}").json()["status"] == "succeeded"))
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
        (api_port,) = free_ports(1)
        proxy = CountingProxy(urlsplit(bucket.endpoint).port or 0)
        stack.callback(proxy.close)
        settings = JobsSettings(data_dir=folder / "broker", redis_url=None, blob_url=folder.as_uri())
        broker = connect(settings)  # for its embedded Valkey alone
        stack.callback(broker.close)
        environment = {
            **bucket.environment,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            "LOBEWISE_BLOB_URL": "s3://lobewise/scans",
            "LOBEWISE_REDIS_URL": broker.settings.redis_url or "",
            "LOBEWISE_DATA_DIR": str(folder / "data"),
            "LOBEWISE_API_PORT": str(api_port),
        }
        api = stack.enter_context(running([sys.executable, "-m", "api"], environment, folder / "api.log"))
        address = f"http://127.0.0.1:{api_port}"
        client = stack.enter_context(httpx.Client(base_url=address, timeout=300))
        await_that(lambda: answers(f"{address}/healthz"))
        time.sleep(SETTLE_SECONDS)
        told(proxy, "20 seconds of nothing", lambda: time.sleep(20))
        print(f"gateway: {resident_mib(api.pid)}")
        worker = [sys.executable, "-m", "worker"]
        with ExitStack() as workers:
            log = folder / "worker.log"
            measure(client, proxy, scan, lambda: workers.enter_context(running(worker, environment, log)))
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
