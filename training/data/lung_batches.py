"""What the lung network learns from, step after step: volumes of the dataset, cut or bent, given new lesions, seen by
another scanner. Only torch and numpy are needed, and all work is done on the device of the training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

from pipeline.networks.di2in import CLASSES, LungConfig
from training.augment.random_fields import bent_grid, grain, smooth_noise
from training.augment.synthetic_lesions import add_synthetic_lesions
from training.data.splits import Split, Stage, read_split

#: Label of lung whose lobe is not known.
UNKNOWN_LOBE: Final = CLASSES
#: Bit that marks lung filled with opacity.
OPAQUE: Final = 8
#: Lesion denser than this is marked so.
OPAQUE_HU: Final = -250
SPACING_MM: Final = (2.0, 2.0, 2.0)
#: Of a dataset, how much stays in the memory of the device, so that it is read from disk once.
MOST_KEPT_BYTES: Final = 2 * 2**30
#: About the axes x, y and z.
MOST_TURNED: Final = np.radians([8.0, 6.0, 7.0])
#: Logarithms: of the whole chest, and of each axis.
MOST_STRETCHED: Final = (0.12, 0.08)
MOST_BENT_MM: Final = 5.0
#: How strong the bends are, and how wide.
BEND_MM: Final = 60.0
Image = UInt8[Tensor, "z y x"]
Part = UInt8[Tensor, "zp yp xp"]
Lifted = Float32[Tensor, "z y x"]
Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class LungRecipe:
    """How the network is trained; stored in the weights.

    Attributes:
        trunk_steps, detail_steps: optimiser steps of either stage.
        volumes_per_step: whose losses are averaged; more than one steadies a GPU's many steps.
        learning_rate, detail_learning_rate: at the start of a stage, after the warm-up; fall to a hundredth along a
            cosine.
        bent_share: of the volumes, how many are turned, stretched and bent anew, which a dataset of few copies needs.
        grown_share: of the volumes, how many get new lesions in their lungs beside those of the dataset.
        opaque_weight: how much more a voxel of opaque lung counts.
        crop: largest part of a volume (voxels, z-y-x) that is seen at once.
        whole_share: of the volumes, how many are seen whole instead.
        detail_crop: the part of it that a detail step draws; even numbers.
        level_weights: of the losses at 4, 8 and 16 mm (deep supervision).
        source_weights: how often each kind of volume is drawn (the file name up to the first hyphen, digits left out).
        smoothing: decay of the running mean of the weights, which is what is validated and exported.
        validate_every: steps between two looks at the patients kept aside.
    """

    seed: int = 0
    trunk_steps: int = 2200
    detail_steps: int = 400
    volumes_per_step: int = 1
    learning_rate: float = 2e-3
    detail_learning_rate: float = 1e-2
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    bent_share: float = 0.3
    grown_share: float = 0.4
    opaque_weight: float = 2.0
    crop: tuple[int, int, int] = (112, 112, 160)
    whole_share: float = 0.06
    detail_crop: tuple[int, int, int] = (64, 80, 80)
    level_weights: tuple[float, ...] = (1.0, 0.4, 0.2)
    source_weights: Mapping[str, float] = field(default_factory=lambda: {"case": 1.0, "phantom": 0.7, "covid": 0.6})
    smoothing: float = 0.995
    validate_every: int = 300
    bfloat16: bool = True


@dataclass(frozen=True, eq=False)
class Sample:
    """What the network sees and is asked for.

    Attributes:
        image: in [-1, 1].
        targets: one channel a class, and one for lung of unknown lobe.
        weights: how much each voxel counts.
        window: the part that a detail step draws.
    """

    image: Float32[Tensor, "1 1 z y x"]
    targets: Float32[Tensor, "1 7 z y x"]
    weights: Float32[Tensor, "1 1 z y x"]
    window: Window


class LungDataset:
    """Prepared volumes in a folder, drawn by kind.

    Raises:
        FileNotFoundError: there are none, or none to train on.
    """

    def __init__(
        self, folder: Path, recipe: LungRecipe, split: Split | None = None, device: torch.device | None = None
    ) -> None:
        self._folder = folder
        self._weights = recipe.source_weights
        self._split = split or read_split(folder, Stage.LUNGS)
        self._device = device or torch.device("cpu")
        self._kept: dict[Path, tuple[Image, Image]] = {}
        self._kept_bytes = 0
        self.refresh()

    def refresh(self) -> None:
        """Look again: a dataset may still be growing while the training runs."""
        kinds: dict[str, list[Path]] = {}
        for path in filter(self._split.is_training, sorted(self._folder.rglob("*.npz"))):
            kinds.setdefault(path.name.split("-")[0].rstrip("0123456789"), []).append(path)
        self._kinds = {kind: paths for kind, paths in kinds.items() if self._weights.get(kind, 0) > 0}
        if not self._kinds:
            raise FileNotFoundError(f"no prepared volumes in {self._folder}")

    def validation_paths(self) -> list[Path]:
        """The volumes that choose the model."""
        return self._split.validation_paths(self._folder)

    def draw(self, rng: Generator) -> tuple[Image, Image]:
        """Image and labels of a volume to train on."""
        kinds = sorted(self._kinds)
        shares = np.array([self._weights[kind] for kind in kinds])
        paths = self._kinds[kinds[rng.choice(len(kinds), p=shares / shares.sum())]]
        path = paths[rng.integers(len(paths))]
        if path in self._kept:
            return self._kept[path]
        image, labels = (torch.from_numpy(array).to(self._device) for array in read_volume(path))
        # A GPU's step takes hundredths of a second: reading and decompressing each volume anew would be most of it.
        if self._kept_bytes + 2 * image.numel() <= MOST_KEPT_BYTES:
            self._kept[path] = image, labels
            self._kept_bytes += 2 * image.numel()
        return image, labels


def read_volume(path: Path) -> tuple[UInt8[np.ndarray, "z y x"], UInt8[np.ndarray, "z y x"]]:
    """Image and labels of a prepared volume."""
    with np.load(path) as arrays:
        return arrays["image"], arrays["labels"]


def draw_sample(dataset: LungDataset, recipe: LungRecipe, stride: int, rng: Generator) -> Sample:
    """A volume of the dataset or a part of it, sometimes bent, with new lesions and intensities."""
    image, labels = dataset.draw(rng)
    edges = tuple(image.shape) if rng.random() < recipe.whole_share else recipe.crop
    view = bent_crop if rng.random() < recipe.bent_share else random_crop
    return make_sample(*view(image, labels, edges, rng), recipe, stride, rng)


def make_sample(image: Image, labels: Image, recipe: LungRecipe, stride: int, rng: Generator) -> Sample:
    """New lesions, varied intensities, edges that are multiples of `stride`; what is added is air."""
    if rng.random() < recipe.grown_share:
        # New lesions in the lungs; where they are dense, the lung is marked as opaque.
        low, high = LungConfig().window_hu
        hu, lesions = add_synthetic_lesions(
            image.float() * ((high - low) / 255) + low, (labels > 0).float(), SPACING_MM, rng
        )
        opaque = (lesions > 0) & (hu > OPAQUE_HU)
        shades = ((hu - low) * (255 / (high - low))).round().clamp(0, 255).byte()
        image, labels = torch.where(labels > 0, shades, image), torch.where(opaque, labels | OPAQUE, labels)
    lifted = _vary_intensity(_with_clutter(image, labels, rng), rng)
    pads = padding(image.shape, stride)
    lifted, labels = functional.pad(lifted, pads, value=-1.0), functional.pad(labels, pads)
    # Opaque lung is the hard part and a small share of the voxels; unweighted, the network leaves it out.
    weights = 1.0 + (recipe.opaque_weight - 1.0) * (labels >= OPAQUE).float()
    lobes = labels & (OPAQUE - 1)
    targets = torch.stack([(lobes == label).float() for label in range(CLASSES + 1)])
    window = boundary_window(labels, recipe.detail_crop, rng)
    shown = lifted[None, None].contiguous(memory_format=torch.channels_last_3d)
    return Sample(shown, targets[None], weights[None, None], window)


def padding(shape: Sequence[int], stride: int) -> list[int]:
    """What `functional.pad` has to add behind each axis to make it a multiple of `stride`."""
    return [pad for n in reversed(shape) for pad in (0, -n % stride)]


def random_crop(image: Image, labels: Image, edges: Sequence[int], rng: Generator) -> tuple[Part, Part]:
    """A part of at most `edges` voxels, anywhere."""
    slices = _anywhere(image.shape, edges, rng)
    return image[slices], labels[slices]


def bent_crop(image: Image, labels: Image, edges: Sequence[int], rng: Generator) -> tuple[Part, Part]:
    """The same, turned, stretched and bent as another body would be; left stays left, what lies beyond is air."""
    # Where each voxel of the part comes from, as `grid_sample` wants it: x, y, z from -1 to 1 across the volume.
    slices = _anywhere(image.shape, edges, rng)
    size = [part.stop - part.start for part in slices]
    # Turned about x, then y, then z.
    angles = rng.uniform(-MOST_TURNED, MOST_TURNED)
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    turned = np.asarray(about_z @ about_y @ about_x)
    whole, each = MOST_STRETCHED
    to_source = turned @ np.diag(np.exp(rng.uniform(-whole, whole) + rng.uniform(-each, each, 3)))
    half, half_part = ((np.array(n[::-1]) - 1).clip(1) / 2 for n in (np.array(image.shape), np.array(size)))
    starts = np.array([part.start for part in slices])[::-1]
    centre = (starts + half_part - half) / half
    affine = np.column_stack([to_source * half_part / half[:, None], centre])
    strengths = rng.uniform(0, MOST_BENT_MM) / np.array(SPACING_MM[::-1]) / half
    noise = partial(smooth_noise, torch.Size(size), SPACING_MM, BEND_MM, rng, image.device)
    where = bent_grid(affine, strengths, noise, torch.Size(size), align_corners=True)
    # The nearest voxel's lobe, since the mean of two would be a third one.
    seen, named = (
        functional.grid_sample(volume[None, None].float(), where, mode=mode, padding_mode="border", align_corners=True)[
            0, 0
        ]
        .round()
        .byte()
        for volume, mode in ((image, "bilinear"), (labels, "nearest"))
    )
    within = (where[0].abs() <= 1).all(dim=-1)
    return seen * within, named * within


def boundary_window(labels: Image, edges: Sequence[int], rng: Generator) -> Window:
    """A part of at most `edges` voxels around a voxel where two labels meet, where the detail is; even numbers all."""
    lobes = labels & (OPAQUE - 1)
    meet = (lobes[:-1] != lobes[1:]).nonzero()
    pick = int(rng.integers(len(meet))) if len(meet) else 0
    centre = meet[pick].tolist() if len(meet) else [n // 2 for n in labels.shape]
    slices = []
    for middle, edge, n in zip(centre, edges, labels.shape, strict=True):
        start = int(np.clip(middle - rng.integers(edge // 4, 3 * edge // 4 + 1), 0, max(n - edge, 0))) // 2 * 2
        slices.append(slice(start, min(start + edge, n // 2 * 2)))
    return slices[0], slices[1], slices[2]


def _anywhere(shape: Sequence[int], edges: Sequence[int], rng: Generator) -> tuple[slice, ...]:
    edges = [min(edge, n) for n, edge in zip(shape, edges, strict=True)]
    starts = [int(rng.integers(0, n - edge + 1)) for n, edge in zip(shape, edges, strict=True)]
    return tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))


def _with_clutter(image: Image, labels: Image, rng: Generator) -> Image:
    """Sometimes the air outside of the lungs holds what blankets and cushions do: a thin, uneven haze."""
    if rng.random() < 0.6:
        return image
    coarse = torch.from_numpy(rng.random((1, 1, *(n // 12 + 2 for n in image.shape)), dtype=np.float32))
    smooth = functional.interpolate(coarse.to(image.device), size=list(image.shape), mode="trilinear")[0, 0]
    haze = ((smooth - rng.uniform(0.4, 0.6)) * rng.uniform(60, 220)).clamp(0, 60).byte()
    return torch.where((labels == 0) & (image < 12), image + haze, image)


def _vary_intensity(image: Image, rng: Generator) -> Lifted:
    """Air, lung and tissue a little lighter or darker, another contrast, noise; in [-1, 1]."""
    knots = np.array([0.0, 40.0, 130.0, 165.0, 255.0])
    levels = knots + np.array([0.0, *rng.normal(0, [6, 10, 5]), 0.0])
    if rng.random() < 0.3:
        levels[4] = rng.uniform(200, 255)
        levels[3] += rng.uniform(-6, 14)
    table = np.interp(np.arange(256), knots, np.maximum.accumulate(levels)).astype(np.float32)
    varied = torch.from_numpy(table).to(image.device)[image.int()]
    if rng.random() < 0.5:
        varied = varied + rng.uniform(0, 8) * grain(image.shape, rng, image.device)
    # Air stays exactly black, as the window clips it in use.
    varied[image == 0] = 0.0
    return varied.clamp(0, 255) / 127.5 - 1.0
