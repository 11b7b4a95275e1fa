"""The public COVID-19 slices as stacks: `covid-slices/slices-0000-0788.npz` of the folder in `docs/data.md`.

The slices went through adaptive histogram equalisation and hold 8 bits, not HU; spacing was not stored. They are
taken as 1.4 mm in the plane and 1 mm apart, which fits the size of the lungs they show.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Int16, UInt8
from scipy.ndimage import zoom

from pipeline.anatomy import AIR_HU
from training.augment.clahe import TOWARDS_WINDOW

#: First slice of each case: there, and there alone, neighbouring slices hardly correlate.
CASE_STARTS: Final = (0, 159, 279, 397, 510, 626, 696)
PIXEL_MM: Final = 1.4
SLICE_MM: Final = 1.0
#: Lower end and width of the lung window.
WINDOW_HU: Final = (-1350.0, 1500.0)


@dataclass(frozen=True, eq=False)
class CovidSlices:
    """Slices of one case, feet to head: their 8-bit image (0 outside the body), and the published masks."""

    case: int
    image: UInt8[np.ndarray, "z y x"]
    lungs: Bool[np.ndarray, "z y x"]
    lesions: Bool[np.ndarray, "z y x"]


def read_covid(data: Path) -> Iterator[CovidSlices]:
    """All slices of the cases as they were published, one case after the other."""
    with np.load(data / "covid-slices" / "slices-0000-0788.npz") as arrays:
        image = arrays["ct"]
        lungs, lesions = (np.unpackbits(arrays[key], axis=-1).astype(bool) for key in ("lungs", "lesions"))
    ends = (*CASE_STARTS[1:], len(image))
    for case, (begin, end) in enumerate(zip(CASE_STARTS, ends, strict=True)):
        part = slice(begin, end)
        yield CovidSlices(case, image[part], lungs[part], lesions[part])


def read_stacks(data: Path) -> Iterator[CovidSlices]:
    """Every case three times, each with every third slice, at 1 x 1 x 3 mm and near the lesion stage's window."""
    for scan in read_covid(data):
        for offset in range(3):
            image, lungs, lesions = (array[offset::3] for array in (scan.image, scan.lungs, scan.lesions))
            scaled = zoom(image.astype(np.float32), (1, PIXEL_MM, PIXEL_MM), order=1)
            in_mm = np.asarray(np.clip(np.round(scaled), 0, 255), dtype=np.uint8)
            yield CovidSlices(scan.case, towards_window(in_mm), _mask_to_mm(lungs), _mask_to_mm(lesions))


def as_hu(image: UInt8[np.ndarray, "*size"]) -> Int16[np.ndarray, "*size"]:
    """The slices as if they were HU: `towards_window` on the lung window's scale; air outside the body."""
    low, span = WINDOW_HU
    hu = np.rint(towards_window(image) * np.float32(span / 255) + low)
    return np.where(image == 0, AIR_HU, np.maximum(hu, AIR_HU)).astype(np.int16)


def towards_window(image: UInt8[np.ndarray, "*size"]) -> UInt8[np.ndarray, "*size"]:
    """The slices' grey values as those of a windowed CT, as far as one curve can do it."""
    return np.asarray(np.round(255 * (image / np.float32(255)) ** np.float32(TOWARDS_WINDOW)), dtype=np.uint8)


def _mask_to_mm(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z Y X"]:
    return np.asarray(zoom(mask.astype(np.float32), (1, PIXEL_MM, PIXEL_MM), order=1) > 0.5)
