"""A disk that is full, blobs and Valkey's file on it: nobody dies, and what gives space back is still done."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import states
from jobs.bootstrap import Connection, connect
from jobs.errors import BrokerUnavailableError, StorageUnavailableError
from jobs.models import JobRecord, JobStatus
from jobs.settings import JobsSettings
from jobs.store.object_store import RESERVE, RESERVE_BYTES
from tests.jobs.conftest import upload
from tests.support.processes import running, until

ROOT = Path(__file__).parents[2]
SIZE_MIB = 48


def mounts() -> bool:
    """Whether this machine lets a user mount in a namespace of his own."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not mounts(), reason="needs user namespaces, to mount a small disk")
def test_jobs_are_cancelled_and_deleted_and_the_worker_lives(tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    script = f'mount -t tmpfs -o size={SIZE_MIB}m tmpfs "$1" && exec "$2" -P -m tests.jobs.test_full_disk "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(disk), sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all is well"


def on_the_small_disk(disk: Path) -> None:
    """In a process with that disk."""
    settings = JobsSettings(data_dir=disk / "data", reap_seconds=0.5, lease_seconds=2, heartbeat_seconds=0.5)
    jobs = connect(settings)
    jobs.reconciler.rebuild()
    first, second, third = (accepted(jobs, b'{"do": "score"}' + b" " * (1 << 20)) for _ in range(3))
    order = disk.parent / "worker.log"
    environment = {
        "LOBEWISE_DATA_DIR": str(settings.data_dir),
        "LOBEWISE_REDIS_URL": jobs.settings.redis_url or "",
        "LOBEWISE_BLOB_URL": jobs.settings.blob_url or "",
    }
    fill(disk)
    assert until(lambda: not takes_changes(jobs), 20, 0.2), "Valkey still writes"
    worker = [sys.executable, "-P", str(ROOT / "tests" / "support" / "tiny_worker.py")]
    with running(worker, environment, order) as process:
        time.sleep(4)
        assert process.poll() is None, order.read_text()
        with pytest.raises(StorageUnavailableError):
            jobs.backends.store.blobs.create("doctor/full", bytes(1 << 20))
        assert jobs.service.cancel(first).status is JobStatus.CANCELLED
        reserve = settings.data_dir / "blobs" / RESERVE
        assert not reserve.exists()  # it was needed
        jobs.service.purge(second)
        assert reserve.stat().st_size == RESERVE_BYTES  # what the scan took, and more, is held back again
        (disk / "filler").unlink()
        assert until(lambda: takes_changes(jobs), 20, 0.2), "Valkey writes no more"
        jobs.reconciler.start()
        assert until(lambda: jobs.service.get(third).status.is_final, 90), order.read_text()
        assert process.poll() is None, order.read_text()
    assert jobs.service.get(third).status is JobStatus.SUCCEEDED
    jobs.close()
    print("all is well")


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        for piece in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(piece))
            except OSError:
                continue


def accepted(jobs: Connection, scan: bytes) -> str:
    job_id = states.new_id()
    record = JobRecord(id=job_id, created_at=states.now(), input=upload(jobs, job_id, scan))
    return jobs.service.accept(record).id


def takes_changes(jobs: Connection) -> bool:
    try:
        jobs.backends.live.recovery.lead("nobody", 0.001)
    except BrokerUnavailableError:
        return False
    return True


if __name__ == "__main__":
    on_the_small_disk(Path(sys.argv[1]))
