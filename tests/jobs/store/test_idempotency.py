"""The same request twice makes one job, wherever the first one stopped."""

from collections.abc import Callable

import pytest

from jobs import states
from jobs.bootstrap import Connection
from jobs.errors import IdempotencyInFlightError, IdempotencyMismatchError
from jobs.models import InputInfo, JobRecord, Priority
from jobs.store.idempotency import Idempotency, fingerprint

SCAN = InputInfo(size_bytes=1, sha256="a" * 64)
OTHER_SCAN = InputInfo(size_bytes=1, sha256="b" * 64)


def record(job_id: str, scan: InputInfo = SCAN, priority: Priority = Priority.ROUTINE) -> JobRecord:
    return JobRecord(id=job_id, created_at=states.now(), input=scan, priority=priority)


@pytest.fixture
def impatient(jobs: Connection) -> Idempotency:
    """Marks of requests in flight are old at once."""
    return Idempotency(jobs.backends.store, in_flight_seconds=0.0)


def test_the_first_request_goes_on_and_its_repetition_gets_the_first_answer(jobs: Connection) -> None:
    job_id = states.new_id()
    assert jobs.service.idempotency.begin("key", job_id) is None
    jobs.service.accept(record(job_id))
    second = states.new_id()
    first = jobs.service.idempotency.begin("key", second)
    assert first is not None
    assert first.job_id == job_id
    first.require_same(record(second))


@pytest.mark.parametrize("options", [{"scan": OTHER_SCAN}, {"priority": Priority.STAT}])
def test_another_request_with_the_key_is_refused(jobs: Connection, options: dict[str, object]) -> None:
    job_id = states.new_id()
    jobs.service.idempotency.begin("key", job_id)
    jobs.service.accept(record(job_id))
    first = jobs.service.idempotency.begin("key", states.new_id())
    assert first is not None
    with pytest.raises(IdempotencyMismatchError):
        first.require_same(record(states.new_id(), **options))  # type: ignore[arg-type]


def test_a_repetition_while_the_first_is_in_flight_is_refused(jobs: Connection) -> None:
    jobs.service.idempotency.begin("key", states.new_id())
    with pytest.raises(IdempotencyInFlightError):
        jobs.service.idempotency.begin("key", states.new_id())
    assert jobs.service.idempotency.begin("another key", states.new_id()) is None


def test_a_request_that_failed_frees_its_key(jobs: Connection) -> None:
    job_id = states.new_id()
    jobs.service.idempotency.begin("key", job_id)
    jobs.service.idempotency.abandon("key", job_id)
    assert jobs.service.idempotency.begin("key", states.new_id()) is None


def test_a_request_that_was_accepted_cannot_be_abandoned(jobs: Connection) -> None:
    job_id = states.new_id()
    jobs.service.idempotency.begin("key", job_id)
    jobs.service.accept(record(job_id))
    jobs.service.idempotency.abandon("key", job_id)
    first = jobs.service.idempotency.begin("key", states.new_id())
    assert first is not None
    assert first.job_id == job_id


def test_a_crash_before_acceptance_blocks_the_key_only_for_a_while(jobs: Connection, impatient: Idempotency) -> None:
    impatient.begin("key", states.new_id())
    job_id = states.new_id()
    assert impatient.begin("key", job_id) is None
    jobs.service.accept(record(job_id))
    first = impatient.begin("key", states.new_id())
    assert first is not None
    assert first.job_id == job_id


def test_a_crash_after_acceptance_still_answers_with_the_job(jobs: Connection, impatient: Idempotency) -> None:
    job_id = states.new_id()
    impatient.begin("key", job_id)
    jobs.backends.store.create_job(record(job_id))  # and nothing after it
    first = impatient.begin("key", states.new_id())
    assert first is not None
    assert first.fingerprint == fingerprint(record(job_id))


def test_a_slow_request_that_was_overtaken_makes_no_second_job(jobs: Connection, impatient: Idempotency) -> None:
    slow, fast = states.new_id(), states.new_id()
    assert impatient.begin("key", slow) is None
    assert impatient.begin("key", fast) is None
    with pytest.raises(IdempotencyInFlightError):
        jobs.service.accept(record(slow))
    jobs.service.accept(record(fast))
    assert [state.id for state in jobs.service.list(limit=9).items] == [fast]


def test_requests_that_never_ended_are_no_jobs_after_a_rebuild(jobs: Connection, impatient: Idempotency) -> None:
    impatient.begin("key", states.new_id())
    impatient.begin("key", states.new_id())
    assert jobs.reconciler.rebuild() == 0
    assert jobs.service.list(limit=9).items == ()


def test_a_purged_job_is_still_the_first_answer(jobs: Connection, post: Callable[..., str]) -> None:
    job_id = states.new_id()
    jobs.service.idempotency.begin("key", job_id)
    jobs.service.accept(record(job_id))
    jobs.service.purge(job_id)
    first = jobs.service.idempotency.begin("key", states.new_id())
    assert first is not None
    assert first.job_id == job_id
    first.require_same(record(states.new_id(), OTHER_SCAN))


def test_an_id_that_another_voids_and_cleans_up_meanwhile_stays_void(
    jobs: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job_id = jobs.backends.store, states.new_id()
    assert store.void(job_id)
    read = store.blobs.read

    def read_too_late(key: str) -> bytes | None:
        monkeypatch.undo()
        store.delete_all_but_tombstone(job_id)
        return read(key)

    monkeypatch.setattr(store.blobs, "read", read_too_late)
    assert store.void(job_id)
    assert not store.create_job(record(job_id))
