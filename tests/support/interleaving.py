"""Service calls that stop before each of their steps, so that a test decides who goes on, who fails and who is killed.

A step is one question to the blob store, to Redis or to the queue. Each call runs in a thread of its own, but only
one thread runs at a time: what happens is the test's decision alone, and the same each time.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from obstore.store import LocalStore

from jobs.errors import BrokerUnavailableError, StorageUnavailableError
from jobs.live.keys import Keys
from jobs.live.recovery_view import BrokerMessages, RecoveryView
from jobs.live.redis_view import LiveView
from jobs.models import Priority
from jobs.queue import JobQueue
from jobs.store.object_store import BlobInfo, ObjectStore

Answer = TypeVar("Answer")
Order = Literal["go", "kill", "fail-before", "fail-after"]

_here = threading.local()


class Killed(BaseException):
    """The process of this actor ended, as by SIGKILL: it does nothing more, not even tidy up."""


class Actor:
    """One call in a thread, which waits for permission before each step.

    Attributes:
        step: what it is about to do; None once it has ended.
        error: what it raised.
        was_disturbed: a step was made to fail.
    """

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self.name, self.step, self.steps_done = name, "start", 0
        self.error: BaseException | None = None
        self.was_killed = self.was_disturbed = False
        self._call = call
        self._order: Order = "go"
        self._may_go, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return self.step is None

    def go(self, order: Order = "go") -> None:
        """Let it make one step, or make that step fail or be its last."""
        if self.is_done:
            return
        self._order = order
        self.steps_done += 1
        self.was_killed |= order == "kill"
        self.was_disturbed |= order.startswith("fail")
        self._may_go.release()
        self._has_stopped.acquire()

    def finish(self) -> None:
        while not self.is_done:
            self.go()

    def pass_gate(self, step: str, act: Callable[[], Answer], unavailable: type[Exception]) -> Answer:
        """In the actor's thread: wait, then act, or not."""
        if self.was_killed:
            raise Killed
        self.step = step
        self._has_stopped.release()
        self._may_go.acquire()
        if self._order == "kill":
            raise Killed
        if self._order == "fail-before":
            raise unavailable(f"{step} was not done")
        answer = act()
        if self._order == "fail-after":
            raise unavailable(f"{step} was done, but its answer got lost")
        return answer

    def _run(self) -> None:
        _here.actor = self
        self._may_go.acquire()
        try:
            if not self.was_killed:
                self._call()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.step = None
            self._has_stopped.release()


def this_actor() -> Actor | None:
    """Whose thread this is; None for the test's own, which passes every gate."""
    return getattr(_here, "actor", None)


def _gate(step: str, act: Callable[[], Answer], unavailable: type[Exception]) -> Answer:
    actor = this_actor()
    return act() if actor is None else actor.pass_gate(step, act, unavailable)


class GatedObjectStore(ObjectStore):
    """A real folder. Nothing is synced to the disk, since no power fails here."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        super().__init__(LocalStore(folder), folder)

    def sync(self, key: str) -> None:
        pass

    def read(self, key: str) -> bytes | None:
        return self._at("read", key, super().read)

    def create(self, key: str, data: bytes, **named: Any) -> bool:
        def create(key: str, data: bytes) -> bool:
            return super(GatedObjectStore, self).create(key, data, **named)

        return self._at("create", key, create, data)

    def keep_reserve(self) -> None:
        pass

    def write(self, key: str, data: bytes) -> None:
        self._at("write", key, super().write, data)

    def write_file(self, key: str, path: Path) -> str:
        return self._at("write_file", key, super().write_file, path)

    def read_file(self, key: str, path: Path) -> None:
        self._at("read_file", key, super().read_file, path)

    def copy(self, key: str, to: str) -> None:
        _gate(f"copy {key}", lambda: super(GatedObjectStore, self).copy(key, to), StorageUnavailableError)

    def info(self, key: str) -> BlobInfo | None:
        return self._at("info", key, super().info)

    def infos(self, prefix: str) -> Iterator[BlobInfo]:
        """In order: a folder's own differs from run to run."""

        def listed(prefix: str) -> list[BlobInfo]:
            return sorted(super(GatedObjectStore, self).infos(prefix), key=lambda info: info.key)

        return iter(self._at("list", prefix, listed))

    def delete(self, key: str) -> None:
        self._at("delete", key, super().delete)

    def _at(self, verb: str, key: str, act: Callable[..., Answer], *more: Any) -> Answer:
        return _gate(f"{verb} {key}", lambda: act(key, *more), StorageUnavailableError)


def _gated(kind: type, *names: str) -> type:
    """The class with a gate before each of these methods."""

    def gate(name: str) -> Callable[..., Any]:
        real = getattr(kind, name)

        def method(self: Any, *args: Any, **options: Any) -> Any:
            return _gate(f"live.{name}", lambda: real(self, *args, **options), BrokerUnavailableError)

        return method

    return type(f"Gated{kind.__name__}", (kind,), {name: gate(name) for name in names})


_STATES = ("put", "get", "get_many", "status", "statuses", "request_cancel", "remove_traces", "remove", "page")
_LEASES = ("lease", "renew_lease", "drop_lease")
_RECOVERY = ("lead", "is_whole", "begin_rebuild", "declare_whole", "running_without_lease", "past_deadline", "waiting")
_GatedRecovery = _gated(RecoveryView, *_RECOVERY, "all_ids", "mark_published")
_GatedMessages = _gated(BrokerMessages, "waiting", "delivered")


class GatedLive(_gated(LiveView, *_STATES, *_LEASES)):  # type: ignore[misc]  # made at run time
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.messages = _GatedMessages(self._redis)

    def use(self, keys: Keys) -> None:
        super().use(keys)
        self.recovery = _GatedRecovery(self._redis, keys)


class GatedQueue(JobQueue):
    def publish(self, job_id: str, priority: Priority) -> None:
        """Two steps: the message, then its mark in the live view, which has a gate of its own."""
        _gate("publish", lambda: None, BrokerUnavailableError)
        super().publish(job_id, priority)
