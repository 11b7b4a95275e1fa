"""Real workers on a restored copy, and on what older and newer versions left: docs/backup-and-upgrades.md, tried."""

import asyncio
import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from jobs import states
from jobs.bootstrap import Connection, connect
from jobs.errors import JobPurgedError
from jobs.models import InputInfo, JobRecord, JobStatus, MaskName
from jobs.settings import JobsSettings
from tests.support.processes import until

TINY_WORKER = Path(__file__).parents[1] / "support" / "tiny_worker.py"
FIRST = Path(__file__).parents[1] / "jobs" / "records-0"
FAST: dict[str, Any] = {"lease_seconds": 1.5, "heartbeat_seconds": 0.2, "reap_seconds": 0.3, "retry_seconds": 0.2}
FIRST_PASSES = (["manifest.json", "batch.json"], ["pending-*.json"], ["job.json"])
"""As in the document: what tells of other blobs is copied before them; then come those, and tombstones at the end."""

pytestmark = pytest.mark.timeout(240)


class Site:
    """A data folder, a gateway's end of it, and workers."""

    def __init__(self, folder: Path, blobs: Path | None = None) -> None:
        self.folder, self.blobs = folder, folder / "data" / "blobs"
        if blobs is not None:
            shutil.copytree(blobs, self.blobs)
        self.jobs: Connection = connect(JobsSettings(data_dir=folder / "data", redis_url=None, **FAST))
        self.jobs.reconciler.rebuild()
        self.jobs.reconciler.start()
        self.workers: list[subprocess.Popen[bytes]] = []

    def start_worker(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "LOBEWISE_REDIS_URL")}
        environment |= {f"LOBEWISE_{name.upper()}": str(value) for name, value in FAST.items()}
        environment |= {"LOBEWISE_DATA_DIR": str(self.folder / "data"), "TMPDIR": str(self.folder)}
        with (self.folder / "worker.log").open("ab") as log:
            self.workers.append(
                subprocess.Popen([sys.executable, str(TINY_WORKER)], env=environment, stdout=log, stderr=log)
            )

    def post(self, order: dict[str, Any]) -> str:
        job_id = states.new_id()

        async def stream() -> InputInfo:
            sink = self.jobs.service.open_upload(job_id)
            await sink.write(json.dumps(order).encode())
            return await sink.finish()

        return self.jobs.service.accept(JobRecord(id=job_id, created_at=states.now(), input=asyncio.run(stream()))).id

    def close(self) -> None:
        for process in self.workers:
            process.terminate()
        for process in self.workers:
            process.wait(30)
        self.jobs.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def site(name: str, blobs: Path | None = None) -> Site:
        (tmp_path / name).mkdir()
        sites.append(Site(tmp_path / name, blobs))
        return sites[-1]

    yield site
    for one in sites:
        one.close()


def back_up(blobs: Path, copy: Path, pause: Callable[[], None]) -> None:
    taken = [name for names in FIRST_PASSES for name in names]
    for names in FIRST_PASSES:
        copy_files(blobs, copy, names, but=[])
        pause()
    copy_files(blobs, copy, ["*"], but=[*taken, "*#*"])
    pause()
    copy_files(blobs, copy, ["purged.json"], but=[])


def copy_files(blobs: Path, copy: Path, names: list[str], but: list[str]) -> None:
    for path in sorted(blobs.rglob("*")):
        if path.is_file() and _matches(path.name, names) and not _matches(path.name, but):
            to = copy / path.relative_to(blobs)
            to.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # deleted meanwhile
                shutil.copyfile(path, to)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def require_whole(jobs: Connection, job_id: str) -> None:
    assert jobs.service.report(job_id).job_id == job_id
    for name in MaskName:
        mask = jobs.service.mask(job_id, name)
        assert hashlib.sha256(b"".join(mask.read())).hexdigest() == mask.sha256


def test_a_copy_made_while_workers_work_is_restored_and_every_job_in_it_ends(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    before, copy = site("before"), tmp_path / "copy"
    before.start_worker()
    job_ids = [before.post({"do": "score", "seconds": 0.8}) for _ in range(14)]
    before.jobs.service.wait(job_ids[2], 60)
    deletions = iter([job_ids[0], job_ids[1], job_ids[-1], job_ids[-2]])

    def pause() -> None:
        time.sleep(1.0)
        before.jobs.service.purge(next(deletions))

    back_up(before.blobs, copy, pause)
    during = before.jobs.service.monitoring.counts()
    assert during[JobStatus.QUEUED], "the copy was made half way"

    kept = {path.parent.name: path.read_bytes() for path in copy.glob("jobs/*/manifest.json")}
    assert 0 < len(kept) < len(job_ids)
    after = site("after", copy)
    for job_id in (job_ids.pop(0), job_ids.pop(0), job_ids.pop(), job_ids.pop()):
        with pytest.raises(JobPurgedError):
            after.jobs.service.get(job_id)
        kept.pop(job_id, None)
    for job_id in kept:
        require_whole(after.jobs, job_id)
    after.start_worker()
    for job_id in job_ids:
        assert after.jobs.service.wait(job_id, 90).status == JobStatus.SUCCEEDED
        require_whole(after.jobs, job_id)
    for job_id, manifest in kept.items():
        assert (after.blobs / "jobs" / job_id / "manifest.json").read_bytes() == manifest


def test_a_worker_of_today_scores_what_was_accepted_by_the_first_version(site: Callable[..., Site]) -> None:
    ids = json.loads((FIRST / "jobs.json").read_text())
    today = site("today", FIRST / "blobs")
    with redis.Redis.from_url(today.jobs.settings.redis_url or "") as server:
        server.lpush("lobewise.routine", json.dumps(json.loads((FIRST / "message.json").read_text())))
    today.start_worker()
    for name, attempt in (("queued", 1), ("keyed", 1), ("retried", 2), ("running", 2)):
        state = today.jobs.service.wait(ids[name], 60)
        assert (state.status, state.attempt) == (JobStatus.SUCCEEDED, attempt)
        require_whole(today.jobs, ids[name])


def test_an_old_worker_leaves_a_newer_schema_to_others_and_goes_on(site: Callable[..., Site]) -> None:
    mixed = site("mixed")
    newer, plain = mixed.post({"do": "score"}), mixed.post({"do": "score"})
    record = mixed.blobs / "jobs" / newer / "job.json"
    ours = record.read_bytes()
    record.write_text(json.dumps({"schema_version": "2.0", "id": newer, "scan": "elsewhere"}))
    mixed.start_worker()
    assert mixed.jobs.service.wait(plain, 60).status == JobStatus.SUCCEEDED
    until(lambda: (mixed.folder / "worker.log").read_text().count("left to newer workers") >= 2)
    assert not mixed.jobs.backends.store.files(newer).attempt, "being passed on is no attempt"
    record.write_bytes(ours)  # now the worker is one that can read it
    state = mixed.jobs.service.wait(newer, 60)
    assert (state.status, state.attempt) == (JobStatus.SUCCEEDED, 1)
