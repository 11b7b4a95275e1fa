"""Batches: whole or not at all, whatever dies in between."""

from collections.abc import Callable
from datetime import timedelta

import pytest
import redis

from jobs import states
from jobs.batches import BatchItem, BatchRecord
from jobs.errors import BatchNotFoundError, IdempotencyMismatchError, StorageUnavailableError
from jobs.models import InputInfo, JobError, JobRecord, JobStatus, Priority, ScanSource
from jobs.service import Jobs

LATER = timedelta(days=2)


def records(jobs: Jobs, count: int) -> list[JobRecord]:
    scan = InputInfo(source=ScanSource(url="https://pacs.example/ct/1.nii.gz"))
    return [
        JobRecord(id=jobs.new_id(), created_at=states.now(), input=scan, priority=Priority.BATCH) for _ in range(count)
    ]


def batch_of(jobs: Jobs, members: list[JobRecord], batch_id: str | None = None) -> BatchRecord:
    items = [BatchItem(job_id=member.id) for member in members]
    return BatchRecord(id=batch_id or jobs.new_id(), created_at=states.now(), items=items)


def test_every_scan_becomes_a_job_in_the_order_sent(jobs: Jobs) -> None:
    members = records(jobs, 20)
    batch = jobs.batches.accept(batch_of(jobs, members), members)
    assert jobs.batches.get(batch.id) == batch
    found = jobs.batches.states(batch.job_ids)
    assert [state.id for state in found if state] == [member.id for member in members]
    counts = jobs.batches.counts(batch)
    assert (counts.by_status[JobStatus.QUEUED], counts.purged, counts.refused) == (20, 0, 0)
    assert {name.rpartition("/")[2] for name in jobs._store.blobs.keys("batches/")} == {"batch.json"}


def test_counts_follow_the_jobs(jobs: Jobs, succeed: Callable[..., None]) -> None:
    members = records(jobs, 4)
    batch = batch_of(jobs, members)
    refused = JobError(type="/problems/x", title="x", detail="x", retryable=False)
    batch = batch.model_copy(update={"items": [*batch.items, BatchItem(error=refused)]})
    jobs.batches.accept(batch, members)
    with jobs.claim(members[0].id, "w") as lease:
        succeed(jobs, lease)
    jobs.cancel(members[1].id)
    jobs.purge(members[2].id)
    counts = jobs.batches.counts(batch)
    assert {status.value: n for status, n in counts.by_status.items() if n} == {
        "succeeded": 1, "cancelled": 1, "queued": 1,
    }  # fmt: skip
    assert (counts.purged, counts.refused) == (1, 1)
    assert jobs.batches.states(batch.job_ids)[2] is None


def test_without_the_broker_a_batch_is_accepted_and_can_be_read(without_broker: Jobs, jobs: Jobs) -> None:
    members = records(jobs, 3)
    batch = without_broker.batches.accept(batch_of(jobs, members), members)
    assert without_broker.batches.counts(batch).by_status[JobStatus.QUEUED] == 3
    jobs.rebuild()
    assert jobs.counts()[JobStatus.QUEUED] == 3


@pytest.mark.parametrize("survivors", [0, 1, 4])
def test_a_gateway_that_dies_half_way_is_finished_by_the_sweep(
    jobs: Jobs, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, survivors: int
) -> None:
    members, accepted = records(jobs, 5), []

    def die(record: JobRecord) -> None:
        if len(accepted) >= survivors:
            raise StorageUnavailableError("gone")
        accepted.append(record.id)
        jobs._ensure(record)

    with monkeypatch.context() as patched:
        patched.setattr("jobs.batches.ACCEPTED_AT_ONCE", 1)
        patched.setattr(jobs.batches, "_ensure", die)
        batch = batch_of(jobs, members)
        with pytest.raises(StorageUnavailableError):
            jobs.batches.accept(batch, members)
    assert jobs.batches.counts(batch).by_status[JobStatus.QUEUED] == 5, "they are told as on their way"
    assert jobs.counts()[JobStatus.QUEUED] == survivors
    jobs._cleanup.clean_up(states.now())
    assert jobs.counts()[JobStatus.QUEUED] == survivors, "it may still be at it"
    jobs._cleanup.clean_up(states.now() + timedelta(minutes=5))
    assert jobs.counts()[JobStatus.QUEUED] == 5
    assert [state.input for state in jobs.batches.states(batch.job_ids) if state] == [m.input for m in members]


def test_a_sweep_does_not_bring_deleted_jobs_back(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    members = records(jobs, 2)
    batch = batch_of(jobs, members)
    with monkeypatch.context() as patched:
        patched.setattr(jobs._store.blobs, "delete", lambda _key: None)
        jobs.batches.accept(batch, members)
    jobs.purge(members[0].id)
    jobs._cleanup.clean_up(states.now() + timedelta(minutes=5))
    assert jobs.batches.states(batch.job_ids)[0] is None
    assert jobs.batches.counts(batch).by_status[JobStatus.QUEUED] == 1


def test_a_batch_that_nobody_was_told_of_leaves_nothing(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    members, create = records(jobs, 2), jobs._store.blobs.create

    def fail_on_commit(key: str, data: bytes) -> bool:
        if key.endswith("/batch.json"):
            raise StorageUnavailableError("gone")
        return create(key, data)

    batch = batch_of(jobs, members)
    with monkeypatch.context() as patched:
        patched.setattr(jobs._store.blobs, "create", fail_on_commit)
        with pytest.raises(StorageUnavailableError):
            jobs.batches.accept(batch, members)
    jobs._cleanup.clean_up(states.now() + timedelta(minutes=5))
    assert not list(jobs._store.blobs.keys("batches/"))
    assert jobs.counts()[JobStatus.QUEUED] == 0
    with pytest.raises(BatchNotFoundError):
        jobs.batches.get(batch.id)


def test_a_key_makes_one_batch(jobs: Jobs) -> None:
    batch_id, earlier = jobs.batches.begin("key", "one")
    assert earlier is None
    again, still_none = jobs.batches.begin("key", "one")
    assert (again, still_none) == (batch_id, None), "the first request may have died; both may go on"
    first, second = records(jobs, 2), records(jobs, 2)
    made = jobs.batches.accept(batch_of(jobs, first, batch_id), first)
    assert jobs.batches.accept(batch_of(jobs, second, batch_id), second) == made
    assert jobs.counts()[JobStatus.QUEUED] == 2
    assert jobs.batches.begin("key", "one") == (batch_id, made)
    with pytest.raises(IdempotencyMismatchError):
        jobs.batches.begin("key", "another")


def test_cancelling_a_batch_stops_what_is_not_finished(jobs: Jobs, succeed: Callable[..., None]) -> None:
    members = records(jobs, 3)
    batch = jobs.batches.accept(batch_of(jobs, members), members)
    with jobs.claim(members[0].id, "w") as lease:
        succeed(jobs, lease)
    jobs.purge(members[1].id)
    jobs.batches.cancel(batch.id, jobs.cancel)
    assert [state.status.value if state else None for state in jobs.batches.states(batch.job_ids)] == [
        "succeeded", None, "cancelled",
    ]  # fmt: skip


def test_a_batch_goes_with_its_last_job_once_it_is_past_retention(jobs: Jobs) -> None:
    members = records(jobs, 2)
    batch = jobs.batches.accept(batch_of(jobs, members), members)
    now = states.now()
    jobs.purge(members[0].id)
    jobs.batches.clean_up(now + LATER, now + timedelta(days=1))
    assert jobs.batches.get(batch.id)
    jobs.purge(members[1].id)
    jobs.batches.clean_up(now + LATER, None)
    assert jobs.batches.get(batch.id), "without a retention it stays"
    jobs.batches.clean_up(now + LATER, now + timedelta(days=1))
    with pytest.raises(BatchNotFoundError):
        jobs.batches.get(batch.id)
