"""Whether a scan shows a chest, and what is unusual about a result that was reached."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from jaxtyping import Bool

from lobewise.pipeline.anatomy import Landmark
from lobewise.pipeline.errors import NotChestCTError
from lobewise.pipeline.landmarks import LandmarkPosition
from lobewise.pipeline.quality import histogram_evidence
from lobewise.pipeline.severity import Severity
from lobewise.pipeline.volume import Finding, Grid, LungMask, Volume

PLAUSIBLE_LUNGS_ML: Final = (1000.0, 9000.0)
"""Both lungs of an adult at inspiration hold 2 to 8 litres; beyond this either the scan or the mask is unusual."""

CUT_OFF_CM2: Final = 5.0
"""More lung than this on a face of the scan means that lung lies beyond it."""


def demand_chest(volume: Volume, landmarks: Mapping[Landmark, LandmarkPosition]) -> None:
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


def area_on_faces_cm2(mask: Bool[np.ndarray, "z y x"], grid: Grid) -> float:
    """The largest area that the mask has on one of the six faces of the scan."""
    areas_cm2 = [grid.voxel_volume_ml * 10 / spacing_mm for spacing_mm in grid.spacing_mm]
    return max(
        int(np.count_nonzero(np.take(mask, index, axis=axis))) * areas_cm2[axis]
        for axis in range(3)
        for index in (0, -1)
    )


def _volume_findings(severity: Severity) -> tuple[Finding, ...]:
    low, high = PLAUSIBLE_LUNGS_ML
    if low <= severity.volume_ml <= high:
        return ()
    message = f"The lungs hold {severity.volume_ml:.0f} ml, outside of {low:.0f} to {high:.0f} ml."
    return (Finding("unusual-lung-volume", "warning", message, {"volume_ml": round(severity.volume_ml, 1)}),)
