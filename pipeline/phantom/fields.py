"""Scalar fields in patient space, evaluated at the voxels of any grid.

A shape is a signed distance in mm, negative inside; `inside` turns it into a soft mask as wide as a voxel, which is how
a scanner sees an edge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32
from numpy.random import Generator
from scipy.ndimage import gaussian_filter, map_coordinates

from pipeline.geometry import Grid

Field = Float32[np.ndarray, "z y x"]
Box = tuple[slice, slice, slice]
Point = Sequence[float]

#: The LPS box in which smooth random fields are laid out.
SPACE_MM: Final = ((-300.0, -280.0, -560.0), (300.0, 280.0, 420.0))


@dataclass(frozen=True, eq=False)
class Space:
    """The patient coordinates x, y, z (LPS mm) of every voxel of a grid."""

    grid: Grid
    x: Field
    y: Field
    z: Field

    @classmethod
    def of(cls, grid: Grid) -> "Space":
        matrix = grid.index_to_lps_matrix.astype(np.float32)
        steps = [np.arange(n, dtype=np.float32) for n in grid.shape]
        axes = [
            np.float32(origin)
            + (row[0] * steps[0])[:, None, None]
            + (row[1] * steps[1])[None, :, None]
            + (row[2] * steps[2])[None, None, :]
            for origin, row in zip(grid.origin_mm, matrix, strict=True)
        ]
        return cls(grid, axes[0], axes[1], axes[2])

    @property
    def edge_mm(self) -> float:
        """How wide an edge looks: the mean spacing."""
        return float(np.mean(self.grid.spacing_mm))

    def __getitem__(self, box: Box) -> "Space":
        """The same space seen through a box of voxels; its `grid` stays that of the whole."""
        return Space(self.grid, self.x[box], self.y[box], self.z[box])

    def smooth(self, function: Callable[[Field, Field, Field], Field], step_mm: float) -> Field:
        """A field that hardly changes within `step_mm`: evaluated that far apart and interpolated."""
        strides = [max(1, round(step_mm / s)) for s in self.grid.spacing_mm]
        coarse = tuple(slice(None, None, k) for k in strides)
        values = function(self.x[coarse], self.y[coarse], self.z[coarse])
        for axis, (count, stride) in enumerate(zip(self.x.shape, strides, strict=True)):
            values = _stretch(values, axis, count, stride)
        return values

    def random(self, rng: Generator, length_mm: float) -> Field:
        """A smooth random field of unit variance whose bumps are about `length_mm` wide."""
        return self.smooth(RandomField.draw(rng, length_mm), length_mm / 3)

    def box_around(self, points: Sequence[Point], margin_mm: float) -> Box | None:
        """The voxels around some points; None if that is outside the grid."""
        lower, upper = np.min(points, axis=0) - margin_mm, np.max(points, axis=0) + margin_mm
        corners = np.array(
            [(x, y, z) for x in (lower[0], upper[0]) for y in (lower[1], upper[1]) for z in (lower[2], upper[2])]
        )
        index = self.grid.to_index(corners)
        begin = np.maximum(np.floor(index.min(axis=0)).astype(int), 0)
        end = np.minimum(np.ceil(index.max(axis=0)).astype(int) + 1, self.grid.shape)
        if np.any(end <= begin):
            return None
        return slice(begin[0], end[0]), slice(begin[1], end[1]), slice(begin[2], end[2])


@dataclass(frozen=True, eq=False)
class RandomField:
    """Gaussian noise on a lattice in patient space, interpolated: the same at every grid."""

    lattice: Float32[np.ndarray, "nx ny nz"]
    length_mm: float

    @classmethod
    def draw(cls, rng: Generator, length_mm: float) -> "RandomField":
        lower, upper = SPACE_MM
        shape = [int((b - a) / length_mm) + 3 for a, b in zip(lower, upper, strict=True)]
        noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.7)
        return cls(noise / noise.std(), length_mm)

    def __call__(self, x: Field, y: Field, z: Field) -> Field:
        axes = [(v - low) / np.float32(self.length_mm) for v, low in zip((x, y, z), SPACE_MM[0], strict=True)]
        return np.asarray(map_coordinates(self.lattice, axes, order=1, mode="nearest", output=np.float32))


def _stretch(values: np.ndarray, axis: int, count: int, stride: int) -> np.ndarray:
    """Linear interpolation of samples `stride` apart to `count` samples along one axis."""
    if stride == 1:
        return values
    position = np.arange(count) / stride
    low = np.minimum(position.astype(int), values.shape[axis] - 1)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = count
    weight = (position - low).astype(np.float32).reshape(shape)
    below: np.ndarray = np.take(values, low, axis)
    above: np.ndarray = np.take(values, high, axis)
    above -= below
    above *= weight
    above += below
    return above


def inside(distance_mm: Field, edge_mm: float) -> Field:
    """1 inside, 0 outside, a ramp as wide as `edge_mm` between."""
    return np.asarray(np.clip(np.float32(0.5) - distance_mm / np.float32(edge_mm), 0, 1))


def ball(space: Space, centre: Point, radius_mm: float) -> Field:
    """Signed distance of a ball."""
    x, y, z = (np.float32(c) for c in centre)
    return np.asarray(np.sqrt((space.x - x) ** 2 + (space.y - y) ** 2 + (space.z - z) ** 2) - np.float32(radius_mm))


@dataclass(frozen=True)
class Tube:
    """A cone with round ends from `begin` to `end` (LPS mm)."""

    begin: tuple[float, float, float]
    end: tuple[float, float, float]
    begin_radius_mm: float
    end_radius_mm: float

    def distance(self, space: Space) -> Field:
        """Signed distance, near enough for slender cones."""
        begin = np.asarray(self.begin, dtype=np.float32)
        along = np.asarray(self.end, dtype=np.float32) - begin
        x, y, z = space.x - begin[0], space.y - begin[1], space.z - begin[2]
        t = np.clip((x * along[0] + y * along[1] + z * along[2]) / np.float32(along @ along), 0, 1)
        radius = np.float32(self.begin_radius_mm) + np.float32(self.end_radius_mm - self.begin_radius_mm) * t
        return np.asarray(np.sqrt((x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2) - radius)
