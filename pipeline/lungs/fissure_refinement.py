"""Moves the borders between lobes to the plain sheets that a scan shows (decision 22).

Where the scan shows a thin bright sheet, larger than any vessel looks like one, the border near it is moved there by
two random walks over the lung (Grady 2006), which start where the border is far away: one that hardly crosses sheets,
one that does not know of them. Only their difference moves a border, so that without a sheet each voxel keeps its lobe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

from pipeline.anatomy import LEFT_LOBES, RIGHT_LOBES, Lobe
from pipeline.geometry import Grid, Triple, Volume, distance_to_mm
from pipeline.lungs.fissure_model import SeenSd, lay_fissures
from pipeline.lungs.fissure_sheets import find_sheets

#: How far a border may move at a time ...
REACH_MM: Final = 18.0
#: ... and how often: where it moved, more of its sheet may have come within reach.
ROUNDS: Final = 2
#: Of a lobe's depth, where it is thinner than the reach: its core stays, so that no lobe is lost.
CORE_SHARE: Final = 0.6
#: A full sheet is crossed exp(-BARRIER) times as easily as lung.
BARRIER: Final = 12.0
TOLERANCE: Final = 3e-3
MOST_STEPS: Final = 300

Labels = UInt8[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]
Chances = Float64[np.ndarray, "lobe free"]


def refine_borders(volume: Volume, roi: Grid, labels: Labels) -> Labels:
    """Lobes (labels on `roi`) with their borders on the large sheets near them; the lungs stay as they are."""
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


def _moved(labels: Labels, sheets: Float32[np.ndarray, "z y x"], lobes: Sequence[Lobe], spacing_mm: Triple) -> Labels:
    """One lung, 0 around it."""
    free = np.zeros(labels.shape, dtype=np.bool_)
    nearness = []
    for lobe in lobes:
        own = labels == lobe
        to_others_mm = distance_to_mm((labels > 0) & ~own, spacing_mm)
        free |= own & (to_others_mm < min(REACH_MM, CORE_SHARE * float(to_others_mm[own].max())))
        signed_mm = np.where(own, to_others_mm, -distance_to_mm(own, spacing_mm))
        nearness.append(np.clip(0.5 + signed_mm / (2 * REACH_MM), 0.0, 1.0))
    if not free.any():
        return labels
    links = _Links.of(labels > 0, free)
    # One walk alone pulls every curved border straight, and a watershed runs out through each hole of a sheet; the
    # difference of two walks moves a border only by what the sheets tell.
    knowing, blind = (
        _walk(links, labels.ravel(), weights, lobes)
        for weights in (np.exp(-BARRIER * links.crossed(sheets)), np.ones(len(links.one)))
    )
    chances = np.stack([near[free] for near in nearness]) + knowing - blind
    moved = labels.copy()
    moved[free] = np.array(lobes, dtype=np.uint8)[chances.argmax(axis=0)]
    return moved


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


#: Fissures are half a millimetre thick; in thicker slices what looks like a sheet is more often none: with slices
#: averaged to 5 mm and more, one fissure of a marked scan was laid 31 mm away.
THICKEST_SLICES_MM: Final = 3.5


def follow_fissures(volume: Volume, roi: Grid, labels: Labels) -> tuple[Labels, SeenSd]:
    """Lobes (labels on `roi`) with their borders on the fissures of `volume`, and how surely each fissure was seen.

    The lungs stay as they are.
    """
    if max(volume.grid.spacing_mm) > THICKEST_SLICES_MM:
        return labels, {}
    laid, seen_sd = lay_fissures(volume, roi, labels)
    return refine_borders(volume, roi, laid), seen_sd
