"""Calls the scripts of `scripts/`, which run in Redis in one step each, by the names that their heads give.

The head of a script names every key (`-- KEYS[1] job`) and argument (`-- ARGV[1] job_id`); a call names them too.
"""

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

import redis
import redis.asyncio

_NAME: Final = r"^-- %s\[\d+\] (\w+)"


class Script:
    """`scripts/{name}.lua` on one server. A call on an asynchronous server is to be awaited."""

    def __init__(self, server: "redis.Redis | redis.asyncio.Redis", name: str) -> None:
        text = files("jobs.live").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")
        self.name = name
        self._keys: list[str] = re.findall(_NAME % "KEYS", text, re.MULTILINE)
        self._arguments: list[str] = re.findall(_NAME % "ARGV", text, re.MULTILINE)
        self._script: Any = server.register_script(text)

    def __call__(self, *more: str | int, **named: str | int) -> Any:
        """Run it with every key and argument that its head names, and `more` arguments after them.

        Raises:
            TypeError: a name is missing, or is none of the script's.
        """
        if named.keys() != {*self._keys, *self._arguments}:
            raise TypeError(f"{self.name} takes {self._keys} and {self._arguments}, not {sorted(named)}")
        return self.run([str(named[name]) for name in self._keys], [*(named[name] for name in self._arguments), *more])

    def run(self, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:
        """Run it with keys and arguments by their position, where their number differs from call to call."""
        return self._script(keys=keys, args=arguments)
