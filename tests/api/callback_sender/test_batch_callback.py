"""A batch tells once all its jobs have ended: at least once, whatever dies in between."""

import json
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from standardwebhooks import Webhook

from api.schemas import BatchEnded
from jobs import states
from jobs.batches import BatchItem, BatchRecord
from jobs.bootstrap import Connection
from jobs.live.callback_schedule import batch_name
from jobs.live.keys import Keys
from jobs.models import BatchCallback, CallbackStatus, InputInfo, JobError, JobRecord, Manifest
from jobs.recovery import finalize

from .conftest import NEW_SECRET, SCORES, Receiver, sending

REFUSED = BatchItem(error=JobError(type="/problems/x", title="x", detail="x", retryable=False))


def accept(jobs: Connection, url: str | None, count: int, *more: BatchItem) -> BatchRecord:
    batch_id, now = states.new_id(), states.now()
    scan = InputInfo(size_bytes=1, sha256="0" * 64)
    members = [JobRecord(id=states.new_id(), created_at=now, input=scan, batch_id=batch_id) for _ in range(count)]
    items = [*(BatchItem(job_id=member.id) for member in members), *more]
    address = f"https://lobewise.example/v1/batches/{batch_id}"
    record = BatchRecord(id=batch_id, created_at=now, items=items, callback_url=url, address=address)
    return jobs.service.batches.accept(record, members)


def end(jobs: Connection, job_id: str) -> None:
    record = jobs.backends.store.record(job_id)
    manifest = Manifest(job_id=job_id, outcome="succeeded", attempt=1, finished_at=states.now(), severity=SCORES)
    assert finalize.end_job(jobs.backends, record, manifest)


def told(jobs: Connection, batch: BatchRecord) -> BatchCallback:
    """Once its callback was delivered."""
    deadline = time.monotonic() + 10
    while (log := jobs.service.callbacks.get_of_batch(batch.id)).status is not CallbackStatus.DELIVERED:
        assert time.monotonic() < deadline, log
        time.sleep(0.02)
    return log


def test_the_end_of_the_last_job_is_told_and_told_again_when_asked(
    jobs: Connection, receiver: Callable[..., Receiver]
) -> None:
    there = receiver()
    batch = accept(jobs, there.url, 3, REFUSED)
    with sending(jobs):
        end(jobs, batch.job_ids[0])
        jobs.service.purge(batch.job_ids[1])
        time.sleep(0.3)
        assert not there.got
        assert jobs.service.callbacks.get_of_batch(batch.id).status is CallbackStatus.WAITING
        end(jobs, batch.job_ids[2])
        told(jobs, batch)
        jobs.service.purge(batch.job_ids[0])
        jobs.service.callbacks.redeliver_of_batch(batch.id)
        while len(there.got) < 2:
            time.sleep(0.02)
        assert len(told(jobs, batch).attempts) == 2
    first, again = there.got
    assert first.body == again.body
    assert Webhook(NEW_SECRET).verify(first.body, first.headers)
    message = BatchEnded.model_validate_json(first.body)
    assert first.headers["webhook-id"] == message.id == f"msg_{batch.id}"
    assert (message.type, message.subject, message.source) == (
        "lobewise.batch.ended", batch.id, "https://lobewise.example/v1/batches",
    )  # fmt: skip
    assert json.loads(first.body)["data"]["counts"] == {
        "queued": 0, "running": 0, "succeeded": 2, "failed": 0, "cancelled": 0, "purged": 1, "refused": 1,
    }  # fmt: skip
    assert message.data.links == {"self": batch.address}


def test_a_batch_whose_last_job_is_deleted_has_ended(jobs: Connection, receiver: Callable[..., Receiver]) -> None:
    there = receiver()
    batch = accept(jobs, there.url, 2)
    jobs.service.cancel(batch.job_ids[0])
    with sending(jobs):
        jobs.service.purge(batch.job_ids[1])
        told(jobs, batch)


def test_a_batch_of_refusals_has_ended_at_once(jobs: Connection, receiver: Callable[..., Receiver]) -> None:
    there = receiver()
    batch = accept(jobs, there.url, 0, REFUSED, REFUSED)
    with sending(jobs):
        told(jobs, batch)


def test_without_an_address_nothing_is_watched_or_told(jobs: Connection) -> None:
    batch = accept(jobs, None, 1)
    end(jobs, batch.job_ids[0])
    assert not jobs.backends.live._redis.exists(Keys().key("batch", batch.id))
    assert jobs.service.callbacks.take_due(9) == []


@pytest.mark.parametrize("ended_before", [0, 1, 2])
def test_a_wiped_broker_loses_no_end(jobs: Connection, receiver: Callable[..., Receiver], ended_before: int) -> None:
    there = receiver()
    batch = accept(jobs, there.url, 2)
    for job_id in batch.job_ids[:ended_before]:
        end(jobs, job_id)
    jobs.backends.live._redis.flushall()
    jobs.reconciler.rebuild()
    with sending(jobs):
        time.sleep(0.3)
        for job_id in batch.job_ids[ended_before:]:
            end(jobs, job_id)
        told(jobs, batch)
    assert len(there.got) == 1


def test_ends_that_nobody_noticed_are_found_by_the_cleanup(jobs: Connection, receiver: Callable[..., Receiver]) -> None:
    there = receiver()
    batch = accept(jobs, there.url, 2)
    jobs.backends.live._redis.delete(Keys().key("batch", batch.id))  # as if the gateway had died before
    for job_id in batch.job_ids:
        end(jobs, job_id)
    later = states.now() + timedelta(seconds=61)
    with sending(jobs):
        time.sleep(0.2)
        assert not there.got
        jobs.service.batches.clean_up(later, None)
        told(jobs, batch)
        jobs.service.batches.clean_up(later, None)
        time.sleep(0.2)
    assert len(there.got) == 1


def test_a_look_too_early_sends_nothing_and_misses_nothing(jobs: Connection, receiver: Callable[..., Receiver]) -> None:
    there = receiver()
    batch = accept(jobs, there.url, 2)
    callbacks = jobs.service.callbacks
    callbacks.postpone(batch_name(batch.id), 0)
    (name,) = callbacks.take_due(9)
    end(jobs, batch.job_ids[0])
    assert callbacks.next_delivery(name) is None
    assert callbacks.schedule.backlog().pending == 0
    end(jobs, batch.job_ids[1])
    (name,) = callbacks.take_due(9)
    # Lost with its sender; another finds what it was.
    assert callbacks.next_delivery(name) is not None
    callbacks.postpone(name, 0)
    with sending(jobs):
        told(jobs, batch)


def test_what_was_taken_from_a_batch_that_is_gone_is_forgotten(
    jobs: Connection, receiver: Callable[..., Receiver]
) -> None:
    there = receiver()
    batch = accept(jobs, there.url, 1)
    jobs.service.purge(batch.job_ids[0])
    jobs.service.batches.clean_up(states.now() + timedelta(days=3), states.now() + timedelta(days=2))
    with sending(jobs):
        while jobs.service.callbacks.schedule.backlog().pending:
            time.sleep(0.02)
    assert not there.got
