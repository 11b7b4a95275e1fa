"""`lobewise score`: the pipeline in this process, without a service."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import Exit, bar, fail, fail_refused, needs, write_document
from jobs.models import Report
from jobs.problems import BY_SLUG

with needs("worker"):
    from pipeline.errors import PipelineError
    from pipeline.geometry import Scan
    from pipeline.io.overview import draw_overview
    from pipeline.io.read import read_ct
    from worker.report import mask_labels, report_of, write_masks

if TYPE_CHECKING:  # it imports torch, which takes seconds: a scan that cannot be read is refused before
    from pipeline.lungs.backend import LungBackendName
    from pipeline.quantify import Quantification

#: Of the whole time, roughly.
READ_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class Scored:
    """A scan, what was found in it, and the report about it."""

    scan: Scan
    result: Quantification
    report: Report


def score_here(path: Path, device: str, weights: Path | None, lung_stage: LungBackendName) -> Scored:
    """Read and quantify one scan.

    Raises:
        typer.Exit: the scan was refused, the weights are missing or the device is unknown.
    """
    try:
        with bar("reading the scan") as shown:
            begin = time.perf_counter()
            scan = read_ct(path)
            seconds = {"read": round(time.perf_counter() - begin, 3)}
            shown.show("loading the networks", READ_SHARE)
            with needs("worker"):  # imported after the scan was read: torch takes seconds
                from pipeline.networks.weights import WeightsError
                from pipeline.quantify import load_models, quantify
            try:
                models = load_models(device, weights, lung_stage)
            except (WeightsError, ValueError) as error:
                raise fail(Exit.USAGE, str(error)) from error
            result = quantify(scan, models, lambda stage, done: shown.show(stage, READ_SHARE + done * (1 - READ_SHARE)))
            shown.show("scored", 1.0)
    except PipelineError as error:
        raise fail_refused(BY_SLUG[error.code].title, error.detail, error.evidence) from error
    # Of a file; of a folder, of its files in the order of their paths.
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    report = report_of(result, job_id=path.name, input_sha256=digest.hexdigest(), seconds=seconds)
    return Scored(scan, result, report)


def save(scored: Scored, folder: Path) -> list[Path]:
    """Masks, their labels, overview and report, written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    masks = write_masks(scored.result, folder)
    overview = folder / "overview.png"
    draw_overview(overview, scored.scan.volume, scored.result.lobes, scored.result.lesions)
    labels = write_document(mask_labels(), folder / "labels.json")
    return [*masks.values(), labels, overview, write_document(scored.report, folder / "report.json")]
