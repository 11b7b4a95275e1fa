"""Moves the borders between lobes to the fissures that the CT shows (decision 22).

At 2 mm the network draws a fissure where it lies in most people. Where the scan shows a thin bright sheet, larger than
any vessel looks like one, the border near it is moved there by two random walks over the lung (Grady 2006), which start
where the network is far from any border: one that hardly crosses sheets, one that does not know of them. Only their
difference moves a border, so that without a sheet each voxel keeps its lobe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cc3d
import edt
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

from lobewise.pipeline.anatomy import LEFT_LOBES, RIGHT_LOBES, Lobe
from lobewise.pipeline.sampling import sampled
from lobewise.pipeline.volume import Grid, Triple, Volume, resample, resample_labels

THICKEST_SLICES_MM: Final = 3.5
"""Fissures are half a millimetre thick; in thicker slices what looks like a sheet is more often none."""
FINE_MM: Final = 1.25
"""Where sheets are looked for."""
SHEET_SIGMA_MM: Final = 1.2
VESSEL_HU: Final = -550.0
LUNG_HU: Final = -850.0
PLEURA_MM: Final = 2.5
"""Near the chest wall everything looks like a sheet."""
SURE: Final = 0.3
"""Sheetness from which neighbours are one sheet ..."""
LEAST_SHEET_ML: Final = 1.0
"""... and how large it must be: some 3 square centimetres. What vessels leave of themselves is smaller."""
HOLE_VOXELS: Final = 5
"""Vessels and noise leave holes of this size in a sheet, through which a walk would slip."""
REACH_MM: Final = 18.0
"""How far a border may move at a time ..."""
ROUNDS: Final = 2
"""... and how often: where it moved, more of its sheet may have come within reach."""
CORE_SHARE: Final = 0.6
"""Of a lobe's depth, where it is thinner than the reach: its core stays, so that no lobe is lost."""
BARRIER: Final = 12.0
"""A full sheet is crossed exp(-BARRIER) times as easily as lung."""
FLATNESS_HU_PER_MM2: Final = 10.0
"""The curvature across a sheet that counts in full."""
VESSEL_WEIGHT: Final = 1.5
"""Curvature along the sheet counts against it by so much."""
SLOPE_WEIGHT: Final = 0.5
"""On a crest the slope is 0; on the shoulder of a step, as opacities have, it is the curvature times `sigma_mm`."""
TOLERANCE: Final = 3e-3
MOST_STEPS: Final = 300

Labels = UInt8[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]
Chances = Float64[np.ndarray, "lobe free"]


def follow_fissures(volume: Volume, roi: Grid, labels: Labels) -> Labels:
    """Lobes (labels on `roi`) with their borders on the fissures that `volume` shows; the lungs stay as they are."""
    if max(volume.grid.spacing_mm) > THICKEST_SLICES_MM:
        return labels
    sheets = find_sheets(volume, roi, labels > 0)
    moved = labels.copy()
    for side in (LEFT_LOBES, RIGHT_LOBES):
        lobes = [lobe for lobe in side if (labels == lobe).any()]
        lung = np.isin(labels, lobes)
        if len(lobes) < 2 or not sheets[lung].any():
            continue
        box = ndimage.find_objects(lung.astype(np.uint8))[0]
        own = np.where(lung[box], labels[box], 0).astype(np.uint8)
        for _ in range(ROUNDS):
            own = _moved(own, sheets[box], lobes, roi.spacing_mm)
        moved[box][lung[box]] = own[lung[box]]
    return moved


def find_sheets(volume: Volume, roi: Grid, lungs: Mask) -> Float32[np.ndarray, "z y x"]:
    """How much each voxel of `roi` belongs to a large sheet in the lungs, 0 to 1."""
    if not lungs.any():
        return np.zeros(roi.shape, dtype=np.float32)
    occupied = np.argwhere(lungs)
    lower, upper = roi.to_lps(np.stack([occupied.min(axis=0) - 1.5, occupied.max(axis=0) + 1.5]))
    fine = Grid.axis_aligned(lower.tolist(), upper.tolist(), (FINE_MM,) * 3)
    hu = sampled(volume, fine)
    deep = edt.edt(resample_labels(lungs, roi, fine), anisotropy=fine.spacing_mm, black_border=True, parallel=1)
    inside = (deep > PLEURA_MM) & ~ndimage.binary_dilation(hu > VESSEL_HU)
    sheets = sheetness(hu, fine.spacing_mm, inside, SHEET_SIGMA_MM)
    parts = np.asarray(cc3d.connected_components(sheets > SURE, connectivity=26))
    sizes_ml = np.bincount(parts.ravel()) * fine.voxel_volume_ml
    sizes_ml[0] = 0.0
    large = np.where((sizes_ml >= LEAST_SHEET_ML)[parts], sheets, np.float32(0.0))
    return resample(ndimage.maximum_filter(large, HOLE_VOXELS), fine, roi, outside=0)


def sheetness(
    hu: Shaped[np.ndarray, "z y x"], spacing_mm: Triple, inside: Mask, sigma_mm: float
) -> Float32[np.ndarray, "z y x"]:
    """How much each voxel `inside` looks like part of a thin bright sheet, 0 to 1: curved across, flat along it."""
    lung = np.clip(hu, -1000, -300).astype(np.float32) - np.float32(LUNG_HU)  # sampled kernels do not quite sum to 0
    sigma = [sigma_mm / mm for mm in spacing_mm]
    hessian = np.empty((np.count_nonzero(inside), 3, 3), dtype=np.float32)
    for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)):
        order = [int(axis == i) + int(axis == j) for axis in range(3)]
        scale = 1.0 / (spacing_mm[i] * spacing_mm[j])
        hessian[:, i, j] = hessian[:, j, i] = ndimage.gaussian_filter(lung, sigma, order=order)[inside] * scale
    slope = np.zeros(len(hessian), dtype=np.float32)
    for axis, mm in enumerate(spacing_mm):
        order = [int(other == axis) for other in range(3)]
        slope += (ndimage.gaussian_filter(lung, sigma, order=order)[inside] / mm) ** 2
    curvatures = np.linalg.eigvalsh(hessian)
    flatness = -curvatures[:, 0] - VESSEL_WEIGHT * np.abs(curvatures[:, 1:]).max(axis=1)
    flatness -= SLOPE_WEIGHT * np.sqrt(slope) / sigma_mm
    sheets = np.zeros(hu.shape, dtype=np.float32)
    sheets[inside] = np.clip(flatness / FLATNESS_HU_PER_MM2, 0.0, 1.0)
    return sheets


def _moved(labels: Labels, sheets: Float32[np.ndarray, "z y x"], lobes: Sequence[Lobe], spacing_mm: Triple) -> Labels:
    """One lung, 0 around it."""
    free = np.zeros(labels.shape, dtype=np.bool_)
    nearness = []
    for lobe in lobes:
        own = labels == lobe
        to_others_mm = _distance_mm((labels > 0) & ~own, spacing_mm)
        free |= own & (to_others_mm < min(REACH_MM, CORE_SHARE * float(to_others_mm[own].max())))
        signed_mm = np.where(own, to_others_mm, -_distance_mm(own, spacing_mm))
        nearness.append(np.clip(0.5 + signed_mm / (2 * REACH_MM), 0.0, 1.0))
    if not free.any():
        return labels
    links = _Links.of(labels > 0, free)
    knowing, blind = (
        _walk(links, labels.ravel(), weights, lobes)
        for weights in (np.exp(-BARRIER * links.crossed(sheets)), np.ones(len(links.one)))
    )
    chances = np.stack([near[free] for near in nearness]) + knowing - blind
    moved = labels.copy()
    moved[free] = np.array(lobes, dtype=np.uint8)[chances.argmax(axis=0)]
    return moved


def _distance_mm(to: Mask, spacing_mm: Triple) -> Float32[np.ndarray, "z y x"]:
    return np.asarray(edt.edt(~to, anisotropy=spacing_mm, black_border=False, parallel=1))


@dataclass(frozen=True, eq=False)
class _Links:
    """Neighbours in a lung of which one at least is free.

    Attributes:
        one, other: flat indices of the voxels.
        number: of each voxel among the free ones, -1 if it is not free.
    """

    one: Int64[np.ndarray, " link"]
    other: Int64[np.ndarray, " link"]
    number: Int64[np.ndarray, " voxel"]

    @classmethod
    def of(cls, lung: Mask, free: Mask) -> "_Links":
        index = np.arange(lung.size, dtype=np.int64).reshape(lung.shape)
        pairs = []
        for axis in range(3):
            a, b = (np.moveaxis(index, axis, 0)[part].ravel() for part in (slice(None, -1), slice(1, None)))
            is_link = lung.ravel()[a] & lung.ravel()[b] & (free.ravel()[a] | free.ravel()[b])
            pairs.append((a[is_link], b[is_link]))
        number = np.full(lung.size, -1, dtype=np.int64)
        number[free.ravel()] = np.arange(np.count_nonzero(free))
        one, other = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
        return cls(one, other, number)

    def crossed(self, sheets: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, " link"]:
        """How much of a sheet each link crosses; the mean of its ends, so that the border comes to the middle."""
        return np.asarray((sheets.ravel()[self.one] + sheets.ravel()[self.other]) / 2)


def _walk(
    links: _Links,
    labels: UInt8[np.ndarray, " voxel"],
    weights: Shaped[np.ndarray, " link"],
    lobes: Sequence[Lobe],
) -> Chances:
    """The chance that a walk from each free voxel first comes to the core of each lobe."""
    start = labels[links.number >= 0]
    count = len(start)
    here, there = np.concatenate([links.one, links.other]), np.concatenate([links.other, links.one])
    both_ways = np.concatenate([weights, weights]).astype(np.float64)
    begins = links.number[here] >= 0
    here, there, ease = links.number[here][begins], there[begins], both_ways[begins]
    goes_on = links.number[there] >= 0
    total = np.maximum(np.bincount(here, ease, count), np.finfo(np.float64).tiny)
    between = sparse.coo_matrix((ease[goes_on], (here[goes_on], links.number[there][goes_on])), shape=(count, count))
    system = (sparse.diags(total) - between).tocsr()
    chances = []
    for lobe in lobes[:-1]:
        arrives = ~goes_on & (labels[there] == lobe)
        reached = np.bincount(here[arrives], ease[arrives], count)
        found, _ = cg(
            system, reached, (start == lobe).astype(np.float64), rtol=TOLERANCE, maxiter=MOST_STEPS,
            M=sparse.diags(1.0 / total),
        )  # fmt: skip
        chances.append(found)
    return np.stack([*chances, 1.0 - np.sum(chances, axis=0)])
