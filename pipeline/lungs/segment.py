"""Draws the lungs and their five lobes (paper, "Lung and Lobe Segmentation").

A landmark places a box of fixed size around the lungs, the box is resampled to 2 mm, a DI2IN labels it, and the
labels are brought back to the voxels of the scan. The network runs twice: a coarse pass over the whole box finds the
lungs, and a fine pass over them alone, as wide as in training, draws them; its normalisation depends on how much of
what it sees is lung. Where no landmark is found, the coarse pass is over the whole
scan (`placement`). Then the borders between lobes go to the fissures that the scan shows.
"""

from collections.abc import Callable, Mapping
from typing import Final

import cc3d
import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8
from scipy import ndimage
from scipy.spatial import KDTree

from pipeline.anatomy import LEFT_LOBES, RIGHT_LOBES, Landmark, Lobe
from pipeline.errors import LungsNotFoundError
from pipeline.geometry import Grid, LandmarkPosition, LobeLabels, Volume, index_box, part_of
from pipeline.lungs.fissure_model import SeenSd
from pipeline.lungs.fissure_refinement import follow_fissures
from pipeline.lungs.placement import CoarseLook, fitting_grid, look_everywhere, main_parts, prepare
from pipeline.networks.di2in import CLASSES, LungConfig, LungNetwork
from pipeline.resampling import resample

__all__ = ["LungNetwork", "place_lungs", "prepare", "roi_grid", "segment_lungs"]

Landmarks = Mapping[Landmark, LandmarkPosition]
#: Called with the share of this stage that is done, 0 to 1.
Progress = Callable[[float], None]
Labels = UInt8[np.ndarray, "z y x"]
Borders = Callable[[Volume, Grid, Labels], tuple[Labels, SeenSd]]
ScanLabels = UInt8[np.ndarray, "zs ys xs"]
Probabilities = Float32[np.ndarray, "6 z y x"]

#: Less than this is not taken for lungs; two lungs of an adult hold litres, even collapsed ones more than this.
MIN_LUNGS_ML: Final = 200.0
#: Slices of the scan that are labelled at a time, which bounds the memory.
SLAB_SLICES: Final = 48


def segment_lungs(
    volume: Volume,
    landmarks: Landmarks,
    network: LungNetwork,
    progress: Progress = lambda _done: None,
    borders: Borders = follow_fissures,
) -> LobeLabels:
    """The lobes on the scan's own grid; opacities belong to the lungs, effusion does not.

    Args:
        borders: has the last word on the borders between lobes, on the network's grid, and tells what it saw of them.

    Raises:
        NotChestCTError: there is no landmark, and nothing else in the scan looks like lungs.
        LungsNotFoundError: what the network found is too small to be lungs.
    """
    config = network.config
    # Each volume is normalised by its own statistics (decision 4): the fine pass must hold as much lung as in training.
    look = place_lungs(volume, landmarks, network)
    progress(0.2)
    roi = closer_grid(look.region, look.labels, config)
    require_lungs(look.labels, 8 * look.region.voxel_volume_ml, look.region)
    probabilities = network.probabilities(prepare(volume, roi, config))
    progress(0.6)
    followed, fissures_sd = borders(volume, roi, clean_labels(probabilities, config.spacing_mm))
    labels = _without_fragments(followed)
    require_lungs(labels, roi.voxel_volume_ml, roi)
    # The probabilities, certain where the cleaned labels are not the likeliest ones.
    changed = probabilities.argmax(axis=0) != labels
    certain = np.arange(CLASSES)[:, None] == labels[changed]
    probabilities[:, changed] = certain
    on_scan = _on_grid(probabilities, roi, volume.grid, labels > 0, progress)
    return LobeLabels(on_scan, volume.grid, fissures_sd)


def place_lungs(volume: Volume, landmarks: Landmarks, network: LungNetwork) -> CoarseLook:
    """The coarse pass in the landmark's box, or else over the whole scan.

    Raises:
        NotChestCTError: there is no landmark, and nothing else in the scan looks like lungs.
        LungsNotFoundError: the landmark lies beside the scan.
    """
    if not any(landmark.found for landmark in landmarks.values()):
        return look_everywhere(volume, network)
    region = roi_grid(volume.grid, landmarks, network.config)
    return CoarseLook(region, network.coarse_labels(prepare(volume, region, network.config)))


def roi_grid(scan: Grid, landmarks: Landmarks, config: LungConfig) -> Grid:
    """The region of interest: the box that `config` ties to the landmark, as far as the scan reaches.

    Aligned with the patient's axes whatever the scan's direction; every edge is a multiple of the network's stride,
    and at least two of them, which normalisation needs.

    Raises:
        LungsNotFoundError: there is no landmark, or the box lies beside the scan.
    """
    landmark = next(
        (
            mark
            for mark in (Landmark.CARINA, Landmark.STERNUM_TIP)
            if (mark in landmarks and landmarks[mark].position_mm is not None)
        ),
        None,
    )
    if landmark is None:
        raise LungsNotFoundError(
            "Neither the carina nor the sternum tip is in the scan, so the lungs cannot be placed."
        )
    centre = np.asarray(landmarks[landmark].position_mm)
    box = np.asarray(config.box_mm(landmark)) + centre
    bounds = np.asarray(scan.bounds_mm())
    lower, upper = np.maximum(box[0], bounds[0]), np.minimum(box[1], bounds[1])
    if np.any(upper <= lower):
        raise LungsNotFoundError(
            f"The {landmark.value} lies so far outside of the scan that no lungs can be in it.",
            evidence={"landmark": landmark.value},
        )
    return fitting_grid(lower, upper, config)


def closer_grid(region: Grid, rough: ScanLabels, config: LungConfig) -> Grid:
    """The part of the region that holds the lungs, with a margin; the region itself if there are none.

    Args:
        rough: labels of the region at twice its spacing.
    """
    sides = [np.isin(rough, side) for side in (LEFT_LOBES, RIGHT_LOBES)]
    where = np.argwhere(sum(main_parts(side, 2 * config.spacing_mm) for side in sides))
    if not len(where):
        return region
    bounds = np.asarray(region.bounds_mm())
    corners = bounds[0] + 2 * config.spacing_mm * np.stack([where.min(axis=0), where.max(axis=0) + 1])[:, ::-1]
    lower = np.maximum(corners[0] - config.margin_mm, bounds[0])
    upper = np.minimum(corners[1] + config.margin_mm, bounds[1])
    return fitting_grid(lower, upper, config)


def clean_labels(probabilities: Probabilities, spacing_mm: float) -> Labels:
    """The likeliest labels as anatomy has them: two lungs without holes, each lobe in one piece."""
    labels = probabilities.argmax(axis=0).astype(np.uint8)
    lungs = np.zeros(labels.shape, dtype=np.bool_)
    for side in (LEFT_LOBES, RIGHT_LOBES):
        lungs |= main_parts(np.isin(labels, side), spacing_mm)
    lungs = np.asarray(ndimage.binary_fill_holes(lungs))
    labels = np.where(lungs, 1 + probabilities[1:].argmax(axis=0), 0).astype(np.uint8)
    return _without_fragments(labels)


def require_lungs(labels: Shaped[np.ndarray, "zl yl xl"], voxel_ml: float, roi: Grid) -> None:
    """Refuse what is too small to be lungs.

    Args:
        labels: not 0 in the lungs.
        roi: where was searched.

    Raises:
        LungsNotFoundError: with what was seen as its evidence.
    """
    volume_ml = np.count_nonzero(labels) * voxel_ml
    if volume_ml < MIN_LUNGS_ML:
        raise LungsNotFoundError(
            f"Only {volume_ml:.0f} ml of the scan look like lung, less than {MIN_LUNGS_ML:.0f} ml.",
            evidence={
                "lungs_ml": round(volume_ml, 1),
                "least_ml": MIN_LUNGS_ML,
                "searched_mm": [round(edge, 1) for edge in roi.size_mm[::-1]],
            },
        )


def _without_fragments(labels: Labels) -> Labels:
    """Every lobe in one piece: its other pieces go to the lobe that is nearest."""
    main_parts = np.zeros_like(labels)
    for lobe in Lobe:
        own = labels == lobe
        if own.any():
            main_parts[cc3d.largest_k(own, k=1, connectivity=6) > 0] = lobe
    fragments = (labels > 0) & (main_parts == 0)
    if not fragments.any() or not main_parts.any():
        return main_parts
    # Fragments are few: their neighbours are looked for one by one, and not those of every voxel.
    kept = main_parts > 0
    shore = np.argwhere(kept & ~ndimage.binary_erosion(kept))
    _, nearest = KDTree(shore).query(np.argwhere(fragments))
    main_parts[fragments] = main_parts[tuple(shore[nearest].T)]
    return main_parts


def _on_grid(
    probabilities: Probabilities, roi: Grid, scan: Grid, lungs: Bool[np.ndarray, "z y x"], progress: Progress
) -> ScanLabels:
    """The likeliest label at each voxel of the scan, the probabilities interpolated linearly."""
    labels = np.zeros(scan.shape, dtype=np.uint8)
    occupied = np.argwhere(lungs)
    low, high = occupied.min(axis=0) - 1.0, occupied.max(axis=0) + 1.0
    z, y, x = index_box(roi, low, high, scan, spare=1)
    slabs = [(slice(start, min(start + SLAB_SLICES, z.stop)), y, x) for start in range(z.start, z.stop, SLAB_SLICES)]
    for number, slices in enumerate(slabs):
        labels[slices] = _likeliest(probabilities, roi, part_of(scan, slices))
        progress(0.6 + 0.4 * (number + 1) / len(slabs))
    return labels


def _likeliest(probabilities: Probabilities, roi: Grid, target: Grid) -> ScanLabels:
    """One class at a time, so that only two are in memory."""
    best = resample(probabilities[0], roi, target, outside=1)
    labels = np.zeros(target.shape, dtype=np.uint8)
    for label in Lobe:
        probability = resample(probabilities[label], roi, target, outside=0)
        better = probability > best
        labels[better] = label
        np.maximum(best, probability, out=best)
    return labels
