"""Telling a receiver how a job or a batch ended: what was tried is kept with it, what is due in the live view.

At least once: a sender that dies between the answer and its record sends again, under the same id, so that a receiver
can tell.
"""

import random
import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from jobs import states
from jobs.allowlist import CALLBACK_SCHEMES, is_allowed
from jobs.batches import BatchEnd, Batches, BatchRecord
from jobs.errors import BatchNotFoundError, JobNotFoundError, JobPurgedError, NoCallbackError, WrongStateError
from jobs.live.callback_schedule import batch_id_of, batch_name
from jobs.live.redis_view import LiveView
from jobs.models import (
    BatchCallback,
    Callback,
    CallbackAttempt,
    CallbackFault,
    CallbackOutcome,
    CallbackStatus,
    JobRecord,
    Manifest,
)
from jobs.settings import JobsSettings
from jobs.store.job_store import JobStore
from jobs.store.keys import batch_key, hashed, job_key

#: Of `Retry-After`: a receiver must not put off its callback for ever.
LONGEST_PAUSE_SECONDS: Final = 24 * 3600.0
JITTER: Final = 0.2
_ATTEMPT: Final = re.compile(r"callbacks/(\d+)/(\d+)\.json")
_ASKED: Final = re.compile(r"callbacks/(\d+)/asked\.json")


@dataclass(frozen=True)
class Subject:
    """Whose end is told.

    Attributes:
        name: in the schedule.
        folder: of its documents.
        names: of its documents, below the folder.
        end: None while it is not finished.
    """

    name: str
    folder: str
    names: frozenset[str]
    record: JobRecord | BatchRecord
    end: Manifest | BatchEnd | None


@dataclass(frozen=True)
class Delivery:
    """What is to be told, to whom, and which attempt it is."""

    name: str
    record: JobRecord | BatchRecord
    end: Manifest | BatchEnd
    url: str
    round: int
    number: int


@dataclass(frozen=True)
class Answer:
    """What came of an attempt."""

    started_at: datetime
    seconds: float
    http_status: int | None = None
    fault: CallbackFault | None = None
    retry_after_seconds: float = 0.0


class Callbacks:
    """For the gateway: `get` and `redeliver`. For the sender: `take_due`, `next_delivery`, `record_answer`.

    A `name` is a job's id, or a batch's `batch_name`. All but `get` need the schedule in Redis, and raise
    BrokerUnavailableError without it.
    """

    def __init__(self, store: JobStore, live: LiveView, settings: JobsSettings, batches: Batches) -> None:
        self._store, self._settings, self._batches = store, settings, batches
        self.schedule = live.callbacks

    def is_allowed(self, url: str) -> bool:
        """Whether the operator lets us call this address."""
        return is_allowed(url, self._settings.callback_allowlist, CALLBACK_SCHEMES)

    def get(self, job_id: str) -> Callback:
        """Raises JobNotFoundError, JobPurgedError, NoCallbackError."""
        return Callback(job_id=job_id, **self._log(self._known(job_id)))

    def get_of_batch(self, batch_id: str) -> BatchCallback:
        """Raises BatchNotFoundError, NoCallbackError."""
        return BatchCallback(batch_id=batch_id, **self._log(self._known(batch_name(batch_id))))

    def redeliver(self, job_id: str) -> Callback:
        """Tell it again, at once, and as often as at first if need be; what was still to be tried is replaced.

        Raises as `get`, and WrongStateError: the job is not finished.
        """
        self._ask_again(self._known(job_id), "the job is not finished: there is nothing to tell yet")
        return self.get(job_id)

    def redeliver_of_batch(self, batch_id: str) -> BatchCallback:
        """The same of a batch."""
        subject = self._known(batch_name(batch_id))
        self._ask_again(subject, "not all jobs of the batch are finished: there is nothing to tell yet")
        return self.get_of_batch(batch_id)

    def _ask_again(self, subject: Subject, unfinished: str) -> None:
        if subject.end is None:
            raise WrongStateError("running", unfinished)
        attempts = self._attempts(subject)
        # Before the first attempt there is nothing to repeat: the callback is due anyway.
        if attempts:
            self._store.blobs.create(f"{subject.folder}callbacks/{attempts[-1].round + 1}/asked.json", b"{}")
        self.postpone(subject.name, 0)

    # The sender's side

    def take_due(self, count: int) -> list[str]:
        """Names whose attempt is due; nobody else gets them for a while."""
        # Four times the longest attempt: a sender that still works on one is not overtaken, a killed one is.
        return self.schedule.take(count, 4 * self._settings.callback_timeout_seconds)

    def postpone(self, name: str, seconds: float) -> None:
        """Due again, so much later; of what was deleted meanwhile nothing is due."""
        self.schedule.set_due(name, seconds)
        # After scheduling: a delete that came before it would leave a callback due for ever.
        batch_id = batch_id_of(name)
        is_gone = not self._batches.names(batch_id) if batch_id else self._store.is_purged(name)
        if is_gone:
            self.schedule.remove(name)

    def next_delivery(self, name: str) -> Delivery | None:
        """What to send now; None when there is nothing, which postpones it or removes it from the schedule.

        Raises JobNotFoundError, JobPurgedError, BatchNotFoundError, which remove it, too.
        """
        try:
            subject = self._subject(name)
        except (JobNotFoundError, JobPurgedError, BatchNotFoundError):
            self.schedule.remove(name)
            raise
        record, end = subject.record, subject.end
        if isinstance(record, BatchRecord) and end is None and record.callback_url is not None:
            # Removed first: the end of its last job, if it comes between the two, makes it due again.
            self.schedule.remove(name)
            end = self._batches.end_or_watch(record)
            if end is not None:
                self.postpone(name, 4 * self._settings.callback_timeout_seconds)
                subject = replace(subject, end=end)
        if end is None or record.callback_url is None:
            self.schedule.remove(name)
            return None
        attempts = self._attempts(subject)
        status, next_at = self._standing(subject, attempts)
        if status is not CallbackStatus.PENDING:
            self._finish(name)
            return None
        pause_seconds = (next_at - states.now()).total_seconds() if next_at else 0.0
        if pause_seconds > 0:
            self.postpone(name, pause_seconds)
            return None
        if not attempts:
            round_, number = 1, 1
        elif _is_asked_again(subject.names):
            round_, number = attempts[-1].round + 1, 1
        else:
            round_, number = attempts[-1].round, attempts[-1].number + 1
        return Delivery(name, record, end, record.callback_url, round_, number)

    def barred(self, delivery: Delivery) -> CallbackFault | None:
        """Why nothing may be sent to the address, if so. A redelivery tries a disabled one again."""
        if not self.is_allowed(delivery.url):
            return CallbackFault.NOT_ALLOWED
        is_disabled = delivery.round == 1 and self._store.blobs.exists(_disabled_key(delivery.url))
        return CallbackFault.DISABLED if is_disabled else None

    def record_answer(self, delivery: Delivery, answer: Answer) -> CallbackAttempt:
        """Keep what came of it, and decide what follows; without the broker that is left until the job is due again."""
        outcome, pause_seconds = self._outcome(delivery, answer)
        attempt = CallbackAttempt(
            round=delivery.round,
            number=delivery.number,
            started_at=answer.started_at,
            seconds=round(answer.seconds, 3),
            outcome=outcome,
            http_status=answer.http_status,
            fault=answer.fault,
            next_attempt_at=None if pause_seconds is None else states.now() + timedelta(seconds=pause_seconds),
        )
        # Kept before anything follows from it: a crash here repeats the message, under the same id, and loses none.
        key = f"{_folder(delivery.name)}callbacks/{delivery.round}/{delivery.number}.json"
        self._store.blobs.create(key, attempt.stored())
        # An address that answers 410 is left alone until it answers 2xx to a redelivery.
        if outcome is CallbackOutcome.DISABLED:
            self._store.blobs.create(_disabled_key(delivery.url), b"{}")
        elif outcome is CallbackOutcome.DELIVERED:
            self._store.blobs.delete(_disabled_key(delivery.url))
        self.schedule.count(outcome)
        if pause_seconds is None:
            self._finish(delivery.name)
        else:
            self.postpone(delivery.name, pause_seconds)
        return attempt

    def _outcome(self, delivery: Delivery, answer: Answer) -> tuple[CallbackOutcome, float | None]:
        """The outcome, and after how many seconds it is tried again, if it is."""
        if answer.http_status is not None and 200 <= answer.http_status < 300:
            return CallbackOutcome.DELIVERED, None
        if answer.http_status == 410 or answer.fault is CallbackFault.DISABLED:
            return CallbackOutcome.DISABLED, None
        pauses = self._settings.callback_retry_seconds
        if answer.fault is CallbackFault.NOT_ALLOWED or delivery.number > len(pauses):
            return CallbackOutcome.FAILED, None
        # A fifth more or less: receivers that come back after an outage are not called by all jobs at once.
        jittered = pauses[delivery.number - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 (no secret)
        return CallbackOutcome.RETRY, max(jittered, min(answer.retry_after_seconds, LONGEST_PAUSE_SECONDS))

    def _standing(self, subject: Subject, attempts: list[CallbackAttempt]) -> tuple[CallbackStatus, datetime | None]:
        if subject.end is None:
            return CallbackStatus.WAITING, None
        if not attempts or _is_asked_again(subject.names):
            return CallbackStatus.PENDING, states.now()
        last = attempts[-1]
        if last.outcome is CallbackOutcome.RETRY:
            return CallbackStatus.PENDING, last.next_attempt_at
        return CallbackStatus(last.outcome.value), None

    def _attempts(self, subject: Subject) -> list[CallbackAttempt]:
        numbers = sorted((int(m[1]), int(m[2])) for m in map(_ATTEMPT.fullmatch, subject.names) if m)
        keys = [f"{subject.folder}callbacks/{round_}/{number}.json" for round_, number in numbers]
        found = (self._store.blobs.read_document(CallbackAttempt, key) for key in keys)
        return [attempt for attempt in found if attempt is not None]

    def _log(self, subject: Subject) -> dict[str, Any]:
        """The fields that the callbacks of jobs and batches have in common."""
        attempts = self._attempts(subject)
        status, next_at = self._standing(subject, attempts)
        url = subject.record.callback_url or ""
        return {"url": url, "status": status, "next_attempt_at": next_at, "attempts": attempts}

    def _subject(self, name: str) -> Subject:
        """Raises JobNotFoundError, JobPurgedError, BatchNotFoundError."""
        batch_id = batch_id_of(name)
        if batch_id is not None:
            batch = self._batches.get(batch_id)
            return Subject(name, _folder(name), self._batches.names(batch_id), batch, self._batches.end(batch))
        record, files = self._store.record(name), self._store.files(name)
        return Subject(name, _folder(name), files.names, record, self._store.manifest(name) if files.is_final else None)

    def _known(self, name: str) -> Subject:
        subject = self._subject(name)
        if subject.record.callback_url is None:
            raise NoCallbackError(subject.record.id)
        return subject

    def _finish(self, name: str) -> None:
        """Nothing more is due, but for a redelivery that was asked for just now."""
        # Removed first: a redelivery that is asked for between the two is found by the look after it.
        self.schedule.remove(name)
        batch_id = batch_id_of(name)
        names = self._batches.names(batch_id) if batch_id is not None else self._store.files(name).names
        if _is_asked_again(names):
            self.postpone(name, 0)


def _folder(name: str) -> str:
    batch_id = batch_id_of(name)
    return batch_key(batch_id, "") if batch_id is not None else job_key(name, "")


def _is_asked_again(names: frozenset[str]) -> bool:
    """Whether a redelivery was asked for and not tried yet: the rounds stand in the names."""
    asked, tried = (
        max((int(match[1]) for match in map(name.fullmatch, names) if match), default=0) for name in (_ASKED, _ATTEMPT)
    )
    return asked > tried


def _disabled_key(url: str) -> str:
    return f"callbacks/disabled/{hashed(url)}.json"
