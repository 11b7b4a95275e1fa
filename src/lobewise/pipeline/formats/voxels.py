"""From whatever numbers a file holds to Hounsfield units as int16."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int16, Shaped

from lobewise.pipeline.anatomy import AIR_HU
from lobewise.pipeline.volume import Finding, Grid

HIGHEST_HU: Final = 32767


@dataclass(frozen=True, eq=False)
class RawVolume:
    """A volume as the file holds it, already rescaled.

    Attributes:
        keep_alive: owns the memory behind `values`.
    """

    values: Shaped[np.ndarray, "z y x"]
    grid: Grid
    findings: tuple[Finding, ...] = ()
    keep_alive: object = None


def to_hounsfield(values: Shaped[np.ndarray, "z y x"]) -> tuple[Int16[np.ndarray, "z y x"], tuple[Finding, ...]]:
    """Round and clip to [-1024, 32767], slice by slice: no copy of the whole in floating point.

    Below -1024 is only what scanners write outside of their field of view. What is not a number becomes air, and is
    reported.
    """
    hu = np.empty(values.shape, dtype=np.int16)
    not_finite = sum(_convert(source, target) for source, target in zip(values, hu, strict=True))
    return hu, _not_finite_findings(not_finite)


def _convert(source: np.ndarray, target: np.ndarray) -> int:
    """Fill `target`; returns how many values were no numbers."""
    small = source.dtype.kind in "iu" and source.dtype.itemsize <= 2
    wide = source.astype(np.int32 if small else np.float64)
    finite = np.isfinite(wide)
    rounded = wide if small else np.rint(np.where(finite, wide, AIR_HU))
    target[:] = np.clip(rounded, AIR_HU, HIGHEST_HU)
    return wide.size - int(np.count_nonzero(finite))


def _not_finite_findings(count: int) -> tuple[Finding, ...]:
    if not count:
        return ()
    message = f"{count} voxels hold no number; they were taken for air."
    return (Finding("not-finite-voxels", "warning", message, {"voxels": count}),)
