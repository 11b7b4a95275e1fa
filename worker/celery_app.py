"""The Celery app of a worker: its configuration, its one task, and what happens when one of its processes starts."""

import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown
from structlog.contextvars import bound_contextvars

from jobs.access.caller import DEFAULT_TENANT
from jobs.bootstrap import connect
from jobs.errors import BrokerUnavailableError
from jobs.live.workers import WorkerStats
from jobs.logs import configure_logging
from jobs.models import ModelProvenance
from jobs.queue import TASK_NAME, celery_config
from jobs.settings import JobsSettings
from jobs.tenants import Tenants
from jobs.tracing import configure_tracing, stop_tracing
from jobs.worker_api import WorkerApi
from worker.report import result_digest
from worker.scratch import open_scratch
from worker.task import Load, WorkerContext, load_pipeline, work_on

log = logging.getLogger(__name__)

#: What traces call it.
SERVICE: Final = "lobewise-worker"
ANNOUNCE_EVERY_SECONDS: Final = 5.0
#: Three announcements: one that is lost, or late, does not make a living worker count as gone.
ANNOUNCED_FOR_SECONDS: Final = 15.0
#: The unit of getrusage's ru_maxrss differs: bytes on macOS, KiB on Linux.
MAXRSS_BYTES: Final = 1 if sys.platform == "darwin" else 1024
WORKER_CONFIG: Final = {
    # The prefork pool alone enforces time limits and survives a killed child.
    "worker_pool": "prefork",
    # Spawned, since CUDA does not work in a process that was forked after it was brought up.
    "worker_pool_start_method": "spawn",
    # Loading the models takes longer than the few seconds that Celery gives a new process by default.
    "worker_proc_alive_timeout": 600.0,
    "worker_lost_wait": 1.0,
    # Acknowledged after the work: a worker that dies leaves its message; the reconciler sends a lost one again.
    "task_acks_late": True,
    # A message fetched ahead would wait behind a scan of a minute while another worker is idle.
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    # Redis may start after its workers, or be away for hours: a worker that gave up would not come back by itself.
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # A job's record is in the storage: a scan that is nearly done is worth finishing without the broker.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    # Nobody controls workers through the broker: the job's record would not know. Its heartbeat stops a cancelled job.
    "worker_enable_remote_control": False,
    # Jobs are counted in Redis by the step that ends them, so that events would only say it twice.
    "worker_send_task_events": False,
}


class WorkerApp(Celery):  # type: ignore[misc]  # Celery ships no types
    """A Celery app that a spawned process can build again."""

    def __init__(self, settings: JobsSettings, device: str, load: Load) -> None:
        super().__init__("lobewise", set_as_current=False)
        # A spawned child unpickles the app: it builds the app anew, its task and signals included.
        self._recipe = (settings, device, load)

    def __reduce__(self) -> Any:
        return build_app, self._recipe


def build_app(settings: JobsSettings, device: str = "auto", load: Load = load_pipeline) -> WorkerApp:
    """The app of a worker.

    Args:
        settings: with `redis_url` filled in, as `Connection.settings` has it.
        load: makes the analysis in each worker process.
    """
    app = WorkerApp(settings, device, load)
    app.conf.update(celery_config(settings))
    app.conf.update(WORKER_CONFIG)
    process = _Process(settings, device, load)

    def keep_logging(**_signal: object) -> None:
        """Nothing to do: Celery leaves logging alone where this signal has a receiver."""

    # `weak=False`: Celery would drop a receiver that nobody else refers to.
    setup_logging.connect(keep_logging, weak=False, dispatch_uid="lobewise")
    worker_process_init.connect(process.start, weak=False, dispatch_uid="lobewise")
    worker_process_shutdown.connect(process.stop, weak=False, dispatch_uid="lobewise")
    app.task(name=TASK_NAME, soft_time_limit=settings.soft_limit_seconds, time_limit=settings.hard_limit_seconds)(
        process.score
    )
    return app


def process_name(pid: int) -> str:
    """What a worker process of this machine is called."""
    return f"{socket.gethostname()}:{pid}"


class _Process:
    """One process of the pool."""

    def __init__(self, settings: JobsSettings, device: str, load: Load) -> None:
        self._settings, self._device, self._load = settings, device, load
        self._context: WorkerContext | None = None
        self._tenants: Tenants | None = None

    def score(self, job_id: str, tenant: str = DEFAULT_TENANT) -> None:
        """The task."""
        if self._context is None or self._tenants is None:
            raise RuntimeError("this process has not started")
        try:
            jobs = self._tenants.find(tenant)
        except ValueError:
            jobs = None
        if jobs is None:  # whoever wrote this message, it stands for no job
            log.warning("a message of a tenant that there is not was dropped")
            return
        with bound_contextvars(tenant=tenant):
            work_on(replace(self._context, jobs=jobs.worker), job_id)

    def start(self, **_signal: object) -> None:
        """Load the models, then say that we are ready. A worker that cannot load them ends."""
        configure_logging(self._settings.log_format, self._settings.log_level)
        configure_tracing(SERVICE)
        open_scratch()
        try:
            connection = connect(self._settings)
            self._tenants, jobs = connection.tenants, connection.worker
            analysis = self._load(self._settings, self._device)
        except Exception:
            log.exception("the worker cannot start")
            # The pool would replace the failed process for ever; ending the parent shows the fault to the supervisor.
            os.kill(os.getppid(), signal.SIGTERM)
            raise
        worker = process_name(os.getpid())
        digest = result_digest(analysis.loaded_models, self._settings)
        self._context = WorkerContext(jobs, analysis, worker, stop_hard=self.kill, result_digest=digest)
        self._context.drain.listen()
        arguments = (jobs, worker, analysis.loaded_models, digest)
        threading.Thread(target=self.announce, args=arguments, name="announce", daemon=True).start()

    def stop(self, **_signal: object) -> None:
        """Send the spans that wait, since Celery ends its processes without Python's atexit."""
        stop_tracing()

    def kill(self) -> None:
        """End this process at once, in the midst of a job."""
        stop_tracing()
        # SIGKILL, since Python handles no signal while it is inside a kernel of torch.
        os.kill(os.getpid(), signal.SIGKILL)

    def announce(self, jobs: WorkerApi, worker: str, models: Sequence[ModelProvenance], digest: str) -> None:
        """Say again and again that this process is ready with these models; an announcement that fails is logged."""
        pause = threading.Event()
        while True:
            try:
                stats = read_worker_stats(self._device).model_copy(update={"result_digest": digest})
                jobs.workers.announce(worker, ANNOUNCED_FOR_SECONDS, models, stats)
            except BrokerUnavailableError as error:
                log.warning("cannot say that this worker is ready: %s", error)
            pause.wait(ANNOUNCE_EVERY_SECONDS)


def read_worker_stats(device: str) -> WorkerStats:
    """The peak memory of this process, and what its GPU says. Never raises for a GPU that says nothing.

    Args:
        device: where the networks run, as the settings have it.
    """
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES
    gpu: dict[str, Any] = {}
    torch = sys.modules.get("torch")
    # A process that has not brought CUDA up is not asked: the question itself would, and takes memory of the device.
    if torch is not None and device.startswith(("auto", "cuda")) and torch.cuda.is_initialized():
        number = int(device.partition(":")[2] or torch.cuda.current_device())
        with suppress(RuntimeError):
            free_bytes, total_bytes = torch.cuda.mem_get_info(number)
            gpu |= {"gpu_memory_used_bytes": total_bytes - free_bytes, "gpu_memory_total_bytes": total_bytes}
        # It asks NVIDIA's library, which is there only with `nvidia-ml-py`.
        with suppress(RuntimeError, ImportError):
            gpu["gpu_utilization_ratio"] = torch.cuda.utilization(number) / 100
    return WorkerStats(peak_memory_bytes=peak_bytes, **gpu)
