"""Segments the lesions: ground glass, crazy paving and consolidation in one class (paper, appendix E1).

The scan is resampled to 1 x 1 x 3 mm, windowed to [0, 1] and cropped around the lungs; the network's answer is brought
back onto the scan's own grid and kept inside the lungs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Num

from lobewise.pipeline.networks.dense_unet import TOTAL_STRIDE, DenseUNet, DenseUNetConfig
from lobewise.pipeline.networks.device import mixed_precision, on_device
from lobewise.pipeline.networks.weights import ModelInfo, Weights
from lobewise.pipeline.volume import Grid, LesionMask, LungMask, Triple, Volume, resample, resample_labels

SPACING_MM: Final[Triple] = (3.0, 1.0, 1.0)
WINDOW_LEVEL_HU: Final = -600.0
WINDOW_WIDTH_HU: Final = 1500.0
MARGIN_MM: Final = 12.0
"""Around the lungs. The paper's box of 384 mm holds the same lungs with more around them; the network is convolutional
and normalises nothing, so a tighter box costs nothing and saves two thirds of the time."""
SLAB_SLICES: Final = 32
SLAB_HALO: Final = 8
"""The box is worked off in slabs that overlap by this many slices, so that memory stays bounded however long it is."""

Progress = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class LesionNetwork:
    """The DenseUNet with its weights, ready on a device."""

    network: DenseUNet
    device: torch.device
    info: ModelInfo

    @classmethod
    def load(cls, weights: Weights, device: torch.device) -> "LesionNetwork":
        network = DenseUNet(DenseUNetConfig(**weights.config))
        network.load_state_dict(dict(weights.tensors))
        return cls(on_device(network, device).eval(), device, weights.info)

    def probability(self, inputs: Float32[np.ndarray, "2 z y x"]) -> Float32[np.ndarray, "z y x"]:
        """How likely each voxel is a lesion; sizes must be multiples of the network's stride."""
        with torch.inference_mode():
            batch = torch.from_numpy(inputs)[None].to(self.device, memory_format=torch.channels_last_3d)
            with mixed_precision(self.device):
                logits = self.network(batch)
            answer = logits.float().softmax(dim=1)[0, 1]
        return np.asarray(answer.cpu().numpy())


def segment_lesions(
    volume: Volume, lungs: LungMask, network: LesionNetwork, progress: Progress = lambda _done: None
) -> LesionMask:
    """The lesions inside `lungs`, on the grid of `volume`.

    Args:
        progress: called with the share of the work that is done.
    """
    if not lungs.mask.any():
        return LesionMask(np.zeros(volume.hu.shape, dtype=np.bool_), volume.grid)
    box = lesion_grid(lungs)
    inputs = prepare(volume, lungs, box)
    probability = predict(inputs, network, progress)
    on_input = resample(probability, box, volume.grid, outside=0.0)
    return LesionMask((on_input >= 0.5) & lungs.mask, volume.grid)


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


def prepare(volume: Volume, lungs: LungMask, box: Grid) -> Float32[np.ndarray, "2 z y x"]:
    """The network's input, shared by training and inference: the windowed scan and the lung mask."""
    image = window(resample(volume.hu, volume.grid, box))
    mask = resample_labels(lungs.mask, lungs.grid, box)
    return np.stack([image, mask.astype(np.float32)])


def predict(
    inputs: Float32[np.ndarray, "2 z y x"], network: LesionNetwork, progress: Progress = lambda _done: None
) -> Float32[np.ndarray, "z y x"]:
    """Lesion probability of a prepared box, slab by slab; of each slab its middle is kept."""
    slices = inputs.shape[1]
    probability = np.zeros(inputs.shape[1:], dtype=np.float32)
    for begin, keep in _slabs(slices):
        slab = inputs[:, begin : begin + SLAB_SLICES]
        if slab[1].any():
            answer = network.probability(np.ascontiguousarray(slab))
            probability[keep] = answer[keep.start - begin : keep.stop - begin]
        progress(keep.stop / slices)
    return probability


def _slabs(slices: int) -> Iterator[tuple[int, slice]]:
    """Where each slab begins and which slices its answer is kept for; together they cover all slices once."""
    step = SLAB_SLICES - 2 * SLAB_HALO
    done = 0
    while done < slices:
        begin = max(0, min(done - SLAB_HALO, slices - SLAB_SLICES))
        last = begin + SLAB_SLICES >= slices
        stop = slices if last else min(done + step + (SLAB_HALO if begin == 0 else 0), slices)
        yield begin, slice(done, stop)
        done = stop
