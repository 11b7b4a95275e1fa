"""From whatever numbers a file holds to Hounsfield units as int16."""

from typing import Final

import numpy as np
from jaxtyping import Int16, Shaped

from pipeline.anatomy import AIR_HU
from pipeline.geometry import Finding

HIGHEST_HU: Final = 32767


def to_hounsfield(
    stored: Shaped[np.ndarray, "z y x"], slope: float = 1.0, intercept: float = 0.0
) -> tuple[Int16[np.ndarray, "z y x"], tuple[Finding, ...]]:
    """`slope * stored + intercept`, rounded and clipped to [-1024, 32767], slice by slice.

    Below -1024 is only what scanners write outside of their field of view. What is not a number becomes air, and is
    reported.
    """
    hu = np.empty(stored.shape, dtype=np.int16)
    not_finite = 0
    # Slice by slice, since a whole scan in float64 takes four times the memory of the scan.
    for source, target in zip(stored, hu, strict=True):
        with np.errstate(over="ignore"):
            values = source.astype(np.float64) * slope + intercept
        finite = np.isfinite(values)
        target[:] = np.clip(np.rint(np.where(finite, values, AIR_HU)), AIR_HU, HIGHEST_HU)
        not_finite += values.size - int(np.count_nonzero(finite))
    if not not_finite:
        return hu, ()
    message = f"{not_finite} voxels hold no number; they were taken for air."
    return hu, (Finding("not-finite-voxels", "warning", message, {"voxels": not_finite}),)
