"""Pictures of a result: slices with lobes outlined and opacities coloured, opacities projected onto the lungs."""

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

#: Along x and z, and along y, of the grid that is looked through from the front.
GLASS_MM: Final = (1.0, 1.0)
GLASS_DEPTH_MM: Final = 3.0
#: So much of lung, or of opacity, along a line of sight takes away all but 1/e of what is behind it.
LUNG_DEPTH_MM: Final = 160.0
LESION_DEPTH_MM: Final = 25.0
GLASS_RGB: Final = (150, 180, 200)

Picture = UInt8[np.ndarray, "_ _ 3"]


def draw_overview(path: Path, volume: Volume, lobes: LobeLabels, lesions: LesionMask) -> None:
    """Write a PNG of the coronal and the axial slice that show most: of the lesions, or else of the lungs.

    As radiologists look at it: the patient's right is on the picture's left.
    """
    coronal, axial, _ = _key_planes(volume.grid, lobes, lesions)
    pictures = [_picture(volume, lobes, lesions, coronal)[::-1, 0], _picture(volume, lobes, lesions, axial)[0]]
    _write_beside_each_other(path, pictures)


def draw_pictures(folder: Path, volume: Volume, lobes: LobeLabels, lesions: LesionMask) -> dict[str, Path]:
    """Write PNGs into `folder`: the coronal, axial and sagittal slice that show most, and the view from the front.

    As radiologists look at it: the patient's right is on the picture's left, in the sagittal slice the front is; the
    head is up.
    """
    coronal, axial, sagittal = _key_planes(volume.grid, lobes, lesions)
    drawn = {
        "axial": _picture(volume, lobes, lesions, axial)[0],
        "coronal": _picture(volume, lobes, lesions, coronal)[::-1, 0],
        "sagittal": _picture(volume, lobes, lesions, sagittal)[::-1, :, 0],
        "glass": glass_view(lobes, lesions),
    }
    paths = {name: folder / f"{name}.png" for name in drawn}
    for name, picture in drawn.items():
        _write_png(paths[name], picture)
    return paths


def glass_view(lobes: LobeLabels, lesions: LesionMask) -> Picture:
    """The lungs seen from the front as if they were glass, the opacities in them red; 1 mm a pixel, on black."""
    grid = lobes.grid.covering((GLASS_MM[0], GLASS_DEPTH_MM, GLASS_MM[1]))
    labels = resample_labels(lobes.labels, lobes.grid, grid)
    lesion = resample_labels(lesions.mask, lesions.grid, grid) > 0
    # What light is left of that which came from behind.
    lung = 1 - np.exp(-(labels > 0).sum(axis=1) * GLASS_DEPTH_MM / LUNG_DEPTH_MM)
    red = 1 - np.exp(-lesion.sum(axis=1) * GLASS_DEPTH_MM / LESION_DEPTH_MM)
    picture = lung[..., None] * np.array(GLASS_RGB, dtype=np.float32)
    for lobe, rgb in LOBE_RGB.items():
        outline = _outline((labels == lobe).any(axis=1))
        picture[outline] = 0.5 * picture[outline] + 0.5 * np.array(rgb)
    picture += red[..., None] * (np.array(LESION_RGB) - picture)
    return np.asarray(picture[::-1].astype(np.uint8))


def _key_planes(grid: Grid, lobes: LobeLabels, lesions: LesionMask) -> tuple[Grid, Grid, Grid]:
    """Where most of the lesions is, or else of the lungs."""
    return planes_through(centre_mm(lesions.mask if lesions.mask.any() else lobes.labels > 0, grid), grid)


def draw_slices(path: Path, volume: Volume) -> None:
    """Write a PNG of the coronal, axial and sagittal slice through the middle of a scan, as radiologists look at it.

    In the lung window, 1 mm a pixel; the patient's right is on the picture's left, in the sagittal slice the front is.
    """
    lower, upper = volume.grid.bounds_mm()
    x, y, z = (float(v) for v in (lower + upper) / 2)
    planes = planes_through((x, y, z), volume.grid)
    shown = [windowed(resample(volume.hu, volume.grid, plane)) for plane in planes]
    _write_beside_each_other(path, [shown[0][::-1, 0], shown[1][0], shown[2][::-1, :, 0]])


def planes_through(point_mm: Triple, grid: Grid) -> tuple[Grid, Grid, Grid]:
    """The coronal (z, 1, x), axial (1, y, x) and sagittal (z, y, 1) plane through an LPS point, as wide as `grid`."""
    edges = (EDGE_MM, EDGE_MM, EDGE_MM)
    (x, y, z), (lower, upper) = point_mm, grid.bounds_mm()
    coronal = Grid.axis_aligned((lower[0], y, lower[2]), (upper[0], y + EDGE_MM, upper[2]), edges)
    axial = Grid.axis_aligned((lower[0], lower[1], z), (upper[0], upper[1], z + EDGE_MM), edges)
    sagittal = Grid.axis_aligned((x, lower[1], lower[2]), (x + EDGE_MM, upper[1], upper[2]), edges)
    return coronal, axial, sagittal


def _write_beside_each_other(path: Path, pictures: list[UInt8[np.ndarray, "..."]]) -> None:
    """Grey or coloured pictures, as high as the highest."""
    height = max(picture.shape[0] for picture in pictures)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 4), *((0, 0),) * (p.ndim - 2))) for p in pictures]
    _write_png(path, np.concatenate(padded, axis=1))


def _write_png(path: Path, picture: UInt8[np.ndarray, "..."]) -> None:
    """Grey or coloured."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(picture), isVector=picture.ndim == 3)
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
        coloured[_outline(labels == lobe)] = rgb
    return coloured.astype(np.uint8)


def _outline(mask: Bool[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n"]:
    """What of a mask is on its inner edge, within a plane if one of three axes has length one."""
    inside = np.ones([1 if n == 1 else 3 for n in mask.shape], dtype=bool)
    return np.asarray(mask & ~ndimage.binary_erosion(mask, inside))


def windowed(hu: Float32[np.ndarray, "z y x"] | Int16[np.ndarray, "z y x"]) -> UInt8[np.ndarray, "z y x"]:
    """The lung window as shades of grey."""
    low, high = WINDOW_HU
    return np.asarray(np.clip((hu - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
