"""Places the lungs where no landmark is trusted: a coarse look at the whole scan, and what speaks for lungs in it.

The network's coarse pass normalises each volume by itself, so it draws something like lungs into anything; what it
drew has to hold tissue with air in it, which neither bowel gas nor fat nor a mattress is, or to be two large lungs
side by side in a body (decision 54).
"""

from dataclasses import dataclass
from typing import Final

import cc3d
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from scipy import ndimage

from pipeline.anatomy import LEFT_LOBES, RIGHT_LOBES
from pipeline.errors import NotChestCTError
from pipeline.geometry import Grid, Volume, distance_to_mm
from pipeline.networks.di2in import LungConfig, LungNetwork
from pipeline.resampling import sampled

#: Vessels and the holes of foam are averaged with what they lie in.
COARSE_MM: Final = 4.0
#: Lung, from emphysema to all but solid: the air of the room, of stomach and bowel is emptier, fat is denser.
AERATED_HU: Final = (-960.0, -200.0)
#: A part of less is a loop of bowel, or a fold of the skin.
LEAST_PART_ML: Final = 40.0
#: Of what lies around a part of a lung, less than this is air without tissue: 0 to 0.05 in the chests that were looked
#: at, 0.45 to 0.77 of mattresses and blankets. Seen within two voxels, since the first one is half air, half tissue.
MOST_AIR_AROUND: Final = 0.3
AROUND_VOXELS: Final = 2
#: Of lung that holds air at least this much is seen; of two adult lungs it is a thirtieth. Abdomens have up to 80.
LEAST_AERATED_ML: Final = 150.0
#: Where none of it holds air: each of two lungs within the body has at least this much (540 and more in filled chests),
#: and the body's sections this area (600 and more). Heads have up to 250 cm2, abdomens and limbs no two lungs.
LEAST_SOLID_ML: Final = 300.0
LEAST_SECTION_CM2: Final = 350.0
#: Between fat and lung: what is denser is the patient.
BODY_ABOVE_HU: Final = -300.0
#: A separate part of a lung is kept if it holds at least this share of the side's largest part ...
KEPT_SHARE: Final = 0.02
#: ... and comes this near to it. What lies beyond the chest wall is a blanket or an arm, not lung.
KEPT_GAP_MM: Final = 12.0


@dataclass(frozen=True, eq=False)
class CoarseLook:
    """What the coarse pass drew.

    Attributes:
        region: where was looked, at the network's spacing.
        labels: the likeliest ones, at twice that spacing.
    """

    region: Grid
    labels: UInt8[np.ndarray, "z y x"]


def look_everywhere(volume: Volume, network: LungNetwork) -> CoarseLook:
    """Look for lungs in the whole field of view.

    Raises:
        NotChestCTError: nothing that looks like lungs holds tissue with air in it, nor are there two solid ones.
    """
    lower, upper = volume.grid.bounds_mm()
    region = fitting_grid(lower, upper, network.config)
    hu = sampled(volume, region)
    labels = network.coarse_labels(normalise(hu, network.config))
    edge_mm = 2 * region.spacing_mm[0]
    # The region is rounded up: what lies beyond the scan is no air that could surround a lung.
    z, y, x = (
        slice(0, max(int((high - low) / edge_mm), 1)) for low, high in zip(lower[::-1], upper[::-1], strict=True)
    )
    coarse = hu.reshape(*(part for n in hu.shape for part in (n // 2, 2))).mean(axis=(1, 3, 5))[z, y, x]
    require_lung_tissue(coarse, labels[z, y, x], edge_mm)
    return CoarseLook(region, labels)


def require_lung_tissue(hu: Float32[np.ndarray, "z y x"], labels: UInt8[np.ndarray, "z y x"], edge_mm: float) -> None:
    """Refuse a scan in which no landmark was found, and what was taken for lungs is none.

    Args:
        hu: the scan at about `COARSE_MM`.
        labels: what was taken for lungs in it.

    Raises:
        NotChestCTError: its evidence says what was seen instead.
    """
    voxel_ml = edge_mm**3 / 1000
    aerated_ml = np.count_nonzero(aerated_tissue(hu, voxel_ml) & (labels > 0)) * voxel_ml
    if aerated_ml >= LEAST_AERATED_ML:
        return
    body = _body(hu)
    left_ml, right_ml = (
        np.count_nonzero(main_parts(np.isin(labels, side), edge_mm) & body) * voxel_ml
        for side in (LEFT_LOBES, RIGHT_LOBES)
    )
    section_cm2 = float(np.median(np.count_nonzero(body, axis=(1, 2)))) * edge_mm**2 / 100
    if min(left_ml, right_ml) >= LEAST_SOLID_ML and section_cm2 >= LEAST_SECTION_CM2:
        return
    raise NotChestCTError(
        "Neither the carina nor the tip of the sternum was found, and no lungs in a coarse look at the whole scan.",
        evidence={
            "aerated_ml": round(aerated_ml, 1),
            "least_aerated_ml": LEAST_AERATED_ML,
            "solid_ml": [round(left_ml, 1), round(right_ml, 1)],
            "least_solid_ml": LEAST_SOLID_ML,
            "section_cm2": round(section_cm2),
            "least_section_cm2": LEAST_SECTION_CM2,
        },
    )


def _body(hu: Float32[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """The patient, with all that lies inside in each slice, without table and blankets."""
    dense = hu > BODY_ABOVE_HU
    eroded = ndimage.binary_erosion(dense)
    if not eroded.any():
        return np.zeros(hu.shape, dtype=np.bool_)
    body = ndimage.binary_dilation(cc3d.largest_k(eroded, k=1, connectivity=6) > 0) & dense
    return np.stack([ndimage.binary_fill_holes(section) for section in body])


def main_parts(side: Bool[np.ndarray, "z y x"], spacing_mm: float) -> Bool[np.ndarray, "z y x"]:
    """The largest connected part of a lung, and others that are large enough and near it."""
    parts = np.asarray(cc3d.connected_components(side, connectivity=6))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    main = int(np.argmax(sizes))
    if sizes[main] == 0:
        return side
    gap_mm = distance_to_mm(parts == main, (spacing_mm,) * 3)
    near = np.bincount(parts[gap_mm <= KEPT_GAP_MM], minlength=len(sizes)) > 0
    return np.asarray((near & (sizes >= KEPT_SHARE * sizes[main]) & (sizes > 0))[parts])


def aerated_tissue(hu: Float32[np.ndarray, "z y x"], voxel_ml: float) -> Bool[np.ndarray, "z y x"]:
    """Tissue with air in it, in pieces as large as parts of lungs, that no room's air surrounds.

    Args:
        hu: at about `COARSE_MM`.
    """
    low, high = AERATED_HU
    # Opened: the shells in which air and tissue mix are a voxel thick.
    parts = cc3d.connected_components(ndimage.binary_opening((hu > low) & (hu < high)), connectivity=6)
    count = int(parts.max()) + 1
    grown = ndimage.maximum_filter(parts, 2 * AROUND_VOXELS + 1)
    around = (grown > 0) & (parts == 0)
    shell = np.bincount(grown[around], minlength=count)
    air = np.bincount(grown[around & (hu <= low)], minlength=count)
    is_lung = (np.bincount(parts.ravel(), minlength=count) * voxel_ml >= LEAST_PART_ML) & (
        air <= MOST_AIR_AROUND * shell
    )
    is_lung[0] = False
    return np.asarray(is_lung[parts])


def prepare(volume: Volume, roi: Grid, config: LungConfig) -> Float32[np.ndarray, "z y x"]:
    """The scan in the region of interest, in [-1, 1]; what lies outside of the scan is air. Training shares this."""
    return normalise(sampled(volume, roi), config)


def normalise(hu: Float32[np.ndarray, "z y x"], config: LungConfig) -> Float32[np.ndarray, "z y x"]:
    """HU in the window of `config` as [-1, 1]."""
    low, high = config.window_hu
    return np.asarray((np.clip(hu, low, high) - low) * np.float32(2.0 / (high - low)) - 1.0, dtype=np.float32)


def fitting_grid(lower_mm: Float64[np.ndarray, "3"], upper_mm: Float64[np.ndarray, "3"], config: LungConfig) -> Grid:
    """The box, its edges rounded up to what the network takes."""
    multiple_mm = config.stride * config.spacing_mm
    edges_mm = np.maximum(np.ceil((upper_mm - lower_mm) / multiple_mm - 1e-6), 2) * multiple_mm
    return Grid.axis_aligned(lower_mm.tolist(), (lower_mm + edges_mm).tolist(), (config.spacing_mm,) * 3)
