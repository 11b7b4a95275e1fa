"""What a reader of the scores should know about the scan itself."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.errors import NotChestCTError
from pipeline.geometry import Finding, Grid, Volume

AIR_BELOW_HU: Final = -500
"""Air in and around the patient, lung included."""

TISSUE_HU: Final = (-200, 300)
"""Fat, muscle, blood and organs: most of any patient."""

LEAST_PERCENT: Final = 0.5
"""Every scan of a chest has far more air, and far more soft tissue."""

THICK_MM: Final = 4.95
"""From 5 mm on (less what rounding takes) small opacities vanish in partial volume."""

LEARNED_SPACING_MM: Final = 8.0
"""The networks learned from voxels of up to this length."""

LEARNED_NOISE_HU: Final = 70.0
"""The lesion network learned from noise of up to this much in a voxel of 1 x 1 x 3 mm (`training/lesion_crops.py`)."""

LEARNED_VOXEL_ML: Final = 0.003

FEW_SLICES: Final = 20
SMALL_FIELD_MM: Final = 250.0
LEAST_NOISE_VOXELS: Final = 1000


def findings_of_scan(volume: Volume) -> tuple[Finding, ...]:
    """What is unusual about the sampling or the values of a scan."""
    values = _hounsfield_findings(volume) or _noise_findings(volume)
    grid = volume.grid
    layout = _Layout.of(grid)
    findings = []
    if max(grid.spacing_mm) > THICK_MM:
        message = f"Voxels are {max(grid.spacing_mm):.1f} mm long: small opacities may be missed."
        findings.append(Finding("thick-slices", "warning", message, {"spacing_mm": round(max(grid.spacing_mm), 3)}))
    if max(grid.spacing_mm) > LEARNED_SPACING_MM:
        message = f"The networks have learned from voxels of up to {LEARNED_SPACING_MM:.0f} mm: scores may be far off."
        evidence = {"spacing_mm": round(max(grid.spacing_mm), 3), "learned_mm": LEARNED_SPACING_MM}
        findings.append(Finding("spacing-beyond-training", "warning", message, evidence))
    if layout.slices < FEW_SLICES:
        message = f"There are {layout.slices} slices from feet to head: too few to show the lungs whole."
        findings.append(Finding("few-slices", "warning", message, {"slices": layout.slices}))
    if layout.field_mm < SMALL_FIELD_MM:
        message = f"The field of view is {layout.field_mm:.0f} mm: it may not hold both lungs whole."
        findings.append(Finding("small-field-of-view", "warning", message, {"field_mm": round(layout.field_mm, 1)}))
    sampling_findings = tuple(findings)
    return (*sampling_findings, *values)


def noise_hu(volume: Volume) -> float | None:
    """Standard deviation of the noise in soft tissue, per voxel of the scan; None where there is too little tissue.

    From the second differences of neighbouring pixels (Immerkaer 1996), which even tissue does not have; their median
    does not mind the edges.
    """
    hu = volume.hu[:: max(volume.hu.shape[0] // 24, 1)].astype(np.float32)
    even = (hu >= TISSUE_HU[0]) & (hu <= TISSUE_HU[1])
    rows = hu[:, 1:-1, :-2] - 2 * hu[:, 1:-1, 1:-1] + hu[:, 1:-1, 2:]
    known = even[:, 1:-1, :-2] & even[:, 1:-1, 1:-1] & even[:, 1:-1, 2:]
    if np.count_nonzero(known) < LEAST_NOISE_VOXELS:
        return None
    # A normal deviate's median distance from 0 is 0.6745 of its deviation; 1, -2, 1 multiplies that by root 6.
    return float(np.median(np.abs(rows[known])) / (0.6745 * np.sqrt(6.0)))


def require_hounsfield(volume: Volume) -> None:
    """Refuse a volume whose values cannot be Hounsfield units of a patient.

    Raises:
        NotChestCTError: next to no voxel has the value of air, or of soft tissue.
    """
    for finding in _hounsfield_findings(volume):
        raise NotChestCTError(finding.message, evidence=finding.evidence)


def histogram_evidence(volume: Volume) -> dict[str, int | float]:
    """How the values are spread; every fourth voxel along each axis is enough."""
    sample = volume.hu[tuple(slice(None, None, 4 if n >= 64 else 1) for n in volume.hu.shape)]
    low, median, high = (round(float(v)) for v in np.percentile(sample, (1, 50, 99)))
    return {
        "hu_p01": low,
        "hu_median": median,
        "hu_p99": high,
        "air_percent": _percent(sample < AIR_BELOW_HU),
        "tissue_percent": _percent((sample >= TISSUE_HU[0]) & (sample <= TISSUE_HU[1])),
        "air_in_body_percent": _air_in_body_percent(sample),
    }


def _hounsfield_findings(volume: Volume) -> tuple[Finding, ...]:
    seen = histogram_evidence(volume)
    if min(seen["air_percent"], seen["tissue_percent"]) >= LEAST_PERCENT:
        return ()
    message = (
        f"The values are not Hounsfield units of a chest: {seen['air_percent']} % of the voxels are below "
        f"{AIR_BELOW_HU} (air, lung) and {seen['tissue_percent']} % are soft tissue."
    )
    return (Finding("not-hounsfield", "error", message, seen),)


def _noise_findings(volume: Volume) -> tuple[Finding, ...]:
    """Noise as the networks would see it: averaged where voxels are smaller than theirs."""
    noise = noise_hu(volume)
    if noise is None:
        return ()
    as_seen = noise * min(1.0, np.sqrt(volume.grid.voxel_volume_ml / LEARNED_VOXEL_ML))
    if as_seen <= LEARNED_NOISE_HU:
        return ()
    message = f"Noise of {as_seen:.0f} HU is more than the networks have learned from ({LEARNED_NOISE_HU:.0f} HU)."
    evidence = {"noise_hu": round(float(as_seen), 1), "learned_hu": LEARNED_NOISE_HU}
    return (Finding("noise-beyond-training", "warning", message, evidence),)


@dataclass(frozen=True)
class _Layout:
    """How often the patient was cut from feet to head, and the shorter side of a cut."""

    slices: int
    field_mm: float

    @classmethod
    def of(cls, grid: Grid) -> "_Layout":
        axis = int(np.argmax(np.abs(np.asarray(grid.direction)[2, ::-1])))
        return cls(grid.shape[axis], min(edge for i, edge in enumerate(grid.size_mm) if i != axis))


def _percent(mask: np.ndarray) -> float:
    return round(100.0 * float(np.mean(mask)), 1)


def _air_in_body_percent(sample: np.ndarray) -> float:
    """Of all voxels between the first and the last tissue voxel of their row, the share that is air."""
    tissue = sample >= TISSUE_HU[0]
    after_first = np.maximum.accumulate(tissue, axis=2)
    before_last = np.maximum.accumulate(tissue[:, :, ::-1], axis=2)[:, :, ::-1]
    inside = after_first & before_last
    if not inside.any():
        return 0.0
    return _percent(sample[inside] < AIR_BELOW_HU)
