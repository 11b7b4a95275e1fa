"""Runs a worker until it is told to stop."""

import logging
import os
import secrets
import socket
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.exceptions import SecurityWarning
from celery.signals import worker_shutting_down
from celery.worker import state

from jobs.bootstrap import connect
from jobs.errors import SettingsError
from jobs.liveness import alive
from jobs.logs import configure_logging
from jobs.outbound import warn_of_refused
from jobs.private_files import keep_private
from jobs.proxies import proxy_of
from jobs.settings import JobsSettings, misspelt, read_settings
from jobs.tracing import configure_tracing, stop_tracing
from jobs.worker_api import WorkerApi
from pipeline.io.confinement import Protection
from pipeline.io.sandbox import protections_here
from worker.celery_app import SERVICE, build_app, process_name
from worker.shutdown import requeue_after
from worker.task import Load, load_pipeline
from worker.watchdog import Watchdog, WorkerStatus, start_anew

log = logging.getLogger(__name__)


def run(
    settings: JobsSettings | None = None,
    concurrency: int | None = None,
    device: str | None = None,
    *,
    load: Load = load_pipeline,
) -> int:
    """Work until SIGTERM or Ctrl-C, which let the running job finish, or requeue it. Returns the exit code.

    Args:
        concurrency: processes, each with models of its own, instead of the settings' number. One per GPU, or per
            four CPU cores, is enough.
        device: where the networks run, instead of the settings' device.
        load: makes the analysis in each process; the paper's pipeline by default.
    """
    settings = settings or read_settings(JobsSettings)
    keep_private(settings)
    configure_logging(settings.log_format, settings.log_level)
    configure_tracing(SERVICE)
    for prefix in settings.source_allowlist:
        if prefix.startswith("https:"):
            proxy_of(prefix)  # raises now what every such job would meet
    for sentence in misspelt((JobsSettings,)):
        log.warning("%s", sentence)
    warn_of_refused(settings.source_allowlist, settings.outbound_networks)
    if missing := sorted(set(Protection) - protections_here()):
        sentence = f"This kernel does not keep the process that reads scans from: {', '.join(missing)}."
        if settings.sandbox == "required":
            raise SettingsError(f"{sentence} LOBEWISE_SANDBOX=required asks for all; docs/deployment.md says how.")
        log.warning("%s A file that takes the reader over reaches them (docs/deployment.md)", sentence)
    connection = connect(settings)
    jobs = connection.worker

    def pids() -> list[int]:
        """Of the processes of the pool; none while it is not up."""
        pool = getattr(worker.pool, "_pool", None)  # Celery has no public name for it
        return [process.pid for process in getattr(pool, "_pool", ()) if process.pid]

    try:
        connection.reconciler.start()
        app = build_app(jobs.settings, device or jobs.settings.device, load)
        # Celery warns root of pickled messages; we take none but JSON.
        warnings.simplefilter("ignore", SecurityWarning)
        worker: Any = app.Worker(
            # Several workers may run on one machine, and Celery wants each to have a name of its own.
            hostname=f"lobewise-{secrets.token_hex(4)}@{socket.gethostname()}",
            concurrency=concurrency or jobs.settings.concurrency,
            loglevel=settings.log_level,
            quiet=True,
            # They are how workers and Flower see each other through the broker; here workers announce themselves.
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        # What a child logs before `_Process.start` sets logging up is no JSON: only warnings may come through.
        os.environ["_MP_FORK_LOGLEVEL_"] = str(logging.WARNING)
        on_stop = requeue_after(jobs.settings.drain_seconds, pids)
        worker_shutting_down.connect(on_stop, weak=False, dispatch_uid="lobewise")
        Watchdog(jobs, partial(_worker_status, jobs, pids), lambda: start_anew(pids())).start()
        with alive(jobs.settings.liveness_file):
            worker.start()
        return int(worker.exitcode or os.EX_OK)
    finally:
        connection.close()
        stop_tracing()


def _worker_status(jobs: WorkerApi, pids: Callable[[], list[int]]) -> WorkerStatus:
    """Idle: a process has loaded its models, none has a job or is about to get one, and nobody said to stop."""
    is_busy = bool(len(state.reserved_requests)) or state.should_stop is not None
    is_idle = not is_busy and jobs.workers.any_ready(map(process_name, pids()))
    return WorkerStatus(is_idle, sum(state.total_count.values()))
