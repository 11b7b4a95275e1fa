"""Lesions of the phantom pasted into real lungs: real anatomy, known lesions, in Hounsfield units."""

from typing import Final

import edt
import numpy as np
from jaxtyping import Bool, Int16

from pipeline.geometry import Grid, LungMask, Volume
from pipeline.phantom import PhantomRecipe
from pipeline.phantom.fields import Space
from pipeline.phantom.lesions import grow_lesions, paint_lesions

#: Where the phantom's lungs have their middle; its random fields are laid out around it.
CENTRE_MM: Final = (0.0, 0.0, -40.0)
NOISE_HU: Final = (4.0, 22.0)


def with_pasted_lesions(
    volume: Volume, lungs: LungMask, seed: int, percent_opacity: float
) -> tuple[Int16[np.ndarray, "z y x"], Bool[np.ndarray, "z y x"]]:
    """The scan with lesions over `percent_opacity` of its lungs, and their mask.

    They grow where COVID-19 prefers to: near the pleura, below and behind. Vessels stay visible in ground glass.
    """
    rng = np.random.default_rng([seed, 101])
    # The lungs' grid, moved so that their middle lies where the phantom's does.
    middle = lungs.grid.to_lps(np.argwhere(lungs.mask).mean(axis=0))
    x, y, z = np.asarray(lungs.grid.origin_mm) - middle + np.asarray(CENTRE_MM)
    grid = lungs.grid
    centred = Grid(grid.shape, grid.spacing_mm, (float(x), float(y), float(z)), grid.direction)
    space = Space.of(centred)
    depth_mm = edt.edt(lungs.mask, anisotropy=volume.grid.spacing_mm).astype(np.float32)
    recipe = PhantomRecipe(seed=seed, percent_opacity=percent_opacity)
    lesions = grow_lesions(space, lungs.mask, -depth_mm, recipe, rng)
    painted = paint_lesions(volume.hu.astype(np.float32), space, lesions, rng)
    grain = rng.normal(0, rng.uniform(*NOISE_HU), painted.shape).astype(np.float32)
    painted += grain * lesions.cover
    return np.clip(np.round(painted), -1024, 3071).astype(np.int16), lesions.mask(lungs.mask)
