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

from lobewise.pipeline.networks.dense_unet import TOTAL_STRIDE, DenseUNet, DenseUNetConfig, network_inputs
from lobewise.pipeline.networks.device import mixed_precision, on_device
from lobewise.pipeline.networks.weights import ModelInfo, Weights, WeightsError
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

LIKELY: Final = 0.5
"""A voxel at least this likely to be a lesion is one."""
CERTAIN: Final = 0.9
POSSIBLE: Final = 0.1
"""What counts at the least and at the most, for the range of the scores."""

Progress = Callable[[float], None]


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
        try:
            network.load_state_dict(dict(weights.tensors))
        except RuntimeError as error:
            raise WeightsError(f"the weights of {weights.info.name!r} do not fit their configuration") from error
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
    volume: Volume, lungs: LungMask, network: LesionNetwork, progress: Progress = lambda _done: None
) -> Lesions:
    """The lesions inside `lungs`, on the grid of `volume`.

    Args:
        progress: called with the share of the work that is done.
    """
    if not lungs.mask.any():
        nothing = LesionMask(np.zeros(volume.hu.shape, dtype=np.bool_), volume.grid)
        return Lesions(nothing, nothing, nothing)
    box = lesion_grid(lungs)
    inputs = prepare(volume, lungs, box)
    probability = resample(predict(inputs, network, progress), box, volume.grid, outside=0.0)
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
    mask = resample_labels(lungs.mask, lungs.grid, box).astype(np.float32)
    return network_inputs(torch.from_numpy(image), torch.from_numpy(mask)).numpy()


def predict(
    inputs: Float32[np.ndarray, "3 z y x"], network: LesionNetwork, progress: Progress = lambda _done: None
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
