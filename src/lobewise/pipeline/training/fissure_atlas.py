"""Lobes for scans that only have a lung mask: a shape model of the fissures, fitted to the fissures that the CT shows.

The model is learned from marked fissure points of many people (Chest Imaging Platform), brought to one atlas by their
affine transforms. Each fissure is a quadratic surface over its mean plane, and what differs between people is a
normal distribution of its coefficients. Coordinates are those of a standard lung: a bounding box of
`STANDARD_MM` whose origin is the right, front, lower corner, so that a lung of any size is compared by its box.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float32, Float64, UInt8
from scipy import ndimage, optimize

from lobewise.pipeline.anatomy import Lobe
from lobewise.pipeline.fissures import VESSEL_HU, sheetness
from lobewise.pipeline.volume import Volume

Points = Float64[np.ndarray, "*n 3"]
Coefficients = Float64[np.ndarray, "6"]

STANDARD_MM: Final = np.array([120.0, 175.0, 265.0])
"""Box of the standard lung (x, y, z)."""
ATLAS_LABELS: Final[Mapping[str, int]] = {"right": 2, "left": 3}
FISSURES: Final = ("left_oblique", "right_oblique", "right_horizontal")
MIN_POINTS: Final = 8
MARKING_ERROR_MM: Final = 3.0
SHEET_SIGMA_MM: Final = 1.7
PRIOR_WEIGHT: Final = 0.015
STARTS: Final = 40


@dataclass(frozen=True, eq=False)
class Fissure:
    """The distribution of one fissure over people, in mm of the standard lung.

    Attributes:
        origin, axes: of the mean plane; the rows of `axes` are two directions in it and its normal.
        reach: how far (2 x 2: lower and upper, along the two directions) points were marked; held constant beyond.
        mean, covariance: of the six coefficients of the height over the plane.
    """

    origin: Float64[np.ndarray, "3"]
    axes: Float64[np.ndarray, "3 3"]
    reach: Float64[np.ndarray, "2 2"]
    mean: Coefficients
    covariance: Float64[np.ndarray, "6 6"]

    def heights(self, points: Points, coefficients: Coefficients) -> Float64[np.ndarray, "*n"]:
        """Signed distance of points from the surface along its normal, which points up (and forward)."""
        local = (points - self.origin) @ self.axes.T
        return np.asarray(local[..., 2] - _terms(np.clip(local[..., :2], *self.reach)) @ coefficients)

    def surface(self, coefficients: Coefficients, step_mm: float = 3.0) -> Float64[np.ndarray, "n 3"]:
        """Points spread over the surface."""
        a, b = (np.arange(low, high, step_mm) for low, high in self.reach.T)
        flat = np.stack(np.meshgrid(a, b, indexing="ij"), axis=-1).reshape(-1, 2)
        local = np.column_stack([flat, _terms(flat) @ coefficients])
        return np.asarray(local @ self.axes + self.origin)


FissureModel = Mapping[str, Fissure]


def learn_fissures(folder: Path) -> FissureModel:
    """The shape model from the marked points, transforms and atlas mask in `folder`."""
    people = read_people(folder)
    return {name: _learn([person[name] for person in people if name in person]) for name in FISSURES}


def read_people(folder: Path) -> list[dict[str, Float64[np.ndarray, "n 3"]]]:
    """Each person's fissure points by fissure, in the standard lung."""
    boxes = _atlas_boxes(next(folder.glob("*_leftLungRightLung.nrrd")))
    people = []
    for path in sorted(folder.glob("*_regionAndTypePoints.csv")):
        name = path.name.removesuffix("_regionAndTypePoints.csv")
        to_atlas = sitk.ReadTransform(str(next(folder.glob(f"{name}_TO_*.tfm")))).GetInverse()
        people.append(_person(path, to_atlas, boxes))
    return people


def split_sides(lungs: Bool[np.ndarray, "z y x"]) -> tuple[Bool[np.ndarray, "z y x"], Bool[np.ndarray, "z y x"]]:
    """The left and the right lung of a mask in which they may touch; x grows to the left.

    Raises:
        ValueError: the mask does not fall apart into two lungs however it is eroded.
    """
    eroded = lungs
    for _ in range(8):
        labels, count = ndimage.label(eroded)
        sizes = np.bincount(labels.ravel(), minlength=3)[1:]
        if count >= 2 and np.sort(sizes)[-2] > 0.2 * sizes.sum():
            return _by_nearest(lungs, [labels == 1 + number for number in np.argsort(sizes)[-2:]])
        eroded = ndimage.binary_erosion(eroded)
    raise ValueError("the lungs of this mask cannot be told apart")


def draw_lobes(
    volume: Volume, lungs: Bool[np.ndarray, "z y x"], model: FissureModel
) -> tuple[UInt8[np.ndarray, "z y x"], dict[str, float]]:
    """Lobes of a lung mask on a grid with identity direction, and the score of each fissure's fit (0: not seen)."""
    left, right = split_sides(lungs)
    sheets = sheets_in(volume, lungs)
    labels = np.zeros(lungs.shape, dtype=np.uint8)
    scores: dict[str, float] = {}
    heights = {}
    for name in FISSURES:
        side = left if name.startswith("left") else right
        coefficients, scores[name] = _fit(model[name], side, sheets)
        heights[name] = model[name].heights(_standard(np.argwhere(side), side), coefficients)
    labels[left] = np.where(heights["left_oblique"] > 0, Lobe.LEFT_UPPER, Lobe.LEFT_LOWER)
    front = np.where(heights["right_horizontal"] > 0, Lobe.RIGHT_UPPER, Lobe.RIGHT_MIDDLE)
    labels[right] = np.where(heights["right_oblique"] > 0, front, Lobe.RIGHT_LOWER)
    return labels, scores


def sheets_in(volume: Volume, lungs: Bool[np.ndarray, "z y x"]) -> Float32[np.ndarray, "z y x"]:
    """How much each lung voxel looks like a thin bright sheet, 0 to 1; vessels and the pleura do not."""
    near_vessels = ndimage.binary_dilation(volume.hu > VESSEL_HU, iterations=1)
    inside = ndimage.binary_erosion(lungs, iterations=3) & ~near_vessels
    return sheetness(volume.hu, volume.grid.spacing_mm, inside, SHEET_SIGMA_MM)


def _fit(
    fissure: Fissure, side: Bool[np.ndarray, "z y x"], sheets: Float32[np.ndarray, "z y x"]
) -> tuple[Coefficients, float]:
    """The coefficients whose surface passes through the most sheet, and the gain over the mean surface."""
    root = np.linalg.cholesky(fissure.covariance + 1e-9 * np.eye(6))
    index = np.argwhere(side)
    low, high = index.min(axis=0), index.max(axis=0) + 1
    smooth = ndimage.gaussian_filter(sheets[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], 1.0)

    def loss(z_scores: np.ndarray) -> float:
        points = fissure.surface(fissure.mean + root @ z_scores) / STANDARD_MM
        where = points[:, ::-1] * (high - low) - 0.5
        seen = ndimage.map_coordinates(smooth, where.T, order=1, mode="constant")
        return float(PRIOR_WEIGHT * 0.1 * np.sum(z_scores**2) - seen.mean())

    rng = np.random.default_rng(0)
    starts = [np.zeros(6), *rng.normal(size=(STARTS, 6))]
    best = sorted(starts, key=loss)[:3]
    found = [optimize.minimize(loss, start, method="Powell", options={"maxiter": 6}) for start in best]
    winner = min(found, key=lambda result: float(result.fun))
    return fissure.mean + root @ winner.x, loss(np.zeros(6)) - float(winner.fun)


def _learn(people: Sequence[Float64[np.ndarray, "_ 3"]]) -> Fissure:
    together = np.concatenate(list(people))
    origin = together.mean(axis=0)
    axes = np.linalg.svd(together - origin, full_matrices=False)[2]
    axes[2] *= np.sign(axes[2, 2])
    local = [(points - origin) @ axes.T for points in people if len(points) >= MIN_POINTS]
    stacked = np.concatenate(local)
    reach = np.quantile(stacked[:, :2], [0.01, 0.99], axis=0)
    mean = np.linalg.lstsq(_terms(stacked[:, :2]), stacked[:, 2], rcond=None)[0]
    own = np.array([_shrunk_fit(points, mean, reach) for points in local])
    return Fissure(origin, axes, reach, own.mean(axis=0), np.cov(own.T))


def _shrunk_fit(
    points: Float64[np.ndarray, "n 3"], mean: Coefficients, reach: Float64[np.ndarray, "2 2"]
) -> Coefficients:
    """One person's coefficients, held near the mean where there are few points; curvature more than position."""
    terms = _terms(points[:, :2])
    half = np.abs(reach).max()
    spread_mm = np.array([12.0, 10.0 / half, 10.0 / half, 5.0 / half**2, 5.0 / half**2, 5.0 / half**2])
    prior = np.diag(1.0 / spread_mm**2)
    normal = terms.T @ terms / MARKING_ERROR_MM**2 + prior
    residual = points[:, 2] - terms @ mean
    return np.asarray(mean + np.linalg.solve(normal, terms.T @ residual / MARKING_ERROR_MM**2))


def _terms(flat: Float64[np.ndarray, "*n 2"]) -> Float64[np.ndarray, "*n 6"]:
    a, b = flat[..., 0], flat[..., 1]
    return np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], axis=-1)


def _person(
    path: Path, to_atlas: sitk.Transform, boxes: Mapping[str, Float64[np.ndarray, "2 3"]]
) -> dict[str, Float64[np.ndarray, "n 3"]]:
    points: dict[str, list[np.ndarray]] = {}
    with path.open() as file:
        next(file)  # the header is spelt in several ways; the columns are the same
        for region, kind, *position in csv.reader(file):
            name = _fissure_of(region.lower(), kind.lower())
            if name:
                xyz = to_atlas.TransformPoint([float(value) for value in position[:3]])
                lower, upper = boxes[name.split("_")[0]]
                points.setdefault(name, []).append((np.asarray(xyz) - lower) / (upper - lower) * STANDARD_MM)
    return {name: np.array(values) for name, values in points.items()}


def _fissure_of(region: str, kind: str) -> str | None:
    """The fissure that a point of this region and type belongs to."""
    side = region[: 5 if region.startswith("right") else 4]
    name = f"{side}_{kind.removesuffix('fissure')}"
    return name if name in FISSURES else None


def _atlas_boxes(path: Path) -> dict[str, Float64[np.ndarray, "2 3"]]:
    """Lower and upper corner (LPS x, y, z) of each lung of the atlas."""
    image = sitk.ReadImage(str(path))
    stats = sitk.LabelShapeStatisticsImageFilter()
    stats.Execute(image)
    boxes = {}
    for side, label in ATLAS_LABELS.items():
        x, y, z, *size = stats.GetBoundingBox(label)
        corners = [(x, y, z), (x + size[0], y + size[1], z + size[2])]
        boxes[side] = np.sort(
            [image.TransformContinuousIndexToPhysicalPoint([c - 0.5 for c in corner]) for corner in corners], axis=0
        )
    return boxes


def _standard(index: np.ndarray, side: Bool[np.ndarray, "z y x"]) -> Float64[np.ndarray, "n 3"]:
    """Voxels (z, y, x) of a lung in the standard lung (x, y, z)."""
    occupied = np.argwhere(side)
    low, high = occupied.min(axis=0), occupied.max(axis=0) + 1
    return np.asarray(((index + 0.5 - low) / (high - low))[:, ::-1] * STANDARD_MM)


def _by_nearest(
    lungs: Bool[np.ndarray, "z y x"], cores: Sequence[Bool[np.ndarray, "z y x"]]
) -> tuple[Bool[np.ndarray, "z y x"], Bool[np.ndarray, "z y x"]]:
    """Every voxel to the nearer core; the core of greater x is the left lung."""
    right, left = sorted(cores, key=lambda core: float(np.nonzero(core)[2].mean()))
    is_left = ndimage.distance_transform_edt(~left) < ndimage.distance_transform_edt(~right)
    return lungs & is_left, lungs & ~is_left
