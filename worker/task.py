"""One job, from claim to outcome. Knows both sides, the jobs and the pipeline, and little else."""

import errno
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from structlog.contextvars import bound_contextvars

from jobs import tracing
from jobs.attempts import Lease
from jobs.errors import (
    CancelRequestedError,
    JobNotFoundError,
    JobPurgedError,
    LeaseLostError,
    NewerSchemaError,
    RequeueRequestedError,
    SourceError,
    WrongStateError,
)
from jobs.models import ImageName, JobError, JobTask, ModelProvenance, Stage
from jobs.problems import BY_SLUG
from jobs.settings import JobsSettings
from jobs.tracing import OUTCOME, step
from jobs.worker_api import WorkerApi
from pipeline.errors import PipelineError
from pipeline.geometry import Scan
from pipeline.io.deidentify import deidentify
from pipeline.io.overview import draw_slices
from pipeline.io.read import ReadLimits, read_ct
from worker.report import inspection_of, mask_labels, models_of, report_of, write_images, write_masks
from worker.shutdown import Drain

if TYPE_CHECKING:  # it imports torch, which the parent of the worker processes does not need
    from pipeline.quantify import Models, Progress, Quantification

log = logging.getLogger(__name__)

#: How torch and ITK say it, which have no exception type for it on a CPU.
OUT_OF_MEMORY_TEXTS: Final = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
    "bad_alloc",
)

#: Shares of the whole work that are done when a stage begins; the pipeline's own stages lie between the last two.
READ_AT: Final = 0.02
QUANTIFY_FROM: Final = 0.08
QUANTIFY_TO: Final = 0.97


class Analysis(Protocol):
    """Reads and scores scans, one after the other."""

    @property
    def loaded_models(self) -> Sequence[ModelProvenance]: ...

    def read(self, path: Path) -> Scan: ...

    def deidentify(self, path: Path, target: Path, key: bytes) -> None:
        """Write the scan to `target` without what names the patient. Raises PipelineError: it cannot be done."""

    def quantify(self, scan: Scan, progress: "Progress", *, low_memory: bool) -> "Quantification":
        """Args: low_memory: in smaller pieces, since the memory did not suffice before."""


#: Makes the analysis in each worker process; picklable, since the processes are spawned.
Load = Callable[[JobsSettings, str], Analysis]


@dataclass(frozen=True)
class Pipeline:
    """The analysis of the paper."""

    models: "Models"
    limits: ReadLimits

    @property
    def loaded_models(self) -> Sequence[ModelProvenance]:
        return models_of(self.models.infos)

    def read(self, path: Path) -> Scan:
        return read_ct(path, self.limits)

    def deidentify(self, path: Path, target: Path, key: bytes) -> None:
        deidentify(path, target, key, self.limits)

    def quantify(self, scan: Scan, progress: "Progress", *, low_memory: bool) -> "Quantification":
        from pipeline.quantify import quantify

        return quantify(scan, self.models, progress, low_memory=low_memory)


def load_pipeline(settings: JobsSettings, device: str) -> Pipeline:
    """Raises WeightsError or ValueError when the models cannot be had or the device is not there."""
    from pipeline.quantify import load_models

    limits = ReadLimits(is_sandbox_required=settings.sandbox == "required")
    return Pipeline(load_models(device, settings.weights_dir, settings.lung_stage), limits)


@dataclass(frozen=True)
class WorkerContext:
    """What a worker process has at hand.

    Attributes:
        jobs: of the tenant whose job is worked on.
        stop_hard: ends this process, when a cancelled or lost job does not stop by itself.
        drain: whether the running job shall be requeued.
        result_digest: of the software and weights that results come from; without it none is used again.
    """

    jobs: WorkerApi
    analysis: Analysis
    worker: str
    stop_hard: Callable[[], None]
    drain: Drain = field(default_factory=Drain)
    result_digest: str | None = None


def work_on(context: WorkerContext, job_id: str) -> None:
    """Make an attempt at a job, if there is still something to do.

    Returns when the job is final, requeued for another attempt or leased by another worker. What is raised is a
    fault that left the job to the reconciler.
    """
    with bound_contextvars(job_id=job_id):
        try:
            lease = context.jobs.claim(job_id, context.worker)
        except NewerSchemaError as reason:
            log.warning("left to newer workers: %s", reason)
            return
        except (JobNotFoundError, JobPurgedError, WrongStateError, LeaseLostError) as reason:
            log.info("nothing to do (%s)", type(reason).__name__)
            return
        lease.on_overdue = lambda overdue: _stop_hard(context, overdue)
        scratch = tempfile.TemporaryDirectory(prefix="lobewise-job-")
        with bound_contextvars(attempt=lease.attempt), lease, scratch as folder:
            is_fit = _attempt(context, lease, Path(folder))
        if not is_fit:
            context.stop_hard()


def _attempt(context: WorkerContext, lease: Lease, folder: Path) -> bool:
    """Whether this process is fit for another."""
    log.info("the attempt begins")
    try:
        with context.drain.holding(lease):
            _score(context, lease, folder)
    except CancelRequestedError:
        context.jobs.confirm_cancel(lease)
        log.info("cancelled")
    except (LeaseLostError, JobPurgedError) as reason:
        lease.span.set_attributes({OUTCOME: "unwanted"})
        log.warning("the attempt is no longer wanted (%s)", type(reason).__name__)
    except RequeueRequestedError:
        context.jobs.requeue(lease)
        log.info("requeued")
    # Every fault of ours counts as an attempt, so that a scan that breaks each worker ends as failed.
    except Exception as fault:
        log.exception("the attempt failed")
        if is_out_of_memory(fault):
            context.jobs.fail_out_of_memory(lease, fault)
            # Memory that torch still holds, or has fragmented, comes back only when the process ends.
            return False
        context.jobs.retry(lease, fault)
    else:
        log.info("the attempt is done")
    return True


def _score(context: WorkerContext, lease: Lease, folder: Path) -> None:
    """Succeed, or fail for a reason that is the scan's own."""
    clock, digest = _Clock(lease), context.result_digest
    try:
        if digest is not None and context.jobs.reuse(lease, digest):
            log.info("given the result of an earlier job")
            return
        with clock.stage(Stage.FETCH, 0.0):
            path = context.jobs.fetch_input(lease, folder)
        # What a source holds is known only now.
        if lease.record.input.sha256 is None and digest is not None and context.jobs.reuse(lease, digest):
            return
        with clock.stage(Stage.READ, READ_AT):
            scan = context.analysis.read(path)
            if lease.must_deidentify:
                _replace_input(context, lease, path)
        if lease.record.task is JobTask.VALIDATE:
            picture = folder / "slices.png"
            draw_slices(picture, scan.volume)
            inspection = inspection_of(scan, lease.scan.size_bytes or path.stat().st_size, picture)
            context.jobs.succeed_inspected(lease, inspection, clock.seconds)
            return
        # The masks need the room on the disk.
        path.unlink()
        with clock.stages() as progress:
            result = context.analysis.quantify(scan, progress, low_memory=lease.low_memory)
        with clock.stage(Stage.STORE, QUANTIFY_TO):
            masks = write_masks(result, folder)
            keeps = context.jobs.settings.keep_images
            images = {}
            if keeps != "none":
                images = write_images(scan, result, folder, with_scan=ImageName.SCAN.is_kept(keeps))
        report = report_of(result, job_id=lease.job_id, input_sha256=lease.scan.sha256 or "", seconds=clock.seconds)
        context.jobs.succeed(lease, report, masks, mask_labels(), digest, images)
    except (PipelineError, SourceError) as error:
        problem = error.problem if isinstance(error, SourceError) else BY_SLUG[error.code]
        log.info("the scan cannot be scored", extra={"code": problem.slug})
        context.jobs.fail(lease, JobError.of(problem, str(error), error.evidence), clock.seconds)


def _replace_input(context: WorkerContext, lease: Lease, path: Path) -> None:
    """Keep the scan without what names the patient, as soon as it is known to be one."""
    target = path.with_name("deidentified")
    try:
        context.analysis.deidentify(path, target, context.jobs.deidentification_key)
    except PipelineError as error:
        # It can be scored all the same; what came is deleted when the job ends, and nothing is kept.
        log.warning("the scan cannot be de-identified, and is not kept", extra={"code": error.code})
        return
    context.jobs.replace_input(lease, target)
    target.unlink()


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether another process, or smaller pieces, may help."""
    if isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError":  # torch's, which need not be here
        return True
    if isinstance(fault, OSError):
        return fault.errno == errno.ENOMEM
    return isinstance(fault, RuntimeError) and any(text in str(fault).lower() for text in OUT_OF_MEMORY_TEXTS)


def _stop_hard(context: WorkerContext, lease: Lease) -> None:
    log.warning("job %s did not stop in time; its process ends", lease.job_id)
    try:
        if lease.is_requeue_requested:
            context.jobs.requeue(lease)
        else:
            context.jobs.confirm_cancel(lease)
    finally:
        tracing.end(lease.span)
        context.stop_hard()


@dataclass(frozen=True)
class _Clock:
    """Shows what begins and keeps how long it took."""

    lease: Lease
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, stage: Stage, progress: float) -> Iterator[None]:
        self.lease.report(stage, progress)
        begin = time.perf_counter()
        with step(stage.value):
            yield
        self.seconds[stage.value] = round(time.perf_counter() - begin, 3)

    @contextmanager
    def stages(self) -> "Iterator[Progress]":
        """Takes the pipeline's progress as a part of the whole. Each stage ends when the next begins."""
        begun = ""
        with ExitStack() as current:

            def within(stage: str, share: float) -> None:
                nonlocal begun
                if stage != begun:
                    current.close()
                    current.enter_context(step(stage))
                    begun = stage
                self.lease.report(Stage(stage), QUANTIFY_FROM + share * (QUANTIFY_TO - QUANTIFY_FROM))

            yield within
