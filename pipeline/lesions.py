"""Segments the lesions: ground glass, crazy paving and consolidation in one class (paper, appendix E1).

The scan is resampled to 1 x 1 x 3 mm, windowed to [0, 1] and cropped around the lungs; the network's answer is brought
back onto the scan's own grid and kept inside the lungs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

import cc3d
import numpy as np
import torch
from jaxtyping import Bool, Float32, Num

from pipeline.geometry import Grid, LesionMask, LungMask, Triple, Volume, distance_to_mm, resample, resample_labels
from pipeline.networks.dense_unet import TOTAL_STRIDE, DenseUNet, DenseUNetConfig, network_inputs
from pipeline.networks.device import mixed_precision, on_device
from pipeline.networks.weights import ModelInfo, Weights, load_into

SPACING_MM: Final[Triple] = (3.0, 1.0, 1.0)
WINDOW_LEVEL_HU: Final = -600.0
WINDOW_WIDTH_HU: Final = 1500.0
#: Around the lungs. The paper's box of 384 mm holds the same lungs with more around them; the network is convolutional
#: and normalises nothing, so a tighter box costs nothing and saves two thirds of the time.
MARGIN_MM: Final = 12.0
#: The box is worked off in tiles of at most so many voxels (z-y-x) that overlap by twice the halo, so that memory stays
#: bounded however large it is. The small ones take about half the memory, and half as much time again.
TILE: Final = (32, 512, 512)
LOW_MEMORY_TILE: Final = (32, 160, 160)
HALO: Final = (8, 32, 32)

#: A voxel at least this likely to be a lesion is one.
LIKELY: Final = 0.5
#: What counts at the least and at the most, for the range of the scores.
CERTAIN: Final = 0.9
POSSIBLE: Final = 0.1
#: Tissue of at least this probability counts as lesion where a ball of `WIDE_MM` fits into it, next to a lesion
#: (decision 21). A lower threshold everywhere would find wide ground glass too, and the rim of every small lesion.
FAINT: Final = 0.05
WIDE_MM: Final = 10.0
#: Above `LIKELY` and below `CERTAIN`: the range of the scores still shows that this tissue is unsure.
BELIEVED: Final = (LIKELY + CERTAIN) / 2

Progress = Callable[[float], None]
Tile = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of a scan, and what they are at the least and at the most: `certain` <= `likely` <= `possible`."""

    likely: LesionMask
    certain: LesionMask
    possible: LesionMask


@dataclass(frozen=True, eq=False)
class LesionNetwork:
    """The DenseUNet with its weights, ready on a device."""

    network: DenseUNet
    device: torch.device
    info: ModelInfo

    @classmethod
    def load(cls, weights: Weights, device: torch.device) -> "LesionNetwork":
        """Build the network that `weights` holds.

        Raises:
            WeightsError: the tensors do not fit the configuration, or come from before the level was an input (0.2).
        """
        network = DenseUNet(DenseUNetConfig(**weights.config))
        load_into(network, weights.tensors, weights.info.name)
        return cls(on_device(network, device).eval(), device, weights.info)

    def probability(self, inputs: Float32[np.ndarray, "3 z y x"]) -> Float32[np.ndarray, "z y x"]:
        """How likely each voxel is a lesion; sizes must be multiples of the network's stride."""
        with torch.inference_mode():
            batch = torch.from_numpy(inputs)[None].to(self.device, memory_format=torch.channels_last_3d)
            with mixed_precision(self.device):
                logits = self.network(batch)
            answer = logits.float().softmax(dim=1)[0, 1]
        return np.asarray(answer.cpu().numpy())


def segment_lesions(
    volume: Volume,
    lungs: LungMask,
    network: LesionNetwork,
    progress: Progress = lambda _done: None,
    tile: Tile = TILE,
) -> Lesions:
    """The lesions inside `lungs`, on the grid of `volume`.

    Args:
        tile: the largest part that the network sees at once; multiples of its stride.
        progress: called with the share of the work that is done.
    """
    if not lungs.mask.any():
        nothing = LesionMask(np.zeros(volume.hu.shape, dtype=np.bool_), volume.grid)
        return Lesions(nothing, nothing, nothing)
    box = lesion_grid(lungs)
    inputs = prepare(volume, lungs, box)
    believed = believe_wide(predict(inputs, network, progress, tile), inputs[1] > 0)
    probability = resample(believed, box, volume.grid, outside=0.0)
    likely, certain, possible = (
        LesionMask((probability >= least) & lungs.mask, volume.grid) for least in (LIKELY, CERTAIN, POSSIBLE)
    )
    return Lesions(likely, certain, possible)


def lesion_grid(lungs: LungMask) -> Grid:
    """The 1 x 1 x 3 mm box around the lungs, its sizes multiples of the network's stride."""
    where = np.nonzero(lungs.mask)
    index = np.array([[int(axis.min()) for axis in where], [int(axis.max()) for axis in where]], dtype=np.float64)
    corners = lungs.grid.to_lps(np.array([(z, y, x) for z in index[:, 0] for y in index[:, 1] for x in index[:, 2]]))
    lower, upper = corners.min(axis=0) - MARGIN_MM, corners.max(axis=0) + MARGIN_MM
    step_mm = np.array(TOTAL_STRIDE[::-1]) * np.array(SPACING_MM[::-1])
    missing = -(upper - lower) % step_mm
    return Grid.axis_aligned(lower - missing / 2, upper + missing / 2, SPACING_MM)


def window(hu: Num[np.ndarray, "*size"]) -> Float32[np.ndarray, "*size"]:
    """The lung window, level -600 HU and width 1500 HU, as [0, 1]."""
    floor = WINDOW_LEVEL_HU - WINDOW_WIDTH_HU / 2
    return np.asarray(np.clip((hu.astype(np.float32) - floor) / WINDOW_WIDTH_HU, 0.0, 1.0), dtype=np.float32)


def prepare(volume: Volume, lungs: LungMask, box: Grid) -> Float32[np.ndarray, "3 z y x"]:
    """The network's input (`networks/dense_unet.network_inputs`) of the whole box."""
    image = window(resample(volume.hu, volume.grid, box))
    # Consolidation at the chest wall has the wall's density: without the mask nothing tells where the lung ended.
    mask = resample_labels(lungs.mask, lungs.grid, box).astype(np.float32)
    return network_inputs(torch.from_numpy(image), torch.from_numpy(mask)).numpy()


def predict(
    inputs: Float32[np.ndarray, "3 z y x"],
    network: LesionNetwork,
    progress: Progress = lambda _done: None,
    tile: Tile = TILE,
) -> Float32[np.ndarray, "z y x"]:
    """Lesion probability of a prepared box, tile by tile; of each tile its middle is kept."""
    size = inputs.shape[1:]
    probability = np.zeros(size, dtype=np.float32)
    tiles = list(product(*map(_pieces, size, tile, HALO)))
    for number, pieces in enumerate(tiles, start=1):
        part = inputs[:, *(slice(begin, begin + edge) for (begin, _), edge in zip(pieces, tile, strict=True))]
        keep = tuple(kept for _, kept in pieces)
        if part[1].any():
            answer = network.probability(np.ascontiguousarray(part))
            inner = (slice(kept.start - begin, kept.stop - begin) for begin, kept in pieces)
            probability[keep] = answer[tuple(inner)]
        progress(number / len(tiles))
    return probability


def believe_wide(
    probability: Float32[np.ndarray, "z y x"], lungs: Bool[np.ndarray, "z y x"]
) -> Float32[np.ndarray, "z y x"]:
    """The probability on the network's grid, raised where a lesion is faint but wide.

    The network is sure of a voxel by what is near it, and gives wide, even ground glass less than half; but so much of
    it in one place is no chance. Around small lesions the faint rim is thin, and stays what it is.
    """
    faint = (probability >= FAINT) & lungs
    core = distance_to_mm(~faint, SPACING_MM) > WIDE_MM
    if not core.any():
        return probability
    likely = (probability >= LIKELY) & lungs
    wide = faint & (distance_to_mm(core, SPACING_MM) <= WIDE_MM)
    parts = cc3d.connected_components(wide | likely, connectivity=6)
    has_likely = np.zeros(int(parts.max()) + 1, dtype=np.bool_)
    has_likely[parts[likely]] = True
    return np.where(wide & has_likely[parts], np.maximum(probability, np.float32(BELIEVED)), probability)


def _pieces(size: int, edge: int, halo: int) -> Iterator[tuple[int, slice]]:
    """Where along an axis each piece begins and what of its answer is kept; together they cover all of it once."""
    step = edge - 2 * halo
    done = 0
    while done < size:
        begin = max(0, min(done - halo, size - edge))
        last = begin + edge >= size
        stop = size if last else min(done + step + (halo if begin == 0 else 0), size)
        yield begin, slice(done, stop)
        done = stop
