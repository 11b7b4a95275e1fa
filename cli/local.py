"""Gateway, worker and sender on this machine, for `serve` and `demo`: embedded server, local blobs."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import httpx

from cli.output import ServiceError, require
from jobs.settings import AccessSettings, JobsSettings, read_settings

SUPERVISOR: Final = "LOBEWISE_SUPERVISOR_PID"

#: From asking a child to stop until it is killed.
GRACE_SECONDS: Final = 15.0

#: Its supervisor starts it again within a second or so; after that time it cannot.
LOST_SECONDS: Final = 30.0

#: Until /readyz says so: a worker loads torch and its networks first.
READY_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Child:
    """A process of ours; `log` is None where it writes to our own streams."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path | None

    def words(self) -> str:
        """How it ended, and the last it said."""
        code = self.process.poll()
        ended = "is running" if code is None else f"ended with {code}"
        said = "" if self.log is None else "\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return f"The {self.name} {ended}.{said}"


@contextmanager
def started(name: str, arguments: list[str], environment: Mapping[str, str], log: Path | None) -> Iterator[Child]:
    """Run `lobewise ARGUMENTS` until the block ends, however it ends."""
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else None
        # `-P`: a folder named `cli` or `jobs` where the user stands must not be taken for this package.
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-P", "-m", "cli", *arguments],
            env={**os.environ, **environment, SUPERVISOR: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that all that it starts can be killed with it
        )
        try:
            yield Child(name, process, log)
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
            finally:
                # Its whole session: a gateway or worker that was killed could not end what it started itself.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_until(is_so: Callable[[], bool], children: list[Child], seconds: float) -> None:
    """Raises ServiceError when a child ends first, or when the time is over."""
    deadline = time.monotonic() + seconds
    while not is_so():
        _raise_for_ended(children)
        if time.monotonic() > deadline:
            raise ServiceError("\n".join([f"Not ready after {seconds:.0f} s.", *(c.words() for c in children)]))
        time.sleep(0.1)


def watch(service: "LocalService") -> None:
    """Return never; raise ServiceError when a child ends, or the embedded server is gone for good."""
    answered_at = time.monotonic()
    while True:
        _raise_for_ended(service.children)
        if service.server_answers():
            answered_at = time.monotonic()
        elif time.monotonic() - answered_at > LOST_SECONDS:
            raise ServiceError(f"The embedded Valkey has not answered for {LOST_SECONDS:.0f} s: {service.server_log}.")
        time.sleep(0.5)


def _raise_for_ended(children: list[Child]) -> None:
    for child in children:
        if child.process.poll() is not None:
            raise ServiceError(child.words())


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that everything started in it is stopped.

    So does SIGINT where a shell that started this in the background had it ignored.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_supervisor() -> None:
    """In a child: be told to stop when the supervisor dies, even if it is killed (Linux)."""
    supervisor = os.environ.pop(SUPERVISOR, None)
    if supervisor is None or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    # It may have died before it was asked for the signal, which would then never come.
    if os.getppid() != int(supervisor):
        sys.exit(1)


@dataclass(frozen=True)
class LocalService:
    """Where it listens, and what runs."""

    address: str
    children: list[Child]
    #: Of the embedded server; one that was configured is its operator's to watch.
    server_answers: Callable[[], bool]
    server_log: str


@contextmanager
def local_service(
    host: str, port: int, data_dir: Path | None, device: str, logs: Path | None = None
) -> Iterator[LocalService]:
    """All processes, ready for jobs; ended with the block.

    This process holds the embedded server, which they join.

    Raises:
        ServiceError: a process ended, or no worker became ready.
        SettingsError: nobody can listen there, or other machines would, and nothing says who may.
        UnavailableError: the data folder cannot be used.
    """
    for module in ("fastapi", "torch"):
        require(module, "api,worker")
    settings = read_settings(JobsSettings, **({} if data_dir is None else {"data_dir": data_dir}))
    environment = {"LOBEWISE_DATA_DIR": str(settings.data_dir.resolve()), "LOBEWISE_DEVICE": device}
    # Not at the top: the client commands need neither Celery nor a server, and the worker's image has no gateway.
    from api.listening import local_address, require_free
    from jobs import embedded_redis
    from jobs.access.doors import Doors
    from jobs.access.keys import KeyRing
    from jobs.bootstrap import connect

    require_free(host, port)
    address = local_address(host, port)
    jobs = connect(settings)
    try:
        Doors(read_settings(AccessSettings), KeyRing(jobs.backends.store.blobs)).require_guarded(host)
        api = ["api", "--host", host, "--port", str(port)]
        with (
            started("gateway", api, environment, logs and logs / "api.log") as gateway,
            started("worker", ["worker"], environment, logs and logs / "worker.log") as worker,
            started("sender", ["sender"], environment, logs and logs / "sender.log") as sender,
        ):

            def is_ready() -> bool:
                # This machine's own gateway: the environment's proxies have no say.
                with suppress(httpx.TransportError):
                    return httpx.get(f"{address}/readyz", timeout=5, trust_env=False).status_code == httpx.codes.OK
                return False

            wait_until(is_ready, [gateway, worker, sender], READY_SECONDS)
            folder = settings.data_dir.resolve() / "valkey"

            def server_answers() -> bool:
                return settings.redis_url is not None or embedded_redis.running(folder) is not None

            log = f"its log is {folder / 'valkey.log'}"
            yield LocalService(address, [gateway, worker, sender], server_answers, log)
    finally:
        jobs.close()
