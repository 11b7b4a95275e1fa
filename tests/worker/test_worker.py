"""Real worker processes on a real broker: what becomes of jobs, and of jobs whose workers die."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import redis
import SimpleITK as sitk

from jobs import states
from jobs.bootstrap import Connection, connect
from jobs.errors import JobNotFoundError, SettingsError
from jobs.models import ImageName, InputInfo, JobRecord, JobStatus, JobTask, MaskName, Priority
from jobs.settings import JobsSettings
from pipeline.anatomy import AIR_HU
from pipeline.io.confinement import Protection
from tests.support.processes import until
from worker.main import run

TINY_WORKER = Path(__file__).parents[1] / "support" / "tiny_worker.py"
FAST = {
    "LEASE_SECONDS": "1.5",
    "HEARTBEAT_SECONDS": "0.2",
    "REAP_SECONDS": "0.3",
    "RETRY_SECONDS": "0.2",
    "CANCEL_GRACE_SECONDS": "0.5",
    "SOFT_LIMIT_SECONDS": "4",
    "HARD_LIMIT_SECONDS": "6",
    "DEAF_SECONDS": "3",
}

pytestmark = pytest.mark.timeout(90)


class Service:
    """A data folder, the gateway's end of it, and workers."""

    def __init__(self, folder: Path, changes: Mapping[str, str] = MappingProxyType({})) -> None:
        self.folder = folder
        wanted = {**FAST, **changes}
        self.environment = {f"LOBEWISE_{name}": value for name, value in wanted.items()}
        self.environment |= {"LOBEWISE_DATA_DIR": str(folder / "data"), "TMPDIR": str(folder)}
        self.environment["LOBEWISE_LIVENESS_FILE"] = str(folder / "alive")
        settings = {name.lower(): value for name, value in wanted.items() if not name.startswith("TEST_")}
        self.jobs: Connection = connect(JobsSettings(data_dir=folder / "data", redis_url=None, **settings))  # type: ignore[arg-type]
        self.jobs.reconciler.start()
        self.workers: list[subprocess.Popen[bytes]] = []

    def start_worker(self) -> "subprocess.Popen[bytes]":
        log = (self.folder / "worker.log").open("ab")
        environment = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "LOBEWISE_REDIS_URL")}
        process = subprocess.Popen(
            [sys.executable, str(TINY_WORKER)], env={**environment, **self.environment}, stdout=log, stderr=log
        )
        self.workers.append(process)
        return process

    def post(self, order: dict[str, Any], tenant: str = "default", **options: Any) -> str:
        job_id, jobs = states.new_id(), self.jobs.tenants.of(tenant).service

        async def stream() -> InputInfo:
            sink = jobs.open_upload(job_id)
            await sink.write(json.dumps(order).encode())
            return await sink.finish()

        record = JobRecord(id=job_id, created_at=states.now(), input=asyncio.run(stream()), **options)
        return jobs.accept(record).id

    def close(self) -> None:
        for process in self.workers:
            process.terminate()
        for process in self.workers:
            process.wait(30)
        self.jobs.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"))
    service.start_worker()
    until(lambda: service.jobs.service.readiness().workers == 1)
    yield service
    service.close()


def test_one_worker_does_the_jobs_of_all_tenants_and_none_has_the_others(service: Service) -> None:
    posted = {
        tenant: service.post({"do": "score", "opacity": opacity}, tenant)
        for tenant, opacity in (("left", 20), ("right", 40), ("default", 60))
    }
    for tenant, opacity in (("left", 20), ("right", 40), ("default", 60)):
        jobs = service.jobs.tenants.of(tenant).service
        assert jobs.wait(posted[tenant], 60).status is JobStatus.SUCCEEDED
        assert jobs.report(posted[tenant]).severity.percent_opacity == opacity
        assert gzip.decompress(b"".join(jobs.mask(posted[tenant], MaskName.LUNGS).read()))[344:347] == b"n+1"
        for other in posted.keys() - {tenant}:
            with pytest.raises(JobNotFoundError):
                jobs.get(posted[other])
    assert [known.tenant for known in service.jobs.tenants.known()] == ["default", "left", "right"]


def test_a_message_of_a_tenant_that_there_is_not_stops_nobody(service: Service) -> None:
    job_id = service.post({"do": "score", "opacity": 40})
    service.jobs.service.wait(job_id, 60)
    for tenant in ("nobody", "../default", ""):
        service.jobs.backends.queue.of(tenant, service.jobs.backends.live).publish(job_id, Priority.ROUTINE)
    after = service.post({"do": "score", "opacity": 40})
    assert service.jobs.service.wait(after, 60).status is JobStatus.SUCCEEDED
    assert service.jobs.tenants.find("nobody") is None


@contextmanager
def alone(folder: Path, **settings: str) -> Iterator[tuple[Service, "subprocess.Popen[bytes]"]]:
    """A service of its own with one ready worker."""
    service = Service(folder, settings)
    worker = service.start_worker()
    try:
        until(lambda: service.jobs.service.readiness().workers == 1)
        yield service, worker
    finally:
        service.close()


def is_running(service: Service, job_id: str, attempt: int = 1) -> bool:
    state = service.jobs.service.get(job_id)
    return state.status == JobStatus.RUNNING and state.attempt == attempt


def test_a_scan_is_scored_and_its_masks_lie_on_its_own_grid(service: Service, tmp_path: Path) -> None:
    job_id = service.post({"do": "score", "opacity": 40})
    state = service.jobs.service.wait(job_id, 60)
    assert (state.status, state.attempt, state.progress) == (JobStatus.SUCCEEDED, 1, 1.0)
    report = service.jobs.service.report(job_id)
    assert report.severity.percent_opacity == 40.0
    assert [lobe.severity_score for lobe in report.lobes] == [2] * 5
    assert report.provenance.input_sha256 == state.input.sha256
    assert set(report.provenance.seconds) >= {"fetch", "read", "store", "lungs"}
    for name, values in ((MaskName.LOBES, {1, 2, 3, 4, 5}), (MaskName.LESIONS, {0, 1}), (MaskName.LUNGS, {1})):
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(b"".join(service.jobs.service.mask(job_id, name).read()))
        assert gzip.decompress(path.read_bytes())[344:347] == b"n+1"
        image = sitk.ReadImage(str(path))
        assert image.GetSize() == (20, 10, 5)
        assert image.GetSpacing() == pytest.approx((0.5, 1.0, 2.0))
        assert image.GetOrigin() == pytest.approx((-10.0, 20.0, 30.0))
        assert image.GetDirection() == pytest.approx((0, 0, 1, 1, 0, 0, 0, 1, 0))
        assert set(np.unique(sitk.GetArrayFromImage(image))) == values
    for name, spacing_mm in ((ImageName.SCAN, (0.5, 1.0, 2.0)), (ImageName.PREVIEW, (3.0, 3.0, 3.0))):
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(b"".join(service.jobs.service.image(job_id, name).read()))
        image = sitk.ReadImage(str(path))
        assert image.GetSpacing() == pytest.approx(spacing_mm)
        assert image.GetDirection() == pytest.approx((0, 0, 1, 1, 0, 0, 0, 1, 0))
        # The coarse one reaches over the edge, where air is.
        values = set(np.unique(sitk.GetArrayFromImage(image)))
        assert -100 in values
        assert values <= ({-100} if name is ImageName.SCAN else {-100, AIR_HU})
    for name in (ImageName.AXIAL, ImageName.CORONAL, ImageName.SAGITTAL, ImageName.GLASS):
        assert b"".join(service.jobs.service.image(job_id, name).read())[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_same_scan_is_given_the_finished_result_and_by_whom_it_was_computed(tmp_path: Path) -> None:
    with alone(tmp_path, REUSE_RESULTS="true") as (service, _):
        order = {"do": "score", "seconds": 0.5}
        first, waiting = service.post(order), service.post(order)
        computed, reused = service.jobs.service.wait(first, 60), service.jobs.service.wait(waiting, 60)
        assert (computed.status, computed.reused_from) == (JobStatus.SUCCEEDED, None)
        assert (reused.status, reused.reused_from, reused.attempt) == (JobStatus.SUCCEEDED, first, 1)
        until(lambda: service.jobs.service.workers.result_digest() is not None)
        at_once = service.jobs.service.get(service.post(order))
        assert (at_once.status, at_once.reused_from, at_once.attempt) == (JobStatus.SUCCEEDED, first, 0)
        assert service.jobs.service.report(at_once.id).provenance.reused_from == first
        again = service.jobs.service.wait(service.post(order, reuse=False), 60)
        assert (again.status, again.reused_from) == (JobStatus.SUCCEEDED, None)


def test_a_ready_worker_tells_which_models_it_has_loaded(service: Service) -> None:
    assert [model.name for model in service.jobs.service.workers.models()] == ["tiny"]


def test_a_scan_to_validate_is_read_and_not_scored(service: Service) -> None:
    state = service.jobs.service.wait(service.post({"do": "not-chest"}, task=JobTask.VALIDATE), 60)
    assert (state.status, state.attempt, state.severity) == (JobStatus.SUCCEEDED, 1, None)
    seen = service.jobs.service.inspection(state.id)
    assert (seen.shape, seen.spacing_mm, seen.axes) == ((5, 10, 20), (2.0, 1.0, 0.5), "PSL")
    assert [finding.code for finding in seen.quality] == ["thick-slices"]
    assert seen.input_size_bytes == state.input.size_bytes
    assert b64decode(seen.picture_png_base64 or "").startswith(b"\x89PNG")


def test_a_scan_that_cannot_be_scored_fails_with_its_problem_and_is_not_retried(service: Service) -> None:
    state = service.jobs.service.wait(service.post({"do": "not-chest"}), 60)
    assert (state.status, state.attempt) == (JobStatus.FAILED, 1)
    assert state.error is not None
    assert (state.error.type, state.error.retryable) == ("/problems/lungs-not-found", False)
    assert state.error.evidence == {"air_ml": 0}


def test_a_worker_survives_whatever_lies_in_its_queues(service: Service) -> None:
    headers = {"id": states.new_id(), "task": "lobewise.score", "lang": "py"}
    properties = {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "lobewise.stat"}}
    task: dict[str, object] = {"body": b64encode(b'[["x"], {}, {}]').decode(), "headers": headers}
    task |= {"properties": properties, "content-type": "application/json", "content-encoding": "utf-8"}
    wrong: list[dict[str, object]] = [
        *({"body": body} for body in ("no base64 !", 7, None, b64encode(b"{}").decode())),
        *({"headers": value} for value in (None, [], {}, {**headers, "id": 7}, {**headers, "task": "other"})),
        *({"headers": {**headers, name: value}} for name in ("retries", "eta", "lang") for value in (7, [], "x")),
        *({"properties": value} for value in (None, {}, {**properties, "delivery_info": None})),
        {"content-type": "application/x-python-serialize"},
        {"content-encoding": "none"},
    ]
    messages = [b"\xff\xfe", b"", b"not JSON", b"null", b"[]", b"[1, 2]", b"7", b'"text"', b"{}", b'{"body": 1}']
    messages += [json.dumps({**task, **part}).encode() for part in wrong]
    (worker,) = service.workers
    broker = redis.Redis.from_url(service.jobs.settings.redis_url or "")
    for message in messages:
        broker.lpush("lobewise.stat", message)
    # Behind them in the same queue.
    job_id = service.post({"do": "score"}, priority=Priority.STAT)
    assert service.jobs.service.wait(job_id, 60).status == JobStatus.SUCCEEDED
    assert worker.poll() is None


def test_a_fault_of_ours_is_retried_and_counted(service: Service) -> None:
    state = service.jobs.service.wait(service.post({"do": "fault"}), 60)
    assert (state.status, state.attempt) == (JobStatus.FAILED, 3)
    assert state.error is not None
    assert (state.error.type, state.error.retryable) == ("/problems/attempts-exhausted", True)


def test_an_urgent_job_overtakes_a_flood_and_the_flood_goes_on(service: Service) -> None:
    blocker = service.post({"do": "score", "seconds": 1})
    until(lambda: is_running(service, blocker))
    flood = [service.post({"do": "score"}, priority=Priority.BATCH) for _ in range(12)]
    urgent = service.jobs.service.wait(service.post({"do": "score"}, priority=Priority.STAT), 60)
    begun_at = [state.started_at for state in map(service.jobs.service.get, flood) if state.started_at]
    before = [at for at in begun_at if urgent.created_at < at < (urgent.started_at or at)]
    assert len(before) <= 1
    assert all(service.jobs.service.wait(job_id, 60).status == JobStatus.SUCCEEDED for job_id in flood)


def test_a_running_job_stops_when_it_is_cancelled(service: Service) -> None:
    job_id = service.post({"do": "score", "seconds": 2.9})
    until(lambda: is_running(service, job_id))
    assert service.jobs.service.cancel(job_id).cancel_requested
    assert service.jobs.service.wait(job_id, 60).status == JobStatus.CANCELLED


def test_work_that_hangs_is_cancelled_by_force_and_the_worker_goes_on(service: Service) -> None:
    job_id = service.post({"do": "hang"})
    until(lambda: is_running(service, job_id))
    service.jobs.service.cancel(job_id)
    assert service.jobs.service.wait(job_id, 60).status == JobStatus.CANCELLED
    assert service.jobs.service.wait(service.post({"do": "score"}), 60).status == JobStatus.SUCCEEDED


def test_a_job_that_was_running_when_redis_was_wiped_is_neither_lost_nor_done_twice(service: Service) -> None:
    job_id = service.post({"do": "score", "seconds": 2})
    waiting = service.post({"do": "score"})
    until(lambda: is_running(service, job_id))
    with redis.Redis.from_url(service.jobs.settings.redis_url or "") as server:
        server.flushall()
    states_after = [service.jobs.service.wait(i, 60) for i in (job_id, waiting)]
    assert [(s.status, s.attempt) for s in states_after] == [(JobStatus.SUCCEEDED, 1)] * 2


def test_the_liveness_file_is_touched(service: Service) -> None:
    assert (service.folder / "alive").exists()


def test_a_job_whose_process_dies_every_time_ends_failed(service: Service) -> None:
    state = service.jobs.service.wait(service.post({"do": "die"}), 80)
    assert (state.status, state.attempt) == (JobStatus.FAILED, 3)
    assert state.error is not None
    assert state.error.type == "/problems/poison"


@pytest.mark.parametrize(
    ("order", "reason", "fault"), [("hang", "fault", "SoftTimeLimitExceeded"), ("hang-on", "worker-lost", None)]
)
def test_work_past_its_limits_is_interrupted_and_else_killed_and_counted(
    service: Service, order: str, reason: str, fault: str | None
) -> None:
    job_id = service.post({"do": order})
    until(lambda: service.jobs.service.get(job_id).attempt == 2)
    ending = service.jobs.backends.store.attempts.endings(job_id, 1)[0]
    assert (ending.reason, ending.fault) == (reason, fault)
    service.jobs.service.cancel(job_id)
    assert service.jobs.service.wait(job_id, 60).status == JobStatus.CANCELLED


def test_what_needs_too_much_memory_is_tried_once_more_in_smaller_pieces_by_a_fresh_process(service: Service) -> None:
    state = service.jobs.service.wait(service.post({"do": "memory-unless-frugal"}), 60)
    assert (state.status, state.attempt) == (JobStatus.SUCCEEDED, 2)
    claims = [service.jobs.backends.store.attempts.claim(state.id, attempt) for attempt in (1, 2)]
    assert len({claim.worker for claim in claims if claim}) == 2


def test_what_needs_too_much_memory_twice_fails_and_says_so(service: Service) -> None:
    state = service.jobs.service.wait(service.post({"do": "memory"}), 60)
    assert (state.status, state.attempt) == (JobStatus.FAILED, 2)
    assert state.error is not None
    assert (state.error.type, state.error.retryable) == ("/problems/out-of-memory", False)


def test_a_worker_without_the_sandbox_that_is_required_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.main.protections_here", lambda: frozenset({Protection.FILES}))
    with pytest.raises(SettingsError, match=r"from: network, processes\. LOBEWISE_SANDBOX=required"):
        run(JobsSettings(sandbox="required"))


def test_a_worker_that_is_told_to_stop_finishes_the_job_in_hand(tmp_path: Path) -> None:
    with alone(tmp_path) as (service, worker):
        job_id = service.post({"do": "score", "seconds": 1.5})
        until(lambda: is_running(service, job_id))
        worker.terminate()
        assert worker.wait(30) == 0
        assert (service.jobs.service.get(job_id).status, service.jobs.service.get(job_id).attempt) == (
            JobStatus.SUCCEEDED,
            1,
        )


def test_a_worker_without_time_to_finish_hands_the_job_back_and_that_counts_for_nothing(tmp_path: Path) -> None:
    with alone(tmp_path, DRAIN_SECONDS="0.2", MAX_ATTEMPTS="1") as (service, worker):
        job_id = service.post({"do": "score", "seconds": 3})
        until(lambda: is_running(service, job_id))
        worker.terminate()
        assert worker.wait(30) == 0
        assert (service.jobs.service.get(job_id).status, service.jobs.service.get(job_id).attempt) == (
            JobStatus.QUEUED,
            1,
        )
        service.start_worker()
        state = service.jobs.service.wait(job_id, 60)
        assert (state.status, state.attempt) == (JobStatus.SUCCEEDED, 2)


def test_a_worker_that_hears_nothing_while_jobs_wait_starts_anew(tmp_path: Path) -> None:
    with alone(tmp_path, TEST_DEAF_ONCE=str(tmp_path / "was-deaf")) as (service, worker):
        state = service.jobs.service.wait(service.post({"do": "score"}), 60)
        assert (state.status, state.attempt) == (JobStatus.SUCCEEDED, 1)
        assert worker.poll() is None
    assert "starts anew" in (tmp_path / "worker.log").read_text()


def test_when_a_whole_worker_is_killed_another_finishes_its_job(service: Service) -> None:
    victim = service.workers[-1]
    job_id = service.post({"do": "score", "seconds": 1})
    until(lambda: is_running(service, job_id))
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    service.start_worker()
    state = service.jobs.service.wait(job_id, 60)
    assert (state.status, state.attempt) == (JobStatus.SUCCEEDED, 2)


def test_a_scan_is_kept_without_its_name_however_often_its_worker_dies(tmp_path: Path) -> None:
    with alone(tmp_path, DEIDENTIFY="basic") as (service, _):
        order = {"do": "die-once", "mark": str(tmp_path / "mark"), "after_seconds": 0.0, "name": "Jane Doe"}
        died = service.post(order)
        burned_in = service.post({"do": "score", "name": "Jane Doe", "burned_in": True})
        refused = service.post({"do": "not-chest", "name": "Jane Doe"})
        ended = {job_id: service.jobs.service.wait(job_id, 60) for job_id in (died, burned_in, refused)}
        states_of = [(state.status, state.attempt) for state in ended.values()]
        assert states_of == [(JobStatus.SUCCEEDED, 2), (JobStatus.SUCCEEDED, 1), (JobStatus.FAILED, 1)]
        store = service.jobs.backends.store
        kept = {job_id: store.files(job_id).names for job_id in ended}
        assert not [job_id for job_id, names in kept.items() if "received" in names]
        assert [job_id for job_id, names in kept.items() if "deidentified.json" in names] == [died, refused]
        files = [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]
        assert not [path for path in files if b"Jane Doe" in path.read_bytes()]
        assert json.loads(store.blobs.read(f"jobs/{died}/attempts/1/input") or b"")["do"] == "die-once"
