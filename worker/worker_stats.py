"""How a worker process is: its memory, and its GPU if it has one."""

import resource
import sys
from contextlib import suppress
from typing import Any

from jobs.live.job_metrics import WorkerStats

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
"""What getrusage counts in."""


def read_worker_stats(device: str) -> WorkerStats:
    """Never raises for a GPU that tells nothing.

    Args:
        device: where the networks run, as the settings have it.
    """
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
    return WorkerStats(peak_memory_bytes=peak_bytes, **_gpu(device))


def _gpu(device: str) -> dict[str, Any]:
    """Nothing where this process has not brought CUDA up: asking would, and takes memory of the device."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith(("auto", "cuda")) or not torch.cuda.is_initialized():
        return {}
    number = int(device.partition(":")[2] or torch.cuda.current_device())
    found: dict[str, Any] = {}
    with suppress(RuntimeError):
        free_bytes, total_bytes = torch.cuda.mem_get_info(number)
        found |= {"gpu_memory_used_bytes": total_bytes - free_bytes, "gpu_memory_total_bytes": total_bytes}
    with suppress(RuntimeError, ImportError):  # it asks NVIDIA's library, where `nvidia-ml-py` is there
        found["gpu_utilization_ratio"] = torch.cuda.utilization(number) / 100
    return found
