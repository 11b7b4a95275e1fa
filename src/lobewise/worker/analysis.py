"""What a worker does with a scan: the pipeline, with its models loaded once for the life of the process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lobewise.jobs.settings import JobsSettings
from lobewise.pipeline.reading import read_ct
from lobewise.pipeline.volume import Scan

if TYPE_CHECKING:  # it imports torch, which the parent of the worker processes does not need
    from lobewise.pipeline.quantify import Models, Progress, Quantification


class Analysis(Protocol):
    """Reads and scores scans, one after the other."""

    def read(self, path: Path) -> Scan: ...

    def quantify(self, scan: Scan, progress: "Progress", *, frugal: bool) -> "Quantification":
        """Args: frugal: in smaller pieces, since the memory did not suffice before."""


Load = Callable[[JobsSettings, str], Analysis]
"""Makes the analysis in each worker process; picklable, since the processes are spawned."""


@dataclass(frozen=True)
class Pipeline:
    """The analysis of the paper."""

    models: "Models"

    def read(self, path: Path) -> Scan:
        return read_ct(path)

    def quantify(self, scan: Scan, progress: "Progress", *, frugal: bool) -> "Quantification":
        from lobewise.pipeline.quantify import quantify

        return quantify(scan, self.models, progress, frugal=frugal)


def load_pipeline(settings: JobsSettings, device: str) -> Pipeline:
    """Raises WeightsError or ValueError when the models cannot be had or the device is not there."""
    from lobewise.pipeline.quantify import load_models

    return Pipeline(load_models(device, settings.weights_dir, settings.lung_stage))
