"""Prepares what the lesion network learns from: `python -m training.data.lesion_dataset DATA DATASET`.

Each volume becomes one file `KIND-PATIENT-NUMBER.npz` with `image` (8 bits), `lungs` and `lesions`, cropped around the
lungs at 1 x 1 x 3 mm. Kinds: `covid` (real lesions, equalised 8-bit slices), `grown` (synthetic lesions in real lungs),
`clean` (the same lungs as they are), `phantom`. Files that exist are left alone, so an ended run goes on.
"""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, UInt8

from pipeline.geometry import LungMask, Volume, grid_of
from pipeline.lesions import MARGIN_MM, SPACING_MM, window
from pipeline.phantom import PhantomRecipe, make_phantom
from pipeline.resampling import resample, resample_labels
from training.augment.pasted_lesions import with_pasted_lesions
from training.data.covid_slices import read_stacks
from training.data.splits import write_arrays

#: Planning CTs with manual lungs and no pneumonia: what is called lesion in them is a false alarm.
LCTSC_CASES: Final = ("case01", "case02", "case03", "case04", "case05")
GROWN_PER_CASE: Final = 10
GROWN_SEED: Final = 2_000
#: Drawn coarser than the network's grid and resampled, as the slices are: a third of the time.
PHANTOM_SPACING_MM: Final = (3.0, 1.5, 1.5)

Image = UInt8[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]


def write_lctsc(data: Path, dataset: Path, case: str) -> None:
    """A planning CT and its manual lungs: once as it is, ten times with lesions of 0.5 to 50 % of its lungs."""
    image, mask = (sitk.ReadImage(str(data / "lctsc" / f"{case}_{part}.nii.gz")) for part in ("ct", "lungs"))
    source, number_of_case = grid_of(image), int(case[-2:])
    box = source.covering(SPACING_MM)
    volume = Volume(np.round(resample(sitk.GetArrayFromImage(image), source, box)).astype(np.int16), box)
    lungs = LungMask(resample_labels(sitk.GetArrayFromImage(mask), source, box) > 0, box)
    write_lesion_volume(dataset / f"clean-{case}-0.npz", to_8_bit(volume.hu), lungs.mask, np.zeros_like(lungs.mask))
    rng = np.random.default_rng([GROWN_SEED, number_of_case])
    for number in range(GROWN_PER_CASE):
        percent = float(np.exp(rng.uniform(np.log(0.5), np.log(50.0))))
        path = dataset / f"grown-{case}-{number}.npz"
        if not path.exists():
            hu, lesions = with_pasted_lesions(volume, lungs, GROWN_SEED + 100 * number_of_case + number, percent)
            write_lesion_volume(path, to_8_bit(hu), lungs.mask, lesions)


def write_phantom(dataset: Path, seed: int) -> None:
    """A phantom at the network's spacing."""
    path = dataset / f"phantom-{seed}-0.npz"
    if path.exists():
        return
    phantom = make_phantom(PhantomRecipe(seed=seed, spacing_mm=PHANTOM_SPACING_MM))
    source, box = phantom.volume.grid, phantom.volume.grid.covering(SPACING_MM)
    hu = resample(phantom.volume.hu, source, box)
    lungs, lesions = (resample_labels(m, source, box) > 0 for m in (phantom.lobes.labels, phantom.lesions.mask))
    write_lesion_volume(path, to_8_bit(hu), lungs, lesions)


def to_8_bit(hu: np.ndarray) -> Image:
    """HU in the lesion stage's window as 0-255."""
    return np.round(window(hu) * 255).astype(np.uint8)


def write_lesion_volume(path: Path, image: Image, lungs: Mask, lesions: Mask) -> None:
    """Write one file of the dataset, cropped around the lungs, whole or not at all."""
    slices = []
    for axis, spacing_mm in enumerate(SPACING_MM):
        where = np.flatnonzero(lungs.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = round(MARGIN_MM / spacing_mm)
        slices.append(slice(max(int(where[0]) - margin, 0), int(where[-1]) + margin + 1))
    box = tuple(slices)
    write_arrays(path, {"image": image[box], "lungs": lungs[box], "lesions": lesions[box]})


def main() -> None:
    """Prepare the dataset from the command line; the data is laid out as `docs/data.md` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--phantoms", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    data, dataset = options.data, options.dataset
    dataset.mkdir(parents=True, exist_ok=True)
    for number, stack in enumerate(read_stacks(data)):
        write_lesion_volume(dataset / f"covid-{stack.case}-{number % 3}.npz", stack.image, stack.lungs, stack.lesions)
    jobs: list[Callable[[], None]] = [partial(write_lctsc, data, dataset, case) for case in LCTSC_CASES]
    jobs += [partial(write_phantom, dataset, seed) for seed in range(options.phantoms)]
    with ProcessPoolExecutor(options.processes) as pool:
        for done, future in enumerate([pool.submit(job) for job in jobs], start=1):
            future.result()
            sys.stderr.write(f"\r{done}/{len(jobs)} patients prepared")
    sys.stderr.write("\n")


if __name__ == "__main__":
    main()
