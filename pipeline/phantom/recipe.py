"""What can be asked of a phantom, and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from pipeline.anatomy import Landmark
from pipeline.geometry import IDENTITY, LesionMask, LobeLabels, Matrix, Triple, Volume
from pipeline.severity import Severity

#: What the scan covers: `upper-chest` ends above the carina, `lower-chest` begins below it, `abdomen` and `head` hold
#: neither lungs nor landmarks.
Fit = Literal["chest", "upper-chest", "lower-chest", "abdomen", "head"]

Kernel = Literal["soft", "standard", "sharp"]


class Tissue(IntEnum):
    """The phantom's own truth beside the lobes: what each voxel is made of."""

    OUTSIDE = 0
    FAT = 1
    SOFT = 2
    BONE = 3
    HEART = 4
    GREAT_VESSEL = 5
    AIRWAY = 6
    LUNG = 7
    ORGAN = 8
    TABLE = 9


@dataclass(frozen=True)
class PhantomRecipe:
    """Everything about a phantom; the same recipe gives the same voxels.

    Whatever is None is drawn from the seed, so that seeds alone give a varied cohort. The patient depends on the seed,
    never on spacing or direction: two recipes that differ in those show the same patient scanned differently.

    Attributes:
        spacing_mm: z-y-x of the array.
        direction: columns are the LPS unit vectors of the array's x, y and z axis; any orthonormal matrix.
        percent_opacity: opacity in percent of the lungs; 0 is healthy; drawn: a quarter healthy, else 1 to 60.
        consolidation_fraction: share of the opacity that is consolidation, 0 to 1.
        noise_hu: standard deviation of the noise.
        contrast: whether the blood is enhanced.
    """

    seed: int = 0
    spacing_mm: Triple = (2.0, 1.5, 1.5)
    direction: Matrix = IDENTITY
    fit: Fit = "chest"
    percent_opacity: float | None = None
    consolidation_fraction: float | None = None
    noise_hu: float | None = None
    kernel: Kernel | None = None
    contrast: bool | None = None
    table: bool = True


@dataclass(frozen=True, eq=False)
class Phantom:
    """A CT with its whole truth, all on one grid.

    Attributes:
        consolidation: the part of the lesions that was painted as consolidation.
        tissues: values of `Tissue`.
        landmarks: LPS mm; those that lie inside the scan.
        severity: the exact scores of lobes and lesions.
    """

    recipe: PhantomRecipe
    volume: Volume
    lobes: LobeLabels
    lesions: LesionMask
    consolidation: LesionMask
    tissues: UInt8[np.ndarray, "z y x"]
    landmarks: Mapping[Landmark, Triple]
    severity: Severity
