"""Whether a scan shows a chest, and what is unusual about a result that was reached."""

from collections.abc import Mapping
from typing import Final

from pipeline.anatomy import Landmark
from pipeline.cut_off import CUT_OFF_CM2, area_on_faces_cm2
from pipeline.errors import NotChestCTError
from pipeline.findings import histogram_evidence
from pipeline.geometry import Finding, LungMask, Volume
from pipeline.landmarks import LandmarkPosition
from pipeline.severity import Severity

PLAUSIBLE_LUNGS_ML: Final = (1000.0, 9000.0)
"""Both lungs of an adult at inspiration hold 2 to 8 litres; beyond this either the scan or the mask is unusual."""


def require_chest(volume: Volume, landmarks: Mapping[Landmark, LandmarkPosition]) -> None:
    """Refuse a scan that shows neither the carina nor the sternum tip.

    Raises:
        NotChestCTError: no landmark was found; its evidence says what was seen instead.
    """
    if any(position.found for position in landmarks.values()):
        return
    z_mm, y_mm, x_mm = (round(edge) for edge in volume.grid.size_mm)
    seen = histogram_evidence(volume)
    raise NotChestCTError(
        f"Neither the carina nor the tip of the sternum is in this scan of {x_mm} x {y_mm} x {z_mm} mm; "
        f"{seen['air_in_body_percent']} % of the body is air or lung.",
        evidence={"extent_mm": [x_mm, y_mm, z_mm], **seen},
    )


def findings_of_result(
    landmarks: Mapping[Landmark, LandmarkPosition], lungs: LungMask, severity: Severity
) -> tuple[Finding, ...]:
    """What is unusual about a result that was reached."""
    return (*_landmark_findings(landmarks), *_cut_off_findings(lungs), *_volume_findings(severity))


def _landmark_findings(landmarks: Mapping[Landmark, LandmarkPosition]) -> tuple[Finding, ...]:
    carina = landmarks.get(Landmark.CARINA)
    if carina is not None and carina.found:
        return ()
    return (Finding("carina-not-found", "warning", "The lungs were placed by the sternum tip: no carina was found."),)


def _cut_off_findings(lungs: LungMask) -> tuple[Finding, ...]:
    """Lung on the outermost voxels of any face."""
    largest = area_on_faces_cm2(lungs.mask, lungs.grid)
    if largest < CUT_OFF_CM2:
        return ()
    message = "The scan does not hold the lungs whole: percentages are of the part that it shows."
    return (Finding("lungs-cut-off", "warning", message, {"lung_on_face_cm2": round(largest, 1)}),)


def _volume_findings(severity: Severity) -> tuple[Finding, ...]:
    low, high = PLAUSIBLE_LUNGS_ML
    if low <= severity.volume_ml <= high:
        return ()
    message = f"The lungs hold {severity.volume_ml:.0f} ml, outside of {low:.0f} to {high:.0f} ml."
    return (Finding("unusual-lung-volume", "warning", message, {"volume_ml": round(severity.volume_ml, 1)}),)
