"""Severity of the opacities, from masks on the input grid (paper, "COVID-19 Severity Measures"). Numpy alone.

PO and PHO are percentages of the lung volume. LSS and LHOS grade each lobe 0-4 by its affected percentage and sum
over the five lobes, 0-20.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool

from pipeline.anatomy import Lobe
from pipeline.geometry import LesionMask, LobeLabels, LungMask, Volume

#: Lesion voxels at or above this are high opacity: consolidation and sub-solid regions.
HIGH_OPACITY_HU: Final = -200

#: Upper ends, inclusive, of scores 1, 2 and 3 (Bernheim et al. 2020).
SCORE_UPPER_PERCENT: Final = (25.0, 50.0, 75.0)

#: Below this a lobe counts as not affected: the first bin of the paper's chi-squared test.
UNAFFECTED_BELOW_PERCENT: Final = 1.0


@dataclass(frozen=True)
class LobeSeverity:
    """One lobe. A lobe without voxels has volume 0, percentages 0 and scores 0."""

    lobe: Lobe
    volume_ml: float
    opacity_ml: float
    high_opacity_ml: float
    percent_opacity: float
    percent_high_opacity: float
    severity_score: int
    high_opacity_score: int


@dataclass(frozen=True)
class Severity:
    """The whole scan; `lobes` holds the five lobes in the order of `Lobe`."""

    percent_opacity: float
    percent_high_opacity: float
    lung_severity_score: int
    lung_high_opacity_score: int
    volume_ml: float
    opacity_ml: float
    high_opacity_ml: float
    lobes: tuple[LobeSeverity, ...]


@dataclass(frozen=True)
class PercentRange:
    """Percent of a lobe or of the lungs that are affected at the least and at the most."""

    low: float
    high: float

    @property
    def scores(self) -> tuple[int, int]:
        """The grades of a lobe that lie in the range."""
        return lobe_score(self.low), lobe_score(self.high)


@dataclass(frozen=True)
class OpacityRange:
    """The range of PO, and that of each lobe."""

    overall: PercentRange
    lobes: Mapping[Lobe, PercentRange]


def score_severity(volume: Volume, lungs: LungMask, lobes: LobeLabels, lesions: LesionMask) -> Severity:
    """PO, PHO, LSS and LHOS of masks that share the grid of `volume`.

    Lesion voxels outside the lungs do not count, nor do lobe voxels.

    Raises:
        ValueError: the masks are not on the volume's grid.
    """
    if not volume.grid == lungs.grid == lobes.grid == lesions.grid:
        raise ValueError("volume, lungs, lobes and lesions must share one grid")
    opacity = lesions.mask & lungs.mask
    high_opacity = high_opacity_of(volume, opacity)
    lobe_labels = np.where(lungs.mask, lobes.labels, 0)
    voxel_ml = volume.grid.voxel_volume_ml
    counts = [
        np.bincount(labels.ravel(), minlength=len(Lobe) + 1)
        for labels in (lobe_labels, lobe_labels[opacity], lobe_labels[high_opacity])
    ]
    per_lobe = []
    for lobe in Lobe:
        whole, affected, high = (int(voxels[lobe]) for voxels in counts)
        percent_opacity, percent_high_opacity = percent(affected, whole), percent(high, whole)
        per_lobe.append(
            LobeSeverity(
                lobe=lobe,
                volume_ml=whole * voxel_ml,
                opacity_ml=affected * voxel_ml,
                high_opacity_ml=high * voxel_ml,
                percent_opacity=percent_opacity,
                percent_high_opacity=percent_high_opacity,
                severity_score=lobe_score(percent_opacity),
                high_opacity_score=lobe_score(percent_high_opacity),
            )
        )
    lung_voxels, opacity_voxels, high_voxels = (int(np.count_nonzero(m)) for m in (lungs.mask, opacity, high_opacity))
    return Severity(
        percent_opacity=percent(opacity_voxels, lung_voxels),
        percent_high_opacity=percent(high_voxels, lung_voxels),
        lung_severity_score=sum(lobe.severity_score for lobe in per_lobe),
        lung_high_opacity_score=sum(lobe.high_opacity_score for lobe in per_lobe),
        volume_ml=lung_voxels * voxel_ml,
        opacity_ml=opacity_voxels * voxel_ml,
        high_opacity_ml=high_voxels * voxel_ml,
        lobes=tuple(per_lobe),
    )


def opacity_range(lobes: LobeLabels, certain: LesionMask, possible: LesionMask) -> OpacityRange:
    """The percentages if only `certain` counted, and if all that is `possible` did."""
    count = len(Lobe) + 1
    whole = np.bincount(lobes.labels.ravel(), minlength=count)
    affected = [np.bincount(lobes.labels[lesions.mask], minlength=count) for lesions in (certain, possible)]
    ends = [[percent(int(part[lobe]), int(whole[lobe])) for lobe in Lobe] for part in affected]
    overall = (percent(int(part[1:].sum()), int(whole[1:].sum())) for part in affected)
    ranges = (PercentRange(low, high) for low, high in zip(*ends, strict=True))
    return OpacityRange(PercentRange(*overall), dict(zip(Lobe, ranges, strict=True)))


def high_opacity_of(volume: Volume, opacity: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """The part of the opacity at or above -200 HU on the input grid."""
    return np.asarray(opacity & (volume.hu >= HIGH_OPACITY_HU))


def percent(part: int, whole: int) -> float:
    """`part` of `whole` in percent; 0 of an empty whole."""
    return 100.0 * part / whole if whole else 0.0


def lobe_score(affected_percent: float) -> int:
    """0 below 1 %, 1 to 25 %, 2 to 50 %, 3 to 75 %, 4 above; the upper ends belong to the lower score."""
    if affected_percent < UNAFFECTED_BELOW_PERCENT:
        return 0
    return 1 + sum(affected_percent > upper for upper in SCORE_UPPER_PERCENT)
