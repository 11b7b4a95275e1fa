"""Learns the shape model of the fissures, and draws lobes for scans that only have a lung mask.

    python -m training.data.fissure_atlas FISSURES fissure_model.json

writes the model that is shipped from marked fissure points of many people (Chest Imaging Platform), which their affine
transforms bring to one atlas.
"""

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float64, UInt8
from scipy import ndimage

from pipeline.anatomy import FISSURES, LEFT_LOBES, RIGHT_LOBES
from pipeline.geometry import Grid, Volume
from pipeline.lungs.fissure_model import (
    STANDARD_MM,
    Fissure,
    FissureModel,
    draw_side,
    quadratic_terms,
)
from pipeline.lungs.fissure_sheets import find_faint_sheets

Mask = Bool[np.ndarray, "z y x"]
Labels = UInt8[np.ndarray, "z y x"]

#: As the Chest Imaging Platform numbers them.
ATLAS_LABELS: Final[Mapping[str, int]] = {"right": 2, "left": 3}
#: The quadratic surface has six coefficients; with fewer points a person says nothing about them.
MIN_POINTS: Final = 8
MARKING_ERROR_MM: Final = 3.0
SOURCE: Final = (
    "Learned from the marked fissure points, transforms and atlas of 100 people of the Chest Imaging Platform. "
    'All or portions of this licensed product (such portions are the "Software") have been obtained under license '
    "from The Brigham and Women's Hospital, Inc. and are subject to the following terms and conditions: the Chest "
    "Imaging Platform Contribution and Software License Agreement, version 1.0."
)


class SidesError(ValueError):
    """The two lungs of a mask cannot be told apart."""


def learn_fissures(folder: Path) -> FissureModel:
    """The shape model from the marked points, transforms and atlas mask in `folder`."""
    people = read_people(folder)
    return {name: learn_fissure([person[name] for person in people if name in person]) for name in FISSURES}


def read_people(folder: Path) -> list[dict[str, Float64[np.ndarray, "n 3"]]]:
    """Each person's fissure points by fissure, in the standard lung."""
    # Lower and upper corner (LPS x, y, z) of each lung of the atlas.
    atlas = sitk.ReadImage(str(next(folder.glob("*_leftLungRightLung.nrrd"))))
    stats = sitk.LabelShapeStatisticsImageFilter()
    stats.Execute(atlas)
    boxes = {}
    for side, label in ATLAS_LABELS.items():
        x, y, z, *size = stats.GetBoundingBox(label)
        ends = np.array([(x, y, z), (x + size[0], y + size[1], z + size[2])]) - 0.5
        boxes[side] = np.sort([atlas.TransformContinuousIndexToPhysicalPoint(end.tolist()) for end in ends], axis=0)
    people = []
    for path in sorted(folder.glob("*_regionAndTypePoints.csv")):
        name = path.name.removesuffix("_regionAndTypePoints.csv")
        # The files map the atlas to the person; forward, 9 % of the points fall into the atlas's lungs, inverted 90 %.
        to_atlas = sitk.ReadTransform(str(next(folder.glob(f"{name}_TO_*.tfm")))).GetInverse()
        points: dict[str, list[np.ndarray]] = {}
        with path.open() as file:
            next(file)  # the header is spelt in several ways; the columns are the same
            for region, kind, *position in csv.reader(file):
                side = "right" if region.lower().startswith("right") else region.lower()[:4]
                fissure = f"{side}_{kind.lower().removesuffix('fissure')}"
                if fissure in FISSURES:
                    xyz = to_atlas.TransformPoint([float(value) for value in position[:3]])
                    lower, upper = boxes[side]
                    points.setdefault(fissure, []).append((np.asarray(xyz) - lower) / (upper - lower) * STANDARD_MM)
        people.append({fissure: np.array(values) for fissure, values in points.items()})
    return people


def split_sides(lungs: Mask, grid: Grid) -> tuple[Mask, Mask]:
    """The left and the right lung of a mask in which they may touch.

    Raises:
        SidesError: the mask does not fall apart into two lungs however it is eroded.
    """
    # The two lungs of a manual mask can touch, so that components alone do not tell them apart.
    eroded = lungs
    for _ in range(8):
        labels, count = ndimage.label(eroded)
        sizes = np.bincount(labels.ravel(), minlength=3)[1:]
        if count >= 2 and np.sort(sizes)[-2] > 0.2 * sizes.sum():
            # Every voxel to the nearer core; the core of greater x is the left lung.
            cores = [labels == 1 + number for number in np.argsort(sizes)[-2:]]
            right, left = sorted(cores, key=lambda core: float(grid.to_lps(np.argwhere(core).mean(axis=0))[0]))
            is_left = ndimage.distance_transform_edt(~left) < ndimage.distance_transform_edt(~right)
            return lungs & is_left, lungs & ~is_left
        eroded = ndimage.binary_erosion(eroded)
    raise SidesError("the lungs of this mask cannot be told apart")


def draw_lobes(volume: Volume, lungs: Mask, model: FissureModel) -> tuple[Labels, dict[str, float]]:
    """Lobes of a lung mask, and how far above chance (standard deviations) each fissure meets sheets.

    Raises:
        SidesError: the two lungs of the mask cannot be told apart.
    """
    left, right = split_sides(lungs, volume.grid)
    sheets = find_faint_sheets(volume, volume.grid, lungs)
    labels = np.zeros(lungs.shape, dtype=np.uint8)
    seen_sd: dict[str, float] = {}
    for lung, side in ((left, LEFT_LOBES), (right, RIGHT_LOBES)):
        drawn, of_side = draw_side(lung, volume.grid, sheets, model, side)
        labels[lung] = drawn[lung]
        seen_sd |= of_side
    return labels, seen_sd


def learn_fissure(people: Sequence[Float64[np.ndarray, "_ 3"]]) -> Fissure:
    """The shape of one fissure from its points in several people, in the standard lung."""
    together = np.concatenate(list(people))
    origin = together.mean(axis=0)
    axes = np.linalg.svd(together - origin, full_matrices=False)[2]
    axes[2] *= np.sign(axes[2, 2])
    local = [(points - origin) @ axes.T for points in people if len(points) >= MIN_POINTS]
    stacked = np.concatenate(local)
    reach = np.quantile(stacked[:, :2], [0.01, 0.99], axis=0)
    mean = np.linalg.lstsq(quadratic_terms(stacked[:, :2]), stacked[:, 2], rcond=None)[0]
    # Each person's coefficients are held near the mean where there are few points; curvature more than position.
    half = np.abs(reach).max()
    spread_mm = np.array([12.0, 10.0 / half, 10.0 / half, 5.0 / half**2, 5.0 / half**2, 5.0 / half**2])
    own = []
    for points in local:
        terms = quadratic_terms(points[:, :2])
        normal = terms.T @ terms / MARKING_ERROR_MM**2 + np.diag(1.0 / spread_mm**2)
        residual = points[:, 2] - terms @ mean
        own.append(mean + np.linalg.solve(normal, terms.T @ residual / MARKING_ERROR_MM**2))
    return Fissure(origin, axes, reach, np.mean(own, axis=0), np.cov(np.transpose(own)))


def write_shapes(model: FissureModel, path: Path) -> None:
    """The model as the pipeline reads it; six digits are a thousandth of a millimetre."""
    fissures = {
        name: {key: [float(f"{value:.6g}") for value in np.ravel(part)] for key, part in vars(fissure).items()}
        for name, fissure in model.items()
    }
    path.write_text(json.dumps({"source": SOURCE, "fissures": fissures}, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn the model from a folder and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fissures", type=Path, help="marked points, transforms and the atlas")
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    write_shapes(learn_fissures(options.fissures), options.out)


if __name__ == "__main__":
    main()
