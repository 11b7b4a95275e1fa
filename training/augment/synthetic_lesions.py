"""Synthetic lesions in the crop that a training step draws, in HU, new at every step and on the training's device.

`training/augment/pasted_lesions.py` makes the lesions of the volumes that validate a network, by other rules than the
lesions here, which it is trained on: otherwise validation would reward a network that only learned these rules.
"""

from typing import Final

import numpy as np
import torch
from jaxtyping import Bool
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

from training.augment.random_fields import Field, Triple, grain, smooth_noise

#: How deep the lung near the pleura reaches, and the tissue beside it.
PLEURA_MM: Final = 15.0
#: How much denser than the lung around it ground glass is.
GLASS_HU: Final = (80.0, 420.0)


def add_synthetic_lesions(hu: Field, lungs: Field, spacing_mm: Triple, rng: Generator) -> tuple[Field, Field]:
    """The scan with new lesions over 1 to 95 % of its lung, near the pleura more often than not, and their mask (0, 1).

    Ground glass lifts the lung, evenly or in patches, and leaves vessels visible; crazy paving adds a mesh;
    consolidation replaces the air. The mask holds the gaps between patches too, as radiologists draw it.

    Args:
        lungs: 1 inside, 0 outside; nothing changes there.
        spacing_mm: of the fields, z-y-x.
    """
    size, device, inside = hu.shape, hu.device, lungs > 0
    if not inside.any():
        return hu, torch.zeros_like(hu)

    def noise(length_mm: float) -> Field:
        return smooth_noise(size, spacing_mm, length_mm, rng, device)

    extensive = rng.random() < 0.35
    share = rng.uniform(0.15, 0.95) if extensive else np.exp(rng.uniform(np.log(0.01), np.log(0.95)))
    consolidation = rng.uniform(0, 0.8) * (rng.random() < 0.6)
    preference = noise(rng.uniform(16, 45))
    preference = preference + rng.uniform(0.2, 0.8) * noise(rng.uniform(6, 14))
    preference = preference + rng.uniform(0, 2.5) * near_pleura(lungs, spacing_mm)
    denser = preference + 0.8 * noise(18.0)
    cover = _highest(preference, inside, share, rng.uniform(0.08, 0.4))
    consolidated = _highest(denser, (cover >= 0.5) & inside, consolidation, 0.25) * cover

    texture, healthy = noise(9.0), float(hu[inside].median())
    glass = healthy + np.exp(rng.uniform(*np.log(GLASS_HU))) + 40 * texture
    gaps = (0.5 + 0.5 * torch.tanh(2 * noise(rng.uniform(4, 14)))) * rng.uniform(0, 0.8) * (rng.random() < 0.6)
    hu = hu + (glass - hu).clamp(min=0) * cover * (1 - gaps) * rng.uniform(0.85, 1.0)
    if rng.random() < 0.4:
        septa = (noise(7.0).abs() < 0.2).float()
        hu = hu + rng.uniform(80, 200) * septa * cover
    dense = rng.uniform(-60, 60) + 20 * texture
    hu = hu + (dense - hu).clamp(min=0) * consolidated
    hu = hu + rng.uniform(3, 22) * grain(size, rng, device) * cover
    return hu, (cover >= 0.5).float() * lungs


def near_pleura(lungs: Field, spacing_mm: Triple) -> Field:
    """About 1 at the edge of the lungs, falling to 0 some `PLEURA_MM` inside."""
    return (2 - 2 * _softened(lungs, spacing_mm)).clamp(0, 1)


def beside_pleura(lungs: Field, spacing_mm: Triple) -> Field:
    """1 in the lungs and at their edge, falling to 0 some `PLEURA_MM` outside."""
    return (2 * _softened(lungs, spacing_mm)).clamp(0, 1)


def _softened(lungs: Field, spacing_mm: Triple) -> Field:
    blurred = lungs[None, None]
    for _ in range(2):
        for axis, mm in enumerate(spacing_mm):  # one axis after the other: thirty times as fast as all at once
            half = [max(1, round(PLEURA_MM / 2 / mm)) if other == axis else 0 for other in range(3)]
            blurred = functional.avg_pool3d(blurred, [2 * n + 1 for n in half], 1, half)
    return blurred[0, 0]


def _highest(values: Field, where: Bool[Tensor, "z y x"], share: float, softness: float) -> Field:
    """1 on the highest `share` of `values` within `where`, 0.5 at the threshold, 0 outside."""
    inside = values[where]
    wanted = round(share * inside.numel())
    if wanted == 0:
        return torch.zeros_like(values)
    threshold = inside.kthvalue(inside.numel() - wanted + 1).values
    return ((values - threshold) / softness + 0.5).clamp(0, 1) * where
