"""A scan on another grid, without touching more of it than lies there."""

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float32

from pipeline.geometry import Grid, Volume, grid_of, resample, to_sitk

Slices = tuple[slice, slice, slice]


def sampled(volume: Volume, target: Grid) -> Float32[np.ndarray, "z y x"]:
    """HU at the voxels of `target`, thin slices averaged first; what lies outside of the scan is air."""
    # The part of the scan that holds the target, with two voxels to spare.
    slices = index_box(target, np.zeros(3), np.asarray(target.shape) - 1.0, volume.grid, spare=2)
    cropped = Volume(volume.hu[slices], part_of(volume.grid, slices))
    near = _shrunk(cropped, min(target.spacing_mm))
    return resample(near.hu, near.grid, target)


def index_box(grid: Grid, low: np.ndarray, high: np.ndarray, target: Grid, *, spare: int) -> Slices:
    """Slices of `target` that hold the voxels `low` to `high` (z, y, x) of `grid`, whatever the directions."""
    ends = np.stack([low - 0.5, high + 0.5])
    corners = np.array([(ends[i, 0], ends[j, 1], ends[k, 2]) for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    index = target.to_index(grid.to_lps(corners))
    begin = np.clip(np.floor(index.min(axis=0)).astype(int) - spare, 0, np.asarray(target.shape) - 1)
    end = np.clip(np.ceil(index.max(axis=0)).astype(int) + spare + 1, begin + 1, target.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(begin, end, strict=True))
    return z, y, x


def part_of(grid: Grid, slices: Slices) -> Grid:
    """The grid of a part of an array."""
    z, y, x = slices
    origin = grid.to_lps(np.array([z.start, y.start, x.start], dtype=np.float64))
    shape = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
    return Grid(shape, grid.spacing_mm, (float(origin[0]), float(origin[1]), float(origin[2])), grid.direction)


def _shrunk(volume: Volume, spacing_mm: float) -> Volume:
    """Whole voxels averaged while they stay at or below half of `spacing_mm`; thin slices get cheap."""
    factors = [max(int(spacing_mm / 2 / mm), 1) for mm in volume.grid.spacing_mm[::-1]]
    if max(factors) == 1:
        return volume
    image = sitk.BinShrink(to_sitk(volume.hu, volume.grid), factors)
    return Volume(np.asarray(sitk.GetArrayFromImage(image)), grid_of(image))
