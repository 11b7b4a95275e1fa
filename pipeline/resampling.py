"""Brings volumes, masks and labels onto other grids.

Between grids whose axes are parallel, which almost all are, each axis is resampled by itself: smoothing and
interpolation are one small banded matrix. SimpleITK does the oblique ones; both give the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8

from pipeline.anatomy import AIR_HU
from pipeline.geometry import Grid, Volume, grid_of, index_box, part_of, to_sitk

#: More lung than this on a face of the scan means that lung lies beyond it.
TRUNCATED_CM2: Final = 5.0
#: Axes are parallel where no voxel is shifted more than this by taking them to be.
PARALLEL_VOXELS: Final = 1e-3
#: A coarser target is smoothed first, by a Gaussian of this share of its spacing, ...
SMOOTHING: Final = 0.5
#: ... where it is coarser than the source by more than this.
COARSER: Final = 1.2
#: Fewer voxels along an axis are not smoothed.
LEAST_SMOOTHED: Final = 4
#: What a Gaussian reaches, in its standard deviations; beyond, the recursive one has less than a millionth.
REACH_SD: Final = 8.0
#: Smaller weights are left out.
NEGLIGIBLE: Final = 1e-7
#: So many rows of a banded matrix are applied at a time.
BAND_ROWS: Final = 32


def resample(
    array: Shaped[np.ndarray, "z y x"], source: Grid, target: Grid, *, outside: int | float = AIR_HU
) -> Float32[np.ndarray, "zt yt xt"]:
    """Linear interpolation of `array` at the voxels of `target`; smoothed first where `target` is coarser.

    The Gaussian has half the target's spacing as its width, which suppresses aliasing without a visible blur.
    """
    axes = _parallel_axes(source, target)
    if axes is None:
        return _resampled_by_itk(array, source, target, outside)
    moved = np.transpose(array, [axis.source_axis for axis in axes])
    needed = [axis.needed() for axis in axes]
    result = np.ascontiguousarray(moved[tuple(needed)], dtype=np.float32)
    matrices = [axis.matrix(part) for axis, part in zip(axes, needed, strict=True)]
    # The axis first that leaves the least for the others.
    for number in sorted(range(3), key=lambda n: len(matrices[n]) / max(result.shape[n], 1)):
        result = _applied(matrices[number], result, number)
    for number, axis in enumerate(axes):
        np.moveaxis(result, number, 0)[~axis.is_inside] = outside
    return result


def resample_labels(labels: Shaped[np.ndarray, "z y x"], source: Grid, target: Grid) -> UInt8[np.ndarray, "zt yt xt"]:
    """Nearest neighbour at the voxels of `target`; 0 outside."""
    axes = _parallel_axes(source, target)
    if axes is None:
        return _on_grid(to_sitk(labels.astype(np.uint8), source), target, sitk.sitkNearestNeighbor, 0)
    moved = np.transpose(labels, [axis.source_axis for axis in axes])
    found = moved[np.ix_(*(axis.nearest() for axis in axes))].astype(np.uint8)
    for number, axis in enumerate(axes):
        np.moveaxis(found, number, 0)[~axis.is_inside] = 0
    return np.asarray(found)


@dataclass(frozen=True, eq=False)
class _Axis:
    """Where the voxels along an axis of the target lie along the axis of the source that is parallel to it.

    Attributes:
        index: of the source, fractions allowed.
        size: of the source.
        sigma: of the Gaussian, in voxels of the source; 0 for none.
    """

    source_axis: int
    index: Float64[np.ndarray, " n"]
    size: int
    sigma: float

    @property
    def is_inside(self) -> Bool[np.ndarray, " n"]:
        """The voxels whose middle is in the source."""
        return (self.index >= -0.5) & (self.index <= self.size - 0.5)

    def nearest(self) -> Int64[np.ndarray, " n"]:
        return np.clip(np.floor(self.index + 0.5), 0, self.size - 1).astype(np.int64)

    def needed(self) -> slice:
        """The part of the source that the target is made of."""
        reach = REACH_SD * self.sigma + 1
        low, high = np.clip([self.index.min() - reach, self.index.max() + reach], 0, self.size - 1)
        return slice(int(np.floor(low)), int(np.ceil(high)) + 1)

    def matrix(self, part: slice) -> Float32[np.ndarray, "n m"]:
        """What makes the target's voxels of `part` of the source's."""
        size = part.stop - part.start
        place = np.clip(self.index - part.start, 0, size - 1)
        lower = np.minimum(np.floor(place).astype(np.int64), max(size - 2, 0))
        share = place - lower
        rows = np.arange(len(place))
        matrix = np.zeros((len(place), size))
        matrix[rows, lower] = 1 - share
        matrix[rows, np.minimum(lower + 1, size - 1)] += share
        if self.sigma > 0 and size >= LEAST_SMOOTHED:
            # What the recursive filter makes of one bright voxel is linear: so it is a matrix, edges included.
            unit = sitk.GetImageFromArray(np.eye(size))
            matrix = matrix @ sitk.GetArrayFromImage(sitk.RecursiveGaussian(unit, sigma=self.sigma, direction=1))
        return matrix.astype(np.float32)


def _parallel_axes(source: Grid, target: Grid) -> list[_Axis] | None:
    """For each axis of the target the one of the source; None where they are not parallel."""
    origin = source.to_index(np.asarray(target.origin_mm))
    steps = np.linalg.inv(source.index_to_lps_matrix) @ target.index_to_lps_matrix
    axes = []
    for number, count in enumerate(target.shape):
        step = steps[:, number]
        along = int(np.abs(step * source.spacing_mm).argmax())
        if np.abs(np.delete(step, along)).max() * count > PARALLEL_VOXELS:
            return None
        spacing = abs(float(step[along]))
        size = source.shape[along]
        sigma = SMOOTHING * spacing if spacing > COARSER + 1e-9 and size >= LEAST_SMOOTHED else 0.0
        axes.append(_Axis(along, origin[along] + step[along] * np.arange(count), size, sigma))
    return axes


def _applied(
    matrix: Float32[np.ndarray, "n m"], array: Float32[np.ndarray, "z y x"], axis: int
) -> Float32[np.ndarray, "zt yt xt"]:
    """The banded matrix along an axis, without most of its zeros."""
    shape = (*array.shape[:axis], len(matrix), *array.shape[axis + 1 :])
    result = np.empty(shape, dtype=np.float32)
    for rows, columns in _bands(matrix):
        part = np.ascontiguousarray(matrix[rows, columns])
        if axis == 0:
            flat = array[columns].reshape(part.shape[1], -1)
            np.matmul(part, flat, out=result[rows].reshape(part.shape[0], -1))
        elif axis == 1:
            result[:, rows] = np.matmul(part, array[:, columns])
        else:
            result[:, :, rows] = np.matmul(array[:, :, columns], part.T)
    return result


def _bands(matrix: Float32[np.ndarray, "n m"]) -> Iterator[tuple[slice, slice]]:
    """Some rows at a time, and the columns in which they are not next to nothing."""
    for begin in range(0, len(matrix), BAND_ROWS):
        rows = slice(begin, min(begin + BAND_ROWS, len(matrix)))
        used = np.flatnonzero(np.abs(matrix[rows]).max(axis=0) > NEGLIGIBLE)
        yield rows, slice(int(used[0]), int(used[-1]) + 1)


def _resampled_by_itk(
    array: Shaped[np.ndarray, "z y x"], source: Grid, target: Grid, outside: int | float
) -> Float32[np.ndarray, "zt yt xt"]:
    image = sitk.Cast(to_sitk(array, source), sitk.sitkFloat32)
    # Per array axis of the source (x, y, z): 0 where the target is no coarser along that axis.
    target_steps = np.abs(np.asarray(target.direction).T @ np.asarray(source.direction))
    target_mm = np.asarray(target.spacing_mm[::-1]) @ target_steps
    source_mm = np.asarray(source.spacing_mm[::-1])
    sigma_xyz = tuple(
        float(t * SMOOTHING) if t > COARSER * s else 0.0 for t, s in zip(target_mm, source_mm, strict=True)
    )
    for axis, sigma_mm in enumerate(sigma_xyz):
        if sigma_mm > 0 and image.GetSize()[axis] >= LEAST_SMOOTHED:
            image = sitk.RecursiveGaussian(image, sigma=sigma_mm, direction=axis)
    return _on_grid(image, target, sitk.sitkLinear, outside)


def _on_grid(image: sitk.Image, target: Grid, interpolator: int, outside: int | float) -> np.ndarray:
    filter_ = sitk.ResampleImageFilter()
    filter_.SetSize([int(n) for n in target.shape[::-1]])
    filter_.SetOutputSpacing([float(s) for s in target.spacing_mm[::-1]])
    filter_.SetOutputOrigin([float(o) for o in target.origin_mm])
    filter_.SetOutputDirection([float(v) for row in target.direction for v in row])
    filter_.SetInterpolator(interpolator)
    filter_.SetDefaultPixelValue(float(outside))
    return np.asarray(sitk.GetArrayFromImage(filter_.Execute(image)))


def sampled(volume: Volume, target: Grid) -> Float32[np.ndarray, "z y x"]:
    """HU at the voxels of `target`, thin slices averaged first; what lies outside of the scan is air."""
    # The part of the scan that holds the target, with two voxels to spare.
    slices = index_box(target, np.zeros(3), np.asarray(target.shape) - 1.0, volume.grid, spare=2)
    cropped = Volume(volume.hu[slices], part_of(volume.grid, slices))
    near = bin_thin_voxels(cropped, min(target.spacing_mm))
    return resample(near.hu, near.grid, target)


def bin_thin_voxels(volume: Volume, spacing_mm: float) -> Volume:
    """The scan with neighbouring voxels averaged, as long as they stay at or below half of `spacing_mm`."""
    # Averaging whole voxels costs far less than smoothing every one of thousands of thin slices before resampling.
    factors = [max(int(spacing_mm / 2 / mm), 1) for mm in volume.grid.spacing_mm[::-1]]
    if max(factors) == 1:
        return volume
    image = sitk.BinShrink(to_sitk(volume.hu, volume.grid), factors)
    return Volume(np.asarray(sitk.GetArrayFromImage(image)), grid_of(image))


def is_truncated(mask: Bool[np.ndarray, "z y x"], grid: Grid, scan: Grid) -> bool:
    """Whether a mask on another grid than the scan's goes on beyond one of its faces."""
    for axis, count in enumerate(scan.shape):
        for end in (0, count - 1):
            z, y, x = (slice(end, end + 1) if axis == other else slice(0, n) for other, n in enumerate(scan.shape))
            face = part_of(scan, (z, y, x))
            area_cm2 = np.count_nonzero(resample_labels(mask, grid, face)) * face.voxel_volume_ml * 10
            if area_cm2 / scan.spacing_mm[axis] >= TRUNCATED_CM2:
                return True
    return False
