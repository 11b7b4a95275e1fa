"""The regular grid of a stack, and the Hounsfield units on it.

Slices that lie evenly are taken as they are. Where they do not (slices are missing, or two distances are mixed), they
are interpolated along the normal onto an even grid from the first to the last: stacked with a mean distance, lungs and
masks would lie elsewhere, and be too short where slices are dense.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64, Int16

from pipeline.geometry import Finding, GeometrySource, Grid
from pipeline.io.formats.dicom_headers import Slice
from pipeline.io.formats.dicom_stacks import Stack, positions_mm, step_mm, tolerance_mm
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.formats.placement import StoredPlacement, place

#: A stack leaning less than this is straight.
TILT_DEGREES: Final = 0.5

#: Slices that lie off the stack's straight line by more are shifted against each other.
SHIFTED_MM: Final = 1.0

_FIELDS: Final = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


@dataclass(frozen=True)
class SliceGrid:
    """A grid, and of which slices its planes are made.

    Attributes:
        lower, weight: plane i is `1 - weight[i]` of slice `lower[i]` and `weight[i]` of the next.
    """

    grid: Grid
    lower: tuple[int, ...]
    weight: tuple[float, ...]
    source: GeometrySource
    findings: tuple[Finding, ...]

    @property
    def is_interpolated(self) -> bool:
        return any(self.weight) or len(self.lower) != len(set(self.lower))


def grid_of_stack(stack: Stack, limits: SizeLimits) -> SliceGrid:
    """The regular grid of a stack of two slices or more, and how far the stack is from it.

    Raises:
        DamagedFileError: distances that no CT has.
        ScanTooLargeError: more voxels than the limits allow.
    """
    slices = stack.slices
    first = stack.first
    along = positions_mm(slices) - positions_mm(slices)[0]
    steps = np.diff(along)
    distance_mm = step_mm(steps)
    is_even = bool(np.all(np.abs(steps - distance_mm) <= tolerance_mm(distance_mm)))
    count = len(slices) if is_even else max(round(float(along[-1]) / distance_mm), 1) + 1
    if not is_even:
        distance_mm = float(along[-1]) / (count - 1)
    row, column = np.reshape(first.rows_and_columns, (2, 3))
    steps_mm = np.stack([row * first.spacing_mm[1], column * first.spacing_mm[0], first.normal * distance_mm], axis=1)
    rows, columns = first.shape
    stored = StoredPlacement(steps_mm, np.array(first.position_mm), ", ".join(_FIELDS))
    # Before the planes are counted out: two slices close together and one far off make millions of planes.
    limits.check_voxels((columns, rows, count))
    grid, placed = place(stored, (columns, rows, count))
    lower, weight = list(range(count)), [0.0] * count
    findings = list(_gap_findings(stack))
    if not is_even:
        lower, weight = _interpolation(along, np.arange(count) * distance_mm)
        findings += _uneven_findings(stack, steps, distance_mm, count)
    findings += [*placed, *_lean_findings(slices, first.normal)]
    source = GeometrySource("DICOM", _FIELDS, _ignored(slices, distance_mm))
    return SliceGrid(grid, tuple(lower), tuple(weight), source, tuple(findings))


def _interpolation(
    along: Float64[np.ndarray, " n"], wanted: Float64[np.ndarray, " m"]
) -> tuple[list[int], list[float]]:
    """For each wanted position the slice below it and the weight of the next one."""
    snap_mm = tolerance_mm(float(wanted[1] - wanted[0])) / 2
    lower, weight = [], []
    for at in wanted:
        nearest = int(np.argmin(np.abs(along - at)))
        # Slices that were rounded by less are taken as they are, since interpolation blurs.
        if abs(along[nearest] - at) <= snap_mm:
            lower.append(nearest)
            weight.append(0.0)
            continue
        below = min(max(int(np.searchsorted(along, at, side="right")) - 1, 0), len(along) - 2)
        lower.append(below)
        weight.append(float((at - along[below]) / (along[below + 1] - along[below])))
    return lower, weight


def interpolate(planes: Int16[np.ndarray, "n y x"], on: SliceGrid) -> Int16[np.ndarray, "z y x"]:
    """The planes of the grid; `planes` themselves where the stack is even."""
    if not on.is_interpolated:
        return planes
    hu = np.empty((len(on.lower), *planes.shape[1:]), dtype=np.int16)
    for index, (below, weight) in enumerate(zip(on.lower, on.weight, strict=True)):
        if weight:
            mixed = (1 - weight) * planes[below].astype(np.float64) + weight * planes[below + 1]
            hu[index] = np.rint(mixed)
        else:
            hu[index] = planes[below]
    return hu


# Findings


def _gap_findings(stack: Stack) -> tuple[Finding, ...]:
    if not stack.left_out:
        return ()
    message = (
        f"A gap of {stack.gap_mm:.1f} mm divides the slices: {len(stack.slices)} over {stack.extent_mm:.0f} mm were "
        f"scored, {stack.left_out} beyond the gap were left out."
    )
    evidence = {
        "gap_mm": round(stack.gap_mm, 2),
        "slices": len(stack.slices),
        "left_out": stack.left_out,
        "extent_mm": round(stack.extent_mm, 1),
    }
    return (Finding("missing-slices", "error", message, evidence),)


def _uneven_findings(
    stack: Stack, steps_mm: Float64[np.ndarray, " n"], distance_mm: float, count: int
) -> tuple[Finding, ...]:
    multiples = np.maximum(np.rint(steps_mm / distance_mm), 1)
    missing = int(np.sum(multiples - 1))
    off_mm = float(np.max(np.abs(steps_mm - multiples * distance_mm)))
    findings = []
    if missing:
        share = missing / (len(steps_mm) + 1 + missing)
        message = (
            f"{missing} slices are missing between the first and the last: they were interpolated between their "
            f"neighbours, every {distance_mm:.4g} mm."
        )
        evidence: dict[str, object] = {
            "missing": missing,
            "gaps": int(np.sum(multiples > 1)),
            "largest_gap_mm": round(float(steps_mm.max()), 3),
            "step_mm": round(distance_mm, 4),
        }
        findings.append(Finding("missing-slices", "error" if share > 0.1 else "warning", message, evidence))
    if off_mm > tolerance_mm(distance_mm) or not missing:
        message = (
            f"The slices lie {steps_mm.min():.4g} to {steps_mm.max():.4g} mm apart: they were interpolated onto "
            f"{count} planes every {distance_mm:.4g} mm."
        )
        numbers = {
            "smallest_mm": steps_mm.min(),
            "largest_mm": steps_mm.max(),
            "step_mm": distance_mm,
            "slices": len(stack.slices),
            "planes": count,
        }
        rounded = {name: round(float(value), 3) for name, value in numbers.items()}
        findings.append(Finding("uneven-spacing", "warning", message, rounded))
    return tuple(findings)


def _lean_findings(slices: Sequence[Slice], normal: Float64[np.ndarray, "3"]) -> tuple[Finding, ...]:
    """A tilted gantry shears the stack: each slice lies a little to the side of the one before."""
    positions = np.array([s.position_mm for s in slices])
    findings = []
    way = positions[-1] - positions[0]
    along = float(way @ normal)
    across = way - along * normal
    degrees = float(np.degrees(np.arctan2(np.linalg.norm(across), abs(along))))
    if degrees >= TILT_DEGREES:
        message = f"The stack leans by {degrees:.1f} degrees (tilted gantry): it was read as if it stood straight."
        findings.append(Finding("gantry-tilt", "warning", message, {"degrees": round(degrees, 2)}))
    shares = ((positions - positions[0]) @ normal) / along
    off = positions - positions[0] - np.outer(shares, way)
    off_mm = float(np.linalg.norm(off - np.outer(off @ normal, normal), axis=1).max())
    if off_mm > SHIFTED_MM:
        message = (
            f"Slices are shifted sideways by up to {off_mm:.1f} mm against each other: they were stacked as if they "
            "were not, so that shapes and the place of masks are off by as much."
        )
        findings.append(Finding("slices-shifted", "warning", message, {"shifted_mm": round(off_mm, 2)}))
    return tuple(findings)


def _ignored(slices: Sequence[Slice], distance_mm: float) -> dict[str, str]:
    """SpacingBetweenSlices, which scanners fill with other things, and gantry tilt falsifies."""
    written = sorted({s.between_slices[:16] for s in slices} - {""})
    if not written:
        return {}
    return {"SpacingBetweenSlices": f"says {', '.join(written[:3])} mm, positions say {distance_mm:.4g} mm"}
