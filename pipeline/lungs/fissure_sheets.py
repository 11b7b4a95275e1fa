"""Thin bright sheets in the lungs, which fissures are and vessels are not (decision 22)."""

from dataclasses import dataclass
from typing import Final

import cc3d
import edt
import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped
from scipy import ndimage

from pipeline.geometry import Grid, Triple, Volume, index_box, part_of
from pipeline.resampling import resample, resample_labels, sampled

#: Where sheets are looked for.
FINE_MM: Final = 1.25
SHEET_SIGMA_MM: Final = 1.2
#: For sheets too faint to be seen voxel by voxel, where a whole surface asks how much of them it meets.
FAINT_SIGMA_MM: Final = 1.7
VESSEL_HU: Final = -550.0
#: Near the chest wall everything looks like a sheet.
PLEURA_MM: Final = 2.5
#: Sheetness from which neighbours are one sheet ...
SURE: Final = 0.3
#: ... and how large it must be: some 3 square centimetres. What vessels leave of themselves is smaller.
LEAST_SHEET_ML: Final = 1.0
#: Vessels and noise leave holes of this size in a sheet, through which a random walk would pass.
HOLE_VOXELS: Final = 5
#: The curvature across a sheet that counts in full.
FLATNESS_HU_PER_MM2: Final = 10.0
#: Curvature along the sheet counts against it by so much.
VESSEL_WEIGHT: Final = 1.5
#: On a crest the slope is 0; on the shoulder of a step, as opacities have, it is the curvature times `sigma_mm`.
SLOPE_WEIGHT: Final = 0.5

#: How often along z, y and x.
Order = tuple[int, int, int]
FIRST: Final[tuple[Order, ...]] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
SECOND: Final[tuple[Order, ...]] = ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1))

Mask = Bool[np.ndarray, "z y x"]
Component = Float64[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Sheets:
    """How much each voxel of `grid` looks like part of a sheet, 0 to 1."""

    sheetness: Float32[np.ndarray, "z y x"]
    grid: Grid


def find_sheets(volume: Volume, roi: Grid, lungs: Mask) -> Float32[np.ndarray, "z y x"]:
    """How much each voxel of `roi` belongs to a large sheet in the lungs, 0 to 1."""
    if not lungs.any():
        return np.zeros(roi.shape, dtype=np.float32)
    occupied = np.argwhere(lungs)
    lower, upper = roi.to_lps(np.stack([occupied.min(axis=0) - 1.5, occupied.max(axis=0) + 1.5]))
    fine = Grid.axis_aligned(lower.tolist(), upper.tolist(), (FINE_MM,) * 3)
    sheets = _sheets_on(volume, fine, roi, lungs, SHEET_SIGMA_MM)
    parts = np.asarray(cc3d.connected_components(sheets > SURE, connectivity=26))
    sizes_ml = np.bincount(parts.ravel()) * fine.voxel_volume_ml
    sizes_ml[0] = 0.0
    large = np.where((sizes_ml >= LEAST_SHEET_ML)[parts], sheets, np.float32(0.0))
    return resample(ndimage.maximum_filter(large, HOLE_VOXELS), fine, roi, outside=0)


def find_faint_sheets(volume: Volume, roi: Grid, lungs: Mask) -> Sheets:
    """All that looks a little like a sheet in the lungs (a mask on `roi`), near the slices that were scanned.

    Between thick slices everything is blurred, and sheets that are hardly seen are not seen there any more.
    """
    occupied = np.argwhere(lungs)
    # On the scan's own slices: on a grid of 1.25 mm all around, faint sheets are lost to interpolation, and the left
    # fissure of a marked scan was missed by 25 mm.
    box = index_box(roi, occupied.min(axis=0) - 1.0, occupied.max(axis=0) + 1.0, volume.grid, spare=0)
    slices = part_of(volume.grid, box).not_finer_than(FINE_MM)
    return Sheets(_sheets_on(volume, slices, roi, lungs, FAINT_SIGMA_MM), slices)


def sheetness(
    hu: Shaped[np.ndarray, "z y x"], spacing_mm: Triple, inside: Mask, sigma_mm: float
) -> Float32[np.ndarray, "z y x"]:
    """How much each voxel `inside` looks like part of a thin bright sheet, 0 to 1: curved across, flat along it."""
    derivatives = _derivatives(np.clip(hu, -1000, -300).astype(np.float32), spacing_mm, inside, sigma_mm)
    slope = sum(derivatives[order] ** 2 for order in FIRST)
    smallest, middle, largest = eigenvalues(*(derivatives[order] for order in SECOND))
    flatness = -smallest - VESSEL_WEIGHT * np.maximum(np.abs(middle), np.abs(largest))
    flatness -= SLOPE_WEIGHT * np.sqrt(slope) / sigma_mm
    sheets = np.zeros(hu.shape, dtype=np.float32)
    sheets[inside] = np.clip(flatness / FLATNESS_HU_PER_MM2, 0.0, 1.0)
    return sheets


def _derivatives(
    lung: Float32[np.ndarray, "z y x"], spacing_mm: Triple, inside: Mask, sigma_mm: float
) -> dict[Order, Component]:
    """The first and second derivatives of the smoothed scan, per mm, at the voxels `inside`."""
    sigma = [sigma_mm / mm for mm in spacing_mm]
    found: dict[Order, Component] = {}
    # Derivatives that begin alike share their passes: 19 filters along one axis in place of 30.
    for oz in range(3):
        along_z = ndimage.gaussian_filter1d(lung, sigma[0], axis=0, order=oz)
        for oy in range(3 - oz):
            along_y = ndimage.gaussian_filter1d(along_z, sigma[1], axis=1, order=oy)
            for ox in range(3 - oz - oy):
                found[oz, oy, ox] = ndimage.gaussian_filter1d(along_y, sigma[2], axis=2, order=ox)[inside].astype(
                    np.float64
                )
    for axis, order in enumerate(((2, 0, 0), (0, 2, 0), (0, 0, 2))):
        # What a sampled second-derivative kernel makes of a constant 1: not quite 0 where it is narrow.
        found[order] -= ndimage.gaussian_filter1d(np.ones(1), sigma[axis], order=2)[0] * found[0, 0, 0]
    for order, values in found.items():
        values /= np.prod(np.power(spacing_mm, order))
    return found


def eigenvalues(
    zz: Component, yy: Component, xx: Component, zy: Component, zx: Component, yx: Component
) -> tuple[Component, Component, Component]:
    """Of symmetric 3 x 3 matrices given by their components, ascending; in closed form (Smith 1961).

    That takes a tenth of the time of a solver that is called for each matrix.
    """
    mean = (zz + yy + xx) / 3
    zz, yy, xx = zz - mean, yy - mean, xx - mean
    spread = np.sqrt((zz**2 + yy**2 + xx**2 + 2 * (zy**2 + zx**2 + yx**2)) / 6)
    half_determinant = (zz * (yy * xx - yx**2) - zy * (zy * xx - yx * zx) + zx * (zy * yx - yy * zx)) / 2
    cube = np.maximum(spread**3, np.finfo(np.float64).tiny)
    angle = np.arccos(np.clip(half_determinant / cube, -1.0, 1.0)) / 3
    largest = mean + 2 * spread * np.cos(angle)
    smallest = mean + 2 * spread * np.cos(angle + 2 * np.pi / 3)
    return smallest, 3 * mean - smallest - largest, largest


def _sheets_on(volume: Volume, fine: Grid, roi: Grid, lungs: Mask, sigma_mm: float) -> Float32[np.ndarray, "zf yf xf"]:
    hu = sampled(volume, fine)
    deep_mm = edt.edt(resample_labels(lungs, roi, fine), anisotropy=fine.spacing_mm, black_border=True, parallel=1)
    inside = (deep_mm > PLEURA_MM) & ~ndimage.binary_dilation(hu > VESSEL_HU)
    return sheetness(hu, fine.spacing_mm, inside, sigma_mm)
