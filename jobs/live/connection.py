"""Talking to Redis: what a lost connection means for the live view and who asks it, and how scripts are called."""

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any, Final

import redis
import redis.asyncio

from jobs.errors import BrokerUnavailableError
from jobs.models import JobState

_NAME: Final = r"^-- %s\[\d+\] (\w+)"


class ViewFreshness:
    """Whether one process may believe what the live view shows as open.

    While the broker was away jobs ended unseen, and clients may have been told so from the blobs; nothing may follow an
    end. So freshness is lost with every answer that did not come and with every connection that had to be made again,
    until the reconciler has been through the view.
    """

    def __init__(self, doubt_seconds: float) -> None:
        """`doubt_seconds`: until the reconciler has certainly looked."""
        self._doubt_seconds = doubt_seconds
        self._lost_at = -math.inf

    def lose(self) -> None:
        self._lost_at = time.monotonic()

    def was_lost_after(self, moment: float) -> bool:
        """Whether it was lost after this monotonic time: then the view and the blobs should be compared."""
        return self._lost_at > moment

    def connected(self, connection: Any) -> None:
        """A connection was made. If it had been there before, the broker was away, though nobody may have asked it."""
        if getattr(connection, "was_there_before", False):
            self.lose()
        connection.was_there_before = True

    def holds(self, shown: JobState, *, is_whole: bool) -> bool:
        """Whether to believe this. A view that is not whole was wiped, and may show what a rebuild saw before."""
        return shown.status.is_final or (is_whole and time.monotonic() > self._lost_at + self._doubt_seconds)


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turns an answer that did not come, or that a full or read-only server refused, into BrokerUnavailableError."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.OutOfMemoryError) as error:
        raise BrokerUnavailableError(f"the broker does not answer: {type(error).__name__}") from error
    except redis.exceptions.ReadOnlyError as error:
        raise BrokerUnavailableError("the broker is read-only") from error
    except redis.ResponseError as error:
        if not has_full_disk(error):
            raise
        raise BrokerUnavailableError("the broker cannot write to its disk") from error


def has_full_disk(error: redis.ResponseError) -> bool:
    """Whether Redis refuses all changes until it can write to its disk again; a script may say so in its own words."""
    return "MISCONF" in str(error)


@cache
def text_of_script(name: str) -> str:
    return files("jobs.live").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")


class Script:
    """`scripts/{name}.lua`, which runs in Redis in one step. A call on an asynchronous server is to be awaited.

    The head of a script names every key (`-- KEYS[1] job`) and argument (`-- ARGV[1] job_id`); a call names them too.
    """

    def __init__(self, server: "redis.Redis | redis.asyncio.Redis", name: str) -> None:
        text = text_of_script(name)
        self.name = name
        self._keys: list[str] = re.findall(_NAME % "KEYS", text, re.MULTILINE)
        self._arguments: list[str] = re.findall(_NAME % "ARGV", text, re.MULTILINE)
        self._script: Any = server.register_script(text)

    def __call__(self, *more: str | int, **named: str | int) -> Any:
        """Run it with every key and argument that its head names, and `more` arguments after them.

        Raises TypeError: a name is missing, or is none of the script's.
        """
        if named.keys() != {*self._keys, *self._arguments}:
            raise TypeError(f"{self.name} takes {self._keys} and {self._arguments}, not {sorted(named)}")
        return self.run([str(named[name]) for name in self._keys], [*(named[name] for name in self._arguments), *more])

    def run(self, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:
        """Run it with keys and arguments by their position, where their number differs from call to call."""
        return self._script(keys=keys, args=arguments)
