"""The same bytes, software and weights: the finished result at once, marked, and never a damaged or deleted one."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis

from jobs import states
from jobs.attempts import Lease
from jobs.bootstrap import Connection, connect
from jobs.errors import JobPurgedError, LeaseLostError, StorageUnavailableError
from jobs.live.pagination import Query
from jobs.live.workers import WorkerStats
from jobs.models import ImageName, JobState, JobStatus, JobTask, MaskName
from jobs.settings import JobsSettings
from jobs.store.keys import RESULTS

from .conftest import report_for

Post = Callable[..., str]
DIGEST, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def settings(settings: JobsSettings) -> JobsSettings:
    return settings.model_copy(update={"reuse_results": True, "lease_seconds": 60.0, "heartbeat_seconds": 20.0})


@pytest.fixture
def compute(tmp_path: Any) -> Callable[..., None]:
    """What a worker does with a job that it computes."""

    def compute(jobs: Connection, lease: Lease, digest: str = DIGEST, percent_opacity: float = 12.5) -> None:
        path = tmp_path / "mask.nii.gz"
        path.write_bytes(b"a mask of " + lease.job_id.encode())
        report = report_for(lease.job_id, percent_opacity)
        images = {name: path.with_name(f"{name}.png") for name in ImageName}
        for name, image in images.items():
            image.write_bytes(f"{name} of {lease.job_id}".encode())
        jobs.worker.succeed(lease, report, dict.fromkeys(MaskName, path), digest=digest, images=images)

    return compute


@pytest.fixture
def computed(jobs: Connection, post: Post, compute: Callable[..., None]) -> Callable[..., str]:
    """A job that was computed; the answer is its id."""

    def computed(digest: str = DIGEST, **options: Any) -> str:
        job_id = post(jobs, **options)
        with jobs.worker.claim(job_id, "test") as lease:
            compute(jobs, lease, digest)
        return job_id

    return computed


def announce(jobs: Connection, worker: str = "one", digest: str | None = DIGEST) -> None:
    jobs.worker.workers.announce(worker, 600, (), WorkerStats(peak_memory_bytes=1, result_digest=digest))


def reuse(jobs: Connection, job_id: str, digest: str = DIGEST) -> bool:
    """What a worker does first with a job."""
    with jobs.worker.claim(job_id, "two") as lease:
        is_reused = jobs.worker.reuse(lease, digest)
    if not is_reused:
        jobs.worker.requeue(lease)
    return is_reused


def entries(jobs: Connection) -> list[str]:
    return list(jobs.backends.store.blobs.keys(RESULTS))


def require_result_of(jobs: Connection, job_id: str, source_id: str, attempt: int) -> JobState:
    """All that can be asked of the later job is its own, and equal to the earlier one's."""
    state, source = jobs.service.get(job_id), jobs.service.get(source_id)
    assert (state.status, state.attempt, state.reused_from) == (JobStatus.SUCCEEDED, attempt, source_id)
    assert state == jobs.backends.store.state(job_id)
    assert (state.severity, state.input) == (source.severity, source.input)
    report, first = jobs.service.report(job_id), jobs.service.report(source_id)
    assert (report.job_id, report.provenance.reused_from, first.provenance.reused_from) == (job_id, source_id, None)
    assert report.lobes == first.lobes
    for name in MaskName:
        mask = jobs.service.mask(job_id, name)
        assert mask.key.startswith(f"jobs/{job_id}/")
        assert b"".join(mask.read()) == f"a mask of {source_id}".encode()
    return state


class TestAtAcceptance:
    def test_an_equal_scan_ends_at_once(self, jobs: Connection, post: Post, computed: Post) -> None:
        source_id = computed()
        announce(jobs)
        job_id = post(jobs)
        state = require_result_of(jobs, job_id, source_id, attempt=0)
        assert (state.started_at, state.progress) == (None, 1.0)
        assert jobs.backends.queue.present(0) <= {source_id}
        assert [
            found.id for found in jobs.service.list(Query(status=frozenset({JobStatus.SUCCEEDED})), limit=9).items
        ] == [
            job_id,
            source_id,
        ]
        assert jobs.service.monitoring.job_metrics().reused == 1
        # A copy of a copy names the job that was computed.
        require_result_of(jobs, post(jobs), source_id, attempt=0)

    @pytest.mark.parametrize(
        "options",
        [{"data": b"another scan"}, {"reuse": False}, {"task": JobTask.VALIDATE}],
        ids=["other bytes", "not wanted", "to be validated"],
    )
    def test_another_question_is_computed(
        self, jobs: Connection, post: Post, computed: Post, options: dict[str, Any]
    ) -> None:
        computed()
        announce(jobs)
        job_id = post(jobs, **options)
        assert jobs.service.get(job_id).status == JobStatus.QUEUED
        assert not reuse(jobs, job_id)

    @pytest.mark.parametrize("digests", [[], [OTHER], [DIGEST, OTHER], [DIGEST, None]])
    def test_what_not_every_ready_worker_would_compute_is_left_to_the_worker(
        self, jobs: Connection, post: Post, computed: Post, digests: list[str | None]
    ) -> None:
        source_id = computed()
        for n, digest in enumerate(digests):
            announce(jobs, f"worker-{n}", digest)
        job_id = post(jobs)
        assert jobs.service.get(job_id).status == JobStatus.QUEUED
        assert not reuse(jobs, job_id, OTHER)
        assert reuse(jobs, job_id)
        require_result_of(jobs, job_id, source_id, attempt=2)

    def test_the_operator_may_switch_it_off(self, jobs: Connection, post: Post, computed: Post, compute: Any) -> None:
        computed()
        announce(jobs)
        switched_off = connect(jobs.settings.model_copy(update={"reuse_results": False}))
        job_id = post(switched_off)
        assert switched_off.service.get(job_id).status == JobStatus.QUEUED
        assert not reuse(switched_off, job_id)
        with switched_off.worker.claim(job_id, "three") as lease:
            compute(switched_off, lease)
        assert len(entries(jobs)) == 1
        switched_off.close()

    def test_a_storage_that_fails_meanwhile_costs_a_computation_and_no_job(
        self, jobs: Connection, post: Post, computed: Post, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        computed()
        announce(jobs)

        def fail(*_: object) -> None:
            raise StorageUnavailableError("down")

        with monkeypatch.context() as patch:
            patch.setattr(jobs.backends.store.blobs, "copy", fail)
            job_id = post(jobs)
        assert jobs.service.get(job_id).status == JobStatus.QUEUED
        assert job_id in jobs.backends.queue.present(0)


class TestAtTheWorker:
    def test_a_duplicate_that_waited_is_not_computed(self, jobs: Connection, post: Post, compute: Any) -> None:
        first, second = post(jobs), post(jobs)
        with jobs.worker.claim(first, "one") as lease:
            assert not jobs.worker.reuse(lease, DIGEST)
            compute(jobs, lease)
        assert reuse(jobs, second)
        require_result_of(jobs, second, first, attempt=1)

    def test_one_that_was_cancelled_meanwhile_is_cancelled(self, jobs: Connection, post: Post, computed: Post) -> None:
        computed()
        job_id = post(jobs)
        with jobs.worker.claim(job_id, "two") as lease:
            jobs.service.cancel(job_id)
            with pytest.raises(Exception, match="cancelled"):
                jobs.worker.reuse(lease, DIGEST)
            jobs.worker.confirm_cancel(lease)
        assert jobs.service.get(job_id).status == JobStatus.CANCELLED

    def test_an_attempt_that_was_over_publishes_nothing(self, jobs: Connection, post: Post, computed: Post) -> None:
        computed()
        job_id = post(jobs)
        late = jobs.worker.claim(job_id, "late")
        late.drop()
        jobs.worker.claim(job_id, "two")
        with pytest.raises(LeaseLostError):
            jobs.worker.reuse(late, DIGEST)
        assert jobs.service.get(job_id).attempt == 2

    def test_one_that_was_deleted_meanwhile_stays_deleted(
        self, jobs: Connection, post: Post, computed: Post, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        computed()
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "two")
        store, copy = jobs.backends.store, jobs.backends.store.blobs.copy

        def purge_and_copy(key: str, to: str) -> None:
            monkeypatch.undo()
            jobs.service.purge(job_id)
            copy(key, to)

        monkeypatch.setattr(store.blobs, "copy", purge_and_copy)
        with pytest.raises((JobPurgedError, LeaseLostError)):
            jobs.worker.reuse(lease, DIGEST)
        assert store.files(job_id).names == {"purged.json"}


class TestWhatIsNeverUsedAgain:
    def test_a_result_that_was_deleted(self, jobs: Connection, post: Post, computed: Post) -> None:
        source_id = computed()
        later = computed(reuse=False)
        assert len(entries(jobs)) == 2
        jobs.service.purge(later)
        announce(jobs)
        copy = post(jobs)
        require_result_of(jobs, copy, source_id, attempt=0)
        jobs.service.purge(source_id)
        assert entries(jobs) == []
        assert jobs.service.get(post(jobs)).status == JobStatus.QUEUED
        # What was copied before is the other job's own.
        assert b"".join(jobs.service.mask(copy, MaskName.LOBES).read()) == f"a mask of {source_id}".encode()
        for name in ImageName:
            assert b"".join(jobs.service.image(copy, name).read()) == f"{name} of {source_id}".encode()

    def test_one_whose_gateway_was_killed_after_the_tombstone(
        self, jobs: Connection, post: Post, computed: Post
    ) -> None:
        job_id = computed()
        jobs.backends.store.mark_purged(job_id)
        announce(jobs)
        assert jobs.service.get(post(jobs)).status == JobStatus.QUEUED

    def test_one_that_is_deleted_while_it_is_copied(
        self, jobs: Connection, post: Post, computed: Post, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source_id = computed()
        announce(jobs)
        store, copy = jobs.backends.store, jobs.backends.store.blobs.copy

        def copy_and_purge(key: str, to: str) -> None:
            copy(key, to)
            monkeypatch.undo()
            jobs.service.purge(source_id)

        monkeypatch.setattr(store.blobs, "copy", copy_and_purge)
        job_id = post(jobs)
        assert jobs.service.get(job_id).status == JobStatus.QUEUED
        assert store.files(source_id).names == {"purged.json"}

    @pytest.mark.parametrize(
        "harm", ["a mask is cut off", "a mask is gone", "the report is cut off", "it is another's"]
    )
    def test_one_that_is_damaged(self, jobs: Connection, post: Post, computed: Post, harm: str) -> None:
        whole, damaged = computed(), computed(reuse=False)
        blobs, folder = jobs.backends.store.blobs, f"jobs/{damaged}/attempts/1"
        match harm:
            case "a mask is cut off":
                blobs.write(f"{folder}/lobes.nii.gz", b"a ma")
            case "a mask is gone":
                blobs.delete(f"{folder}/lobes.nii.gz")
            case "the report is cut off":
                blobs.write(f"{folder}/report.json", b'{"schema_version": "1.0", "job')
            case _:
                manifest = jobs.backends.store.manifest(damaged)
                assert manifest is not None
                other = manifest.model_copy(update={"input_sha256": "0" * 64})
                blobs.write(f"jobs/{damaged}/manifest.json", other.stored())
        announce(jobs)
        require_result_of(jobs, post(jobs), whole, attempt=0)

    def test_one_of_a_newer_version(self, jobs: Connection, post: Post, computed: Post) -> None:
        job_id = computed()
        blobs = jobs.backends.store.blobs
        name = f"jobs/{job_id}/attempts/1/report.json"
        blobs.write(name, (blobs.read(name) or b"").replace(b'"schema_version":"1.0"', b'"schema_version":"2.0"'))
        announce(jobs)
        assert jobs.service.get(post(jobs)).status == JobStatus.QUEUED

    def test_one_of_a_worker_that_does_not_say_what_it_computes_with(self, jobs: Connection, finished: Post) -> None:
        finished(jobs)
        assert entries(jobs) == []


class TestTheIndex:
    def test_a_worker_that_is_killed_before_it_leaves_a_job_that_nobody_finds(
        self, jobs: Connection, post: Post, compute: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = post(jobs)
        with monkeypatch.context() as patch, jobs.worker.claim(job_id, "killed") as lease:
            patch.setattr(jobs.worker._results.store.blobs, "write", _unless_result(jobs))
            compute(jobs, lease)
        assert jobs.service.get(job_id).status == JobStatus.SUCCEEDED
        assert entries(jobs) == []

    def test_it_leaves_nothing_of_a_job_that_was_deleted_just_then(
        self, jobs: Connection, post: Post, compute: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "one")
        blobs, write = jobs.backends.store.blobs, jobs.backends.store.blobs.write

        def purge_and_write(key: str, data: bytes) -> None:
            if key.startswith(RESULTS):
                monkeypatch.undo()
                jobs.service.purge(job_id)
            write(key, data)

        monkeypatch.setattr(blobs, "write", purge_and_write)
        compute(jobs, lease)
        assert entries(jobs) == []

    def test_the_cleanup_deletes_what_leads_nowhere(self, jobs: Connection, computed: Post) -> None:
        kept = computed()
        blobs = jobs.backends.store.blobs
        (key,) = entries(jobs)
        blobs.write(key.replace(kept, states.new_id()), b"{}")
        blobs.write(f"{RESULTS}not-ours", b"{}")
        assert jobs.cleanup.clean_up(states.now() + timedelta(seconds=1)) == 1
        assert sorted(entries(jobs)) == sorted([key, f"{RESULTS}not-ours"])

    def test_it_names_no_patient_and_no_client(self, jobs: Connection, computed: Post) -> None:
        job_id = computed(client_reference="worklist-4711")
        sha256 = jobs.service.get(job_id).input.sha256
        assert entries(jobs) == [f"{RESULTS}score/{sha256}/{DIGEST}/{job_id}"]
        assert jobs.backends.store.blobs.read(entries(jobs)[0]) == b"{}"


def _unless_result(jobs: Connection) -> Callable[[str, bytes], None]:
    write = jobs.backends.store.blobs.write

    def unless_result(key: str, data: bytes) -> None:
        if key.startswith(RESULTS):
            raise StorageUnavailableError("down")
        write(key, data)

    return unless_result


def test_a_wiped_server_loses_neither_the_result_nor_its_mark(
    jobs: Connection, server: redis.Redis, post: Post, computed: Post
) -> None:
    source_id = computed()
    announce(jobs)
    job_id = post(jobs)
    server.flushall()
    jobs.reconciler.rebuild()
    require_result_of(jobs, job_id, source_id, attempt=0)
