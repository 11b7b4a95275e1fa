"""Telling a receiver how a job ended: what was tried is kept with the job, what is due in the live view.

At least once: a sender that dies between the answer and its record sends again, under the same id, so that a receiver
can tell.
"""

import random
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from jobs import states
from jobs.allowlist import CALLBACK_SCHEMES, is_allowed
from jobs.errors import JobNotFoundError, JobPurgedError, NoCallbackError, WrongStateError
from jobs.live.redis_view import LiveView
from jobs.models import Callback, CallbackAttempt, CallbackFault, CallbackOutcome, CallbackStatus, JobRecord, Manifest
from jobs.settings import JobsSettings
from jobs.store.job_store import JobFiles, JobStore
from jobs.store.keys import hashed, job_key

#: Of `Retry-After`: a receiver must not put off its callback for ever.
LONGEST_PAUSE_SECONDS: Final = 24 * 3600.0
JITTER: Final = 0.2
_ATTEMPT: Final = re.compile(r"callbacks/(\d+)/(\d+)\.json")
_ASKED: Final = re.compile(r"callbacks/(\d+)/asked\.json")


@dataclass(frozen=True)
class Delivery:
    """What is to be told, to whom, and which attempt it is."""

    record: JobRecord
    manifest: Manifest
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

    All but `get` need the schedule in Redis, and raise BrokerUnavailableError without it.
    """

    def __init__(self, store: JobStore, live: LiveView, settings: JobsSettings) -> None:
        self._store, self._settings = store, settings
        self.schedule = live.callbacks

    def is_allowed(self, url: str) -> bool:
        """Whether the operator lets us call this address."""
        return is_allowed(url, self._settings.callback_allowlist, CALLBACK_SCHEMES)

    def get(self, job_id: str) -> Callback:
        """Raises JobNotFoundError, JobPurgedError, NoCallbackError."""
        record, files = self._known(job_id)
        attempts = self._attempts(files)
        status, next_at = self._standing(files, attempts)
        return Callback(
            job_id=job_id, url=record.callback_url or "", status=status, next_attempt_at=next_at, attempts=attempts
        )

    def redeliver(self, job_id: str) -> Callback:
        """Tell it again, at once, and as often as at first if need be; what was still to be tried is replaced.

        Raises as `get`, and WrongStateError: the job is not finished.
        """
        _, files = self._known(job_id)
        if not files.is_final:
            raise WrongStateError("running", "the job is not finished: there is nothing to tell yet")
        attempts = self._attempts(files)
        # Before the first attempt there is nothing to repeat: the callback is due anyway.
        if attempts:
            asked = f"callbacks/{attempts[-1].round + 1}/asked.json"
            self._store.blobs.create(job_key(job_id, asked), b"{}")
        self.postpone(job_id, 0)
        return self.get(job_id)

    # The sender's side

    def take_due(self, count: int) -> list[str]:
        """Jobs whose attempt is due; nobody else gets them for a while."""
        # Four times the longest attempt: a sender that still works on one is not overtaken, a killed one is.
        return self.schedule.take(count, 4 * self._settings.callback_timeout_seconds)

    def postpone(self, job_id: str, seconds: float) -> None:
        """Due again, so much later; of a job that was deleted meanwhile nothing is due."""
        self.schedule.set_due(job_id, seconds)
        # After scheduling: a delete that came before it would leave a callback due for ever.
        if self._store.is_purged(job_id):
            self.schedule.remove(job_id)

    def next_delivery(self, job_id: str) -> Delivery | None:
        """What to send now; None when there is nothing, which postpones the job or removes it from the schedule.

        Raises JobNotFoundError, JobPurgedError, which remove it, too.
        """
        files = self._store.files(job_id)
        try:
            record = self._store.record(job_id)
        except (JobNotFoundError, JobPurgedError):
            self.schedule.remove(job_id)
            raise
        manifest = self._store.manifest(job_id) if files.is_final else None
        if manifest is None or record.callback_url is None:
            self.schedule.remove(job_id)
            return None
        attempts = self._attempts(files)
        status, next_at = self._standing(files, attempts)
        if status is not CallbackStatus.PENDING:
            self._finish(job_id)
            return None
        pause_seconds = (next_at - states.now()).total_seconds() if next_at else 0.0
        if pause_seconds > 0:
            self.postpone(job_id, pause_seconds)
            return None
        if not attempts:
            round_, number = 1, 1
        elif _is_asked_again(files):
            round_, number = attempts[-1].round + 1, 1
        else:
            round_, number = attempts[-1].round, attempts[-1].number + 1
        return Delivery(record, manifest, record.callback_url, round_, number)

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
        key = job_key(delivery.record.id, f"callbacks/{delivery.round}/{delivery.number}.json")
        self._store.blobs.create(key, attempt.stored())
        # An address that answers 410 is left alone until it answers 2xx to a redelivery.
        if outcome is CallbackOutcome.DISABLED:
            self._store.blobs.create(_disabled_key(delivery.url), b"{}")
        elif outcome is CallbackOutcome.DELIVERED:
            self._store.blobs.delete(_disabled_key(delivery.url))
        self.schedule.count(outcome)
        if pause_seconds is None:
            self._finish(delivery.record.id)
        else:
            self.postpone(delivery.record.id, pause_seconds)
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

    def _standing(self, files: JobFiles, attempts: list[CallbackAttempt]) -> tuple[CallbackStatus, datetime | None]:
        if not files.is_final:
            return CallbackStatus.WAITING, None
        if not attempts or _is_asked_again(files):
            return CallbackStatus.PENDING, states.now()
        last = attempts[-1]
        if last.outcome is CallbackOutcome.RETRY:
            return CallbackStatus.PENDING, last.next_attempt_at
        return CallbackStatus(last.outcome.value), None

    def _attempts(self, files: JobFiles) -> list[CallbackAttempt]:
        numbers = sorted((int(m[1]), int(m[2])) for m in map(_ATTEMPT.fullmatch, files.names) if m)
        keys = [job_key(files.job_id, f"callbacks/{round_}/{number}.json") for round_, number in numbers]
        found = (self._store.blobs.read_document(CallbackAttempt, key) for key in keys)
        return [attempt for attempt in found if attempt is not None]

    def _known(self, job_id: str) -> tuple[JobRecord, JobFiles]:
        record = self._store.record(job_id)
        if record.callback_url is None:
            raise NoCallbackError(job_id)
        return record, self._store.files(job_id)

    def _finish(self, job_id: str) -> None:
        """Nothing more is due, but for a redelivery that was asked for just now."""
        # Removed first: a redelivery that is asked for between the two is found by the look after it.
        self.schedule.remove(job_id)
        if _is_asked_again(self._store.files(job_id)):
            self.postpone(job_id, 0)


def _is_asked_again(files: JobFiles) -> bool:
    """Whether a redelivery was asked for and not tried yet: the rounds stand in the names."""
    asked, tried = (
        max((int(match[1]) for match in map(name.fullmatch, files.names) if match), default=0)
        for name in (_ASKED, _ATTEMPT)
    )
    return asked > tried


def _disabled_key(url: str) -> str:
    return f"callbacks/disabled/{hashed(url)}.json"
