"""Opacities as COVID-19 shows them: peripheral, on both sides, more below and behind.

Ground glass lifts the lung to about -640 to -430 HU and leaves vessels visible; crazy paving adds a mesh of septa;
consolidation replaces air by tissue, often up to the pleura. A voxel belongs to the lesion mask where the lesion
covers at least half of it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from numpy.random import Generator

from pipeline.phantom.fields import Field, Space
from pipeline.phantom.recipe import PhantomRecipe

#: Of the phantoms whose opacity is drawn.
HEALTHY_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Lesions:
    """Where the lung is affected.

    Attributes:
        cover: share of each voxel that is affected, 0 to 1, soft at the border.
        consolidated: share that is consolidation; never above `cover`.
    """

    cover: Field
    consolidated: Field

    def mask(self, lung: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
        return np.asarray((self.cover >= 0.5) & lung)

    def consolidation(self, lung: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
        return np.asarray((self.consolidated >= 0.5) & lung)


def drawn_percent(recipe: PhantomRecipe, rng: Generator) -> float:
    """The opacity asked for: the recipe's, else none in a quarter of the patients and 1 to 60 % in the others."""
    healthy, percent = rng.uniform() < HEALTHY_SHARE, float(np.exp(rng.uniform(np.log(1.0), np.log(60.0))))
    if recipe.percent_opacity is not None:
        return recipe.percent_opacity
    return 0.0 if healthy else percent


def grow_lesions(
    space: Space, lung: Bool[np.ndarray, "z y x"], cage: Field, recipe: PhantomRecipe, rng: Generator
) -> Lesions:
    """Affect the wanted share of the lung, where a random field that prefers COVID's places is highest."""
    percent = drawn_percent(recipe, rng)
    fraction = rng.uniform(0.05, 0.7) if rng.uniform() < 0.65 else 0.0
    fraction = recipe.consolidation_fraction if recipe.consolidation_fraction is not None else fraction
    random = space.random(rng, rng.uniform(22, 45)) + 0.5 * space.random(rng, rng.uniform(9, 14))
    depth = np.maximum(-cage - 6, 0)
    peripheral = np.exp(-depth / rng.uniform(12, 35)) * rng.uniform(0.4, 1.8)
    below = np.clip(-space.z / 100, -1, 1) * rng.uniform(0, 0.7)
    behind = np.clip(space.y / 90, -1, 1) * rng.uniform(0, 0.5)
    preference = np.asarray(random + peripheral + below + behind, dtype=np.float32)
    denser = preference + 0.8 * space.random(rng, 18.0)
    softness = rng.uniform(0.08, 0.3)
    if percent <= 0 or not lung.any():
        nothing = np.zeros(lung.shape, np.float32)
        return Lesions(nothing, nothing)
    cover = _highest(preference, lung, percent / 100, softness) * lung
    consolidated = _highest(denser, (cover >= 0.5) & lung, fraction, 0.25) * cover
    return Lesions(cover, consolidated)


def paint_lesions(hu: Field, space: Space, lesions: Lesions, rng: Generator) -> Field:
    """The lung with its lesions, in HU."""
    texture = space.random(rng, 9.0)
    target, strength = rng.uniform(-640, -430) + 50 * texture, rng.uniform(0.85, 1.0)
    paved, mesh, septa_hu = rng.uniform() < 0.4, space.random(rng, 7.0), rng.uniform(80, 200)
    dense = rng.uniform(-40, 50) + 20 * texture
    # What is denser than ground glass already (vessels, walls) shows through it.
    hu = hu + np.maximum(target - hu, 0) * lesions.cover * strength
    if paved:
        hu = hu + septa_hu * (np.abs(mesh) < 0.2) * lesions.cover
    return np.asarray(hu + np.maximum(dense - hu, 0) * lesions.consolidated, dtype=np.float32)


def _highest(values: Field, where: Bool[np.ndarray, "z y x"], share: float, softness: float) -> Field:
    """1 on the highest `share` of `values` within `where`, with a soft border that is 0.5 at the threshold."""
    if share <= 0 or not where.any():
        return np.zeros(values.shape, np.float32)
    threshold = np.quantile(values[where], 1 - min(share, 1.0))
    return np.asarray(np.clip((values - threshold) / np.float32(softness) + 0.5, 0, 1), dtype=np.float32)
