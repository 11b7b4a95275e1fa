"""What a worker does with a scan: the pipeline, with its models loaded once for the life of the process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jobs.settings import JobsSettings
from pipeline.geometry import Scan
from pipeline.io.read import read_ct

if TYPE_CHECKING:  # it imports torch, which the parent of the worker processes does not need
    from pipeline.quantify import Models, Progress, Quantification


class Analysis(Protocol):
    """Reads and scores scans, one after the other."""

    def read(self, path: Path) -> Scan: ...

    def quantify(self, scan: Scan, progress: "Progress", *, low_memory: bool) -> "Quantification":
        """Args: frugal: in smaller pieces, since the memory did not suffice before."""


Load = Callable[[JobsSettings, str], Analysis]
"""Makes the analysis in each worker process; picklable, since the processes are spawned."""


@dataclass(frozen=True)
class Pipeline:
    """The analysis of the paper."""

    models: "Models"

    def read(self, path: Path) -> Scan:
        return read_ct(path)

    def quantify(self, scan: Scan, progress: "Progress", *, low_memory: bool) -> "Quantification":
        from pipeline.quantify import quantify

        return quantify(scan, self.models, progress, low_memory=low_memory)


def load_pipeline(settings: JobsSettings, device: str) -> Pipeline:
    """Raises WeightsError or ValueError when the models cannot be had or the device is not there."""
    from pipeline.quantify import load_models

    return Pipeline(load_models(device, settings.weights_dir, settings.lung_stage))
