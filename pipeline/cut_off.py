"""Whether a part of the body goes on beyond the scan."""

from typing import Final

import numpy as np
from jaxtyping import Bool

from pipeline.geometry import Grid, resample_labels
from pipeline.sampling import part_of

CUT_OFF_CM2: Final = 5.0
"""More lung than this on a face of the scan means that lung lies beyond it."""


def area_on_faces_cm2(mask: Bool[np.ndarray, "z y x"], grid: Grid) -> float:
    """The largest area that the mask has on one of the six faces of the scan."""
    areas_cm2 = [grid.voxel_volume_ml * 10 / spacing_mm for spacing_mm in grid.spacing_mm]
    return max(
        int(np.count_nonzero(np.take(mask, index, axis=axis))) * areas_cm2[axis]
        for axis in range(3)
        for index in (0, -1)
    )


def is_cut_off(mask: Bool[np.ndarray, "z y x"], grid: Grid, scan: Grid) -> bool:
    """Whether a mask on another grid than the scan's goes on beyond one of its faces."""
    for axis, count in enumerate(scan.shape):
        for end in (0, count - 1):
            z, y, x = (slice(end, end + 1) if axis == other else slice(0, n) for other, n in enumerate(scan.shape))
            face = part_of(scan, (z, y, x))
            area_cm2 = np.count_nonzero(resample_labels(mask, grid, face)) * face.voxel_volume_ml * 10
            if area_cm2 / scan.spacing_mm[axis] >= CUT_OFF_CM2:
                return True
    return False
