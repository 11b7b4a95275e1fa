"""NRRD headers with their pixels in the same file (teem's definition of the format, NRRD0001 to NRRD0005)."""

import re
from collections.abc import Mapping
from typing import Final

import numpy as np
from jaxtyping import Float64

from pipeline.errors import DamagedFileError, UnsupportedFormatError
from pipeline.geometry import Finding, GeometrySource
from pipeline.io.formats.image_header import (
    ImageHeader,
    keep_field,
    numbers_of,
    orientation_assumed,
    require_volume,
    sizes_of,
    spacings_differ,
)
from pipeline.io.formats.placement import StoredPlacement
from pipeline.io.formats.shown import shown
from pipeline.io.formats.unpack import Packing

_TYPES: Final = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "signed long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_ORDERS: Final = {"little": "<", "big": ">"}
_PACKINGS: Final = {"raw": Packing.PLAIN, "gzip": Packing.GZIP, "gz": Packing.GZIP}

#: `left-posterior-superior`, `LPS` and their seven mirrors: which way x, y and z grow in the patient.
_SPACE: Final = re.compile(
    r"(?P<x>left|right|l|r)-?(?P<y>anterior|posterior|a|p)-?(?P<z>superior|inferior|s|i)", re.IGNORECASE
)
#: All names of spaces that NRRD defines. Others are not repeated to anybody: some exporters write texts of their own.
SPACES: Final = re.compile(
    r"[LR][AP][SI]T?|(?:(?:left|right)-(?:anterior|posterior)-(?:superior|inferior)|scanner-xyz"
    r"|3D-(?:left|right)-handed)(?:-time)?",
    re.IGNORECASE,
)
_VECTOR: Final = re.compile(r"none|\([^()]*\)", re.IGNORECASE)
MM_PER_UNIT: Final = {
    **dict.fromkeys(("", "mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
    **dict.fromkeys(("um", "\N{MICRO SIGN}m", "micron", "microns", "micrometer", "micrometre"), 0.001),
    **dict.fromkeys(("in", "inch", "inches"), 25.4),
}


def parse_nrrd(head: bytes) -> ImageHeader:
    """An NRRD header with its pixels in the same file.

    Axes of length one that do not lie in space (`none`, a channel, time) are passed over wherever they stand.

    Raises:
        DamagedFileError, UnsupportedFormatError: with the field's name, what it holds and what is wanted.
    """
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None:
        raise UnsupportedFormatError(
            "The NRRD header is not followed by its pixels (no empty line): it is detached or damaged. Send one .nrrd "
            "that holds its pixels."
        )
    fields = _fields(head[: end.start()].decode("latin-1"))
    if "data file" in fields or "datafile" in fields:
        raise UnsupportedFormatError("The NRRD header points to another file; send one .nrrd that holds its pixels.")
    for skip in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(skip, "0") != "0":
            raise UnsupportedFormatError(
                f"{skip} is {shown(fields[skip])}: NRRD files are read whose pixels follow the header at once. Save it "
                "anew, for instance with 3D Slicer."
            )
    packing = _PACKINGS.get(fields.get("encoding", "").lower())
    if packing is None:
        raise UnsupportedFormatError(
            f"NRRD files are read with encoding raw or gzip; this one says {shown(fields.get('encoding', 'nothing'))}. "
            "Save it anew."
        )
    kind = _TYPES.get(fields.get("type", "").lower())
    if kind is None:
        raise UnsupportedFormatError(
            f"The NRRD file holds no plain numbers: its type is {shown(fields.get('type', ''))}; send the CT itself, "
            "an integer or a float a voxel."
        )
    order = _ORDERS.get(fields.get("endian", "").lower())
    if order is None and kind[1] != "1":
        raise DamagedFileError("The NRRD header is damaged: it does not say its byte order (endian: little or big).")
    sizes = sizes_of(fields.get("sizes", ""), "sizes")
    if fields.get("dimension", str(len(sizes))) != str(len(sizes)):
        raise DamagedFileError(
            f"The NRRD header is damaged: dimension is {shown(fields['dimension'])}, but there are {len(sizes)} sizes.",
            evidence={"field": "dimension", "size": list(sizes)},
        )
    spatial = _spatial_axes(fields, sizes)
    others = [n for axis, n in enumerate(sizes) if axis not in spatial]
    require_volume((*(sizes[axis] for axis in spatial), *others))
    placement, source, findings = _placement(fields, spatial)
    return ImageHeader(
        sizes=(sizes[spatial[0]], sizes[spatial[1]], sizes[spatial[2]]),
        dtype=np.dtype((order or "<") + kind),
        data_at=end.end(),
        placement=placement,
        source=source,
        findings=findings,
        packing=packing,
    )


def nrrd_fields(head: bytes) -> dict[str, str]:
    """The fields of a header that `parse_nrrd` takes."""
    end = re.search(rb"\r?\n\r?\n", head)
    return _fields(head[: end.start() if end else 0].decode("latin-1"))


def _fields(text: str) -> dict[str, str]:
    """`field: value` lines; comments and `key:=value` lines are left out."""
    fields: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            keep_field(fields, name.strip().lower(), value.strip())
    return fields


def _directions(fields: Mapping[str, str]) -> list[str] | None:
    return _VECTOR.findall(fields["space directions"]) if "space directions" in fields else None


def _spatial_axes(fields: Mapping[str, str], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that lie in space: those with a direction, or else the first three that are longer than one."""
    directions = _directions(fields)
    if directions is not None:
        if len(directions) != len(sizes):
            raise DamagedFileError(
                f"The NRRD header is damaged: space directions has {len(directions)} entries for {len(sizes)} sizes.",
                evidence={"field": "space directions", "value": shown(fields["space directions"])},
            )
        return tuple(axis for axis, vector in enumerate(directions) if vector.lower() != "none")
    longer = [axis for axis, n in enumerate(sizes) if n > 1]
    return tuple(longer) if len(longer) == 3 else tuple(range(len(sizes)))


def _placement(
    fields: Mapping[str, str], spatial: tuple[int, ...]
) -> tuple[StoredPlacement, GeometrySource, tuple[Finding, ...]]:
    findings: list[Finding | None] = []
    ignored: dict[str, str] = {}
    space = fields.get("space", "")
    sides = _SPACE.fullmatch(space)
    to_lps = np.diag(
        [
            1.0 if sides is None or sides["x"].lower() in ("left", "l") else -1.0,
            1.0 if sides is None or sides["y"].lower() in ("posterior", "p") else -1.0,
            1.0 if sides is None or sides["z"].lower() in ("superior", "s") else -1.0,
        ]
    )
    directions = _directions(fields)
    spacings = _spacings(fields, spatial)
    if sides is None:
        said = space if SPACES.fullmatch(space) else "unknown"
        findings.append(orientation_assumed(f"space: {said if space else 'missing'}"))
    elif directions is None:
        findings.append(orientation_assumed("space directions are missing"))
    if directions is not None:
        mm = _units_mm(fields, "space units", tuple(range(3)))
        steps = np.stack([_vector(directions[axis], "space directions") for axis in spatial], axis=1)
        placement = StoredPlacement(to_lps @ (steps * mm[:, None]), _origin(fields, to_lps, mm), "space directions")
        used: tuple[str, ...] = ("space", "space directions", "space origin", "space units")
        if spacings is not None:
            findings.append(spacings_differ(placement, "spacings", (spacings * mm).tolist()))
            ignored["spacings"] = findings[-1].message if findings[-1] else "agrees with space directions"
    elif spacings is None:
        raise DamagedFileError(
            "The NRRD header says neither space directions nor spacings: write how long voxels are.",
            evidence={"fields": "space directions, spacings"},
        )
    else:
        mm = _units_mm(fields, "units", spatial)
        # Directions are unknown, so that the origin's space does not matter: ITK reads it as it is.
        placement = StoredPlacement(np.diag(spacings * mm), _origin(fields, np.eye(3), mm), "spacings")
        used = ("spacings", "space origin", "units")
    if "measurement frame" in fields:
        ignored["measurement frame"] = "is about vectors and tensors, not about where voxels lie"
    named = tuple(name for name in used if name in fields)
    return placement, GeometrySource("NRRD", named, ignored), tuple(f for f in findings if f is not None)


def _vector(text: str, field: str) -> Float64[np.ndarray, "3"]:
    numbers = numbers_of(text.strip("() "), field)
    if len(numbers) != 3:
        raise UnsupportedFormatError(
            f"{field} holds {shown(text)}: vectors of three numbers are read.", evidence={"field": field}
        )
    return np.array(numbers)


def _origin(fields: Mapping[str, str], to_lps: np.ndarray, mm: np.ndarray) -> Float64[np.ndarray, "3"]:
    if "space origin" not in fields:
        return np.zeros(3)
    return np.asarray(to_lps @ (_vector(fields["space origin"], "space origin") * mm))


def _spacings(fields: Mapping[str, str], spatial: tuple[int, ...]) -> Float64[np.ndarray, "3"] | None:
    """Of the axes in space; None where the field is missing or says of one of them that it is unknown (`nan`)."""
    if "spacings" not in fields:
        return None
    numbers = numbers_of(fields["spacings"], "spacings")
    if len(numbers) <= max(spatial):
        raise DamagedFileError(
            f"The NRRD header is damaged: spacings is {shown(fields['spacings'])}, one number for each axis is wanted.",
            evidence={"field": "spacings"},
        )
    chosen = np.array([numbers[axis] for axis in spatial])
    return None if np.isnan(chosen).any() else chosen


def _units_mm(fields: Mapping[str, str], field: str, axes: tuple[int, ...]) -> Float64[np.ndarray, "3"]:
    """Millimetres per unit along each axis; what names no unit is taken for millimetres, as everybody does.

    Raises:
        UnsupportedFormatError: a unit that is no length.
    """
    names = re.findall(r"\"([^\"]*)\"", fields.get(field, ""))
    chosen = [names[axis].strip() if axis < len(names) else "" for axis in axes]
    for name in chosen:
        if name.lower() not in MM_PER_UNIT:
            raise UnsupportedFormatError(
                f"{field} says {shown(name)}: mm, cm, m, um and in are known.",
                evidence={"field": field, "value": shown(name)},
            )
    return np.array([MM_PER_UNIT[name.lower()] for name in chosen])
