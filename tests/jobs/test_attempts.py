"""Who may work on a job and publish: claims, heartbeats, fencing, cancelling, attempts that come to nothing."""

import time
from collections.abc import Callable

import pytest

from jobs.attempts import Lease
from jobs.bootstrap import Connection, connect
from jobs.errors import CancelRequestedError, LeaseLostError, SourceUnavailableError, WrongStateError
from jobs.models import JobError, JobStatus, Stage
from tests.support.processes import until

Post = Callable[..., str]
Succeed = Callable[..., None]

NO_LUNGS = JobError(type="/problems/lungs-not-found", title="t", detail="d", retryable=False)


def must_stop(lease: Lease) -> bool:
    try:
        lease.check()
    except (CancelRequestedError, LeaseLostError):
        return True
    return False


def lose(jobs: Connection, job_id: str) -> Lease:
    """Claim, fall silent, and let the reaper notice."""
    lease = jobs.worker.claim(job_id, "lost")
    until(lambda: jobs.reconciler.reconcile() > 0)
    return lease


def test_a_claim_makes_the_job_run_and_keeps_others_out(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    with jobs.worker.claim(job_id, "one") as lease:
        state = jobs.service.get(job_id)
        assert (state.status, state.attempt, lease.attempt) == (JobStatus.RUNNING, 1, 1)
        with pytest.raises(LeaseLostError):
            jobs.worker.claim(job_id, "two")


def test_the_heartbeat_keeps_a_lease_much_longer_than_it_lasts(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    with jobs.worker.claim(job_id, "one") as lease:
        end = time.monotonic() + 3 * jobs.settings.lease_seconds
        while time.monotonic() < end:
            assert jobs.reconciler.reconcile() == 0
            time.sleep(0.05)
        lease.check()


def test_progress_is_seen_and_never_goes_back(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    with jobs.worker.claim(job_id, "one") as lease:
        lease.report(Stage.LUNGS, 0.4)
        assert (jobs.service.get(job_id).stage, jobs.service.get(job_id).progress) == (Stage.LUNGS, 0.4)
        lease.report(Stage.LESIONS, 0.3)
        assert (jobs.service.get(job_id).stage, jobs.service.get(job_id).progress) == (Stage.LESIONS, 0.4)


def test_the_loser_of_two_attempts_publishes_nothing(jobs: Connection, post: Post, succeed: Succeed) -> None:
    job_id = post(jobs)
    first = lose(jobs, job_id)
    second = jobs.worker.claim(job_id, "two")
    assert second.attempt == 2
    with pytest.raises(LeaseLostError):
        succeed(jobs, first, 99.0)
    with pytest.raises(LeaseLostError):
        jobs.worker.fail(first, NO_LUNGS)
    succeed(jobs, second, 10.0)
    with pytest.raises(LeaseLostError):
        succeed(jobs, first, 99.0)
    assert jobs.service.report(job_id).severity.percent_opacity == 10.0
    assert jobs.service.get(job_id).attempt == 2


def test_of_two_that_pass_the_fence_together_the_manifest_chooses_one(
    jobs: Connection, post: Post, succeed: Succeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = post(jobs)
    first = lose(jobs, job_id)
    second = jobs.worker.claim(job_id, "two")
    monkeypatch.setattr(first, "fence", lambda: None)  # it looked just before it was fenced off
    succeed(jobs, second, 10.0)
    with pytest.raises(LeaseLostError):
        succeed(jobs, first, 99.0)
    assert jobs.service.report(job_id).severity.percent_opacity == 10.0


def test_a_fenced_worker_learns_it_from_its_heartbeat(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    first = lose(jobs, job_id)
    with jobs.worker.claim(job_id, "two"), first:
        until(lambda: must_stop(first))
        with pytest.raises(LeaseLostError):
            first.report(Stage.READ, 0.5)
    assert jobs.service.get(job_id).stage is None


def test_the_third_lost_attempt_ends_the_job(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    for attempt in (1, 2, 3):
        assert lose(jobs, job_id).attempt == attempt
    state = jobs.service.get(job_id)
    assert state.status == JobStatus.FAILED
    assert state.error is not None
    assert (state.error.type, state.error.retryable) == ("/problems/poison", True)
    assert [e["reason"] for e in state.error.evidence["endings"]] == ["worker-lost"] * 3
    with pytest.raises(WrongStateError):
        jobs.worker.claim(job_id, "four")


def test_three_claims_without_a_reaper_end_the_job_too(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    for _ in range(3):
        jobs.worker.claim(job_id, "lost").drop()
    with pytest.raises(WrongStateError):
        jobs.worker.claim(job_id, "four")
    assert jobs.service.get(job_id).status == JobStatus.FAILED


def test_a_fault_is_tried_again_after_a_pause(jobs: Connection, post: Post, succeed: Succeed) -> None:
    job_id = post(jobs)
    with jobs.worker.claim(job_id, "one") as lease:
        jobs.worker.retry(lease, RuntimeError("secret detail"))
    assert (jobs.service.get(job_id).status, jobs.service.get(job_id).attempt) == (JobStatus.QUEUED, 1)
    until(lambda: jobs.reconciler.reconcile() > 0)
    with jobs.worker.claim(job_id, "two") as lease:
        succeed(jobs, lease)
    assert jobs.service.get(job_id).attempt == 2


def test_the_third_fault_ends_the_job_without_telling_its_message(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    for _ in range(3):
        with jobs.worker.claim(job_id, "one") as lease:
            jobs.worker.retry(lease, RuntimeError("secret detail"))
    error = jobs.service.get(job_id).error
    assert error is not None
    assert error.type == "/problems/attempts-exhausted"
    assert "secret" not in error.model_dump_json()
    assert "RuntimeError" in error.model_dump_json()


@pytest.mark.parametrize(
    ("faults", "problem"),
    [
        ([SourceUnavailableError()] * 3, "source-unavailable"),
        ([SourceUnavailableError(), RuntimeError(), SourceUnavailableError()], "attempts-exhausted"),
    ],
)
def test_a_source_that_is_never_there_is_no_fault_of_the_service(
    faults: list[Exception], problem: str, jobs: Connection, post: Post
) -> None:
    job_id = post(jobs)
    for fault in faults:
        with jobs.worker.claim(job_id, "one") as lease:
            jobs.worker.retry(lease, fault)
    error = jobs.service.get(job_id).error
    assert error is not None
    assert (error.type, error.retryable) == (f"/problems/{problem}", True)


def test_a_scan_that_cannot_be_scored_fails_at_once(jobs: Connection, post: Post) -> None:
    job_id = post(jobs)
    with jobs.worker.claim(job_id, "one") as lease:
        jobs.worker.fail(lease, NO_LUNGS)
    assert (jobs.service.get(job_id).status, jobs.service.get(job_id).error) == (JobStatus.FAILED, NO_LUNGS)


class TestCancel:
    def test_a_running_job_hears_of_it_long_before_its_next_heartbeat(self, jobs: Connection, post: Post) -> None:
        """Found by a drill: with the shipped heartbeat of 5 s the p95 was 5.6 s."""
        slow = connect(jobs.settings.model_copy(update={"heartbeat_seconds": 60.0, "lease_seconds": 240.0}))
        with slow.worker.claim(post(jobs), "worker") as lease:
            jobs.service.cancel(lease.job_id)
            begin = time.monotonic()
            while lease._stop_reason is None and time.monotonic() - begin < 20:
                time.sleep(0.05)
            with pytest.raises(CancelRequestedError):
                lease.check()
        slow.close()

    def test_a_queued_job_is_cancelled_at_once(self, jobs: Connection, post: Post) -> None:
        job_id = post(jobs)
        assert jobs.service.cancel(job_id).status == JobStatus.CANCELLED
        with pytest.raises(WrongStateError) as caught:
            jobs.worker.claim(job_id, "late")
        assert caught.value.evidence["status"] == "cancelled"

    def test_a_running_job_is_asked_and_stops_at_its_next_step(self, jobs: Connection, post: Post) -> None:
        job_id = post(jobs)
        with jobs.worker.claim(job_id, "one") as lease:
            state = jobs.service.cancel(job_id)
            assert (state.status, state.cancel_requested) == (JobStatus.RUNNING, True)
            assert jobs.service.cancel(job_id).cancel_requested
            until(lambda: must_stop(lease))
            with pytest.raises(CancelRequestedError):
                lease.report(Stage.LUNGS, 0.5)
            jobs.worker.confirm_cancel(lease)
        assert jobs.service.get(job_id).status == JobStatus.CANCELLED

    def test_work_that_finished_after_the_request_is_not_published(
        self, jobs: Connection, post: Post, succeed: Succeed
    ) -> None:
        job_id = post(jobs)
        with jobs.worker.claim(job_id, "one") as lease:
            jobs.service.cancel(job_id)
            with pytest.raises(CancelRequestedError):
                succeed(jobs, lease)

    def test_work_that_does_not_stop_is_overdue(self, jobs: Connection, post: Post) -> None:
        job_id = post(jobs)
        overdue: list[Lease] = []
        with jobs.worker.claim(job_id, "one") as lease:
            lease.on_overdue = overdue.append
            jobs.service.cancel(job_id)
            until(lambda: overdue == [lease])

    def test_a_cancelled_job_whose_worker_is_lost_ends_cancelled(self, jobs: Connection, post: Post) -> None:
        job_id = post(jobs)
        jobs.worker.claim(job_id, "lost")
        jobs.service.cancel(job_id)
        until(lambda: jobs.reconciler.reconcile() > 0)
        assert jobs.service.get(job_id).status == JobStatus.CANCELLED

    def test_a_final_job_cannot_be_cancelled(self, jobs: Connection, finished: Post) -> None:
        with pytest.raises(WrongStateError) as caught:
            jobs.service.cancel(finished(jobs))
        assert caught.value.evidence["status"] == "succeeded"
