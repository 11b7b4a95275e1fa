"""What happens to a CT, in order: the table of contents of the science.

one order of axes -> landmarks -> lungs and lobes -> lesions -> severity -> back on the scan's own grid. Each step
has a file of its own; this page only calls them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from pipeline.canonical import CanonicalScan
from pipeline.errors import LungsNotFoundError, NotChestCTError
from pipeline.findings import findings_of_lobes, findings_of_result, refusal
from pipeline.geometry import Finding, GeometrySource, LandmarkPosition, LesionMask, LobeLabels, LungMask, Scan
from pipeline.intensities import require_hounsfield
from pipeline.landmarks import find_landmarks
from pipeline.lesions import LOW_MEMORY_SLICES, SLICES, LesionNetwork, segment_lesions
from pipeline.lungs.backend import DEFAULT as DEFAULT_LUNG_BACKEND
from pipeline.lungs.backend import LungBackend, LungBackendName, load_lung_backend
from pipeline.networks.device import choose_device
from pipeline.networks.q_network import LandmarkNetwork
from pipeline.networks.weights import ModelInfo, load_weights
from pipeline.severity import OpacityRange, Severity, high_opacity_of, opacity_range, score_severity

#: Called with the stage that runs and the share of the whole work that is done, 0 to 1.
Progress = Callable[[str, float], None]

#: Where each stage begins and ends in the time that a scan takes, measured on two CPU cores.
STAGE_SHARES: Final[Mapping[str, tuple[float, float]]] = {
    "landmarks": (0.0, 0.02),
    "lungs": (0.02, 0.67),
    "lesions": (0.67, 0.98),
    "severity": (0.98, 1.0),
}


@dataclass(frozen=True)
class Models:
    """The three networks of the paper, loaded once and used for every scan."""

    landmarks: LandmarkNetwork
    lungs: LungBackend
    lesions: LesionNetwork
    device: torch.device

    @property
    def infos(self) -> tuple[ModelInfo, ...]:
        return self.landmarks.info, *self.lungs.infos, self.lesions.info


@dataclass(frozen=True, eq=False)
class Quantification:
    """What a chest CT turned out to show; every mask is on the scan's own grid.

    Attributes:
        lesions: opacities, inside the lungs.
        opacity_range: PO and the lobes' percentages at the least and at the most.
        high_opacity: the part of `lesions` at or above -200 HU.
        findings: what was noticed while reading and about the result.
        seconds: wall time by stage.
        models: which weights gave this answer.
        source: which fields of the file placed the scan, and so every mask.
    """

    lungs: LungMask
    lobes: LobeLabels
    lesions: LesionMask
    high_opacity: LesionMask
    severity: Severity
    opacity_range: OpacityRange
    landmarks: tuple[LandmarkPosition, ...]
    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]
    models: tuple[ModelInfo, ...]
    device: str
    source: GeometrySource | None = None


def load_models(
    device: str = "auto", weights_dir: Path | None = None, lung_backend: LungBackendName = DEFAULT_LUNG_BACKEND
) -> Models:
    """Load the three networks onto `device` (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`).

    Args:
        weights_dir: holds `landmarks.safetensors`, `lungs.safetensors`, `lesions.safetensors`; by default those that
            come with the package.
        lung_backend: which network draws lungs and lobes.

    Raises:
        WeightsError: weights are missing or are not what they claim to be.
        ValueError: there is no such device.
    """
    target = choose_device(device)
    return Models(
        landmarks=LandmarkNetwork.load(load_weights("landmarks", weights_dir), target),
        lungs=load_lung_backend(lung_backend, target, weights_dir),
        lesions=LesionNetwork.load(load_weights("lesions", weights_dir), target),
        device=target,
    )


def ignore(_stage: str, _fraction: float) -> None:
    """A progress callback that does nothing."""


def quantify(scan: Scan, models: Models, progress: Progress = ignore, *, low_memory: bool = False) -> Quantification:
    """Score the opacities of a chest CT.

    An exception raised by `progress` ends the work, which is how a job is cancelled.

    Args:
        low_memory: fewer slices at a time, which needs less memory and more time.

    Raises:
        NotChestCTError: the values are not Hounsfield units, or neither a landmark nor anything like lungs is in it.
        LungsNotFoundError: a chest, but no lungs could be segmented. Both say what was seen of the scan before.
    """
    canonical = CanonicalScan.of(scan.volume)
    volume = canonical.volume
    clock = _StageClock(progress)

    try:
        with clock.stage("landmarks"):
            require_hounsfield(volume)
            landmarks = find_landmarks(volume, models.landmarks)

        with clock.stage("lungs") as part_done:
            lobes = models.lungs.segment(volume, landmarks, part_done)
            lungs = lobes.lungs()
    except (NotChestCTError, LungsNotFoundError) as error:
        raise refusal(error, scan) from error

    with clock.stage("lesions") as part_done:
        found = segment_lesions(volume, lungs, models.lesions, part_done, LOW_MEMORY_SLICES if low_memory else SLICES)
        lesions = found.likely

    with clock.stage("severity"):
        high_opacity = LesionMask(high_opacity_of(volume, lesions.mask), volume.grid)
        severity = score_severity(volume, lungs, lobes, lesions)
        between = opacity_range(lobes, found.certain, found.possible)
        findings = (
            *scan.findings,
            *findings_of_result(landmarks, lungs, severity),
            *findings_of_lobes(lobes, severity, between),
        )

    to_scan, grid = canonical.to_scan, scan.volume.grid
    on_scan = LobeLabels(to_scan(lobes.labels), grid, lobes.fissures_sd)
    return Quantification(
        lungs=on_scan.lungs(),
        lobes=on_scan,
        lesions=LesionMask(to_scan(lesions.mask), grid),
        high_opacity=LesionMask(to_scan(high_opacity.mask), grid),
        severity=severity,
        opacity_range=between,
        landmarks=canonical.in_patient(landmarks),
        findings=findings,
        seconds=clock.seconds,
        models=models.infos,
        device=str(models.device),
        source=scan.source,
    )


@dataclass(frozen=True)
class _StageClock:
    """Reports the stage that begins to `progress`, and keeps the seconds that each took."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[float], None]]:
        """Yields what the stage calls with the share of its own work that is done."""
        first, last = STAGE_SHARES[name]

        def part_done(share: float) -> None:
            self.progress(name, first + share * (last - first))

        part_done(0.0)
        begin = time.perf_counter()
        yield part_done
        self.seconds[name] = round(time.perf_counter() - begin, 3)
