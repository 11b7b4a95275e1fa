"""Distances in millimetres, on grids whose voxels are no cubes."""

import edt
import numpy as np
from jaxtyping import Bool, Float32

from pipeline.geometry import Triple


def distance_to_mm(mask: Bool[np.ndarray, "z y x"], spacing_mm: Triple) -> Float32[np.ndarray, "z y x"]:
    """How far each voxel is from the nearest one of `mask`; infinite where it is empty.

    On one thread: a worker uses no more of a machine than it was given.
    """
    return np.asarray(edt.edt(~mask, anisotropy=spacing_mm, black_border=False, parallel=1))
