"""What everybody saw, in the order in which it happened: one JSON line an event, whoever writes it."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that a client, a worker or the campaign saw.

    Attributes:
        at: seconds of the machine's monotonic clock, which all its processes share.
        kind: `post`, `read`, `cancel`, `purge` (clients, when the answer was there), `start`, `scored` (workers),
            `fault`, `heal` (the campaign), `blobs` (its last look at the storage).
        name: the scan, as its client calls it; empty where it is about none.
    """

    at: float
    kind: str
    name: str = ""
    data: dict[str, Any] = field(default_factory=dict)


class History:
    """Appends whole lines, so that many processes may share a file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, kind: str, name: str = "", **data: Any) -> None:
        event = {"at": time.monotonic(), "kind": kind, "name": name, "data": data}
        os.write(self._descriptor, json.dumps(event).encode() + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)


def read_history(path: Path) -> Iterator[Event]:
    """The events as they were written; a line that a killed process left unfinished is not one."""
    for line in path.read_bytes().splitlines():
        try:
            yield Event(**json.loads(line))
        except ValueError:
            continue
