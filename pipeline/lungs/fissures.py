"""Brings the borders between lobes to this patient's fissures (decisions 22 and 23).

At 2 mm the network draws a fissure where it lies in most people. First the shapes that fissures have in people are laid
through what the scan shows faintly, all of it at once; then the borders follow the sheets that it shows plainly.
"""

from typing import Final

import numpy as np
from jaxtyping import UInt8

from pipeline.geometry import Grid, Volume
from pipeline.lungs.fissure_model import SeenSd, lay_fissures
from pipeline.lungs.fissure_refinement import walk_to_sheets

THICKEST_SLICES_MM: Final = 3.5
"""Fissures are half a millimetre thick; in thicker slices what looks like a sheet is more often none."""

Labels = UInt8[np.ndarray, "z y x"]


def follow_fissures(volume: Volume, roi: Grid, labels: Labels) -> tuple[Labels, SeenSd]:
    """Lobes (labels on `roi`) with their borders on the fissures of `volume`, and how surely each fissure was seen.

    The lungs stay as they are.
    """
    if max(volume.grid.spacing_mm) > THICKEST_SLICES_MM:
        return labels, {}
    laid, seen_sd = lay_fissures(volume, roi, labels)
    return walk_to_sheets(volume, roi, laid), seen_sd
