"""How well two masks agree."""

import edt
import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from lobewise.pipeline.volume import Grid

Mask = Bool[np.ndarray, "z y x"]


def dice(first: Mask, second: Mask) -> float:
    """Twice the shared volume over the sum of both; two empty masks agree wholly."""
    both = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2.0 * int(np.count_nonzero(first & second)) / both if both else 1.0


def recall(found: Mask, wanted: Mask) -> float:
    """Share of the wanted voxels that were found; nan where nothing was wanted."""
    count = int(np.count_nonzero(wanted))
    return int(np.count_nonzero(found & wanted)) / count if count else float("nan")


def surface_distance_95_mm(first: Mask, second: Mask, grid: Grid) -> float:
    """The distance that 95 % of the surface voxels of either mask keep to the surface of the other.

    Surfaces are the voxels that have a neighbour outside of the mask. Infinite where just one mask is empty, 0 where
    both are.
    """
    if not first.any() or not second.any():
        return 0.0 if first.any() == second.any() else float("inf")
    surfaces = _surface(first), _surface(second)
    to_first, to_second = (_distance_mm(surface, grid) for surface in surfaces)
    return float(np.quantile(np.concatenate([to_second[surfaces[0]], to_first[surfaces[1]]]), 0.95))


def _surface(mask: Mask) -> Mask:
    return np.asarray(mask & ~ndimage.binary_erosion(mask))


def _distance_mm(surface: Mask, grid: Grid) -> Float32[np.ndarray, "z y x"]:
    return np.asarray(edt.edt(~surface, anisotropy=grid.spacing_mm, black_border=False, parallel=1))
