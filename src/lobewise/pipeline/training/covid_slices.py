"""The public COVID-19 slices as stacks: `covid-slices/slices-0000-0788.npz` of the folder in `docs/data.md`.

The slices went through adaptive histogram equalisation and hold 8 bits, not HU; spacing was not stored. They are
taken as 1.4 mm in the plane and 1 mm apart, which fits the size of the lungs they show.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, UInt8
from scipy.ndimage import zoom

CASE_STARTS: Final = (0, 159, 279, 397, 510, 626, 696)
"""First slice of each case: there, and there alone, neighbouring slices hardly correlate."""
PIXEL_MM: Final = 1.4
SLICE_MM: Final = 1.0
TOWARDS_WINDOW: Final = 0.72
"""Exponent of the curve that brings the equalised slices near the lung window: their healthy lung (median 62 of 255)
then has the value of healthy lung in planning CTs, their soft tissue nearly that of soft tissue."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Some slices of one case, at 1 x 1 x 3 mm.

    Attributes:
        image: 8 bits, brought near the lung window of the lesion stage.
        lungs, lesions: the published masks.
    """

    case: int
    image: UInt8[np.ndarray, "z y x"]
    lungs: Bool[np.ndarray, "z y x"]
    lesions: Bool[np.ndarray, "z y x"]


def read_stacks(data: Path) -> Iterator[Stack]:
    """Every case three times, each with every third slice."""
    with np.load(data / "covid-slices" / "slices-0000-0788.npz") as arrays:
        image = arrays["ct"]
        lungs, lesions = (np.unpackbits(arrays[key], axis=-1).astype(bool) for key in ("lungs", "lesions"))
    ends = (*CASE_STARTS[1:], len(image))
    for case, (begin, end) in enumerate(zip(CASE_STARTS, ends, strict=True)):
        for offset in range(3):
            part = slice(begin + offset, end, 3)
            yield Stack(case, towards_window(_to_mm(image[part])), _mask_to_mm(lungs[part]), _mask_to_mm(lesions[part]))


def towards_window(image: UInt8[np.ndarray, "*size"]) -> UInt8[np.ndarray, "*size"]:
    """The slices' grey values as those of a windowed CT, as far as one curve can do it."""
    return np.asarray(np.round(255 * (image / np.float32(255)) ** np.float32(TOWARDS_WINDOW)), dtype=np.uint8)


def _to_mm(image: UInt8[np.ndarray, "z y x"]) -> UInt8[np.ndarray, "z Y X"]:
    scaled = zoom(image.astype(np.float32), (1, PIXEL_MM, PIXEL_MM), order=1)
    return np.asarray(np.clip(np.round(scaled), 0, 255), dtype=np.uint8)


def _mask_to_mm(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z Y X"]:
    return np.asarray(zoom(mask.astype(np.float32), (1, PIXEL_MM, PIXEL_MM), order=1) > 0.5)
