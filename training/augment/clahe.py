"""Shows a CT as public collections of 8-bit slices do: after contrast-limited adaptive histogram equalisation.

Real lesions are to be had in such slices alone. What is seen through the same curves in planning CTs and phantoms,
whose truth is known in HU, joins both worlds. On the device of the training, with torch alone (Zuiderveld 1994).
"""

from typing import Final

import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

#: The slices had 8 bits before they were equalised.
BINS: Final = 256
FLOOR_HU: Final = (-1250.0, -1024.0)
#: What was black, and from there to white: from a lung window to nearly all that a scan holds. Healthy lung and the
#: soft tissue around it are then as bright as in the real slices (of 255: lung 62, tissue 172, in the middle).
SPAN_HU: Final = (1400.0, 2200.0)
#: The contrast that a tile may gain; 3 is what most collections took.
CLIP: Final = (1.5, 4.0)
#: Along either edge of a crop.
TILES: Final = (3, 7)
#: Exponent of the curve that brings the equalised slices near the lung window: their healthy lung (median 62 of 255)
#: then has the value of healthy lung in planning CTs, their soft tissue nearly that of soft tissue.
TOWARDS_WINDOW: Final = 0.72

Field = Float[Tensor, "z y x"]


def equalise(image: Field, window_hu: tuple[float, float], rng: Generator) -> Field:
    """The slices as 8 bits of a random range, each equalised in tiles; values in [0, 1].

    Args:
        window_hu: what 0 and 1 stand for in `image`.
    """
    low, high = window_hu
    shown = (image * (high - low) + low - rng.uniform(*FLOOR_HU)) / rng.uniform(*SPAN_HU)
    return equalised(shown.clamp(0, 1), int(rng.integers(*TILES)), rng.uniform(*CLIP))


def equalised(image: Field, tiles: int, clip: float) -> Field:
    """Each slice through the curves of its tiles, which pass smoothly into each other.

    Args:
        tiles: along either edge of a slice.
        clip: no bin of a tile counts for more than so many even ones.
    """
    bins = (image.clamp(0, 1) * (BINS - 1)).round().long()
    curves = _curves(bins, tiles, clip)
    z = torch.arange(image.shape[0], device=image.device)[:, None, None]
    seen = torch.zeros_like(image)
    for rows, row_weight in _neighbours(image.shape[1], tiles, image.device):
        for columns, column_weight in _neighbours(image.shape[2], tiles, image.device):
            weight = row_weight[:, None] * column_weight[None, :]
            seen += weight * curves[z, rows[None, :, None], columns[None, None, :], bins]
    return seen.clamp(0, 1)  # weights that add up to one do so nearly


def _curves(bins: Int64[Tensor, "z y x"], tiles: int, clip: float) -> Float[Tensor, "z t t b"]:
    """Of each tile: the share of its voxels at or below each bin, after what is over the limit was spread evenly."""
    z, y, x = bins.shape
    rows, columns = (torch.arange(n, device=bins.device) * tiles // n for n in (y, x))
    tile = (torch.arange(z, device=bins.device)[:, None, None] * tiles + rows[:, None]) * tiles + columns
    counts = torch.bincount((tile * BINS + bins).flatten(), minlength=z * tiles * tiles * BINS)
    shares = counts.view(z, tiles, tiles, BINS).float()
    shares = shares / shares.sum(dim=-1, keepdim=True)
    limited = shares.clamp(max=clip / BINS)
    limited = limited + (1 - limited.sum(dim=-1, keepdim=True)) / BINS
    curves: Tensor = limited.cumsum(dim=-1)
    return curves.clamp(0, 1)


def _neighbours(size: int, tiles: int, device: torch.device) -> list[tuple[Int64[Tensor, " n"], Float[Tensor, " n"]]]:
    """The tile before and the tile behind every voxel along an edge, and how much each counts."""
    at = ((torch.arange(size, device=device) + 0.5) * tiles / size - 0.5).clamp(0, tiles - 1)
    before = at.floor().long()
    share = at - before
    return [(before, 1 - share), ((before + 1).clamp(max=tiles - 1), share)]
