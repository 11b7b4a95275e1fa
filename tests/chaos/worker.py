"""The worker as it is shipped, with an analysis that takes its orders from the scan: `python -m tests.chaos.worker`.

What it does is noted in the file that `CHAOS_HISTORY` names. Nothing here imports torch, which takes seconds.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from jobs.settings import JobsSettings
from pipeline.errors import LungsNotFoundError
from pipeline.geometry import Scan, Volume
from tests.chaos.history import History
from tests.chaos.orders import Order
from tests.support.tiny_worker import GRID, quantification  # the tests' own
from worker.main import run

MORE_THAN_THERE_IS: Final = 1 << 46


class Obedient:
    """Scores a made-up chest of five lobes, the percentage that the order names of each being a lesion."""

    loaded_models = ()

    def __init__(self) -> None:
        self._history = History(Path(os.environ["CHAOS_HISTORY"]))

    def read(self, path: Path) -> Scan:
        self._order = Order.of_scan(path.read_bytes())
        self._history.note("start", self._order.name, pid=os.getpid())
        return Scan(Volume(np.full(GRID.shape, -100, dtype=np.int16), GRID), ())

    def deidentify(self, path: Path, target: Path, key: bytes) -> None:  # noqa: ARG002
        """Nobody is named in an order."""
        target.write_bytes(path.read_bytes())

    def quantify(self, scan: Scan, progress: Callable[[str, float], None], *, low_memory: bool) -> Any:
        order = self._order
        if order.deed == "not-chest":
            raise LungsNotFoundError("There are no lungs.")
        if order.deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order.deed == "hungry" and not low_memory:
            np.ones(MORE_THAN_THERE_IS, dtype=np.uint8)
        end = time.monotonic() + order.seconds
        while True:
            progress("lesions", 0.5)
            if time.monotonic() >= end:
                break
            time.sleep(0.02)
        found = quantification(scan, order.opacity)
        self._history.note("scored", order.name, pid=os.getpid())
        return found


def load_obedient(settings: JobsSettings, device: str) -> Obedient:
    return Obedient()


if __name__ == "__main__":
    sys.exit(run(load=load_obedient, device="cpu"))
