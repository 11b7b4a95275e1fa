"""Batches: whole or not at all, whatever dies in between."""

from collections.abc import Callable
from datetime import timedelta

import pytest
import redis

from jobs import states
from jobs.batches import BatchItem, BatchRecord
from jobs.bootstrap import Connection
from jobs.errors import BatchNotFoundError, IdempotencyMismatchError, StorageUnavailableError
from jobs.models import InputInfo, JobError, JobRecord, JobStatus, Priority, ScanSource

LATER = timedelta(days=2)


def records(jobs: Connection, count: int) -> list[JobRecord]:
    scan = InputInfo(source=ScanSource(url="https://pacs.example/ct/1.nii.gz"))
    return [
        JobRecord(id=states.new_id(), created_at=states.now(), input=scan, priority=Priority.BATCH)
        for _ in range(count)
    ]


def batch_of(jobs: Connection, members: list[JobRecord], batch_id: str | None = None) -> BatchRecord:
    items = [BatchItem(job_id=member.id) for member in members]
    return BatchRecord(id=batch_id or states.new_id(), created_at=states.now(), items=items)


def test_every_scan_becomes_a_job_in_the_order_sent(jobs: Connection) -> None:
    members = records(jobs, 20)
    batch = jobs.service.batches.accept(batch_of(jobs, members), members)
    assert jobs.service.batches.get(batch.id) == batch
    found = jobs.service.batches.states(batch.job_ids)
    assert [state.id for state in found if state] == [member.id for member in members]
    counts = jobs.service.batches.counts(batch)
    assert (counts.by_status[JobStatus.QUEUED], counts.purged, counts.refused) == (20, 0, 0)
    assert {name.rpartition("/")[2] for name in jobs.backends.store.blobs.keys("batches/")} == {"batch.json"}


def test_counts_follow_the_jobs(jobs: Connection, succeed: Callable[..., None]) -> None:
    members = records(jobs, 4)
    batch = batch_of(jobs, members)
    refused = JobError(type="/problems/x", title="x", detail="x", retryable=False)
    batch = batch.model_copy(update={"items": [*batch.items, BatchItem(error=refused)]})
    jobs.service.batches.accept(batch, members)
    with jobs.worker.claim(members[0].id, "w") as lease:
        succeed(jobs, lease)
    jobs.service.cancel(members[1].id)
    jobs.service.purge(members[2].id)
    counts = jobs.service.batches.counts(batch)
    assert {status.value: n for status, n in counts.by_status.items() if n} == {
        "succeeded": 1, "cancelled": 1, "queued": 1,
    }  # fmt: skip
    assert (counts.purged, counts.refused) == (1, 1)
    assert jobs.service.batches.states(batch.job_ids)[2] is None


def test_without_the_broker_a_batch_is_accepted_and_can_be_read(without_broker: Connection, jobs: Connection) -> None:
    members = records(jobs, 3)
    batch = without_broker.service.batches.accept(batch_of(jobs, members), members)
    assert without_broker.service.batches.counts(batch).by_status[JobStatus.QUEUED] == 3
    jobs.reconciler.rebuild()
    assert jobs.service.monitoring.counts()[JobStatus.QUEUED] == 3


@pytest.mark.parametrize("survivors", [0, 1, 4])
def test_a_gateway_that_dies_half_way_is_finished_by_the_sweep(
    jobs: Connection, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, survivors: int
) -> None:
    members, accepted = records(jobs, 5), []

    def die(record: JobRecord) -> None:
        if len(accepted) >= survivors:
            raise StorageUnavailableError("gone")
        accepted.append(record.id)
        jobs.service.accept_once(record)

    with monkeypatch.context() as patched:
        patched.setattr("jobs.batches.ACCEPTED_AT_ONCE", 1)
        patched.setattr(jobs.service.batches, "_ensure", die)
        batch = batch_of(jobs, members)
        with pytest.raises(StorageUnavailableError):
            jobs.service.batches.accept(batch, members)
    assert jobs.service.batches.counts(batch).by_status[JobStatus.QUEUED] == 5, "they are told as on their way"
    assert jobs.service.monitoring.counts()[JobStatus.QUEUED] == survivors
    jobs.cleanup.clean_up(states.now())
    assert jobs.service.monitoring.counts()[JobStatus.QUEUED] == survivors, "it may still be at it"
    jobs.cleanup.clean_up(states.now() + timedelta(minutes=5))
    assert jobs.service.monitoring.counts()[JobStatus.QUEUED] == 5
    assert [state.input for state in jobs.service.batches.states(batch.job_ids) if state] == [m.input for m in members]


def test_a_sweep_does_not_bring_deleted_jobs_back(jobs: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    members = records(jobs, 2)
    batch = batch_of(jobs, members)
    with monkeypatch.context() as patched:
        patched.setattr(jobs.backends.store.blobs, "delete", lambda _key: None)
        jobs.service.batches.accept(batch, members)
    jobs.service.purge(members[0].id)
    jobs.cleanup.clean_up(states.now() + timedelta(minutes=5))
    assert jobs.service.batches.states(batch.job_ids)[0] is None
    assert jobs.service.batches.counts(batch).by_status[JobStatus.QUEUED] == 1


def test_a_batch_that_nobody_was_told_of_leaves_nothing(jobs: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    members, create = records(jobs, 2), jobs.backends.store.blobs.create

    def fail_on_commit(key: str, data: bytes) -> bool:
        if key.endswith("/batch.json"):
            raise StorageUnavailableError("gone")
        return create(key, data)

    batch = batch_of(jobs, members)
    with monkeypatch.context() as patched:
        patched.setattr(jobs.backends.store.blobs, "create", fail_on_commit)
        with pytest.raises(StorageUnavailableError):
            jobs.service.batches.accept(batch, members)
    jobs.cleanup.clean_up(states.now() + timedelta(minutes=5))
    assert not list(jobs.backends.store.blobs.keys("batches/"))
    assert jobs.service.monitoring.counts()[JobStatus.QUEUED] == 0
    with pytest.raises(BatchNotFoundError):
        jobs.service.batches.get(batch.id)


def test_a_key_makes_one_batch(jobs: Connection) -> None:
    batch_id, earlier = jobs.service.batches.begin("key", "one")
    assert earlier is None
    again, still_none = jobs.service.batches.begin("key", "one")
    assert (again, still_none) == (batch_id, None), "the first request may have died; both may go on"
    first, second = records(jobs, 2), records(jobs, 2)
    made = jobs.service.batches.accept(batch_of(jobs, first, batch_id), first)
    assert jobs.service.batches.accept(batch_of(jobs, second, batch_id), second) == made
    assert jobs.service.monitoring.counts()[JobStatus.QUEUED] == 2
    assert jobs.service.batches.begin("key", "one") == (batch_id, made)
    with pytest.raises(IdempotencyMismatchError):
        jobs.service.batches.begin("key", "another")


def test_cancelling_a_batch_stops_what_is_not_finished(jobs: Connection, succeed: Callable[..., None]) -> None:
    members = records(jobs, 3)
    batch = jobs.service.batches.accept(batch_of(jobs, members), members)
    with jobs.worker.claim(members[0].id, "w") as lease:
        succeed(jobs, lease)
    jobs.service.purge(members[1].id)
    jobs.service.batches.cancel(batch.id, jobs.service.cancel)
    assert [state.status.value if state else None for state in jobs.service.batches.states(batch.job_ids)] == [
        "succeeded", None, "cancelled",
    ]  # fmt: skip


def test_a_batch_goes_with_its_last_job_once_it_is_past_retention(jobs: Connection) -> None:
    members = records(jobs, 2)
    batch = jobs.service.batches.accept(batch_of(jobs, members), members)
    now = states.now()
    jobs.service.purge(members[0].id)
    jobs.service.batches.clean_up(now + LATER, now + timedelta(days=1))
    assert jobs.service.batches.get(batch.id)
    jobs.service.purge(members[1].id)
    jobs.service.batches.clean_up(now + LATER, None)
    assert jobs.service.batches.get(batch.id), "without a retention it stays"
    jobs.service.batches.clean_up(now + LATER, now + timedelta(days=1))
    with pytest.raises(BatchNotFoundError):
        jobs.service.batches.get(batch.id)
