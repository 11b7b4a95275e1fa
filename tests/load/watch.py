"""Looks at processes while something runs: memory, and who used the CPU."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import psutil

SAMPLE_SECONDS: Final = 0.02


@dataclass
class Watched:
    """`cpu_seconds` by name; `others` is what the machine did besides, `niced` what it did only for want of better."""

    start_bytes: int = 0
    peak_bytes: int = 0
    end_bytes: int = 0
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    late_ms: list[float] = field(default_factory=list)
    """By how much a thread that only sleeps was woken too late: what the machine itself adds to every answer."""

    @property
    def growth_bytes(self) -> int:
        return self.peak_bytes - self.start_bytes


@contextmanager
def watching(gateway: psutil.Process, others: Mapping[str, psutil.Process]) -> Iterator[Watched]:
    """Resident memory of the gateway and its processes, and the CPU seconds of all."""
    watched = Watched(start_bytes=_resident(gateway))
    done = threading.Event()
    sampler = threading.Thread(target=_sample, args=(gateway, watched, done))
    before, machine = _cpu(gateway, others), psutil.cpu_times()
    sampler.start()
    try:
        yield watched
    finally:
        done.set()
        sampler.join()
        now = psutil.cpu_times()
        after = _cpu(gateway, others)
        watched.end_bytes = _resident(gateway)
        watched.cpu_seconds |= {name: after[name] - before[name] for name in after}
        watched.cpu_seconds["niced"] = now.nice - machine.nice
        watched.cpu_seconds["machine"] = _busy(now) - _busy(machine)
        watched.cpu_seconds["waiting for disk"] = now.iowait - machine.iowait


def _sample(gateway: psutil.Process, watched: Watched, done: threading.Event) -> None:
    asleep = time.perf_counter()
    while not done.wait(SAMPLE_SECONDS):
        watched.late_ms.append((time.perf_counter() - asleep - SAMPLE_SECONDS) * 1000)
        watched.peak_bytes = max(watched.peak_bytes, _resident(gateway))
        asleep = time.perf_counter()


def _resident(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def _cpu(gateway: psutil.Process, others: Mapping[str, psutil.Process]) -> dict[str, float]:
    return {name: sum(process.cpu_times()[:2]) for name, process in {"gateway": gateway, **others}.items()}


def _busy(times: "psutil._ntuples.scputimes") -> float:
    return float(times.user + times.system + times.irq + times.softirq)
