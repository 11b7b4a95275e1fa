"""The crops that the lesion network learns from: cut from the dataset, bent, given new lesions, varied in intensity.

Few public scans hold few anatomies and fewer lesions, which a network memorises within some hundred steps: every crop
is therefore varied anew. Only torch and numpy are needed, and all work is done on the device of the training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

from pipeline.networks.dense_unet import DenseUNetConfig, network_inputs
from training.augment.clahe import TOWARDS_WINDOW, equalise
from training.augment.random_fields import Field, bent_grid, grain, smooth_noise
from training.augment.synthetic_lesions import add_synthetic_lesions, beside_pleura

HU_FLOOR: Final = -1350.0
#: What [0, 1] of the lesion stage's window spans.
HU_SPAN: Final = 1500.0
SPACING_MM: Final = (3.0, 1.0, 1.0)
#: Standard deviation of the strongest noise that is added, per voxel of this spacing.
MOST_NOISE_HU: Final = 67.5
#: Real lungs in HU that may be clean; the other kinds bring lesions of their own.
SYNTHETIC_KINDS: Final = ("clean", "cohort")
#: How much nearer to healthy lung real lesions are shown, half of the time. Few patients have theirs marked, and how
#: faint they are differs more between patients than within one.
FADED: Final = (-0.3, 0.65)
#: Voxels over which the level of a lesion is taken: what varies within is its texture.
FADED_WIDTH: Final = 11
#: Along x and y, of half a crop: slices are too far apart to be warped too.
MOST_WARPED: Final = (0.04, 0.04)
#: Of the crops of real clean lungs, how many are given lesions.
SYNTHETIC_SHARE: Final = 0.75

Size = tuple[int, int, int]


@dataclass(frozen=True)
class LesionRecipe:
    """How the network is trained; stored in the weights.

    Attributes:
        steps: optimiser steps, one crop each.
        learning_rate: at the start; falls along a cosine to a fiftieth.
        optimiser: AdaBound is the paper's; Adam comes further in a few hundred steps.
        warmup_steps: over which the learning rate rises.
        gradient_norm: gradients are cut to this length.
        crop: voxels of a training crop, z-y-x.
        shift_hu: the scan is shifted by up to this much (paper: 20 HU).
        smoothing: voxels added above and below the Jaccard fraction, which steadies nearly empty crops.
        cross_entropy: weight of a cross entropy beside the Jaccard loss: it guides where a crop holds no lesion, where
            the Jaccard loss has no gradient to speak of.
        equalised_share: of the crops in HU, how many are shown as equalised 8-bit slices are, in which alone real
            lesions are to be had.
        inexact_share: of the crops, how many are seen in lungs that hold some of the chest wall, as found lungs do.
        kinds: how often each kind of volume is drawn, of those that the dataset holds.
        average: decay of the running mean of the weights, which is what is measured and exported.
    """

    seed: int = 0
    steps: int = 3000
    learning_rate: float = 6e-4
    warmup_steps: int = 30
    gradient_norm: float = 1.0
    optimiser: Literal["adabound", "adam"] = "adam"
    crop: tuple[int, int, int] = (16, 192, 224)
    shift_hu: float = 20.0
    smoothing: float = 200.0
    cross_entropy: float = 1.0
    equalised_share: float = 0.0
    inexact_share: float = 0.0
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {
            "cohort": 0.4,
            "covid": 0.35,
            "clean": 0.35,
            "grown": 0.08,
            "phantom": 0.22,
        }
    )
    average: float = 0.995
    validate_every: int = 150
    bfloat16: bool = True
    network: DenseUNetConfig = field(default_factory=DenseUNetConfig)


@dataclass(frozen=True, eq=False)
class Example:
    """A prepared volume: 8-bit image, lungs and lesions at 1 x 1 x 3 mm."""

    name: str
    image: UInt8[np.ndarray, "z y x"]
    lungs: Bool[np.ndarray, "z y x"]
    lesions: Bool[np.ndarray, "z y x"]

    @property
    def kind(self) -> str:
        return self.name.split("-")[0]

    def cut(self, box: tuple[slice, ...]) -> "Example":
        return Example(self.name, self.image[box], self.lungs[box], self.lesions[box])


@dataclass(frozen=True, eq=False)
class Crop:
    """One training crop: image in [0, 1], lungs and lesions as 0 and 1."""

    image: Field
    lungs: Field
    lesions: Field

    def inputs(self) -> Float[Tensor, "3 z y x"]:
        """What the network sees."""
        return network_inputs(self.image, self.lungs)


def read_examples(dataset: Path, is_training: Callable[[Path], bool]) -> list[Example]:
    """The volumes of a dataset for which `is_training` holds."""
    return [read_example(path) for path in sorted(dataset.glob("*.npz")) if is_training(path)]


def read_example(path: Path) -> Example:
    """One file of the dataset."""
    with np.load(path) as arrays:
        return Example(path.stem, arrays["image"], arrays["lungs"], arrays["lesions"])


class Sampler:
    """Draws crops by kind, then by volume.

    Raises:
        FileNotFoundError: none of `examples` is of a kind that the recipe draws.
    """

    def __init__(self, examples: list[Example], recipe: LesionRecipe, device: torch.device) -> None:
        self._recipe, self._crop, self._device = recipe, recipe.crop, device
        by_kind = {kind: [example for example in examples if example.kind == kind] for kind in recipe.kinds}
        self._by_kind = {kind: found for kind, found in by_kind.items() if found}
        if not self._by_kind:
            raise FileNotFoundError("the dataset holds nothing to train on")
        shares = np.array([recipe.kinds[kind] for kind in self._by_kind])
        self._shares = shares / shares.sum()

    def draw(self, rng: Generator) -> Crop:
        """A random crop: the same generator draws the same one."""
        kind = list(self._by_kind)[int(rng.choice(len(self._shares), p=self._shares))]
        found = self._by_kind[kind]
        example = found[int(rng.integers(len(found)))]
        crop = self._bend(self._cut(example, rng), rng)
        axes = [axis for axis in range(3) if rng.random() < 0.5]
        crop = Crop(*(field.flip(axes) for field in (crop.image, crop.lungs, crop.lesions)))
        if kind in SYNTHETIC_KINDS and not example.lesions.any() and rng.random() < SYNTHETIC_SHARE:
            hu, lesions = add_synthetic_lesions(crop.image * HU_SPAN + HU_FLOOR, crop.lungs, SPACING_MM, rng)
            crop = Crop((hu - HU_FLOOR) / HU_SPAN, crop.lungs, lesions)
        # The public slices were equalised and hold no HU, so that a shift or scale in HU means nothing for them.
        in_hu = kind != "covid"
        if not in_hu and rng.random() < 0.5:
            crop = _faded(crop, rng.uniform(*FADED))
        if in_hu and rng.random() < self._recipe.equalised_share:
            shown = equalise(crop.image, (HU_FLOOR, HU_FLOOR + HU_SPAN), rng) ** TOWARDS_WINDOW
            crop, in_hu = Crop(shown, crop.lungs, crop.lesions), False
        # As another scanner, another breath or, for what is not in HU, another monotone curve would show it.
        image = crop.image
        if in_hu:
            if rng.random() < 0.5:
                image = image + crop.lungs * breath(self._crop, rng, self._device)
            image = image * rng.uniform(0.96, 1.04)
        else:
            image = image ** float(np.exp(rng.uniform(-0.25, 0.25))) * rng.uniform(0.9, 1.1) + rng.uniform(-0.04, 0.04)
        image = image + rng.uniform(-self._recipe.shift_hu, self._recipe.shift_hu) / HU_SPAN
        if rng.random() < 0.3:
            # A softer kernel in the plane, or slices twice as thick.
            kernel, padding = ((3, 1, 1), (1, 0, 0)) if (rng.random() < 0.5) else ((1, 3, 3), (0, 1, 1))
            image = functional.avg_pool3d(image[None, None], kernel, 1, padding, count_include_pad=False)[0, 0]
        if rng.random() < 0.5:
            image = image + rng.uniform(0, MOST_NOISE_HU / HU_SPAN) * grain(self._crop, rng, self._device)
        crop = Crop(image.clamp(0, 1), crop.lungs, crop.lesions)
        return drawn_too_large(crop, rng) if rng.random() < self._recipe.inexact_share else crop

    def _cut(self, example: Example, rng: Generator) -> Crop:
        """A part with lung in it and, five times of six, with lesion if there is any; padded to the wanted size."""
        wants_lesion = rng.random() < 5 / 6 and example.lesions.any()
        # After eight tries whatever was cut is taken, so that a volume with little lung cannot stop the training.
        for _ in range(8):
            starts = [
                int(rng.integers(max(n - m, 0) + 1)) for n, m in zip(example.image.shape, self._crop, strict=True)
            ]
            part = example.cut(tuple(slice(start, start + m) for start, m in zip(starts, self._crop, strict=True)))
            if part.lungs.mean() > 0.05 and (part.lesions.any() or not wants_lesion):
                break
        pads = [(0, m - n) for n, m in zip(part.image.shape, self._crop, strict=True)]
        # Marked lesion outside of the lungs cannot be learned: the loss looks inside them alone.
        arrays = (part.image.astype(np.float32) / 255, part.lungs, part.lesions & part.lungs)
        image, lungs, lesions = (
            torch.from_numpy(np.pad(array.astype(np.float32), pads)).to(self._device) for array in arrays
        )
        return Crop(image, lungs, lesions)

    def _bend(self, crop: Crop, rng: Generator) -> Crop:
        """Other sizes, turned about the long axis and gently warped in the plane, half of the time."""
        if rng.random() < 0.5:
            return crop
        angle, (z, y, x) = rng.uniform(-0.2, 0.2), np.exp(rng.uniform(-0.2, 0.2, 3))
        cos, sin = np.cos(angle), np.sin(angle)
        affine = [[x * cos, -y * sin, 0, 0], [x * sin, y * cos, 0, 0], [0, 0, z, 0]]
        noise = partial(smooth_noise, self._crop, SPACING_MM, 40.0, rng, self._device)
        grid = bent_grid(affine, MOST_WARPED, noise, self._crop, align_corners=False)
        stacked = torch.stack([crop.image, crop.lungs, crop.lesions])[None]
        image, lungs, lesions = functional.grid_sample(stacked, grid, align_corners=False)[0]
        inside = (lungs > 0.5).float()
        return Crop(image, inside, (lesions > 0.5).float() * inside)


def drawn_too_large(crop: Crop, rng: Generator) -> Crop:
    """The same crop as the lung stage may draw it: a rim of the chest wall, or a bulge into it, is called lung.

    It is no lesion, though it is as dense as one.
    """
    reach = rng.uniform(0, 0.6) + rng.uniform(0.1, 0.5) * smooth_noise(
        crop.lungs.shape, SPACING_MM, rng.uniform(15, 60), rng, crop.lungs.device
    )
    lungs = (beside_pleura(crop.lungs, SPACING_MM) > 1 - reach.clamp(0, 0.97)).float()
    return Crop(crop.image, torch.maximum(lungs, crop.lungs), crop.lesions)


def _faded(crop: Crop, share: float) -> Crop:
    """Its lesions so much nearer to the level of the healthy lung (below 0: farther from it), their texture kept."""
    healthy = (crop.lungs > 0) & (crop.lesions == 0)
    if not healthy.any():
        return crop
    around = _mean_around(crop.image * crop.lesions) / _mean_around(crop.lesions).clamp(min=1e-3)
    higher = (around - crop.image[healthy].median()).clamp(min=0)
    return Crop((crop.image - share * higher * crop.lesions).clamp(min=0), crop.lungs, crop.lesions)


def _mean_around(field: Field) -> Field:
    for kernel, padding in (
        ((1, FADED_WIDTH, 1), (0, FADED_WIDTH // 2, 0)),
        ((1, 1, FADED_WIDTH), (0, 0, FADED_WIDTH // 2)),
    ):
        field = functional.avg_pool3d(field[None, None], kernel, 1, padding)[0, 0]
    return field


def breath(size: Size, rng: Generator, device: torch.device) -> Field:
    """How much denser, in [0, 1] units, a healthy lung is by expiration and by gravity: up to some 60 HU each."""
    along = torch.linspace(-1, 1, size[1], device=device)[None, :, None] * (1 if rng.random() < 0.5 else -1)
    patches = 12 * smooth_noise(size, SPACING_MM, rng.uniform(20, 60), rng, device)
    return (rng.uniform(-30, 60) + rng.uniform(0, 40) * along + patches) / HU_SPAN
