"""Nothing accepted is lost: messages that vanish, a Redis that is wiped, views that are behind."""

import time
from collections.abc import Callable, Sequence

import pytest
import redis

from jobs.bootstrap import Connection, connect
from jobs.errors import BrokerUnavailableError, JobPurgedError
from jobs.live.pagination import Query
from jobs.models import JobError, JobStatus, Priority, Stage
from jobs.queue import QUEUES
from tests.support.processes import until

Post = Callable[..., str]
Succeed = Callable[..., None]


def test_a_job_whose_message_vanished_is_sent_again(jobs: Connection, server: redis.Redis, post: Post) -> None:
    job_id = post(jobs)
    server.delete(*QUEUES)
    until(lambda: jobs.reconciler.reconcile() == 1)
    assert jobs.backends.queue.present(10) == {job_id}


def test_a_job_that_waits_in_its_queue_is_left_there(jobs: Connection, server: redis.Redis, post: Post) -> None:
    post(jobs)
    time.sleep(3 * jobs.settings.reap_seconds)
    assert jobs.reconciler.reconcile() == 0
    assert server.llen(QUEUES[1]) == 1


def test_a_message_that_a_dead_worker_took_is_sent_again(jobs: Connection, server: redis.Redis, post: Post) -> None:
    job_id = post(jobs)
    raw = server.rpop(QUEUES[1])
    server.hset("unacked", "tag", f'[{raw}, "", "{QUEUES[1]}"]')
    server.zadd("unacked_index", {"tag": time.time()})
    assert job_id in jobs.backends.queue.present(jobs.settings.lease_seconds)
    until(lambda: jobs.reconciler.reconcile() == 1)
    assert server.llen(QUEUES[1]) == 1


def test_a_lost_worker_s_job_waits_again_at_once(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    jobs.worker.claim(job_id, "lost")
    until(lambda: jobs.reconciler.reconcile() > 0)
    assert jobs.service.get(job_id).status == JobStatus.QUEUED
    assert job_id in jobs.backends.queue.present(0)


def test_a_job_that_was_published_but_not_shown_is_shown(
    jobs: Connection, post: Post, succeed: Succeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = post(jobs)
    lease = jobs.worker.claim(job_id, "died after the manifest")
    with monkeypatch.context() as patch:
        patch.setattr(type(jobs.backends.live), "put", lambda *_args, **_options: False)
        succeed(jobs, lease, 20.0)
    assert jobs.service.get(job_id).status == JobStatus.RUNNING
    until(lambda: jobs.reconciler.reconcile() > 0)
    assert jobs.service.get(job_id).status == JobStatus.SUCCEEDED
    assert [state.id for state in jobs.service.list(Query("severity"), limit=5).items] == [job_id]


def test_one_reaper_leads_at_a_time(jobs: Connection, post: Post) -> None:
    other = connect(jobs.settings)
    assert jobs.backends.live.recovery.lead("first", 0.2)
    assert not jobs.backends.live.recovery.lead("second", 0.2)
    until(lambda: other.backends.live.recovery.lead("second", 0.2))
    other.close()


class TestWipedRedis:
    def test_everything_comes_back(self, jobs: Connection, server: redis.Redis, post: Post, finished: Post) -> None:
        waiting = [post(jobs, priority=priority) for priority in Priority]
        done, worse = finished(jobs, 10.0), finished(jobs, 60.0)
        cancelled = post(jobs)
        jobs.service.cancel(cancelled)
        purged = finished(jobs)
        jobs.service.purge(purged)
        before = {state.id: state for state in jobs.service.list(limit=99).items}

        server.flushall()
        assert jobs.service.get(done) == before[done]
        assert len(jobs.service.list(limit=99).items) == 6

        assert jobs.reconciler.rebuild() == 5  # one was asked for, and is shown since
        after = {state.id: state for state in jobs.service.list(limit=99).items}
        assert {i: s.status for i, s in after.items()} == {i: s.status for i, s in before.items()}
        assert after[done] == before[done]
        assert [s.id for s in jobs.service.list(Query("severity"), limit=9).items] == [worse, done]
        assert jobs.backends.queue.present(0) == set(waiting)
        assert [server.llen(queue) for queue in QUEUES] == [1, 1, 1]
        assert jobs.reconciler.rebuild() == 0

    def test_a_living_worker_keeps_its_job_and_publishes(
        self, jobs: Connection, server: redis.Redis, post: Post, succeed: Succeed
    ) -> None:
        job_id = post(jobs)
        with jobs.worker.claim(job_id, "alive") as lease:
            server.flushall()
            end = time.monotonic() + 3 * jobs.settings.lease_seconds
            while time.monotonic() < end:
                jobs.reconciler.reconcile()
                time.sleep(0.05)
            lease.report(Stage.LESIONS, 0.6)
            assert (jobs.service.get(job_id).status, jobs.service.get(job_id).progress) == (JobStatus.RUNNING, 0.6)
            succeed(jobs, lease)
        assert (jobs.service.get(job_id).status, jobs.service.get(job_id).attempt) == (JobStatus.SUCCEEDED, 1)

    def test_a_job_whose_worker_died_too_is_tried_again(
        self, jobs: Connection, server: redis.Redis, post: Post
    ) -> None:
        job_id = post(jobs)
        jobs.worker.claim(job_id, "dead")
        server.flushall()
        until(lambda: jobs.reconciler.reconcile() > 0)
        until(lambda: jobs.reconciler.reconcile() > 0)
        assert (jobs.service.get(job_id).status, jobs.service.get(job_id).attempt) == (JobStatus.QUEUED, 1)
        assert jobs.worker.claim(job_id, "next").attempt == 2

    def test_a_job_whose_purge_was_lost_is_forgotten(
        self, jobs: Connection, server: redis.Redis, finished: Post
    ) -> None:
        job_id = finished(jobs)
        shown = server.hgetall(f"lobewise:job:{job_id}")
        jobs.service.purge(job_id)
        server.delete(f"lobewise:purged:{job_id}")  # as after a power cut
        server.hset(f"lobewise:job:{job_id}", mapping=shown)
        server.zadd("lobewise:index:*:*", {job_id: 0})
        assert jobs.service.get(job_id).id == job_id
        jobs.reconciler.rebuild()
        with pytest.raises(JobPurgedError):
            jobs.service.get(job_id)

    def test_a_wipe_in_the_middle_of_a_rebuild_is_noticed(
        self, jobs: Connection, server: redis.Redis, post: Post, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = post(jobs)
        look = jobs.backends.live.statuses

        def wipe_after_looking(job_ids: Sequence[str]) -> list[JobStatus | None]:
            missing = look(job_ids)
            server.flushall()
            return missing

        with monkeypatch.context() as patch:
            patch.setattr(jobs.backends.live, "statuses", wipe_after_looking)
            jobs.reconciler.rebuild()
        assert not jobs.backends.live.recovery.is_whole()
        assert jobs.reconciler.reconcile() == 1
        assert job_id in jobs.backends.queue.present(0)

    def test_the_reaper_s_thread_notices_by_itself(self, jobs: Connection, server: redis.Redis, post: Post) -> None:
        job_id = post(jobs)
        jobs.reconciler.start()
        server.flushall()
        until(lambda: job_id in jobs.backends.queue.present(0))
        assert jobs.service.get(job_id).status == JobStatus.QUEUED


def test_a_job_that_ended_unseen_stays_ended_once_the_broker_is_back(
    jobs: Connection, post: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the campaign (seed 2): succeeded while Redis was down, then shown as running again."""
    job_id = post(jobs)
    lease = jobs.worker.claim(job_id, "worker")

    def away(*_: object, **__: object) -> None:
        raise BrokerUnavailableError("away")

    with monkeypatch.context() as outage:
        outage.setattr(jobs.backends.live, "put", away)
        outage.setattr(jobs.backends.live, "_read", away)
        jobs.worker.fail(lease, JobError(type="/problems/x", title=".", detail=".", retryable=False))
        assert jobs.service.get(job_id).status == JobStatus.FAILED
    live = jobs.backends.live.get(job_id)
    assert live is not None
    assert live.status == JobStatus.RUNNING
    assert jobs.service.get(job_id).status == JobStatus.FAILED


def test_a_wiped_view_that_was_rebuilt_from_an_old_listing_is_not_believed(
    jobs: Connection, post: Callable[..., str], server: redis.Redis
) -> None:
    """Found by the campaign (seed 2): what ended between the listing and the rebuild was shown as queued."""
    job_id = post(jobs)
    before = jobs.backends.store.files(job_id)
    server.flushall()
    jobs.service.cancel(job_id)
    server.flushall()
    assert jobs.reconciler._restore(before, jobs.backends.live.recovery.begin_rebuild())
    assert jobs.service.get(job_id).status == JobStatus.CANCELLED


def test_one_job_that_cannot_be_read_does_not_keep_the_reaper_from_the_others(
    jobs: Connection, post: Callable[..., str], server: redis.Redis
) -> None:
    """Found by the campaign (seed 6)."""
    broken, sound = post(jobs), post(jobs)
    for job_id in (broken, sound):
        jobs.worker.claim(job_id, "worker")
    jobs.reconciler.reconcile()
    jobs.backends.store.blobs.write(f"jobs/{broken}/attempts/1/claim.json", b"{}")
    for job_id in (broken, sound):
        server.delete(f"lobewise:lease:{job_id}")
    jobs.reconciler.reconcile()
    assert jobs.service.get(sound).status == JobStatus.QUEUED


def test_what_was_deleted_leaves_the_broker_s_file(
    jobs: Connection, server: redis.Redis, finished: Callable[..., str]
) -> None:
    """Its file holds each change, and with them a client's reference, until it is written anew."""
    canary = "canary-4711"
    job_id = finished(jobs, client_reference=canary)
    folder = jobs.settings.data_dir / "valkey"

    def holds_canary() -> bool:
        return any(canary.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())

    assert until(holds_canary, 10)
    jobs.cleanup.clean_up()
    assert holds_canary()  # nothing was deleted yet
    jobs.service.purge(job_id)
    assert until(lambda: server.info("persistence")["aof_rewrite_in_progress"] == 0, 10)
    jobs.cleanup.clean_up()
    assert until(lambda: not holds_canary(), 20)
