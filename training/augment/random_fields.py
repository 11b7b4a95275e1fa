"""Random fields on the device of the training: noise, and grids that bend a volume as another body would be."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

Triple = tuple[float, float, float]  # geometry.Triple, which would bring SimpleITK onto a bare machine
Size = tuple[int, ...] | torch.Size
Field = Float[Tensor, "z y x"]


def bent_grid(
    affine: Sequence[Sequence[float]] | Float[np.ndarray, "3 4"],
    strengths: Iterable[float],
    noise: Callable[[], Field],
    size: Size,
    *,
    align_corners: bool,
) -> Float[Tensor, "1 z y x 3"]:
    """Where each voxel of a bent copy comes from, as `grid_sample` wants it: x, y, z from -1 to 1 across the volume.

    Args:
        affine: from the copy to the volume, of x, y, z.
        strengths: of the noise that is added along x and the axes after it, one for each.
        noise: draws the noise of an axis, of unit variance and the copy's size.
        size: of the copy, z-y-x.
    """
    fields = [strength * noise() for strength in strengths]
    theta = torch.tensor(np.asarray(affine)[None], dtype=torch.float32, device=fields[0].device)
    grid = functional.affine_grid(theta, [1, 1, *size], align_corners=align_corners)
    for axis, field in enumerate(fields):
        grid[0, ..., axis] += field
    return grid


def smooth_noise(size: Size, spacing_mm: Triple, length_mm: float, rng: Generator, device: torch.device) -> Field:
    """A random field of unit variance whose bumps are about `length_mm` wide."""
    coarse = [max(2, round(n * mm / length_mm) + 1) for n, mm in zip(size, spacing_mm, strict=True)]
    noise = torch.from_numpy(rng.standard_normal(coarse, dtype=np.float32)).to(device)
    stretched = functional.interpolate(noise[None, None], size=list(size), mode="trilinear", align_corners=True)[0, 0]
    return stretched / stretched.std().clamp(min=1e-3)


def grain(size: Size, rng: Generator, device: torch.device) -> Field:
    """White noise of unit variance, made on the device."""
    source = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
    return torch.randn(size, generator=source, device=device)
