"""Segments the lesions: ground glass, crazy paving and consolidation in one class (paper, appendix E1).

The scan is resampled to 1 x 1 x 3 mm, windowed to [0, 1] and cropped around the lungs; the network's answer is brought
back onto the scan's own grid and kept inside the lungs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import cc3d
import numpy as np
import torch
from jaxtyping import Bool, Float32, Num

from pipeline.geometry import Grid, LesionMask, LungMask, Triple, Volume, distance_to_mm
from pipeline.networks.dense_unet import TOTAL_STRIDE, DenseUNet, DenseUNetConfig, network_inputs
from pipeline.networks.dense_unet_by_slice import DenseUNetBySlice
from pipeline.networks.device import is_faster_in_bfloat16, on_device
from pipeline.networks.weights import ModelInfo, Weights, load_into
from pipeline.resampling import resample, resample_labels

SPACING_MM: Final[Triple] = (3.0, 1.0, 1.0)
WINDOW_LEVEL_HU: Final = -600.0
WINDOW_WIDTH_HU: Final = 1500.0
#: Around the lungs. The paper's box of 384 mm holds the same lungs with more around them; the network is convolutional
#: and normalises nothing, so a tighter box costs nothing and saves two thirds of the time.
MARGIN_MM: Final = 12.0
#: So many slices of the box are in work at a time, or few where memory is short.
SLICES: Final = 8
LOW_MEMORY_SLICES: Final = 2

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


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of a scan, and what they are at the least and at the most: `certain` <= `likely` <= `possible`."""

    likely: LesionMask
    certain: LesionMask
    possible: LesionMask


@runtime_checkable
class ScanNetwork(Protocol):
    """What tells lesions from the rest of a whole scan."""

    def probability(
        self, inputs: Float32[np.ndarray, "3 z y x"], slices: int, progress: Progress
    ) -> Float32[np.ndarray, "z y x"]:
        """How likely each voxel in the lungs is a lesion; as `DenseUNetBySlice.probability`."""


@dataclass(frozen=True, eq=False)
class LesionNetwork:
    """The DenseUNet with its weights, ready on a device."""

    network: ScanNetwork
    info: ModelInfo

    @classmethod
    def load(cls, weights: Weights, device: torch.device) -> "LesionNetwork":
        """Build the network that `weights` holds.

        Raises:
            WeightsError: the tensors do not fit the configuration, or come from before the level was an input (0.2).
        """
        network = DenseUNet(DenseUNetConfig(**weights.config))
        load_into(network, weights.tensors, weights.info.name)
        dtype = torch.bfloat16 if is_faster_in_bfloat16(device) else torch.float32
        return cls(DenseUNetBySlice(on_device(network, device), dtype), weights.info)

    def probability(
        self, inputs: Float32[np.ndarray, "3 z y x"], progress: Progress = lambda _done: None, slices: int = SLICES
    ) -> Float32[np.ndarray, "z y x"]:
        """How likely each voxel in the lungs is a lesion; sizes must be multiples of the network's stride."""
        return self.network.probability(inputs, slices, progress)


def segment_lesions(
    volume: Volume,
    lungs: LungMask,
    network: LesionNetwork,
    progress: Progress = lambda _done: None,
    slices: int = SLICES,
) -> Lesions:
    """The lesions inside `lungs`, on the grid of `volume`.

    Args:
        slices: how many the network has in work at a time.
        progress: called with the share of the work that is done.
    """
    if not lungs.mask.any():
        nothing = LesionMask(np.zeros(volume.hu.shape, dtype=np.bool_), volume.grid)
        return Lesions(nothing, nothing, nothing)
    box = lesion_grid(lungs)
    inputs = prepare(volume, lungs, box)
    believed = believe_wide(network.probability(inputs, progress, slices), inputs[1] > 0)
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
