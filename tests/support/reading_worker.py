"""A real worker that reads scans as any other does, in the sandbox, and scores them by thirds of their height."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from jobs.models import ModelProvenance
from jobs.settings import JobsSettings
from pipeline.anatomy import Landmark
from pipeline.geometry import LesionMask, LobeLabels, Scan
from pipeline.io.deidentify import deidentify
from pipeline.io.read import ReadLimits, read_ct
from pipeline.severity import high_opacity_of, opacity_range, score_severity
from worker.main import run


class Reading:
    loaded_models = (ModelProvenance(name="reading", version="1", sha256="0" * 64),)

    def read(self, path: Path) -> Scan:
        return read_ct(path)

    def deidentify(self, path: Path, target: Path, key: bytes) -> None:
        deidentify(path, target, key, ReadLimits())

    def quantify(self, scan: Scan, progress: Callable[[str, float], None], **_: bool) -> SimpleNamespace:
        progress("lesions", 0.5)
        grid = scan.volume.grid
        labels = np.zeros(grid.shape, np.uint8)
        for label, planes in enumerate(np.array_split(np.arange(grid.shape[0]), 5), 1):
            labels[planes] = label
        lobes, lesions = LobeLabels(labels, grid), LesionMask(scan.volume.hu > 0, grid)
        return SimpleNamespace(
            lungs=lobes.lungs(),
            lobes=lobes,
            lesions=lesions,
            high_opacity=LesionMask(high_opacity_of(scan.volume, lesions.mask), grid),
            severity=score_severity(scan.volume, lobes.lungs(), lobes, lesions),
            opacity_range=opacity_range(lobes, lesions, lesions),
            landmarks=(SimpleNamespace(landmark=Landmark.CARINA, position_mm=(1.0, 2.0, 3.0), found=True),),
            findings=scan.findings,
            seconds={"lungs": 0.1},
            models=(SimpleNamespace(name="lungs", version="1", sha256="0" * 64),),
            device="cpu",
            source=scan.source,
        )


def load_reading(settings: JobsSettings, device: str) -> Reading:
    return Reading()


if __name__ == "__main__":
    sys.exit(run(load=load_reading, device="cpu"))
