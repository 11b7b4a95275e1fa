"""The scans the landmark agents learn on: real ones deformed many times, and phantoms, prepared once.

    python -m training.data.landmark_dataset --data DATA DATASET

A dataset is a folder of `.npz` files, one a scan: its levels (`level0`, coarse, to `levelN`, 0-255) and, for each
landmark whose place is known, in the scan or beyond its border, mm (z, y, x) from the lower corner.
`training.landmarks` reads it.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float64

from pipeline.anatomy import AIR_HU, Landmark
from pipeline.geometry import Grid, Triple, Volume, grid_of, to_sitk
from pipeline.io.read import read_ct
from pipeline.landmarks import build_levels
from pipeline.networks.q_network import LandmarkConfig
from pipeline.phantom import Fit, PhantomRecipe, make_phantom
from pipeline.resampling import resample
from training.data.splits import write_arrays

#: Coarser than most scans, so that the many deformed copies of one are quick to make.
BASE_SPACING_MM: Final[Triple] = (2.0, 2.0, 2.0)
COPY_SPACING_MM: Final[Triple] = (3.0, 2.5, 2.5)
#: The real scans that the agents learn on; all other marked ones are for evaluation.
REAL_CASES: Final = ("case01", "case02", "case03", "case04", "ct-64")
#: What every third phantom is shown as too, in turn. Its landmarks, out of sight, are known from its chest.
OTHER_FITS: Final[tuple[Fit, ...]] = ("abdomen", "upper-chest", "head", "lower-chest")
PHANTOM_SPACING_MM: Final[Triple] = (4.0, 3.0, 3.0)
Marks = Mapping[Landmark, Triple]


def read_marks() -> dict[str, dict[Landmark, Triple]]:
    """The marks on real scans, by case: LPS mm (x, y, z)."""
    text = files("training.data").joinpath("landmark_marks.json").read_text()
    marks: dict[str, dict[Landmark, Triple]] = {}
    for mark in json.loads(text)["marks"]:
        x, y, z = mark["position_mm"]
        marks.setdefault(mark["case"], {})[Landmark(mark["landmark"])] = (x, y, z)
    return marks


def add_real(dataset: Path, data: Path, copies: int, config: LandmarkConfig) -> Iterator[str]:
    """Add each case of `REAL_CASES` as it is and deformed; yields what has been added."""
    marks = read_marks()
    for number, name in enumerate(REAL_CASES):
        path = real_path(data, name)
        if path is None:
            raise FileNotFoundError(f"{name} is not in {data}")
        volume = read_ct(path).volume
        write_scan(dataset / f"real-{name}-00.npz", volume, marks[name], config)
        base = base_of(volume)
        for copy in range(1, copies):
            rng = np.random.default_rng((number, copy))
            write_scan(dataset / f"real-{name}-{copy:02}.npz", *deform(base, marks[name], rng), config)
            yield f"{name} {copy}"


def add_phantoms(dataset: Path, seeds: Iterable[int], copies: int, config: LandmarkConfig) -> Iterator[str]:
    """Add a phantom's chest for each seed, of every third also another part; each as it is and deformed."""
    for seed in seeds:
        chest = make_phantom(PhantomRecipe(seed=seed, spacing_mm=PHANTOM_SPACING_MM))
        shown = [chest]
        if seed % 3 == 0:
            fit = OTHER_FITS[seed // 3 % len(OTHER_FITS)]
            shown.append(make_phantom(replace(chest.recipe, fit=fit)))
        for phantom in shown:
            for copy in range(copies):
                rng = np.random.default_rng((seed, copy))
                scan = deform(phantom.volume, chest.landmarks, rng) if copy else (phantom.volume, chest.landmarks)
                write_scan(dataset / f"phantom-{seed:04}-{phantom.recipe.fit}-{copy}.npz", *scan, config)
            yield f"phantom {seed} {phantom.recipe.fit}"


def real_path(data: Path, name: str) -> Path | None:
    """Where a marked scan lies in the folder of public data, if it is there."""
    places = (f"lctsc/{name}_ct.nii.gz", f"dicom/{name}.zip", f"fissures/{name}.nrrd")
    return next((data / place for place in places if (data / place).is_file()), None)


def write_scan(path: Path, volume: Volume, marks_mm: Marks, config: LandmarkConfig) -> None:
    """Add a scan with its landmarks (LPS mm, inside or outside of it) to a dataset, whole or not at all."""
    margin = config.box // 2
    levels = [level.padded[margin:-margin, margin:-margin, margin:-margin] for level in build_levels(volume, config)]
    lower_xyz, _ = volume.grid.bounds_mm()
    places = {mark.value: (np.array(xyz) - lower_xyz)[::-1] for mark, xyz in marks_mm.items()}
    arrays = {f"level{number}": level for number, level in enumerate(levels)}
    write_arrays(path, {**arrays, **places})


def base_of(volume: Volume) -> Volume:
    """The scan at `BASE_SPACING_MM`, from which deformed copies are quick to make."""
    grid = volume.grid.covering(BASE_SPACING_MM)
    return Volume(np.rint(resample(volume.hu, volume.grid, grid)).astype(np.int16), grid)


def deform(base: Volume, marks_mm: Marks, rng: np.random.Generator) -> tuple[Volume, dict[Landmark, Triple]]:
    """A copy of a scan, turned, stretched, mirrored, noisy, sometimes of thick slices, and its landmarks.

    Air is added around it, since the scans may be cut close to the chest.
    """
    image = sitk.Cast(to_sitk(base.hu, base.grid), sitk.sitkFloat32)
    if rng.random() < 0.4:
        image = sitk.RecursiveGaussian(image, sigma=float(rng.uniform(1.0, 3.5)), direction=2)
    # Maps a point of the copy to a point of the source.
    lower, upper = base.grid.bounds_mm()
    degrees = rng.uniform([-7, -7, -15], [7, 7, 15])
    scale = rng.uniform(0.85, 1.18) * rng.uniform(0.92, 1.08, 3)
    # Landmarks lie in the middle: a mirrored chest is another valid one (lobes may not be mirrored).
    mirror = np.array([-1.0 if rng.random() < 0.5 else 1.0, 1.0, 1.0])
    to_source = turned_and_scaled(degrees, mirror / scale, ((lower + upper) / 2).tolist())
    # Around the source's box as the copy shows it; air beside the chest, none above and below.
    centre, half = (lower + upper) / 2, (upper - lower) / 2
    half = np.abs(np.diag(np.linalg.inv(np.reshape(to_source.GetMatrix(), (3, 3))))) * half
    air = rng.uniform([0, 0, -25], [70, 90, 0], (2, 3)) * (1.0 if rng.random() < 0.6 else 0.1)
    grid = Grid.axis_aligned((centre - half - air[0]).tolist(), (centre + half + air[1]).tolist(), COPY_SPACING_MM)
    copy = sitk.Resample(image, to_sitk(np.zeros(grid.shape, np.uint8), grid), to_source, sitk.sitkLinear, AIR_HU)
    hu = sitk.GetArrayFromImage(copy) + rng.normal(0, rng.uniform(0, 60), grid.shape) + rng.uniform(-30, 30)
    to_copy = to_source.GetInverse()
    marks: dict[Landmark, Triple] = {}
    for mark, xyz in marks_mm.items():
        x, y, z = to_copy.TransformPoint(xyz)
        marks[mark] = (x, y, z)
    return Volume(np.clip(np.rint(hu), AIR_HU, 3000).astype(np.int16), grid_of(copy)), marks


def turned_and_scaled(
    degrees: Float64[np.ndarray, "3"], scale: Float64[np.ndarray, "3"], centre_mm: Sequence[float]
) -> sitk.AffineTransform:
    """An affine map about a point: scaled along x, y, z, then turned about them."""
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*np.radians(degrees).tolist())
    transform = sitk.AffineTransform(3)
    transform.SetCenter([float(c) for c in centre_mm])
    transform.SetMatrix((np.reshape(turn.GetMatrix(), (3, 3)) @ np.diag(scale)).ravel().tolist())
    return transform


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m training.data.landmark_dataset`."""
    parser = argparse.ArgumentParser(description="Prepare the scans that the landmark agents learn on.")
    parser.add_argument("dataset", type=Path, help="folder that is made")
    parser.add_argument("--data", type=Path, help="folder of the public scans; without it, phantoms alone")
    parser.add_argument("--copies", type=int, default=40, help="of each real scan")
    parser.add_argument("--phantom-copies", type=int, default=4, help="of each phantom")
    parser.add_argument("--phantoms", type=int, default=36, help="how many; seeds from 0")
    options = parser.parse_args(arguments)
    options.dataset.mkdir(parents=True, exist_ok=True)
    config = LandmarkConfig()
    real = add_real(options.dataset, options.data, options.copies, config) if options.data else ()
    phantoms = add_phantoms(options.dataset, range(options.phantoms), options.phantom_copies, config)
    for added in chain(real, phantoms):
        print(added, flush=True)


if __name__ == "__main__":
    main()
