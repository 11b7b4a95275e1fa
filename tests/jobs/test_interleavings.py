"""Orders of steps that once broke a promise, found by `test_state_machine` or on the way to it; one test for each."""

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import redis

from jobs import states
from jobs.bootstrap import Connection
from jobs.errors import (
    BrokerUnavailableError,
    IdempotencyInFlightError,
    JobPurgedError,
    LeaseLostError,
    WrongStateError,
)
from jobs.live.keys import PREFIX
from jobs.live.pagination import Query
from jobs.models import InputInfo, JobRecord, JobStatus, Manifest, Stage
from jobs.recovery import finalize
from jobs.recovery.finalize import cancelled
from jobs.recovery.reconciler import Reconciler

Post = Callable[..., str]
Succeed = Callable[..., None]
Meanwhile = Callable[[object, str, Callable[[], object]], None]


@pytest.fixture
def before_next(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Something happens just before a method of an object, or of all of a class, is called the next time."""

    def before_next(thing: object, name: str, act: Callable[[], object]) -> None:
        real = getattr(thing, name)
        left = [act]

        def method(*args: Any, **options: Any) -> Any:
            while left:
                left.pop()()
            return real(*args, **options)

        monkeypatch.setattr(thing, name, method)

    return before_next


def is_gone(jobs: Connection, job_id: str) -> bool:
    with pytest.raises(JobPurgedError):
        jobs.service.get(job_id)
    return {key.rpartition("/")[2] for key in jobs.backends.store.blobs.keys(f"jobs/{job_id}/")} == {"purged.json"}


def delete_and_wipe(jobs: Connection, server: redis.Redis, job_id: str) -> None:
    """What was to keep late words out is gone, and nobody compares again for a while."""
    jobs.service.purge(job_id)
    server.flushall()
    jobs.reconciler.rebuild()


LATE: dict[str, Callable[[Connection, str], object]] = {
    "a client": lambda jobs, job_id: jobs.service.get(job_id),
    "a worker": lambda jobs, job_id: jobs.worker.claim(job_id, "two"),
    "the reaper": lambda jobs, _: jobs.reconciler.rebuild(),
}


class TestDeletedJobs:
    def test_one_that_was_deleted_while_the_broker_was_down_is_forgotten(
        self, jobs: Connection, without_broker: Connection, finished: Post
    ) -> None:
        job_id = finished(jobs)
        without_broker.service.purge(job_id)
        jobs.reconciler.rebuild()
        assert is_gone(jobs, job_id)
        assert jobs.service.list(limit=9).items == jobs.service.list(Query("severity"), limit=9).items == ()

    def test_a_gateway_that_is_killed_after_the_tombstone_leaves_nothing_that_is_still_shown(
        self, jobs: Connection, finished: Post
    ) -> None:
        job_id = finished(jobs)
        jobs.backends.store.mark_purged(job_id)
        jobs.reconciler.rebuild()
        jobs.cleanup.clean_up()
        assert is_gone(jobs, job_id)

    def test_who_deletes_again_after_that_deletes_all(self, jobs: Connection, finished: Post) -> None:
        job_id = finished(jobs)
        jobs.backends.store.mark_purged(job_id)
        with pytest.raises(JobPurgedError):
            jobs.service.purge(job_id)
        assert is_gone(jobs, job_id)

    def test_progress_shows_it_no_more(self, jobs: Connection, post: Post) -> None:
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "one")
        jobs.service.purge(job_id)
        lease.report(Stage.LUNGS, 0.5)
        assert is_gone(jobs, job_id)

    @pytest.mark.parametrize("is_wiped", [False, True])
    def test_a_worker_that_had_passed_the_fence_shows_it_no_more(
        self,
        jobs: Connection,
        server: redis.Redis,
        post: Post,
        succeed: Succeed,
        before_next: Meanwhile,
        is_wiped: bool,
    ) -> None:
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "one")

        def delete() -> None:
            jobs.service.purge(job_id)
            if is_wiped:
                server.flushall()

        before_next(type(jobs.backends.store), "create_manifest", delete)
        with pytest.raises(JobPurgedError):
            succeed(jobs, lease)
        assert is_gone(jobs, job_id)

    def test_a_fault_shows_it_no_more(self, jobs: Connection, post: Post) -> None:
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "one")
        jobs.service.purge(job_id)
        jobs.worker.retry(lease, RuntimeError())
        assert is_gone(jobs, job_id)

    def test_the_last_attempt_may_be_given_up_just_then(
        self, jobs: Connection, post: Post, before_next: Meanwhile
    ) -> None:
        job_id = post(jobs)
        for _ in range(jobs.settings.max_attempts - 1):
            jobs.worker.retry(jobs.worker.claim(job_id, "one"), RuntimeError())
        lease = jobs.worker.claim(job_id, "one")
        before_next(type(jobs.backends.store.attempts), "endings", lambda: jobs.service.purge(job_id))
        jobs.worker.retry(lease, RuntimeError())
        assert is_gone(jobs, job_id)

    def test_a_batch_that_is_taken_up_late_accepts_it_no_more(
        self, jobs: Connection, post: Post, before_next: Meanwhile
    ) -> None:
        job_id = post(jobs)
        record = jobs.backends.store.record(job_id)
        before_next(type(jobs.backends.store), "create_job", lambda: jobs.service.purge(job_id))
        jobs.service.accept_once(record)
        assert is_gone(jobs, job_id)

    def test_a_worker_that_could_not_show_its_end_in_time_shows_it_no_more(
        self,
        jobs: Connection,
        server: redis.Redis,
        post: Post,
        succeed: Succeed,
        before_next: Meanwhile,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "one")

        def fail() -> None:
            before_next(jobs.backends.live, "put", lambda: delete_and_wipe(jobs, server, job_id))
            raise BrokerUnavailableError("down")

        monkeypatch.setattr(finalize, "SHOW_EVERY_SECONDS", 0)
        before_next(jobs.backends.live, "put", fail)
        with suppress(JobPurgedError):
            succeed(jobs, lease)
        for thread in threading.enumerate():
            if thread.name == "show-end":
                thread.join()
        assert is_gone(jobs, job_id)

    @pytest.mark.parametrize("who", LATE)
    def test_who_finds_its_end_in_the_blobs_shows_it_no_more(
        self, jobs: Connection, server: redis.Redis, post: Post, before_next: Meanwhile, who: str
    ) -> None:
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "killed after the manifest")
        jobs.backends.store.create_manifest(cancelled(lease.record, 1))
        lease.drop()
        server.delete(f"{PREFIX}epoch")
        before_next(jobs.backends.live, "put", lambda: delete_and_wipe(jobs, server, job_id))
        with suppress(JobPurgedError, WrongStateError):
            LATE[who](jobs, job_id)
        assert is_gone(jobs, job_id)


class TestEnds:
    def test_one_that_was_seen_is_seen_after_a_rebuild_that_began_before(
        self, jobs: Connection, server: redis.Redis, post: Post, before_next: Meanwhile
    ) -> None:
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "killed after the manifest")
        server.flushall()

        def end_and_look() -> None:
            jobs.backends.store.create_manifest(cancelled(lease.record, 1))
            assert jobs.service.get(job_id).status == JobStatus.CANCELLED

        before_next(jobs.backends.live, "put", end_and_look)
        jobs.reconciler.rebuild()
        assert jobs.service.get(job_id).status == JobStatus.CANCELLED

    def test_one_that_was_seen_is_seen_after_a_wipe_in_a_rebuild(
        self, jobs: Connection, server: redis.Redis, post: Post, succeed: Succeed, before_next: Meanwhile
    ) -> None:
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "one")
        server.flushall()

        def end_and_wipe() -> None:
            succeed(jobs, lease)
            server.flushall()

        before_next(jobs.backends.live, "lease", end_and_wipe)
        jobs.reconciler.rebuild()
        assert jobs.service.get(job_id).status == JobStatus.SUCCEEDED

    def test_one_that_was_seen_is_seen_though_a_reaper_wakes_up_late(
        self, jobs: Connection, server: redis.Redis, post: Post, succeed: Succeed, before_next: Meanwhile
    ) -> None:
        job_id = post(jobs)
        lost = jobs.worker.claim(job_id, "lost")
        lost.drop()

        def end_and_wipe() -> None:
            succeed(jobs, jobs.worker.claim(job_id, "two"))
            server.flushall()

        reconciler = Reconciler(jobs.backends, jobs.cleanup)
        before_next(type(jobs.backends.store.attempts), "create_ending", end_and_wipe)
        reconciler._recover(job_id)
        assert jobs.service.get(job_id).status == JobStatus.SUCCEEDED

    def test_a_manifest_whose_answer_got_lost_counts(
        self, jobs: Connection, post: Post, succeed: Succeed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "one")

        def create(manifest: Manifest) -> bool:
            jobs.backends.store.blobs.create(f"jobs/{job_id}/manifest.json", manifest.model_dump_json().encode())
            raise ConnectionError("the answer got lost")

        with monkeypatch.context() as patch:
            patch.setattr(type(jobs.backends.store), "create_manifest", lambda _, manifest: create(manifest))
            with pytest.raises(ConnectionError):
                succeed(jobs, lease)
        jobs.worker.retry(lease, ConnectionError())
        assert jobs.service.get(job_id).status == JobStatus.SUCCEEDED

    def test_a_cancel_while_a_worker_claims_ends_the_job_though_the_client_is_killed(
        self, jobs: Connection, post: Post, before_next: Meanwhile
    ) -> None:
        job_id = post(jobs)
        store = jobs.backends.store
        before_next(type(store.attempts), "create_claim", lambda: store.request_cancel(job_id))
        with pytest.raises(WrongStateError):
            jobs.worker.claim(job_id, "one")
        assert (jobs.service.get(job_id).status, jobs.service.get(job_id).attempt) == (JobStatus.CANCELLED, 1)

    def test_a_cancelled_job_that_meets_a_fault_is_cancelled_and_not_tried_again(
        self, jobs: Connection, post: Post
    ) -> None:
        job_id = post(jobs)
        lease = jobs.worker.claim(job_id, "one")
        jobs.service.cancel(job_id)
        jobs.worker.retry(lease, RuntimeError())
        assert jobs.service.get(job_id).status == JobStatus.CANCELLED
        with pytest.raises(WrongStateError):
            jobs.worker.claim(job_id, "two")


def test_a_view_that_is_newer_than_blobs_from_a_copy_gives_way(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    lease = jobs.worker.claim(job_id, "one")
    jobs.reconciler.reconcile()
    jobs.backends.store.blobs.delete(f"jobs/{job_id}/attempts/1/claim.json")
    lease.drop()
    jobs.reconciler.reconcile()
    assert jobs.reconciler.reconcile() == 1
    assert (jobs.service.get(job_id).status, jobs.service.get(job_id).attempt) == (JobStatus.QUEUED, 0)


def test_what_was_swept_as_no_job_becomes_none_however_late(jobs: Connection) -> None:
    job_id = states.new_id()
    jobs.backends.store.blobs.write(f"jobs/{job_id}/input", b"a scan")
    later = states.now() + timedelta(seconds=2 * jobs.settings.upload_seconds)
    assert jobs.cleanup.clean_up(later) == 1
    with pytest.raises(IdempotencyInFlightError):
        jobs.service.accept(JobRecord(id=job_id, created_at=states.now(), input=InputInfo()))
    assert jobs.cleanup.clean_up(later) == 0
    assert jobs.cleanup.clean_up(later + timedelta(days=30)) == 1
    assert list(jobs.backends.store.blobs.keys("jobs/")) == []


def test_after_an_outage_the_reaper_looks_for_what_it_missed_at_once(
    jobs: Connection, without_broker: Connection, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.reconciler.reconcile()
    job_id = post(without_broker)
    assert jobs.reconciler.reconcile() == 0, "nothing tells that there is something to look for"

    def fail(*_: object) -> bool:
        jobs.reconciler._stop.set()
        raise BrokerUnavailableError("down")

    with monkeypatch.context() as patch:
        patch.setattr(jobs.backends.live.recovery, "lead", fail)
        jobs.reconciler._run()
    assert jobs.reconciler.reconcile() == 1
    assert jobs.backends.queue.present(0) == {job_id}


def test_a_wiped_server_forgets_no_tombstone_that_matters(
    jobs: Connection, server: redis.Redis, post: Post, succeed: Succeed
) -> None:
    job_id = post(jobs)
    lease = jobs.worker.claim(job_id, "one")
    jobs.service.purge(job_id)
    server.flushall()
    lease.report(Stage.LUNGS, 0.5)
    with pytest.raises((JobPurgedError, LeaseLostError)):
        succeed(jobs, lease)
    jobs.reconciler.rebuild()
    assert is_gone(jobs, job_id)
    assert not list(server.scan_iter(f"{PREFIX}job:*"))
