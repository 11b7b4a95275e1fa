"""From the numbers of a header to a grid: the one place where a scan's geometry is made, for every format.

A parser says which step each axis of the array makes in the patient; here those steps are checked, before any pixel is
unpacked, and become spacing and directions. ITK's and nibabel's readers accept or repair much of what is refused here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from jaxtyping import Float64

from pipeline.errors import DamagedFileError, UnsupportedFormatError
from pipeline.geometry import Finding, Grid, Triple

#: No CT has voxels smaller or larger than this.
SPACING_MM: Final = (0.02, 25.0)

#: No CT is longer: grids made from a wrong spacing would not fit into memory.
LONGEST_MM: Final = 2500.0

#: No scanner's coordinates reach further; a mask's header keeps 32 bits of each.
FARTHEST_MM: Final = 100_000.0

#: Up to here the angle between two axes is a right one that was rounded; a gantry is tilted by more.
ROUNDED_DEGREES: Final = 0.5

#: From here on the rounding is worth a remark: 0.35 mm over a chest of 400 mm.
NOTICED_DEGREES: Final = 0.05

#: Of unit axes; less is no volume.
LEAST_DETERMINANT: Final = 1e-3

#: Below this, axes are at right angles as far as 32-bit numbers can say; they are then kept as they are stored.
EXACT_DEGREES: Final = 2e-4


@dataclass(frozen=True, eq=False)
class StoredPlacement:
    """Where a file says that its voxels lie, unchecked.

    Attributes:
        steps_mm: column by column what one voxel along the array's x, y and z axis adds to the LPS position.
        origin_mm: LPS position of the centre of the first voxel.
        fields: the names of the fields that say so, for people.
    """

    steps_mm: Float64[np.ndarray, "3 3"]
    origin_mm: Float64[np.ndarray, "3"]
    fields: str

    def corners_mm(self, sizes: Sequence[int]) -> Float64[np.ndarray, "8 3"]:
        """LPS centres of the eight corner voxels of an array with `sizes` (x, y, z)."""
        x, y, z = (n - 1.0 for n in sizes)
        index = np.array([(a, b, c) for a in (0.0, x) for b in (0.0, y) for c in (0.0, z)])
        return np.asarray(index @ self.steps_mm.T + self.origin_mm)


def place(stored: StoredPlacement, sizes: tuple[int, int, int]) -> tuple[Grid, tuple[Finding, ...]]:
    """The grid of an array with `sizes` (x, y, z), and a finding where its axes had to be straightened.

    Raises:
        DamagedFileError: a number is missing, no number, or none that a CT has.
        UnsupportedFormatError: the axes are not at right angles.
    """
    spacing_mm, degrees = _checked(stored, sizes)
    axes = stored.steps_mm / spacing_mm
    origin_mm = stored.origin_mm
    findings: tuple[Finding, ...] = ()
    if degrees > EXACT_DEGREES:
        # The nearest right-angled axes (polar decomposition), about the middle of the scan, where nothing moves.
        u, _, v = np.linalg.svd(axes)
        middle = (np.asarray(sizes) - 1.0) / 2
        straight = u @ v
        origin_mm = origin_mm + (axes - straight) * spacing_mm @ middle
        axes = straight
    grid = Grid(
        (sizes[2], sizes[1], sizes[0]),
        _triple(spacing_mm[::-1]),
        _triple(origin_mm),
        (_triple(axes[0]), _triple(axes[1]), _triple(axes[2])),
    )
    if degrees > NOTICED_DEGREES:
        straightened = StoredPlacement(axes * spacing_mm, origin_mm, stored.fields)
        moved_mm = np.linalg.norm(stored.corners_mm(sizes) - straightened.corners_mm(sizes), axis=1).max()
        message = (
            f"The axes are {degrees:.2f} degrees from right angles: they were straightened, which moves the corners of "
            f"the scan by {moved_mm:.1f} mm."
        )
        evidence = {
            "fields": stored.fields,
            "degrees_from_right_angles": round(degrees, 4),
            "moved_mm": round(float(moved_mm), 2),
        }
        findings = (Finding("axes-straightened", "warning", message, evidence),)
    return grid, findings


def _checked(stored: StoredPlacement, sizes: tuple[int, int, int]) -> tuple[Float64[np.ndarray, "3"], float]:
    """Spacing along x, y and z, and how far the axes are from right angles, of a placement that a CT may have."""
    fields = stored.fields
    numbers = [*stored.steps_mm.T.ravel().tolist(), *stored.origin_mm.tolist()]
    if not all(math.isfinite(number) for number in numbers):
        raise DamagedFileError(
            f"{fields}: the geometry holds what is no number; every value must be finite.",
            evidence={"fields": fields, "values": [str(number) for number in numbers]},
        )
    spacing_mm = np.linalg.norm(stored.steps_mm, axis=0)
    size_mm = spacing_mm * np.asarray(sizes)
    evidence: dict[str, object] = {"fields": fields, "spacing_mm": [round(float(v), 6) for v in spacing_mm[::-1]]}
    if spacing_mm.min() < SPACING_MM[0] or spacing_mm.max() > SPACING_MM[1] or size_mm.max() > LONGEST_MM:
        raise DamagedFileError(
            f"{fields}: no CT has voxels of {' x '.join(f'{v:.6g}' for v in spacing_mm)} mm in a volume of "
            f"{' x '.join(f'{v:.6g}' for v in size_mm)} mm; {SPACING_MM[0]} to {SPACING_MM[1]:.0f} mm are read, up to "
            f"{LONGEST_MM:.0f} mm in all.",
            evidence={**evidence, "size_mm": [round(float(v), 3) for v in size_mm[::-1]]},
        )
    if np.abs(stored.origin_mm).max() > FARTHEST_MM:
        raise DamagedFileError(
            f"{fields}: the first voxel lies {np.abs(stored.origin_mm).max():.6g} mm from the origin; up to "
            f"{FARTHEST_MM:.0f} mm are read.",
            evidence=evidence,
        )
    axes = stored.steps_mm / spacing_mm
    if abs(float(np.linalg.det(axes))) < LEAST_DETERMINANT:
        raise DamagedFileError(
            f"{fields}: two of the axes run along each other; the three of a volume are at right angles. Write the "
            "directions anew, or send the DICOM series.",
            evidence={**evidence, "directions": [[round(float(v), 6) for v in row] for row in axes]},
        )
    degrees = degrees_from_right_angles(axes)
    evidence["degrees_from_right_angles"] = round(degrees, 4)
    if degrees > ROUNDED_DEGREES:
        raise UnsupportedFormatError(
            f"{fields}: the axes are {degrees:.2f} degrees from right angles (a tilted gantry); up to "
            f"{ROUNDED_DEGREES} are read. Send the DICOM series instead.",
            evidence=evidence,
        )
    return spacing_mm, degrees


def degrees_from_right_angles(steps: Float64[np.ndarray, "3 3"]) -> float:
    """How far the angle between two of the columns is from 90 degrees, at most."""
    axes = steps / np.linalg.norm(steps, axis=0)
    return max(
        math.degrees(math.asin(min(1.0, abs(float(axes[:, a] @ axes[:, b]))))) for a, b in combinations(range(3), 2)
    )


def _triple(values: Float64[np.ndarray, "3"]) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
