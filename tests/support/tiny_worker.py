"""A real worker with a tiny analysis: `python tiny_worker.py`, configured by the environment as any other.

The "scan" says in JSON what happens to it: `{"do": "score", "opacity": 25, "seconds": 0.5}`. Nothing here imports
torch, which takes seconds: the result has the attributes of a `Quantification`.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from celery.signals import worker_ready

from jobs.models import ModelProvenance
from jobs.settings import JobsSettings
from pipeline.anatomy import Landmark
from pipeline.errors import LungsNotFoundError, UnsupportedFormatError
from pipeline.geometry import Finding, Grid, LesionMask, LobeLabels, Scan, Volume
from pipeline.severity import high_opacity_of, opacity_range, score_severity
from worker.main import run

OBLIQUE = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
GRID = Grid((5, 10, 20), (2.0, 1.0, 0.5), (-10.0, 20.0, 30.0), OBLIQUE)


class Tiny:
    """Each of five slices is a lobe; the share `opacity` (percent) of each is lesion."""

    loaded_models = (ModelProvenance(name="tiny", version="1", sha256="0" * 64),)

    def read(self, path: Path) -> Scan:
        data = path.read_bytes()
        self._order = json.loads(data[data.index(b"{") :])  # what the gateway takes begins like a NIfTI file
        return Scan(Volume(np.full(GRID.shape, -100, dtype=np.int16), GRID), (Finding("thick-slices", "warning", "."),))

    def deidentify(self, path: Path, target: Path, key: bytes) -> None:  # noqa: ARG002
        """Without the `name` of the order."""
        if self._order.get("burned_in"):
            raise UnsupportedFormatError("There is text in the pixels.")
        target.write_text(json.dumps({part: value for part, value in self._order.items() if part != "name"}))

    def quantify(self, scan: Scan, progress: Callable[[str, float], None], *, low_memory: bool) -> SimpleNamespace:
        progress("landmarks", 0.0)
        self._obey(progress, low_memory=low_memory)
        return quantification(scan, self._order.get("opacity", 25.0))

    def _obey(self, progress: Callable[[str, float], None], *, low_memory: bool) -> None:
        match self._order["do"]:
            case "not-chest":
                raise LungsNotFoundError("There are no lungs.", evidence={"air_ml": 0})
            case "fault":
                raise RuntimeError("a fault of ours")
            case "memory":
                raise MemoryError
            case "memory-unless-frugal" if not low_memory:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die-once" if not (mark := Path(self._order["mark"])).exists():
                mark.touch()
                time.sleep(self._order["after_seconds"])
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(600)
            case "hang-on":
                while True:
                    with suppress(Exception):
                        time.sleep(600)
        end = time.monotonic() + self._order.get("seconds", 0.0)
        while time.monotonic() < end:
            progress("lesions", 0.5)
            time.sleep(0.02)


def quantification(scan: Scan, opacity_percent: float) -> SimpleNamespace:
    labels = np.broadcast_to(np.arange(1, 6, dtype=np.uint8)[:, None, None], GRID.shape).copy()
    lesion = np.zeros(GRID.shape, dtype=bool)
    lesion.reshape(5, -1)[:, : round(200 * opacity_percent / 100)] = True
    lobes, lesions = LobeLabels(labels, GRID), LesionMask(lesion, GRID)
    return SimpleNamespace(
        lungs=lobes.lungs(),
        lobes=lobes,
        lesions=lesions,
        high_opacity=LesionMask(high_opacity_of(scan.volume, lesion), GRID),
        severity=score_severity(scan.volume, lobes.lungs(), lobes, lesions),
        opacity_range=opacity_range(lobes, lesions, lesions),
        landmarks=(SimpleNamespace(landmark=Landmark.CARINA, position_mm=(1.0, 2.0, 3.0), found=True),),
        findings=scan.findings,
        seconds={"lungs": 0.1},
        models=(SimpleNamespace(name="lungs", version="1", sha256="0" * 64),),
        device="cpu",
        source=scan.source,
    )


def load_tiny(settings: JobsSettings, device: str) -> Tiny:
    return Tiny()


def _be_deaf(sender: Any, **_signal: Any) -> None:
    """As after some losses of the connection: connected, and no message comes."""
    for queue in list(sender.task_consumer.queues):
        sender.cancel_task_queue(queue.name)


def _be_deaf_once(mark: Path) -> None:
    if not mark.exists():
        mark.touch()
        worker_ready.connect(_be_deaf, weak=False)


if __name__ == "__main__":
    if mark := os.environ.get("LOBEWISE_TEST_DEAF_ONCE"):
        _be_deaf_once(Path(mark))
    sys.exit(run(load=load_tiny, device="cpu"))
