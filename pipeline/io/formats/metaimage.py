"""MetaImage headers with their pixels in the same file (.mha)."""

import re
from collections.abc import Mapping
from typing import Final

import numpy as np

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

#: Not MET_LONG: its size depends on who wrote it.
_TYPES: Final = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}

#: Names of one thing, in the order in which they win: where several stand, ITK takes this one.
_MATRIX_FIELDS: Final = ("TransformMatrix", "Rotation", "Orientation")
_ORIGIN_FIELDS: Final = ("Origin", "Offset", "Position")
_MM_PER_UNIT: Final = {"": 1.0, "?": 1.0, "mm": 1.0, "cm": 10.0, "um": 0.001}


def parse_metaimage(head: bytes) -> ImageHeader:
    """A MetaImage header with its pixels in the same file.

    Raises:
        DamagedFileError, UnsupportedFormatError: with the field's name, what it holds and what is wanted.
    """
    fields, data_at = _fields(head)
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise UnsupportedFormatError(
            "The MetaImage header points to another file; send one .mha that holds its pixels."
        )
    if fields.get("HeaderSize", "0") not in ("0", "-1"):
        raise UnsupportedFormatError(
            f"HeaderSize is {shown(fields['HeaderSize'])}: MetaImage files are read whose pixels follow the header at "
            "once. Save it anew as .mha."
        )
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise UnsupportedFormatError(
            f"ElementNumberOfChannels is {shown(fields['ElementNumberOfChannels'])}: the file holds colours, not a CT. "
            "Send the CT itself, one number a voxel."
        )
    if fields.get("ElementType") not in _TYPES:
        raise UnsupportedFormatError(
            f"The MetaImage file holds no plain numbers: its ElementType is {shown(fields.get('ElementType', ''))}; "
            f"send one of {', '.join(_TYPES)}."
        )
    if not _is_true(fields, "BinaryData", default="True"):
        raise UnsupportedFormatError("BinaryData is False: pixels as text are not read. Save it anew as binary .mha.")
    is_big_endian = _is_true(fields, "BinaryDataByteOrderMSB") or _is_true(fields, "ElementByteOrderMSB")
    sizes = sizes_of(fields.get("DimSize", ""), "DimSize")
    if fields.get("NDims", str(len(sizes))) != str(len(sizes)):
        raise DamagedFileError(
            f"NDims is {shown(fields['NDims'])}, but DimSize names {len(sizes)} sizes.",
            evidence={"field": "NDims", "size": list(sizes)},
        )
    require_volume(sizes)
    placement, source, findings = _placement(fields, len(sizes))
    return ImageHeader(
        sizes=(sizes[0], sizes[1], sizes[2]),
        dtype=np.dtype((">" if is_big_endian else "<") + _TYPES[fields["ElementType"]]),
        data_at=data_at,
        placement=placement,
        source=source,
        findings=findings,
        packing=Packing.ZLIB if _is_true(fields, "CompressedData") else Packing.PLAIN,
    )


def metaimage_fields(head: bytes) -> dict[str, str]:
    """The fields of a header that `parse_metaimage` takes."""
    return _fields(head)[0]


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """The fields up to and with ElementDataFile, which ends the header."""
    fields: dict[str, str] = {}
    position = 0
    for line in head.split(b"\n"):
        position += len(line) + 1
        name, _, value = re.sub(r"[=:]", "=", line.decode("latin-1"), count=1).partition("=")
        keep_field(fields, name.strip(), value.strip())
        if name.strip() == "ElementDataFile":
            return fields, position
    raise DamagedFileError("The MetaImage header does not say where its pixels are (ElementDataFile).")


def _is_true(fields: Mapping[str, str], name: str, default: str = "False") -> bool:
    return fields.get(name, default).lower() in ("true", "1")


def _placement(fields: Mapping[str, str], axes: int) -> tuple[StoredPlacement, GeometrySource, tuple[Finding, ...]]:
    findings: list[Finding | None] = []
    ignored: dict[str, str] = {}
    matrix_field = next((name for name in _MATRIX_FIELDS if name in fields), None)
    origin_field = next((name for name in _ORIGIN_FIELDS if name in fields), None)
    spacing_field = next((name for name in ("ElementSpacing", "ElementSize") if name in fields), None)
    if spacing_field is None:
        raise DamagedFileError(
            "The MetaImage header says neither ElementSpacing nor ElementSize: write how long voxels are.",
            evidence={"fields": "ElementSpacing, ElementSize"},
        )
    mm = _unit_mm(fields)
    spacing_mm = _counted(fields, spacing_field, axes)[:3] * mm
    if spacing_mm.min() <= 0:
        raise DamagedFileError(
            f"{spacing_field} is {shown(fields[spacing_field])}: the length of a voxel is above 0.",
            evidence={"field": spacing_field},
        )
    # A row of the file is an axis of the array, so that the axes stand in the columns of the transposed matrix.
    matrix = _counted(fields, matrix_field, axes * axes).reshape(axes, axes).T if matrix_field else np.eye(axes)
    origin = _counted(fields, origin_field, axes)[:3] * mm if origin_field else np.zeros(3)
    used = tuple(name for name in (matrix_field, spacing_field, origin_field) if name is not None)
    placement = StoredPlacement(matrix[:3, :3] * spacing_mm, origin, " and ".join(used))
    if matrix_field is None:
        findings.append(orientation_assumed("TransformMatrix is missing"))
    if spacing_field == "ElementSpacing" and "ElementSize" in fields:
        sizes_mm = _counted(fields, "ElementSize", axes)[:3] * mm
        findings.append(spacings_differ(placement, "ElementSize", sizes_mm.tolist()))
        ignored["ElementSize"] = findings[-1].message if findings[-1] else "agrees with ElementSpacing"
    for winner, names in ((matrix_field, _MATRIX_FIELDS), (origin_field, _ORIGIN_FIELDS)):
        for name in names:
            if winner is not None and name in fields and name != winner:
                same = fields[name].split() == fields[winner].split()
                ignored[name] = f"agrees with {winner}" if same else f"contradicts {winner}, which was used"
                if not same:
                    message = f"{name} contradicts {winner}: {winner} was used."
                    findings.append(
                        Finding("geometry-fields-differ", "warning", message, {"used": winner, "ignored": name})
                    )
    source = GeometrySource("MetaImage", used, ignored)
    return placement, source, tuple(finding for finding in findings if finding is not None)


def _counted(fields: Mapping[str, str], field: str, count: int) -> np.ndarray:
    numbers = numbers_of(fields[field], field)
    if len(numbers) != count:
        raise DamagedFileError(
            f"{field} holds {len(numbers)} numbers; {count} are wanted.", evidence={"field": field, "count": count}
        )
    return np.array(numbers)


def _unit_mm(fields: Mapping[str, str]) -> float:
    name = fields.get("DistanceUnits", "")
    if name.lower() not in _MM_PER_UNIT:
        raise UnsupportedFormatError(
            f"DistanceUnits is {shown(name)}: mm, cm and um are known.", evidence={"field": "DistanceUnits"}
        )
    return _MM_PER_UNIT[name.lower()]
