"""The Celery app of a worker: its configuration, its one task, and what happens when one of its processes starts."""

import logging
import os
import resource
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Any, Final

from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown

from jobs.bootstrap import connect
from jobs.errors import BrokerUnavailableError
from jobs.live.job_metrics import WorkerStats
from jobs.logs import configure_logging
from jobs.queue import TASK_NAME, celery_config
from jobs.service import Jobs
from jobs.settings import JobsSettings
from jobs.tracing import configure_tracing, stop_tracing
from worker.scratch import open_scratch
from worker.task import Load, WorkerContext, load_pipeline, work_on

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


log = logging.getLogger(__name__)

SERVICE: Final = "lobewise-worker"
"""What traces call it."""
ANNOUNCE_EVERY_SECONDS: Final = 5.0
ANNOUNCED_FOR_SECONDS: Final = 15.0
LOAD_SECONDS: Final = 600.0
"""How long a process may take to load its models."""


class WorkerApp(Celery):  # type: ignore[misc]  # Celery ships no types
    """A Celery app that a spawned process can build again."""

    def __init__(self, settings: JobsSettings, device: str, load: Load) -> None:
        super().__init__("lobewise", set_as_current=False)
        self._recipe = (settings, device, load)

    def __reduce__(self) -> Any:
        return build_app, self._recipe


def build_app(settings: JobsSettings, device: str = "auto", load: Load = load_pipeline) -> WorkerApp:
    """The app of a worker.

    Args:
        settings: with `redis_url` filled in, as `Jobs.settings` has it.
        load: makes the analysis in each worker process.
    """
    app = WorkerApp(settings, device, load)
    app.conf.update(celery_config(settings))
    app.conf.update(_worker_config())
    process = _Process(settings, device, load)
    setup_logging.connect(_leave_logging_alone, weak=False, dispatch_uid="lobewise")
    worker_process_init.connect(process.start, weak=False, dispatch_uid="lobewise")
    worker_process_shutdown.connect(process.stop, weak=False, dispatch_uid="lobewise")
    app.task(name=TASK_NAME, soft_time_limit=settings.soft_limit_seconds, time_limit=settings.hard_limit_seconds)(
        process.score
    )
    return app


def process_name(pid: int) -> str:
    """What a worker process of this machine is called."""
    return f"{socket.gethostname()}:{pid}"


def _leave_logging_alone(**_signal: object) -> None:
    """Celery sets up no log of its own where somebody listens to this signal."""


def _worker_config() -> dict[str, Any]:
    return {
        # Spawned processes: time limits and kills work, and CUDA is safe.
        "worker_pool": "prefork",
        "worker_pool_start_method": "spawn",
        "worker_proc_alive_timeout": LOAD_SECONDS,
        "worker_lost_wait": 1.0,
        # One message at a time, acknowledged after the work; a lost one comes back through the reaper.
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # Workers come and go with their broker.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Nobody controls workers through the broker: a cancelled job is stopped by its own heartbeat.
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
    }


class _Process:
    """One process of the pool."""

    def __init__(self, settings: JobsSettings, device: str, load: Load) -> None:
        self._settings, self._device, self._load = settings, device, load
        self._context: WorkerContext | None = None

    def score(self, job_id: str) -> None:
        """The task."""
        if self._context is None:
            raise RuntimeError("this process has not started")
        work_on(self._context, job_id)

    def start(self, **_signal: object) -> None:
        """Load the models, then say that we are ready. A worker that cannot load them ends."""
        configure_logging(self._settings.log_format, self._settings.log_level)
        configure_tracing(SERVICE)
        open_scratch()
        try:
            jobs = connect(self._settings)
            analysis = self._load(self._settings, self._device)
        except Exception:
            log.exception("the worker cannot start")
            os.kill(os.getppid(), signal.SIGTERM)
            raise
        worker = process_name(os.getpid())
        self._context = WorkerContext(jobs, analysis, worker, stop_hard=_kill_this_process)
        self._context.drain.listen()
        threading.Thread(target=_announce, args=(jobs, worker, self._device), name="announce", daemon=True).start()

    def stop(self, **_signal: object) -> None:
        """Celery ends its processes without Python's own farewell."""
        stop_tracing()


def _announce(jobs: Jobs, worker: str, device: str) -> None:
    pause = threading.Event()
    while True:
        try:
            jobs.announce(worker, ANNOUNCED_FOR_SECONDS, worker_stats=read_worker_stats(device))
        except BrokerUnavailableError as error:
            log.warning("cannot say that this worker is ready: %s", error)
        pause.wait(ANNOUNCE_EVERY_SECONDS)


def _kill_this_process() -> None:
    stop_tracing()
    os.kill(os.getpid(), signal.SIGKILL)
