"""How far the borders of lobes lie from fissures that were marked by eye, and pictures to check the marks by."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure
from scipy import ndimage

from evaluation.figures import BLUE, GREY, ORANGE, PNG_DOTS_PER_INCH, STYLE
from pipeline.anatomy import LEFT_LOBES, RIGHT_LOBES
from pipeline.geometry import LobeLabels, Volume, distance_to_mm
from pipeline.lungs.fissure_model import SIDES_OF

#: LPS mm (x, y, z).
Points = Float64[np.ndarray, "mark 3"]
Marks = Mapping[str, Points]

#: Fissures stand nearly at right angles to a sagittal slab: averaged over it, they stand out from noise and vessels.
SLAB_MM: Final = 6.0
SLAB_WINDOW_HU: Final = (-930.0, -500.0)


def read_fissure_marks() -> dict[str, dict[str, Points]]:
    """The marks by scan and fissure."""
    text = files("training.validation").joinpath("fissure_marks.json").read_text()
    return {
        scan: {fissure: np.array(points, dtype=np.float64) for fissure, points in fissures.items()}
        for scan, fissures in json.loads(text)["marks"].items()
    }


def fissure_distances_mm(lobes: LobeLabels, marks: Marks) -> dict[str, Float64[np.ndarray, " mark"]]:
    """Of each mark, to the border between the lobes on both sides of its fissure; infinite where they do not touch."""
    distances = {}
    for fissure, points in marks.items():
        above, below = (np.isin(lobes.labels, side) for side in SIDES_OF[fissure])
        border = (ndimage.binary_dilation(above) & below) | (ndimage.binary_dilation(below) & above)
        distances[fissure] = np.full(len(points), np.inf)
        if border.any():
            distance_mm, where = distance_to_mm(border, lobes.grid.spacing_mm), lobes.grid.to_index(points)
            found = ndimage.map_coordinates(distance_mm, where.T, order=1, mode="nearest")
            distances[fissure] = np.asarray(found, dtype=np.float64)
    return distances


def draw_marks(path: Path, volume: Volume, lobes: LobeLabels, marks: Marks) -> None:
    """Sagittal slabs with marks, as PNG: each slab by itself, with the marks, and with the borders found too."""
    z_mm, y_mm, x_mm = volume.grid.spacing_mm
    half = max(round(SLAB_MM / x_mm / 2), 1)
    index = {fissure: volume.grid.to_index(points) for fissure, points in marks.items()}
    columns = sorted({round(float(x)) for points in index.values() for x in points[:, 2]})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4 * len(columns), 12), layout="constrained")
        axes = figure.subplots(3, len(columns), squeeze=False)
        for x, (plain, marked, outlined) in zip(columns, axes.T, strict=True):
            slab = volume.hu[:, :, max(x - half, 0) : x + half + 1].astype(np.float32).clip(-1000, -300).mean(axis=2)
            lungs = np.argwhere(lobes.labels[:, :, x] > 0)
            for ax in (plain, marked, outlined):
                low, high = SLAB_WINDOW_HU
                ax.imshow(slab, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=z_mm / y_mm)
                if len(lungs):
                    (bottom, front), (top, back) = lungs.min(axis=0), lungs.max(axis=0)
                    ax.set(xlim=(front - 5, back + 5), ylim=(bottom - 2, top + 2))
                ax.set_axis_off()
            for ax in (marked, outlined):
                for points in index.values():
                    near = points[np.abs(points[:, 2] - x) <= half]
                    ax.plot(near[:, 1], near[:, 0], "+", color=ORANGE, markersize=7)
            for side in (LEFT_LOBES, RIGHT_LOBES):
                for lobe in side[:-1]:
                    # Where the lobe meets another of its side.
                    labels = lobes.labels[:, :, x]
                    own, others = labels == lobe, np.isin(labels, side) & (labels != lobe)
                    meet = ndimage.binary_dilation(own) & others
                    z, y = np.nonzero(meet)
                    outlined.plot(y, z, ".", color=BLUE, markersize=2)
            plain.set_title(f"x = {volume.grid.to_lps(np.array([0.0, 0.0, x]))[0]:.0f} mm", color=GREY)
        figure.savefig(path, dpi=PNG_DOTS_PER_INCH / 2, format="png")
