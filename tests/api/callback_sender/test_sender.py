"""What receivers get, and what becomes of those that do not take it."""

import json
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from api.callback_message import callback_secrets
from api.callback_sender import Sender
from api.schemas import JobEnded
from jobs import states
from jobs.bootstrap import Connection, connect
from jobs.callbacks import Answer
from jobs.errors import JobPurgedError, NoCallbackError, WrongStateError
from jobs.models import CallbackFault, CallbackOutcome, CallbackStatus, InputInfo, JobRecord
from tests.support.processes import until

from .conftest import NEW_SECRET, OLD_SECRET, Receiver, sending, status

D, R, F, X = (CallbackOutcome(name) for name in ("delivered", "retry", "failed", "disabled"))


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled"])
def test_the_receiver_gets_a_cloud_event_that_both_secrets_sign(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable, outcome: str
) -> None:
    there = receiver()
    job_id = end_job(there.url, outcome)
    with sending(jobs):
        assert settled(job_id).status is CallbackStatus.DELIVERED
    (message,) = there.got
    for secret in (NEW_SECRET, OLD_SECRET):
        Webhook(secret).verify(message.body, message.headers)
    event = from_http_event(HTTPMessage(headers=message.headers, body=message.body))
    assert event.get_type() == f"lobewise.job.{outcome}"
    assert event.get_id() == message.headers["webhook-id"] == f"msg_{job_id}"
    assert event.get_source() == "https://lobewise.example/v1/jobs"
    body = JobEnded.model_validate_json(message.body)
    assert (body.data.id, body.data.client_reference) == (job_id, "worklist-4711")
    assert (body.data.severity is not None) == (outcome == "succeeded")
    assert (body.data.error is not None) == (outcome == "failed")
    report = f"https://lobewise.example/v1/jobs/{job_id}/report" if outcome == "succeeded" else None
    assert body.data.links["report"] == report


def test_a_changed_message_or_another_secret_is_found_out(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    there = receiver()
    with sending(jobs):
        settled(end_job(there.url))
    (message,) = there.got
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW_SECRET).verify(message.body.replace(b"12.5", b"92.5"), message.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_YW5vdGhlciBzZWNyZXQgb2YgMjQgYnl0ZXM=").verify(message.body, message.headers)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((204,), [D]),
        ((500, 200), [R, D]),
        ((404, 429, 201), [R, R, D]),
        ((500,), [R, R, F]),
        ((302, 200), [R, D]),
        ((410,), [X]),
        ((503, 410), [R, X]),
    ],
)
def test_what_is_not_2xx_is_tried_again_until_it_is_given_up_or_unwanted(
    jobs: Connection,
    receiver: Callable[..., Receiver],
    end_job: Callable[..., str],
    settled: Callable,
    codes: tuple[int, ...],
    expected: list[CallbackOutcome],
) -> None:
    there = receiver(status(*codes, location="/elsewhere"))
    job_id = end_job(there.url)
    with sending(jobs):
        callback = settled(job_id)
    assert [attempt.outcome for attempt in callback.attempts] == expected
    assert [attempt.number for attempt in callback.attempts] == list(range(1, len(expected) + 1))
    assert {message.path for message in there.got} == {"/ended"}, "no redirect is followed"
    assert len({message.headers["webhook-id"] for message in there.got}) == 1
    assert len({message.body for message in there.got}) == 1
    assert dict(jobs.service.callbacks.schedule.outcomes()) == {o: expected.count(o) for o in CallbackOutcome}


def hang(handler: object, number: int) -> None:
    time.sleep(3)


def drip(handler, number: int) -> None:
    """Headers that never end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    try:
        for _ in range(60):
            handler.wfile.write(b"x-more: x\r\n")
            time.sleep(0.05)
    except OSError:
        return


def endless(handler, number: int) -> None:
    """A body that never ends, after good headers."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x" * 65536)
    except OSError:
        return


@pytest.mark.parametrize("answer", [hang, drip])
def test_a_receiver_that_never_answers_is_left_after_the_timeout(
    jobs: Connection,
    receiver: Callable[..., Receiver],
    end_job: Callable[..., str],
    settled: Callable,
    answer: Callable,
) -> None:
    job_id = end_job(receiver(answer).url)
    with sending(jobs):
        callback = settled(job_id)
    assert callback.status is CallbackStatus.FAILED
    assert {attempt.fault for attempt in callback.attempts} == {CallbackFault.TIMEOUT}
    assert all(0.4 < attempt.seconds < 2 for attempt in callback.attempts)


def test_an_endless_answer_is_not_read(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    with sending(jobs):
        assert settled(end_job(receiver(endless).url)).status is CallbackStatus.DELIVERED


def test_nobody_there_is_a_fault_of_the_connection(
    jobs: Connection, end_job: Callable[..., str], settled: Callable
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/ended"
    with sending(jobs):
        callback = settled(end_job(url))
    assert {attempt.fault for attempt in callback.attempts} == {CallbackFault.CONNECTION}


def test_receivers_that_hang_do_not_hold_up_the_others(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    """Far more messages for one that hangs than a sender has under way at once."""
    bad, good = receiver(hang), receiver()
    for _ in range(100):
        end_job(bad.url)
    job_id = end_job(good.url)
    with sending(jobs):
        begin = time.monotonic()
        settled(job_id, 10)
        assert jobs.service.callbacks.schedule.backlog().pending > 50, "the bad ones still wait"
        assert time.monotonic() - begin < 8


def test_an_address_that_answered_410_is_left_alone_until_a_redelivery_is_taken(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    there = receiver(status(410, 410, 204))
    first, second = end_job(there.url), None
    with sending(jobs):
        settled(first)
        second = end_job(there.url)
        callback = settled(second)
        assert (callback.status, callback.attempts[0].fault) == (CallbackStatus.DISABLED, CallbackFault.DISABLED)
        assert len(there.got) == 1
        jobs.service.callbacks.redeliver(second)
        assert settled(second).status is CallbackStatus.DISABLED
        jobs.service.callbacks.redeliver(second)
        assert [(a.round, a.outcome) for a in settled(second).attempts] == [(1, X), (2, X), (3, D)]
        assert settled(end_job(there.url)).status is CallbackStatus.DELIVERED


def test_a_redelivery_begins_anew_with_the_same_id(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    there = receiver(status(500, 500, 500, 500, 204))
    job_id = end_job(there.url)
    with sending(jobs):
        assert settled(job_id).status is CallbackStatus.FAILED
        assert jobs.service.callbacks.redeliver(job_id).status is CallbackStatus.PENDING
        callback = settled(job_id)
    assert [(a.round, a.number, a.outcome) for a in callback.attempts] == [
        (1, 1, R), (1, 2, R), (1, 3, F), (2, 1, R), (2, 2, D),
    ]  # fmt: skip
    assert len({message.headers["webhook-id"] for message in there.got}) == 1


def test_an_address_that_the_operator_does_not_allow_is_never_called(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    there = receiver()
    job_id = end_job(there.url.replace("127.0.0.1", "127.0.0.2"))
    with sending(jobs):
        callback = settled(job_id)
    assert (callback.status, callback.attempts[0].fault) == (CallbackStatus.FAILED, CallbackFault.NOT_ALLOWED)
    assert not there.got


def test_a_receiver_that_asks_for_patience_gets_it(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str]
) -> None:
    there = receiver(status(429, retry_after="3600"))
    job_id = end_job(there.url)
    with sending(jobs):
        while not (attempts := jobs.service.callbacks.get(job_id).attempts):
            time.sleep(0.02)
    pause = attempts[0].next_attempt_at - states.now()
    assert 3500 < pause.total_seconds() < 3700


def test_a_wiped_broker_loses_no_callback_and_repeats_none_that_was_taken(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    there = receiver()
    with sending(jobs):
        settled(end_job(there.url))
    waiting = end_job(there.url)
    jobs.backends.live._redis.flushall()
    jobs.reconciler.rebuild()
    with sending(jobs):
        settled(waiting)
        while jobs.service.callbacks.schedule.backlog().pending:
            time.sleep(0.02)
    assert [message.headers["webhook-id"] for message in there.got].count(f"msg_{waiting}") == 1
    assert len(there.got) == 2


def test_a_sender_that_dies_with_a_message_in_hand_is_followed_by_another(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    there = receiver()
    job_id = end_job(there.url)
    assert jobs.service.callbacks.take_due(10) == [job_id]
    assert jobs.service.callbacks.take_due(10) == [], "it is in other hands"
    with sending(jobs):
        assert settled(job_id).status is CallbackStatus.DELIVERED


def test_what_was_kept_counts_when_the_broker_fails_right_after(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str]
) -> None:
    """The record of the attempt is there; the claim runs out; nothing is sent twice."""
    there = receiver()
    job_id = end_job(there.url)
    (claimed,) = jobs.service.callbacks.take_due(1)
    delivery = jobs.service.callbacks.next_delivery(claimed)
    assert delivery is not None
    from jobs.callbacks import Answer

    jobs.service.callbacks.record_answer(delivery, Answer(states.now(), 0.1, http_status=200))
    jobs.service.callbacks.postpone(job_id, 0)
    with sending(jobs):
        while jobs.service.callbacks.schedule.backlog().pending:
            time.sleep(0.02)
    assert not there.got


def test_two_senders_send_each_message_once(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    there = receiver()
    ids = [end_job(there.url) for _ in range(40)]
    other = connect(jobs.settings)
    try:
        with sending(jobs), sending(other):
            for job_id in ids:
                settled(job_id, 30)
    finally:
        other.close()
    assert sorted(message.headers["webhook-id"] for message in there.got) == sorted(f"msg_{i}" for i in ids)


def test_a_purged_job_tells_nobody_and_leaves_nothing(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    there = receiver(status(500))
    job_id = end_job(there.url)
    with sending(jobs):
        while not jobs.service.callbacks.get(job_id).attempts:
            time.sleep(0.02)
        jobs.service.purge(job_id)
        while jobs.service.callbacks.schedule.backlog().pending:
            time.sleep(0.02)
    with pytest.raises(JobPurgedError):
        jobs.service.callbacks.get(job_id)
    jobs.cleanup.clean_up()
    assert set(jobs.backends.store.files(job_id).names) == {"purged.json"}


def test_an_attempt_that_ends_after_its_job_was_deleted_is_the_last(
    jobs: Connection, end_job: Callable[..., str]
) -> None:
    job_id = end_job("http://127.0.0.1:9/")
    assert jobs.service.callbacks.take_due(9) == [job_id]
    delivery = jobs.service.callbacks.next_delivery(job_id)
    assert delivery is not None
    jobs.service.purge(job_id)
    jobs.service.callbacks.record_answer(delivery, Answer(states.now(), 0.1, http_status=500))
    assert jobs.service.callbacks.schedule.backlog().pending == 0


def test_a_redelivery_that_is_asked_for_while_an_attempt_ends_is_not_lost(
    jobs: Connection, end_job: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = end_job("http://127.0.0.1:9/")
    assert jobs.service.callbacks.take_due(9) == [job_id]
    delivery = jobs.service.callbacks.next_delivery(job_id)
    assert delivery is not None
    forget = jobs.backends.live.callbacks.remove

    def ask_before_it_is_forgotten(job_id: str) -> None:
        jobs.service.callbacks.redeliver(job_id)
        forget(job_id)

    monkeypatch.setattr(jobs.backends.live.callbacks, "remove", ask_before_it_is_forgotten)
    jobs.service.callbacks.record_answer(delivery, Answer(states.now(), 0.1, http_status=204))
    assert jobs.service.callbacks.take_due(9) == [job_id]


def test_what_is_due_for_a_deleted_job_is_forgotten(jobs: Connection, end_job: Callable[..., str]) -> None:
    """As a sender leaves it that was killed between the end of an attempt and what follows."""
    job_id = end_job("http://127.0.0.1:9/")
    jobs.service.purge(job_id)
    jobs.backends.live.callbacks.set_due(job_id, 0)
    assert jobs.service.callbacks.take_due(9) == [job_id]
    with pytest.raises(JobPurgedError):
        jobs.service.callbacks.next_delivery(job_id)
    assert jobs.service.callbacks.schedule.backlog().pending == 0


def test_a_job_that_is_not_finished_waits_and_one_without_address_has_no_callback(jobs: Connection) -> None:
    def accept(url: str | None) -> str:
        scan = InputInfo(size_bytes=1, sha256="0" * 64)
        record = JobRecord(id=states.new_id(), created_at=states.now(), input=scan, callback_url=url)
        return jobs.service.accept(record).id

    waiting, silent = accept("http://127.0.0.1/x"), accept(None)
    assert jobs.service.callbacks.get(waiting).status is CallbackStatus.WAITING
    with pytest.raises(WrongStateError):
        jobs.service.callbacks.redeliver(waiting)
    for call in (jobs.service.callbacks.get, jobs.service.callbacks.redeliver):
        with pytest.raises(NoCallbackError):
            call(silent)
    assert jobs.service.callbacks.schedule.backlog().pending == 0
    assert jobs.service.callbacks.take_due(5) == []


def test_a_secret_of_ones_own_is_made_once_and_signs(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    plain = connect(jobs.settings.model_copy(update={"callback_secrets": None}))
    there = receiver()
    try:
        with sending(plain):
            settled(end_job(there.url))
    finally:
        plain.close()
    path = jobs.settings.data_dir / "callback-secret"
    assert path.stat().st_mode & 0o777 == 0o600
    (message,) = there.got
    Webhook(path.read_text()).verify(message.body, message.headers)


@pytest.mark.parametrize("kept", [f"{NEW_SECRET} {OLD_SECRET}", None])
def test_each_tenants_receivers_hear_of_its_own_jobs_and_verify_with_its_own_secrets(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], kept: str | None
) -> None:
    of = {tenant: receiver() for tenant in ("default", "left", "right")}
    ids = {tenant: end_job(there.url, tenant=tenant) for tenant, there in of.items()}
    settings = jobs.settings.model_copy(update={"callback_secrets": kept and SecretStr(kept)})
    other = connect(settings)
    try:
        with sending(other):
            until(lambda: all(there.got for there in of.values()))
    finally:
        other.close()
    secrets = {tenant: callback_secrets(settings, tenant) for tenant in of}
    assert len({secret for some in secrets.values() for secret in some}) == (6 if kept else 3)
    for tenant, there in of.items():
        (message,) = there.got
        assert json.loads(message.body)["subject"] == ids[tenant]
        for another, some in secrets.items():
            for secret in some:
                if another == tenant:
                    Webhook(secret).verify(message.body, message.headers)
                else:
                    with pytest.raises(WebhookVerificationError):
                        Webhook(secret).verify(message.body, message.headers)


def test_no_tenants_flood_takes_all_that_the_sender_can_do_at_once(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str]
) -> None:
    there, sender = receiver(), Sender(jobs.tenants, jobs.settings)
    for _ in range(30):
        end_job(there.url, tenant="left")
    few = {end_job(there.url, tenant="right") for _ in range(2)}
    taken = sender._take_due(9)
    assert few <= {name for _, name in taken}
    assert len(taken) == 9, "what one leaves the other has"


def test_what_is_under_way_is_finished_when_a_sender_stops(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str]
) -> None:
    arrived = threading.Event()

    def slow(handler, number: int) -> None:
        arrived.set()
        time.sleep(0.1)
        status(204)(handler, number)

    job_id = end_job(receiver(slow).url)
    with sending(jobs):
        assert arrived.wait(5)
    assert jobs.service.callbacks.get(job_id).status is CallbackStatus.DELIVERED


def test_no_log_names_an_address(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable, caplog
) -> None:
    for room in ("api", "jobs"):
        caplog.set_level("DEBUG", room)
    there = receiver(status(500))
    with sending(jobs):
        settled(end_job(f"{there.url}?token=hush"))
    assert "callback 1.1 retry (500)" in caplog.text
    assert "hush" not in caplog.text
    assert "127.0.0.1" not in caplog.text


def test_the_moment_is_signed_in_whole_seconds(
    jobs: Connection, receiver: Callable[..., Receiver], end_job: Callable[..., str], settled: Callable
) -> None:
    there = receiver()
    with sending(jobs):
        settled(end_job(there.url))
    (message,) = there.got
    age = states.now() - datetime.fromtimestamp(int(message.headers["webhook-timestamp"]), states.now().tzinfo)
    assert 0 <= age.total_seconds() < 5
    assert message.headers["content-type"] == "application/cloudevents+json"
    assert json.loads(message.body)["specversion"] == "1.0"
