"""From what the science found to what the contract says: the only translation between both."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from jobs.models import (
    ImageName,
    Inspection,
    LandmarkPoint,
    LobeName,
    LobeScores,
    LungVolumes,
    MaskLabel,
    MaskLabels,
    MaskName,
    ModelProvenance,
    PercentRange,
    Provenance,
    QualityFinding,
    Report,
    ScanGeometry,
    SeverityScores,
    ValueHistogram,
)
from jobs.version import __version__
from pipeline import severity as science
from pipeline.geometry import Finding, GeometrySource, LesionMask, LobeLabels, LungMask, Scan, Volume
from pipeline.io.overview import draw_pictures
from pipeline.io.write import write_ct, write_mask
from pipeline.labels import LABELS
from pipeline.resampling import resample
from pipeline.severity import LobeSeverity, Severity

if TYPE_CHECKING:  # they import torch, which takes seconds, and only their attributes are used here
    from pipeline.geometry import LandmarkPosition
    from pipeline.networks.weights import ModelInfo
    from pipeline.quantify import Quantification


#: The histogram of an inspection: air to dense bone, in steps that keep lung, fat and muscle apart.
FIRST_BIN_HU = -1024
LAST_BIN_HU = 3072
BIN_HU = 64

#: Spacing of the coarse scan: some 3 MB for a chest, which a browser has in a fraction of a second.
PREVIEW_MM = 3.0


def report_of(
    result: Quantification, *, job_id: str, input_sha256: str, seconds: Mapping[str, float] | None = None
) -> Report:
    """The report of a quantified scan, without the addresses of its masks.

    Args:
        seconds: of stages outside of the science, such as `fetch` and `read`; they come first.
    """
    return Report(
        job_id=job_id,
        severity=scores_of(result.severity, result.opacity_range.overall),
        lungs=volumes_of(result.severity),
        lobes=[lobe_of(lobe, result.opacity_range.lobes[lobe.lobe]) for lobe in result.severity.lobes],
        landmarks=[_landmark_of(position) for position in result.landmarks],
        quality=[finding_of(finding) for finding in result.findings],
        provenance=Provenance(
            input_sha256=input_sha256,
            software=__version__,
            models=models_of(result.models),
            device=result.device,
            seconds={**(seconds or {}), **result.seconds},
            geometry=None if result.source is None else _geometry_of(result.source),
        ),
    )


def models_of(infos: Iterable[ModelInfo]) -> list[ModelProvenance]:
    """What identifies weights, as reports and `GET /v1/models` say it."""
    return [ModelProvenance(name=info.name, version=info.version, sha256=info.sha256) for info in infos]


def result_digest(models: Iterable[ModelProvenance]) -> str:
    """Of all that results depend on beside the scan: the weights, the version, and the source of what scores."""
    digest = hashlib.sha256(__version__.encode())
    for model in sorted(models, key=lambda model: (model.name, model.version, model.sha256)):
        digest.update(model.model_dump_json().encode())
    # A version may stay the same while somebody works on the code, and wants to see what that changes.
    for package in ("pipeline", "worker"):
        folder = Path(str(files(package)))
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def inspection_of(scan: Scan, size_bytes: int, picture: Path | None = None) -> Inspection:
    """What the reader saw in a file that can be read; `picture` is a PNG of it."""
    hu, grid = scan.volume.hu, scan.volume.grid
    counts, _ = np.histogram(np.clip(hu, FIRST_BIN_HU, LAST_BIN_HU - 1), range(FIRST_BIN_HU, LAST_BIN_HU + 1, BIN_HU))
    return Inspection(
        software=__version__,
        input_size_bytes=size_bytes,
        geometry=None if scan.source is None else _geometry_of(scan.source),
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        origin_mm=grid.origin_mm,
        direction=list(grid.direction),
        axes=grid.axes,
        histogram=ValueHistogram(
            lowest_hu=int(hu.min()),
            highest_hu=int(hu.max()),
            bin_hu=BIN_HU,
            first_hu=FIRST_BIN_HU,
            voxels=[int(count) for count in counts],
        ),
        picture_png_base64=None if picture is None else b64encode(picture.read_bytes()).decode(),
        quality=[finding_of(finding) for finding in scan.findings],
    )


def finding_of(finding: Finding) -> QualityFinding:
    return QualityFinding(
        code=finding.code,
        severity=cast("Literal['info', 'warning', 'error']", finding.severity),
        message=finding.message,
        evidence=dict(finding.evidence),
        lobe=None if finding.lobe is None else cast("LobeName", finding.lobe.slug),
    )


def write_masks(result: Quantification, folder: Path) -> dict[MaskName, Path]:
    """The four masks as gzipped NIfTI in `folder`, on the input's own grid."""
    masks: dict[MaskName, LungMask | LobeLabels | LesionMask] = {
        MaskName.LUNGS: result.lungs,
        MaskName.LOBES: result.lobes,
        MaskName.LESIONS: result.lesions,
        MaskName.HIGH_OPACITY: result.high_opacity,
    }
    paths = {}
    for name, mask in masks.items():
        paths[name] = folder / f"{name}.nii.gz"
        array = mask.labels if isinstance(mask, LobeLabels) else mask.mask
        write_mask(paths[name], array, mask.grid, result.source, LABELS[name])
    return paths


def write_images(scan: Scan, result: Quantification, folder: Path, *, with_scan: bool) -> dict[ImageName, Path]:
    """What the result is looked at with, in `folder`: pictures, a coarse scan and, if wanted, the scan itself."""
    pictures = draw_pictures(folder, scan.volume, result.lobes, result.lesions)
    paths = {ImageName(name): path for name, path in pictures.items()}
    grid = scan.volume.grid.not_finer_than(PREVIEW_MM)
    coarse = resample(scan.volume.hu, scan.volume.grid, grid)
    paths[ImageName.PREVIEW] = folder / "preview.nii.gz"
    write_ct(paths[ImageName.PREVIEW], Volume(np.clip(np.rint(coarse), -32768, 32767).astype(np.int16), grid))
    if with_scan:
        paths[ImageName.SCAN] = folder / "scan.nii.gz"
        write_ct(paths[ImageName.SCAN], scan.volume, result.source)
    return paths


def mask_labels() -> MaskLabels:
    """What the numbers in every mask stand for."""
    return MaskLabels(
        masks={
            name: [
                MaskLabel(
                    number=label.number,
                    name=label.name,
                    display_name=label.display_name,
                    colour=label.colour,
                    snomed_ct=label.snomed_ct,
                )
                for label in LABELS[name]
            ]
            for name in MaskName
        }
    )


def scores_of(severity: Severity, between: science.PercentRange | None = None) -> SeverityScores:
    return SeverityScores(
        percent_opacity=_rounded(severity.percent_opacity),
        percent_opacity_range=_range_of(between),
        percent_high_opacity=_rounded(severity.percent_high_opacity),
        lung_severity_score=severity.lung_severity_score,
        lung_high_opacity_score=severity.lung_high_opacity_score,
    )


def volumes_of(severity: Severity) -> LungVolumes:
    return LungVolumes(
        volume_ml=_rounded(severity.volume_ml),
        opacity_ml=_rounded(severity.opacity_ml),
        high_opacity_ml=_rounded(severity.high_opacity_ml),
    )


def lobe_of(lobe: LobeSeverity, between: science.PercentRange | None = None) -> LobeScores:
    return LobeScores(
        lobe=cast("LobeName", lobe.lobe.slug),
        label=int(lobe.lobe),
        volume_ml=_rounded(lobe.volume_ml),
        percent_opacity=_rounded(lobe.percent_opacity),
        percent_opacity_range=_range_of(between),
        percent_high_opacity=_rounded(lobe.percent_high_opacity),
        severity_score=lobe.severity_score,
        high_opacity_score=lobe.high_opacity_score,
    )


def _geometry_of(source: GeometrySource) -> ScanGeometry:
    return ScanGeometry(file_format=source.file_format, used=list(source.used), ignored=dict(source.ignored))


def _landmark_of(position: LandmarkPosition) -> LandmarkPoint:
    point = position.position_mm
    rounded = None if point is None else (round(point[0], 1), round(point[1], 1), round(point[2], 1))
    return LandmarkPoint(name=position.landmark.value, found=position.found, position_mm=rounded)


def _range_of(between: science.PercentRange | None) -> PercentRange | None:
    return None if between is None else PercentRange(low=_rounded(between.low), high=_rounded(between.high))


def _rounded(value: float) -> float:
    """Four decimals: a voxel of the largest scan still shows in a percentage."""
    return round(value, 4)
