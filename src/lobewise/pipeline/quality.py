"""What a reader of the scores should know about the scan and the result, and when there is nothing to score."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from lobewise.pipeline.anatomy import Landmark
from lobewise.pipeline.errors import NotChestCTError
from lobewise.pipeline.landmarks import LandmarkPosition
from lobewise.pipeline.severity import Severity
from lobewise.pipeline.volume import Finding, LungMask, Volume

AIR_BELOW_HU: Final = -500
"""Air in and around the patient, lung included."""

TISSUE_HU: Final = (-200, 300)
"""Fat, muscle, blood and organs: most of any patient."""

PLAUSIBLE_LUNGS_ML: Final = (1000.0, 9000.0)
"""Both lungs of an adult at inspiration hold 2 to 8 litres; beyond this either the scan or the mask is unusual."""


def demand_hounsfield(volume: Volume) -> None:
    """Refuse a volume whose values cannot be Hounsfield units of a patient.

    Raises:
        NotChestCTError: next to no voxel has the value of air, or of soft tissue.
    """
    evidence = histogram_evidence(volume)
    if evidence["air_percent"] < 0.5 or evidence["tissue_percent"] < 0.5:  # type: ignore[operator]
        raise NotChestCTError(
            "The values are not Hounsfield units of a chest: "
            f"{evidence['air_percent']} % of the voxels are below {AIR_BELOW_HU} (air, lung) and "
            f"{evidence['tissue_percent']} % between {TISSUE_HU[0]} and {TISSUE_HU[1]} (soft tissue).",
            evidence=evidence,
        )


def demand_chest(volume: Volume, landmarks: Mapping[Landmark, LandmarkPosition]) -> None:
    """Refuse a scan that shows neither the carina nor the sternum tip.

    Raises:
        NotChestCTError: no landmark was found; its evidence says what was seen instead.
    """
    if any(position.found for position in landmarks.values()):
        return
    z_mm, y_mm, x_mm = (round(edge) for edge in volume.grid.size_mm)
    evidence = histogram_evidence(volume)
    raise NotChestCTError(
        f"Neither the carina nor the tip of the sternum is in this scan of {x_mm} x {y_mm} x {z_mm} mm; "
        f"{evidence['air_in_body_percent']} % of the body is air or lung.",
        evidence={"extent_mm": [x_mm, y_mm, z_mm], **evidence},
    )


def histogram_evidence(volume: Volume) -> dict[str, object]:
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


def findings_of_result(
    volume: Volume, landmarks: Mapping[Landmark, LandmarkPosition], lungs: LungMask, severity: Severity
) -> tuple[Finding, ...]:
    """What is unusual about a result that was reached."""
    return (
        *_landmark_findings(landmarks),
        *_cut_off_findings(volume, lungs),
        *_volume_findings(severity),
    )


def _landmark_findings(landmarks: Mapping[Landmark, LandmarkPosition]) -> tuple[Finding, ...]:
    carina = landmarks.get(Landmark.CARINA)
    if carina is not None and carina.found:
        return ()
    return (Finding("carina-not-found", "warning", "The lungs were placed by the sternum tip: no carina was found."),)


def _cut_off_findings(volume: Volume, lungs: LungMask) -> tuple[Finding, ...]:
    """Lung on a border slice that faces head or feet."""
    axis = int(np.argmax(np.abs(volume.grid.index_to_lps_matrix[2])))
    ends = [np.count_nonzero(np.take(lungs.mask, index, axis=axis)) for index in (0, -1)]
    area_mm2 = volume.grid.voxel_volume_ml * 1000 / volume.grid.spacing_mm[axis]
    cut_cm2 = [round(count * area_mm2 / 100, 1) for count in ends]
    if max(cut_cm2) < 5.0:
        return ()
    message = "The scan does not hold the lungs whole: percentages are of the part that it shows."
    return (Finding("lungs-cut-off", "warning", message, {"lung_area_on_end_slices_cm2": cut_cm2}),)


def _volume_findings(severity: Severity) -> tuple[Finding, ...]:
    findings = []
    low, high = PLAUSIBLE_LUNGS_ML
    if not low <= severity.volume_ml <= high:
        message = f"The lungs hold {severity.volume_ml:.0f} ml, outside of {low:.0f} to {high:.0f} ml."
        findings.append(Finding("unusual-lung-volume", "warning", message, {"volume_ml": round(severity.volume_ml, 1)}))
    missing = [lobe.lobe.slug for lobe in severity.lobes if lobe.volume_ml == 0]
    if missing:
        message = f"No voxel was given to {', '.join(missing)}: it scores 0, whatever its state."
        findings.append(Finding("lobe-not-found", "warning", message, {"lobes": missing}))
    return tuple(findings)


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
