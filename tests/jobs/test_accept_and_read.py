"""What the gateway does: upload, accept, look, list the masks, purge."""

import asyncio
import hashlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from jobs import states
from jobs.bootstrap import Connection, connect
from jobs.errors import BrokerUnavailableError, JobNotFoundError, JobPurgedError, UploadTooLargeError, WrongStateError
from jobs.live.pagination import Query
from jobs.models import InputInfo, JobRecord, JobStatus, MaskName, Priority, Stage
from jobs.queue import QUEUES
from jobs.states import is_id, new_id

Post = Callable[..., str]


def blobs_of(jobs: Connection, job_id: str) -> set[str]:
    return set(jobs.backends.store.files(job_id).names)


def test_ids_sort_by_time_and_are_uuids_of_version_7() -> None:
    many = [new_id() for _ in range(1000)]
    assert all(map(is_id, many))
    assert len(set(many)) == 1000
    assert [i[:13] for i in many] == sorted(i[:13] for i in many)


def test_an_upload_is_hashed_on_the_way(jobs: Connection) -> None:
    job_id = new_id()
    pieces = [bytes([n]) * 700_000 for n in range(30)]

    async def stream() -> InputInfo:
        sink = jobs.service.open_upload(job_id)
        for piece in pieces:
            await sink.write(piece)
        return await sink.finish()

    info = asyncio.run(stream())
    data = b"".join(pieces)
    assert info == InputInfo(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert jobs.backends.store.blobs.read(f"jobs/{job_id}/input") == data


def test_an_upload_past_the_limit_is_refused_and_leaves_nothing(jobs: Connection) -> None:
    small = connect(jobs.settings.model_copy(update={"max_upload_bytes": 20_000_000}))
    job_id = new_id()

    async def stream() -> None:
        sink = small.service.open_upload(job_id)
        await sink.write(bytes(19_999_999))
        await sink.write(b"x")
        with pytest.raises(UploadTooLargeError):
            await sink.write(b"y")
        await sink.abort()

    asyncio.run(stream())
    assert blobs_of(small, job_id) == set()
    small.close()


def test_an_accepted_job_is_durable_and_queued_with_its_id_alone(
    jobs: Connection, server: redis.Redis, post: Post
) -> None:
    job_id = post(jobs, data=b"Doe^Jane", priority=Priority.STAT, client_reference="order 7")
    state = jobs.service.get(job_id)
    assert (state.status, state.priority, state.client_reference) == (JobStatus.QUEUED, Priority.STAT, "order 7")
    assert blobs_of(jobs, job_id) == {"job.json", "input"}
    assert [server.llen(queue) for queue in QUEUES] == [1, 0, 0]
    message = str(server.lrange(QUEUES[0], 0, -1))
    assert job_id in message
    assert "order 7" not in message


def test_queue_positions_count_more_urgent_jobs_first(jobs: Connection, post: Post) -> None:
    batch, routine, second, stat = (
        post(jobs, priority=p) for p in (Priority.BATCH, Priority.ROUTINE, Priority.ROUTINE, Priority.STAT)
    )
    positions = [jobs.service.get(job_id).queue_position for job_id in (stat, routine, second, batch)]
    assert sorted(p or 0 for p in positions[1:3]) == [2, 3]
    assert (positions[0], positions[3]) == (1, 4)


def test_a_revision_changes_with_the_state_and_only_then(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    before = jobs.service.get(job_id).revision
    assert jobs.service.get(job_id).revision == before
    with jobs.worker.claim(job_id, "test") as lease:
        lease.report(Stage.READ, 0.1)
        assert jobs.service.get(job_id).revision != before


def test_an_unknown_or_impossible_id_is_not_found(jobs: Connection) -> None:
    for job_id in (new_id(), "x", "../../etc/passwd", ""):
        with pytest.raises(JobNotFoundError):
            jobs.service.get(job_id)


def test_a_succeeded_job_gives_its_report_and_any_part_of_its_masks(
    jobs: Connection, post: Post, succeed: Callable[..., None]
) -> None:
    job_id = post(jobs)
    data = bytes(range(256)) * 10_000
    with jobs.worker.claim(job_id, "test") as lease:
        succeed(jobs, lease, 33.0, mask=data)
    assert jobs.service.get(job_id).status == JobStatus.SUCCEEDED
    assert jobs.service.report(job_id).severity.percent_opacity == 33.0
    mask = jobs.service.mask(job_id, MaskName.LOBES)
    assert (mask.size_bytes, mask.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert b"".join(mask.read()) == data
    assert b"".join(mask.read(1000, 1003)) == data[1000:1003]
    assert b"".join(mask.read(len(data) - 5)) == data[-5:]


def test_results_of_an_unfinished_job_are_a_wrong_state(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    with pytest.raises(WrongStateError) as caught:
        jobs.service.report(job_id)
    assert caught.value.evidence["status"] == "queued"
    with pytest.raises(WrongStateError):
        jobs.service.mask(job_id, MaskName.LUNGS)


def test_a_purged_job_leaves_a_tombstone_and_nothing_else(
    jobs: Connection, finished: Post, server: redis.Redis
) -> None:
    job_id = finished(jobs)
    jobs.service.purge(job_id)
    assert blobs_of(jobs, job_id) == {"purged.json"}
    assert list(server.scan_iter(f"*{job_id}*")) == [f"lobewise:purged:{job_id}"]
    for read in (jobs.service.get, jobs.service.report, jobs.service.purge, jobs.service.cancel):
        with pytest.raises(JobPurgedError):
            read(job_id)
    assert jobs.service.list(limit=5).items == ()
    assert jobs.service.list(Query("severity"), limit=5).items == ()


def test_a_running_job_that_is_purged_stops_and_leaves_nothing(
    jobs: Connection, post: Post, succeed: Callable[..., None]
) -> None:
    job_id = post(jobs)
    with jobs.worker.claim(job_id, "test") as lease:
        jobs.service.purge(job_id)
        with pytest.raises(JobPurgedError):
            succeed(jobs, lease)
    assert blobs_of(jobs, job_id) == {"purged.json"}


def test_waiting_ends_with_the_job_or_with_the_time(jobs: Connection, post: Post, finished: Post) -> None:
    assert jobs.service.wait(finished(jobs), 30).status == JobStatus.SUCCEEDED
    assert jobs.service.wait(post(jobs), 0.05).status == JobStatus.QUEUED


class TestWithoutBroker:
    def test_reads_still_work(self, jobs: Connection, without_broker: Connection, post: Post, finished: Post) -> None:
        done, queued = finished(jobs, 40.0), post(jobs)
        assert without_broker.service.get(done).status == JobStatus.SUCCEEDED
        assert without_broker.service.get(queued).status == JobStatus.QUEUED
        assert without_broker.service.report(done).severity.percent_opacity == 40.0
        assert b"".join(without_broker.service.mask(done, MaskName.LUNGS).read()) == b"a mask"
        assert [state.id for state in without_broker.service.list(limit=9).items] == [queued, done]
        assert [state.id for state in without_broker.service.list(Query("severity"), limit=9).items] == [done]
        assert without_broker.service.wait(done, 5).status == JobStatus.SUCCEEDED

    def test_the_check_says_so(self, without_broker: Connection) -> None:
        with pytest.raises(BrokerUnavailableError):
            without_broker.service.monitoring.ping()
        ready = without_broker.service.readiness()
        assert (ready.broker, ready.blobs, ready.workers) == (False, True, 0)

    @pytest.mark.timeout(20)
    def test_a_broker_that_accepts_connections_but_never_answers_counts_as_down(self, jobs: Connection) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
            mute = connect(jobs.settings.model_copy(update={"redis_url": url, "broker_timeout_seconds": 0.2}))
            with pytest.raises(BrokerUnavailableError):
                mute.service.monitoring.ping()
            with pytest.raises(BrokerUnavailableError):
                mute.backends.queue.publish(new_id(), Priority.STAT)
            mute.close()

    def test_a_job_that_became_durable_is_accepted_and_queued_when_the_broker_is_back(
        self, jobs: Connection, without_broker: Connection, post: Post
    ) -> None:
        job_id = post(without_broker)
        assert jobs.service.get(job_id).status == JobStatus.QUEUED
        assert jobs.reconciler.rebuild() == 1
        assert job_id in jobs.backends.queue.present(10)

    def test_a_queued_job_can_be_cancelled_and_purged(
        self, jobs: Connection, without_broker: Connection, post: Post
    ) -> None:
        job_id = post(jobs)
        assert without_broker.service.cancel(job_id).status == JobStatus.CANCELLED
        with pytest.raises(WrongStateError):
            jobs.worker.claim(job_id, "test")
        assert jobs.service.get(job_id).status == JobStatus.CANCELLED
        without_broker.service.purge(job_id)
        with pytest.raises(JobPurgedError):
            without_broker.service.get(job_id)


def test_the_input_reaches_the_worker_unchanged(jobs: Connection, post: Post, tmp_path: Path) -> None:
    job_id = post(jobs, data=b"voxels")
    with jobs.worker.claim(job_id, "test") as lease:
        assert jobs.worker.fetch_input(lease, tmp_path).read_bytes() == b"voxels"


def test_an_id_can_be_accepted_once(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    with pytest.raises(Exception, match="came first"):
        jobs.service.accept(JobRecord(id=job_id, created_at=states.now(), input=InputInfo()))
