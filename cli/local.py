"""Gateway, worker and sender on this machine, for `serve` and `demo`: embedded server, local blobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.client import ServiceClient
from cli.exits import require
from cli.processes import Child, started, wait_until
from jobs.bootstrap import connect
from jobs.settings import JobsSettings, read_settings

READY_SECONDS = 120.0


@dataclass(frozen=True)
class LocalService:
    """Where it listens, and what runs."""

    address: str
    children: list[Child]


@contextmanager
def local_service(
    host: str, port: int, data_dir: Path | None, device: str, logs: Path | None = None
) -> Iterator[LocalService]:
    """All processes, ready for jobs; ended with the block.

    This process holds the embedded server, which they join.

    Raises:
        ServiceFailedError: a process ended, or no worker became ready.
    """
    for module in ("fastapi", "torch"):
        require(module, "api,worker")
    settings = read_settings(JobsSettings, **({} if data_dir is None else {"data_dir": data_dir}))
    environment = {"LOBEWISE_DATA_DIR": str(settings.data_dir.resolve()), "LOBEWISE_DEVICE": device}
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 (it compares, it does not bind)
    jobs = connect(settings)
    try:
        api = ["api", "--host", host, "--port", str(port)]
        with (
            started("gateway", api, environment, logs and logs / "api.log") as gateway,
            started("worker", ["worker"], environment, logs and logs / "worker.log") as worker,
            started("sender", ["sender"], environment, logs and logs / "sender.log") as sender,
            ServiceClient(address) as client,
        ):
            wait_until(client.is_ready, [gateway, worker, sender], READY_SECONDS)
            yield LocalService(address, [gateway, worker, sender])
    finally:
        jobs.close()
