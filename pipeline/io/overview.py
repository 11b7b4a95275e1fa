"""One picture of a result: a coronal and an axial slice, lobes outlined, opacities coloured."""

from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float32, Int16, UInt8
from scipy import ndimage

from pipeline.anatomy import Lobe
from pipeline.geometry import Grid, LesionMask, LobeLabels, Triple, Volume
from pipeline.labels import LABELS
from pipeline.resampling import resample, resample_labels

#: The lung window: level -600, width 1500.
WINDOW_HU: Final = (-1350, 150)

#: Of a pixel.
EDGE_MM: Final = 1.0

LOBE_RGB: Final = {Lobe(label.number): label.rgb for label in LABELS["lobes"]}
LESION_RGB: Final = LABELS["lesions"][0].rgb
LESION_OPACITY: Final = 0.45

Picture = UInt8[np.ndarray, "_ _ 3"]


def draw_overview(path: Path, volume: Volume, lobes: LobeLabels, lesions: LesionMask) -> None:
    """Write a PNG of the coronal and the axial slice that show most: of the lesions, or else of the lungs.

    As radiologists look at it: the patient's right is on the picture's left.
    """
    shown = lesions.mask if lesions.mask.any() else lobes.labels > 0
    coronal, axial = planes_through(centre_mm(shown, volume.grid), volume.grid)
    pictures = [
        _picture(volume, lobes, lesions, coronal)[::-1, 0],
        _picture(volume, lobes, lesions, axial)[0],
    ]
    _write_beside_each_other(path, pictures)


def draw_slices(path: Path, volume: Volume) -> None:
    """Write a PNG of the coronal, axial and sagittal slice through the middle of a scan, as radiologists look at it.

    In the lung window, 1 mm a pixel; the patient's right is on the picture's left, in the sagittal slice the front is.
    """
    lower, upper = volume.grid.bounds_mm()
    x, y, z = (float(v) for v in (lower + upper) / 2)
    coronal, axial = planes_through((x, y, z), volume.grid)
    edges = (EDGE_MM, EDGE_MM, EDGE_MM)
    sagittal = Grid.axis_aligned((x, lower[1], lower[2]), (x + EDGE_MM, upper[1], upper[2]), edges)
    shown = [windowed(resample(volume.hu, volume.grid, plane)) for plane in (coronal, axial, sagittal)]
    _write_beside_each_other(path, [shown[0][::-1, 0], shown[1][0], shown[2][::-1, :, 0]])


def planes_through(point_mm: Triple, grid: Grid) -> tuple[Grid, Grid]:
    """The coronal (z, 1, x) and the axial (1, y, x) plane through an LPS point, as wide as `grid`, 1 mm a pixel."""
    edges = (EDGE_MM, EDGE_MM, EDGE_MM)
    (_, y, z), (lower, upper) = point_mm, grid.bounds_mm()
    coronal = Grid.axis_aligned((lower[0], y, lower[2]), (upper[0], y + EDGE_MM, upper[2]), edges)
    axial = Grid.axis_aligned((lower[0], lower[1], z), (upper[0], upper[1], z + EDGE_MM), edges)
    return coronal, axial


def _write_beside_each_other(path: Path, pictures: list[UInt8[np.ndarray, "..."]]) -> None:
    """Grey or coloured pictures, as high as the highest."""
    height = max(picture.shape[0] for picture in pictures)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 4), *((0, 0),) * (p.ndim - 2))) for p in pictures]
    image = sitk.GetImageFromArray(np.concatenate(padded, axis=1), isVector=pictures[0].ndim == 3)
    sitk.WriteImage(image, str(path), imageIO="PNGImageIO")


def centre_mm(mask: Bool[np.ndarray, "z y x"], grid: Grid) -> Triple:
    """LPS; of the slices with most of the mask, along each axis of the array."""
    if not mask.any():
        index = [n / 2 for n in mask.shape]
    else:
        index = [float(np.argmax(mask.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3)]
    x, y, z = (float(v) for v in grid.to_lps(np.array(index)))
    return x, y, z


def _picture(volume: Volume, lobes: LobeLabels, lesions: LesionMask, plane: Grid) -> UInt8[np.ndarray, "z y x 3"]:
    grey = windowed(resample(volume.hu, volume.grid, plane))
    labels = resample_labels(lobes.labels, lobes.grid, plane)
    lesion = resample_labels(lesions.mask, lesions.grid, plane) > 0
    coloured = np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)
    coloured[lesion] = (1 - LESION_OPACITY) * coloured[lesion] + LESION_OPACITY * np.array(LESION_RGB)
    for lobe, rgb in LOBE_RGB.items():
        # The voxels on the inner edge, within the plane: one of its three axes has length one.
        mask = labels == lobe
        inside = np.ones([1 if n == 1 else 3 for n in mask.shape], dtype=bool)
        outline = np.asarray(mask & ~ndimage.binary_erosion(mask, inside))
        coloured[outline] = rgb
    return coloured.astype(np.uint8)


def windowed(hu: Float32[np.ndarray, "z y x"] | Int16[np.ndarray, "z y x"]) -> UInt8[np.ndarray, "z y x"]:
    """The lung window as shades of grey."""
    low, high = WINDOW_HU
    return np.asarray(np.clip((hu - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
