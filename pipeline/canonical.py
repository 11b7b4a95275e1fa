"""One order of axes for all that looks at a scan, so that the order in which it was stored changes nothing.

Flips and transpositions of the array alone: no value is computed, and an oblique scan stays oblique. The first voxel
lies at the origin, since the same place, reached over other axes, differs in its last digits (decision 53).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Shaped

from pipeline.anatomy import Landmark
from pipeline.geometry import Grid, LandmarkPosition, Point, Volume


@dataclass(frozen=True, eq=False)
class CanonicalScan:
    """A scan whose first axis runs to the head, the second to the back and the third to the left, or nearly so.

    Attributes:
        volume: with its first voxel at the origin; a view of the scan's voxels where they lie in this order.
        axes: which axis of the scan each of these is.
        flipped: those of the scan's axes, in this order, that run the other way.
        corner_mm: where the first voxel lies in the patient, LPS.
        scan: the grid of the scan as it was stored.
    """

    volume: Volume
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    corner_mm: Point
    scan: Grid

    @classmethod
    def of(cls, volume: Volume) -> "CanonicalScan":
        """The scan by the axes of the patient to which its own come nearest."""
        grid = volume.grid
        orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        # Columns are the array's x, y and z axis; here, as in arrays, z, y, x: the patient's first, then the scan's.
        direction = np.asarray(grid.direction)[::-1, ::-1]
        axes = max(orders, key=lambda order: sum(direction[i, axis] ** 2 for i, axis in enumerate(order)))
        flipped = tuple(bool(direction[i, axis] < 0) for i, axis in enumerate(axes))
        columns = np.stack(
            [-direction[:, axis] if flip else direction[:, axis] for axis, flip in zip(axes, flipped, strict=True)],
            axis=1,
        )
        rows = (columns[::-1, ::-1] + 0.0).tolist()
        first = [grid.shape[axis] - 1.0 if flip else 0.0 for axis, flip in zip(axes, flipped, strict=True)]
        corner_mm = grid.to_lps(np.asarray(first)[np.argsort(axes)])
        shape = (grid.shape[axes[0]], grid.shape[axes[1]], grid.shape[axes[2]])
        spacing_mm = (grid.spacing_mm[axes[0]], grid.spacing_mm[axes[1]], grid.spacing_mm[axes[2]])
        own = Grid(shape, spacing_mm, (0.0, 0.0, 0.0), (tuple(rows[0]), tuple(rows[1]), tuple(rows[2])))
        ways = tuple(slice(None, None, -1 if flip else 1) for flip in flipped)
        hu = np.ascontiguousarray(np.transpose(volume.hu, axes)[ways])
        return cls(Volume(hu, own), axes, (flipped[0], flipped[1], flipped[2]), corner_mm, grid)

    def to_scan(self, array: Shaped[np.ndarray, "z y x"]) -> Shaped[np.ndarray, "zs ys xs"]:
        """Brings an array on the canonical grid back to the order in which the scan was stored."""
        ways = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return np.ascontiguousarray(np.transpose(array[ways], np.argsort(self.axes)))

    def in_patient(self, landmarks: Mapping[Landmark, LandmarkPosition]) -> tuple[LandmarkPosition, ...]:
        """The landmarks where they lie in the patient."""
        placed = []
        for mark in Landmark:
            if mark in landmarks:
                found = landmarks[mark]
                if found.position_mm is not None:
                    left, back, head = (float(v) for v in np.asarray(found.position_mm) + self.corner_mm)
                    found = replace(found, position_mm=(left, back, head))
                placed.append(found)
        return tuple(placed)
