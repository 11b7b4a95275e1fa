"""The carina of a real CT, found by following the air of the trachea down until it divides.

It makes training marks; the product finds the carina with its agent. Marks are checked by eye before they are used.
"""

from dataclasses import dataclass
from typing import Final

import cc3d
import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from pipeline.geometry import Triple, Volume, resample

Plane = Float32[np.ndarray, "y x"]
Region = Bool[np.ndarray, "y x"]

TRACE_SPACING_MM: Final[Triple] = (2.0, 1.0, 1.0)
PIXEL_MM2: Final = 1.0
#: The air of airways lies below it, aerated lung mostly above.
AIRWAY_HU: Final = -880
AIR_OUTSIDE_HU: Final = -970
LUNG_HU: Final = -500
TRACHEA_AREA_MM2: Final = (60.0, 900.0)
TRACHEA_WIDTH_MM: Final = 45.0
BRONCHUS_AREA_MM2: Final = 25.0
MIN_OVERLAP: Final = 0.4
#: A shorter column may be the pharynx, at which two earlier rules stopped.
MIN_TRACHEA_MM: Final = 30.0
WALL_PIXELS: Final = 4
MIN_WALL: Final = 0.7
#: Noise divides a section for a slice or two.
HELD_SLICES: Final = 5
LUNG_REACH_MM: Final = 120.0
MIN_LUNG_AREA_MM2: Final = 500.0


@dataclass(frozen=True, eq=False)
class Section:
    """A region of air in one axial slice, and the length of the air column above that it continues."""

    mask: Region
    length_mm: float


def trace_carina(volume: Volume) -> Triple | None:
    """LPS position of the carina, or None if no air column divides between two lungs.

    Sections of tracheal size are linked from slice to slice, head to feet. The carina is the midpoint of the two
    sections that a column of at least `MIN_TRACHEA_MM` first divides into, both going on for `SPLIT_HELD_MM`.
    """
    grid = volume.grid.covering(TRACE_SPACING_MM)
    hu = resample(volume.hu, volume.grid, grid)[::-1]
    columns: list[Section] = []
    for z, plane in enumerate(hu):
        columns = _continue(columns, plane)
        for column in (column for column in columns if column.length_mm >= MIN_TRACHEA_MM):
            centre = _division(column, hu[z + 1 : z + 1 + HELD_SLICES])
            if centre is not None and _between_lungs(centre, plane):
                x, y, z_mm = grid.to_lps(np.array([len(hu) - 2 - z, *centre], dtype=np.float64))
                return float(x), float(y), float(z_mm)
    return None


def _continue(columns: list[Section], plane: Plane) -> list[Section]:
    """The tracheal sections of a slice, each as long as the longest column above that it overlaps."""
    sections = []
    for mask in _air_regions(plane):
        if _is_tracheal(mask, plane):
            above = [column.length_mm for column in columns if _overlaps(column.mask, mask)]
            sections.append(Section(mask, max(above, default=0.0) + TRACE_SPACING_MM[0]))
    return sections


def _division(column: Section, below: Float32[np.ndarray, "z y x"]) -> tuple[float, float] | None:
    """Midpoint (y, x) of the two parts that the column has in the next slice, if they stay apart through `below`."""
    if len(below) < HELD_SLICES:
        return None
    parts = [mask for mask in _air_regions(below[0]) if _overlaps(column.mask, mask)]
    if len(parts) != 2:
        return None
    followed = parts
    for plane in below[1:]:
        regions = _air_regions(plane)
        followed = [region for part in followed if (region := _largest_overlap(regions, part)) is not None]
        if len(followed) != 2 or np.any(followed[0] & followed[1]):
            return None
    y, x = np.mean([np.argwhere(part).mean(axis=0) for part in parts], axis=0)
    return float(y), float(x)


def _air_regions(plane: Plane) -> list[Region]:
    """Connected air of a slice, specks left out, largest first."""
    labels = cc3d.connected_components(plane < AIRWAY_HU, connectivity=4)
    counts = np.bincount(labels.ravel())
    kept = [int(label) for label in np.argsort(-counts) if label > 0 and counts[label] * PIXEL_MM2 >= BRONCHUS_AREA_MM2]
    return [labels == label for label in kept]


def _is_tracheal(mask: Region, plane: Plane) -> bool:
    """Whether a region has the size of a trachea and soft tissue around it, not lung."""
    ys, xs = np.nonzero(mask)
    width_mm = max(np.ptp(ys) + 1, np.ptp(xs) + 1) * TRACE_SPACING_MM[1]
    if not (TRACHEA_AREA_MM2[0] <= len(ys) * PIXEL_MM2 <= TRACHEA_AREA_MM2[1] and width_mm <= TRACHEA_WIDTH_MM):
        return False
    ring = ndimage.binary_dilation(mask, iterations=WALL_PIXELS) & ~ndimage.binary_dilation(mask)
    return bool(np.mean(plane[ring] > LUNG_HU) > MIN_WALL)


def _overlaps(upper: Region, lower: Region) -> bool:
    shared = np.count_nonzero(upper & lower)
    return bool(shared >= MIN_OVERLAP * min(np.count_nonzero(upper), np.count_nonzero(lower)))


def _largest_overlap(regions: list[Region], part: Region) -> Region | None:
    touching = [region for region in regions if np.any(region & part)]
    return max(touching, key=lambda region: np.count_nonzero(region & part), default=None)


def _between_lungs(centre_yx: tuple[float, float], plane: Plane) -> bool:
    """Whether there is lung to the left and to the right, within the body's depth around the airway."""
    x = round(centre_yx[1])
    reach = round(LUNG_REACH_MM / TRACE_SPACING_MM[2])
    lung = (plane > AIR_OUTSIDE_HU) & (plane < LUNG_HU)
    sides = lung[:, max(x - reach, 0) : x], lung[:, x : x + reach]
    return all(np.count_nonzero(side) * PIXEL_MM2 >= MIN_LUNG_AREA_MM2 for side in sides)
