"""What NIfTI, NRRD and MetaImage headers have in common.

Headers are read by ourselves: those of NRRD and MetaImage may name other files, and libraries would open them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline.errors import DamagedFileError, UnsupportedFormatError
from pipeline.geometry import Finding, GeometrySource
from pipeline.io.formats.placement import StoredPlacement
from pipeline.io.formats.shown import shown
from pipeline.io.formats.unpack import Packing

MAX_HEADER_BYTES: Final = 1 << 16

#: NRRD has up to 16, the others fewer.
MOST_AXES: Final = 16

#: No axis is longer; what is, would not fit into the numbers of libraries and of clients either.
LARGEST_SIZE: Final = 2**31 - 1

#: Fields that place the corners of a scan further apart than this, or than this share of its diagonal, contradict each
#: other; a quaternion of 32 bits says an angle to half a thousandth.
CONTRADICTION_MM: Final = 0.1
CONTRADICTION_OF_DIAGONAL: Final = 1e-3

#: The same for lengths of voxels, which are often rounded to two digits.
CONTRADICTION_SHARE: Final = 0.01


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """What a file says about its pixels.

    Attributes:
        sizes: voxels along the file's axes, fastest first: x, y, z.
        dtype: of one voxel, byte order included.
        data_at: offset of the first byte of pixels.
        placement: where the voxels lie, unchecked.
        source: which fields say so.
        findings: where fields contradict each other, or do not say all.
        slope, intercept: a voxel's value is `slope * stored + intercept`.
    """

    sizes: tuple[int, int, int]
    dtype: np.dtype[Any]
    data_at: int
    placement: StoredPlacement
    source: GeometrySource
    findings: tuple[Finding, ...] = ()
    packing: Packing = Packing.PLAIN
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def data_bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize


def orientation_assumed(field: str) -> Finding:
    """Of a file whose `field` does not say how the patient lies."""
    message = f"The file does not say how the patient lies in it ({field}): the format's default was assumed."
    return Finding("orientation-assumed", "warning", message, {"field": field})


def placements_differ(used: StoredPlacement, other: StoredPlacement, sizes: tuple[int, int, int]) -> Finding | None:
    """Whether another set of fields lays the scan elsewhere; an error where it exchanges sides."""
    if not np.all(np.isfinite(other.steps_mm)) or not np.all(np.isfinite(other.origin_mm)):
        apart_mm, turned = math.inf, False
    else:
        apart_mm = float(np.linalg.norm(used.corners_mm(sizes) - other.corners_mm(sizes), axis=1).max())
        # A step that runs against its counterpart: left is right, or front is back.
        turned = bool(np.any(np.einsum("ij,ij->j", used.steps_mm, other.steps_mm) <= 0))
    diagonal_mm = float(np.linalg.norm(used.steps_mm @ np.asarray(sizes, dtype=np.float64)))
    if apart_mm <= max(CONTRADICTION_MM, CONTRADICTION_OF_DIAGONAL * diagonal_mm):
        return None
    how = " and exchanges sides" if turned else ""
    shown = f"by {apart_mm:.1f} mm" if math.isfinite(apart_mm) else "and holds what is no number"
    message = f"{other.fields} contradicts {used.fields} {shown}{how}: {used.fields} was used."
    evidence = {
        "used": used.fields,
        "ignored": other.fields,
        "apart_mm": round(apart_mm, 2) if math.isfinite(apart_mm) else None,
    }
    return Finding("geometry-fields-differ", "error" if turned else "warning", message, evidence)


def spacings_differ(used: StoredPlacement, field: str, stored_mm: Sequence[float]) -> Finding | None:
    """Whether a field that only says how long voxels are contradicts the placement that was used."""
    own_mm = np.linalg.norm(used.steps_mm, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        agrees = np.abs(np.asarray(stored_mm) - own_mm) <= CONTRADICTION_SHARE * own_mm
    if bool(np.all(agrees)):
        return None
    shown, own = (" x ".join(f"{v:g}" for v in values) for values in (stored_mm, own_mm.tolist()))
    message = f"{field} says voxels of {shown} mm, {used.fields} {own} mm: {used.fields} was used."
    evidence = {"used": used.fields, "ignored": field, "used_mm": own, "ignored_mm": shown}
    return Finding("geometry-fields-differ", "warning", message, evidence)


def require_volume(sizes: Sequence[int]) -> None:
    """Refuse sizes (fastest first) that are not those of one volume.

    Raises:
        DamagedFileError: a size is not positive.
        UnsupportedFormatError: a picture, a time series, or several channels.
    """
    shown = " x ".join(str(n) for n in sizes)
    if not sizes or min(sizes) < 1:
        raise DamagedFileError(
            f"The header is damaged: its sizes are {shown or 'missing'}; each must be at least 1.",
            evidence={"size": list(sizes)},
        )
    if len(sizes) < 3 or min(sizes[:3]) == 1:
        raise UnsupportedFormatError(
            f"The file holds a single slice ({shown}), not a volume. Send all slices in one file.",
            evidence={"size": list(sizes)},
        )
    if math.prod(sizes[3:]) != 1:
        raise UnsupportedFormatError(
            f"The file holds several volumes or channels ({shown}); send one volume.", evidence={"size": list(sizes)}
        )


def keep_field(fields: dict[str, str], name: str, value: str) -> None:
    """Add a field that stands in a header once: of two values, readers take either.

    Raises:
        DamagedFileError: it stands there with another value.
    """
    if fields.setdefault(name, value) != value:
        raise DamagedFileError(
            f"The header says {shown(name)} twice, {shown(fields[name])} and {shown(value)}: write it once.",
            evidence={"field": shown(name)},
        )


def numbers_of(text: str, field: str) -> list[float]:
    """The numbers in a field of text.

    Raises:
        DamagedFileError: a word is no number.
    """
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise DamagedFileError(f"{field} is {shown(text)}: numbers are wanted.", evidence={"field": field}) from error


def sizes_of(text: str, field: str) -> tuple[int, ...]:
    """The whole numbers in a field of text.

    Raises:
        DamagedFileError: a word is no whole number, or none that 32 bits hold; or too many words.
    """
    try:
        sizes = tuple(int(word) for word in text.split())
        if len(sizes) > MOST_AXES or any(abs(size) > LARGEST_SIZE for size in sizes):
            raise ValueError(field)
        return sizes
    except ValueError as error:
        raise DamagedFileError(
            f"{field} is {shown(text)}: whole numbers are wanted.", evidence={"field": field}
        ) from error
