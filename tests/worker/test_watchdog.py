"""When a worker counts as deaf, in closed form; `test_worker` has a real one."""

from types import SimpleNamespace
from typing import cast

import pytest
from celery.worker import state

from jobs.errors import BrokerUnavailableError
from jobs.worker_api import WorkerApi
from worker.main import _worker_status
from worker.watchdog import Watchdog, WorkerStatus


class Service:
    """Jobs, as far as the watchdog asks them."""

    settings = SimpleNamespace(deaf_seconds=10.0)

    def __init__(self) -> None:
        self.waits, self.is_away = True, False

    def has_messages(self) -> bool:
        if self.is_away:
            raise BrokerUnavailableError("away")
        return self.waits


class Worker:
    """A worker, as far as the watchdog looks at it."""

    def __init__(self) -> None:
        self.worker_status = WorkerStatus(is_idle=True, received=7)
        self.service = Service()
        self.watchdog = Watchdog(cast("WorkerApi", self.service), lambda: self.worker_status, lambda: None)
        self.watchdog.look(-1.0)  # learns how many messages it got before

    def deaf_at(self, *moments: float) -> list[bool]:
        return [self.watchdog.look(moment) for moment in moments]


def test_an_idle_worker_that_messages_pass_by_is_deaf_after_a_while() -> None:
    assert Worker().deaf_at(0, 5, 10, 11) == [False, False, False, True]


def test_a_worker_with_a_job_is_not_deaf() -> None:
    worker = Worker()
    worker.worker_status = WorkerStatus(is_idle=False, received=7)
    assert not any(worker.deaf_at(0, 20, 40))


def test_a_worker_that_got_a_message_meanwhile_is_not_deaf() -> None:
    worker = Worker()
    worker.deaf_at(0, 9)
    worker.worker_status = WorkerStatus(is_idle=True, received=8)
    assert worker.deaf_at(11, 12, 21, 23) == [False, False, False, True]


def test_nobody_is_deaf_while_nothing_waits() -> None:
    worker = Worker()
    worker.service.waits = False
    assert not any(worker.deaf_at(0, 20, 40))


def test_nobody_is_deaf_while_the_broker_is_away() -> None:
    worker = Worker()
    worker.deaf_at(0, 9)
    worker.service.is_away = True
    assert not any(worker.deaf_at(11, 12))
    worker.service.is_away = False
    assert worker.deaf_at(13, 20, 24) == [False, False, True]


def test_a_worker_that_was_told_to_stop_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would be started anew, and never stop."""
    jobs = cast("WorkerApi", SimpleNamespace(workers=SimpleNamespace(any_ready=lambda _: True)))
    assert _worker_status(jobs, list).is_idle
    monkeypatch.setattr(state, "should_stop", 0)
    assert not _worker_status(jobs, list).is_idle
