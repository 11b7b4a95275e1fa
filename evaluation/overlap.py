"""How well two masks agree."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from pipeline.geometry import Grid, distance_to_mm

Mask = Bool[np.ndarray, "z y x"]


def dice(first: Mask, second: Mask) -> float:
    """Twice the shared volume over the sum of both; two empty masks agree wholly."""
    both = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2.0 * int(np.count_nonzero(first & second)) / both if both else 1.0


def recall(found: Mask, wanted: Mask) -> float:
    """Share of the wanted voxels that were found; nan where nothing was wanted."""
    count = int(np.count_nonzero(wanted))
    return int(np.count_nonzero(found & wanted)) / count if count else float("nan")


@dataclass(frozen=True)
class SurfaceDistances:
    """Between the surfaces of two masks, over the surface voxels of both; infinite where one mask is empty.

    Attributes:
        hausdorff_95_mm: the distance that 95 % of them keep to the other surface.
        mean_mm: their mean distance to the other surface.
    """

    hausdorff_95_mm: float
    mean_mm: float


def surface_distances(first: Mask, second: Mask, grid: Grid) -> SurfaceDistances:
    """Surfaces are the voxels that have a neighbour outside of the mask. Two empty masks are at no distance."""
    if not first.any() or not second.any():
        apart = 0.0 if first.any() == second.any() else float("inf")
        return SurfaceDistances(apart, apart)
    # What lies outside of both masks adds no surface, and most of a scan does.
    box = tuple(ndimage.find_objects((first | second).view(np.uint8))[0])
    surfaces = _surface(first[box]), _surface(second[box])
    to_first, to_second = (distance_to_mm(surface, grid.spacing_mm) for surface in surfaces)
    both = np.concatenate([to_second[surfaces[0]], to_first[surfaces[1]]])
    return SurfaceDistances(float(np.quantile(both, 0.95)), float(np.mean(both, dtype=np.float64)))


def _surface(mask: Mask) -> Mask:
    return np.asarray(mask & ~ndimage.binary_erosion(mask))
