"""The volumes the lung network learns on, prepared once: real chests deformed many times, the slices of COVID-19
patients as stacks, and phantoms.

Each is a file with the region of interest at 2 mm: `image` (0-255, the window of `LungConfig`) and `labels` (the lobes'
values; `UNKNOWN_LOBE` where only the lung is known; `OPAQUE` is added where the lung is filled with opacity).
Nothing here runs during training.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from pipeline.anatomy import AIR_HU, Landmark
from pipeline.geometry import Grid, LandmarkPosition, Scan, Triple, Volume, grid_of, to_sitk
from pipeline.io.read import read_ct
from pipeline.lungs.fissure_model import read_shapes
from pipeline.lungs.segment import roi_grid
from pipeline.networks.di2in import LungConfig
from pipeline.phantom import PhantomRecipe, make_phantom
from pipeline.resampling import resample, resample_labels
from training.data.covid_slices import PIXEL_MM, SLICE_MM, CovidSlices, as_hu, read_covid
from training.data.fissure_atlas import draw_lobes
from training.data.landmark_dataset import read_marks, turned_and_scaled
from training.data.lung_batches import OPAQUE, OPAQUE_HU, UNKNOWN_LOBE
from training.data.splits import write_arrays

Labels = UInt8[np.ndarray, "z y x"]
Hu = Float32[np.ndarray, "z y x"]

BASE_MM: Final[Triple] = (1.5, 1.5, 1.5)
NOISE_HU: Final = 60.0


@dataclass(frozen=True, eq=False)
class Chest:
    """A CT with its lobes, at `BASE_MM`, from which deformed copies are made.

    Attributes:
        labels: the lobes, or lung of unknown lobe.
        carina_mm: where the region of interest is placed from.
    """

    volume: Volume
    labels: Labels
    carina_mm: Triple

    @classmethod
    def of(cls, volume: Volume, labels: Labels, config: LungConfig, carina_mm: Triple | None = None) -> "Chest":
        """A chest; where nobody marked its carina the region of interest is placed around the middle of its lungs."""
        grid = volume.grid.covering(BASE_MM)
        hu = np.rint(resample(volume.hu, volume.grid, grid)).astype(np.int16)
        lobes = resample_labels(labels, volume.grid, grid)
        if carina_mm is None:
            where = np.argwhere(lobes > 0)
            corners = np.stack([where.min(axis=0), where.max(axis=0)]).astype(np.float64)
            x, y, z = (grid.to_lps(corners).mean(axis=0) - np.mean(config.carina_box_mm, axis=0)).tolist()
            carina_mm = (x, y, z)
        return cls(Volume(hu, grid), lobes, carina_mm)


def read_lctsc(data: Path, case: str) -> tuple[Scan, Bool[np.ndarray, "z y x"]]:
    """A case of the Lung CT Segmentation Challenge, and its lungs, which were drawn by hand."""
    scan = read_ct(data / "lctsc" / f"{case}_ct.nii.gz")
    mask = sitk.ReadImage(str(data / "lctsc" / f"{case}_lungs.nii.gz"))
    return scan, resample_labels(sitk.GetArrayFromImage(mask), grid_of(mask), scan.volume.grid) > 0


def deformed_copy(chest: Chest, config: LungConfig, rng: np.random.Generator) -> tuple[Hu, Labels]:
    """The region of interest of the chest, turned, stretched and bent, at the config's spacing."""
    # Maps a point of the copy to a point of the source, about the carina. Left stays left:
    # a mirrored chest would have its three lobes on the wrong side.
    degrees = rng.uniform([-7, -6, -8], [7, 6, 8])
    scale = rng.uniform(0.85, 1.2) * rng.uniform([0.93, 0.9, 0.85], [1.07, 1.12, 1.35])
    to_source = turned_and_scaled(degrees, 1 / scale, chest.carina_mm)
    lower, upper = (np.asarray(corner) for corner in config.carina_box_mm)
    centre = np.asarray(to_source.GetInverse().TransformPoint(chest.carina_mm)) + rng.normal(0, 8, 3)
    grid = Grid.axis_aligned((centre + lower).tolist(), (centre + upper).tolist(), (config.spacing_mm,) * 3)
    # Smooth displacements of some millimetres.
    coarse = grid.covering((16.0, 16.0, 16.0))
    field = rng.normal(size=(*coarse.shape, 3))
    for axis in range(3):
        field[..., axis] = ndimage.gaussian_filter(field[..., axis], 2.0)
    field *= rng.uniform(0, 5) / field.std()
    moved = sitk.GetImageFromArray(field, isVector=True)
    moved.CopyInformation(to_sitk(np.zeros(coarse.shape, np.uint8), coarse))
    bending = sitk.DisplacementFieldTransform(sitk.Cast(moved, sitk.sitkVectorFloat64))
    bent = sitk.CompositeTransform([to_source, bending])
    reference = to_sitk(np.zeros(grid.shape, np.uint8), grid)
    image = sitk.Cast(to_sitk(chest.volume.hu, chest.volume.grid), sitk.sitkFloat32)
    if rng.random() < 0.4:
        image = sitk.RecursiveGaussian(image, sigma=float(rng.uniform(1.0, 2.5)), direction=2)
    hu = sitk.GetArrayFromImage(sitk.Resample(image, reference, bent, sitk.sitkLinear, float(AIR_HU)))
    lobes = to_sitk(chest.labels, chest.volume.grid)
    labels = sitk.GetArrayFromImage(sitk.Resample(lobes, reference, bent, sitk.sitkNearestNeighbor, 0))
    return hu, labels


def phantom_region(seed: int, config: LungConfig) -> tuple[Hu, Labels]:
    """The region of interest of a phantom, resampled from one of several slice distances."""
    rng = np.random.default_rng([9, seed])
    spacing: Triple = (float(rng.choice([1.5, 2.0, 3.0, 5.0], p=[0.2, 0.4, 0.25, 0.15])), 2.0, 2.0)
    phantom = make_phantom(PhantomRecipe(seed=seed, spacing_mm=spacing))
    jitter = rng.normal(0, 8, 3)
    landmarks = {
        mark: LandmarkPosition(mark, (x + jitter[0], y + jitter[1], z + jitter[2]), 1.0)
        for mark, (x, y, z) in phantom.landmarks.items()
    }
    source = phantom.volume.grid
    grid = roi_grid(source, landmarks, config)
    hu = resample(phantom.volume.hu, source, grid)
    labels = resample_labels(phantom.lobes.labels, source, grid)
    opaque = resample_labels(phantom.lesions.mask, source, grid) > 0
    labels[opaque & (labels > 0) & (hu > OPAQUE_HU)] |= OPAQUE
    return hu, labels


def covid_region(scan: CovidSlices, config: LungConfig, rng: np.random.Generator) -> tuple[Hu, Labels]:
    """The slices of a COVID-19 case at the spacing of the config: its lobes are not known, its opacities are real.

    Their spacing was not stored, so that every copy takes another one near what fits the size of the lungs.
    """
    in_plane = PIXEL_MM * rng.uniform(0.88, 1.12)
    spacing: Triple = (SLICE_MM * rng.uniform(0.8, 1.4), in_plane, in_plane * rng.uniform(0.95, 1.05))
    source = Grid(scan.image.shape, spacing, (0.0, 0.0, 0.0))
    grid = source.covering((config.spacing_mm,) * 3)
    hu = resample(as_hu(scan.image), source, grid)
    lungs, lesions = (resample_labels(mask, source, grid) > 0 for mask in (scan.lungs, scan.lesions))
    labels = np.where(lungs, UNKNOWN_LOBE, 0).astype(np.uint8)
    labels[lungs & lesions & (hu > OPAQUE_HU)] |= OPAQUE
    return hu, labels


def with_pasted_lesions(
    hu: Hu, labels: Labels, rng: np.random.Generator, spacing_mm: Triple = (2.0, 2.0, 2.0)
) -> tuple[Hu, Labels]:
    """Some ground glass and consolidation in the lungs, often touching the pleura; the anatomy stays."""
    hu, lungs = hu.copy(), labels > 0
    depth = ndimage.distance_transform_edt(lungs)
    where = np.argwhere(lungs)
    marked = labels.copy()
    for _ in range(int(rng.integers(1, 7))):
        # A voxel of the lungs; of several, often the one nearest to the pleura or farthest back.
        tries = where[rng.integers(len(where), size=8)]
        rank = depth[tuple(tries.T)] if rng.random() < 0.5 else -tries[:, 1]
        z, y, x = tries[int(np.argmin(rank)) if rng.random() < 0.75 else 0]
        centre = int(z), int(y), int(x)
        radius_mm = float(rng.uniform(12, 45) if rng.random() < 0.7 else rng.uniform(45, 90))
        # An irregular ball of soft edge, 0 to 1, cut by the lungs; its radius is about `voxels` (z, y, x).
        voxels = radius_mm / np.array(spacing_mm)
        radius = voxels * rng.uniform(0.7, 1.3, 3)
        axes = [(np.arange(n) - c) / r for n, c, r in zip(lungs.shape, centre, radius, strict=True)]
        distance = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2)
        coarse = rng.normal(size=tuple(n // 6 + 2 for n in lungs.shape))
        zoom = [n / m for n, m in zip(lungs.shape, coarse.shape, strict=True)]
        rough = ndimage.zoom(coarse, zoom, order=1)[: lungs.shape[0], : lungs.shape[1], : lungs.shape[2]]
        edge = (1.0 + 0.35 * rough - distance) * float(rng.uniform(2.5, 8.0))
        share = np.asarray(np.clip(edge + 0.5, 0, 1) * lungs, dtype=np.float32)
        # Ground glass lets the vessels show through; consolidation is as dense as soft tissue, some with open bronchi.
        inside = share > 0
        if rng.random() < 0.35:
            dense = np.maximum(hu[inside], hu[inside] + rng.uniform(120, 420))
        else:
            dense = rng.uniform(-80, 90) + rng.normal(0, 25, np.count_nonzero(inside))
            dense = np.where(hu[inside] > dense, hu[inside], dense)
        hu[inside] = hu[inside] + share[inside] * (np.minimum(dense, 250) - hu[inside])
        marked[(share > 0.5) & lungs & (hu > OPAQUE_HU)] |= OPAQUE
    return hu, marked


def crop_to_lungs(
    hu: Hu, labels: Labels, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "zp yp xp"], UInt8[np.ndarray, "zp yp xp"]]:
    """The lungs with a random margin; now and then the scan ends within them."""
    where = np.argwhere(labels > 0)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    margin = rng.integers([4, 4, 4], [50, 30, 30], size=(2, 3))
    # Scans in use end within the lungs now and then, too.
    for end in (0, 1):
        if rng.random() < 0.08:
            margin[end, 0] = -rng.integers(1, 25)
    begin = np.maximum(low - margin[0], 0)
    end_ = np.minimum(high + margin[1], labels.shape)
    slices = tuple(slice(int(a), int(b)) for a, b in zip(begin, end_, strict=True))
    return hu[slices], labels[slices]


def write_volume(path: Path, hu: Hu, labels: Labels, config: LungConfig) -> None:
    """Write one file of the dataset, its image 0-255 over the window of `config`, whole or not at all."""
    low, high = config.window_hu
    image = np.rint((np.clip(hu, low, high) - low) * (255.0 / (high - low))).astype(np.uint8)
    write_arrays(path, {"image": image, "labels": labels}, compressed=False)


def _write_and_print(path: Path, hu: Hu, labels: Labels, config: LungConfig) -> None:
    write_volume(path, hu, labels, config)
    print(path.name, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill a folder with prepared volumes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds lctsc/ and covid-slices/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="*", default=[])
    parser.add_argument("--covid", type=int, nargs="*", default=[], help="cases of the COVID-19 slices, 0 to 6")
    parser.add_argument("--copies", type=int, default=15, help="deformed copies of each real chest")
    parser.add_argument("--first-copy", type=int, default=0, help="the number to begin at, where a dataset is to grow")
    parser.add_argument("--opaque-share", type=float, default=0.65, help="of the copies, that get opacities")
    parser.add_argument("--phantoms", type=int, nargs=2, default=(0, 0), help="first and last + 1 seed")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    config = LungConfig()
    for case in options.cases:
        scan, lungs = read_lctsc(options.data, case)
        drawn, _ = draw_lobes(scan.volume, lungs, read_shapes())
        chest = Chest.of(scan.volume, drawn, config, read_marks()[case][Landmark.CARINA])
        for number in range(options.first_copy, options.copies):
            rng = np.random.default_rng([int(case[-2:]), number])
            hu, labels = crop_to_lungs(*deformed_copy(chest, config, rng), rng)
            if rng.random() < options.opaque_share:
                hu, labels = with_pasted_lesions(hu, labels, rng)
            hu = hu + rng.normal(0, rng.uniform(0, NOISE_HU), hu.shape).astype(np.float32)
            _write_and_print(options.out / f"{case}-{number:03d}.npz", hu, labels, config)
    for slices in read_covid(options.data):
        for number in range(options.first_copy, options.copies if slices.case in options.covid else 0):
            rng = np.random.default_rng([11, slices.case, number])
            hu, labels = crop_to_lungs(*covid_region(slices, config, rng), rng)
            _write_and_print(options.out / f"covid{slices.case}-{number:03d}.npz", hu, labels, config)
    for seed in range(*options.phantoms):
        rng = np.random.default_rng([10, seed])
        hu, labels = crop_to_lungs(*phantom_region(seed, config), rng)
        _write_and_print(options.out / f"phantom-{seed:04d}.npz", hu, labels, config)


if __name__ == "__main__":
    main()
