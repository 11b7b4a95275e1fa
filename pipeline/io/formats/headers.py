"""Headers of NIfTI, NRRD and MetaImage, read by ourselves.

ITK turns a header's geometry into a grid, but it only ever sees headers that we wrote: what is known and harmless,
anew. Headers of NRRD and MetaImage may name other files, and ITK would open them.
"""

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import numpy as np

from pipeline.errors import DamagedFileError, UnsupportedFormatError

MAX_HEADER_BYTES: Final = 1 << 16


class Packing(Enum):
    """How the pixels are stored after the header."""

    PLAIN = 0
    #: The value is zlib's `wbits`.
    ZLIB = 15
    GZIP = 31


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about its pixels.

    Attributes:
        sizes: voxels along the file's axes, fastest first: x, y, z.
        dtype: of one voxel, byte order included.
        placed: whether the file says how the patient lies in the volume.
        data_at: offset of the first byte of pixels.
        rewritten: a header for ITK to read the geometry from, without pixels.
        slope, intercept: a voxel's value is `slope * stored + intercept`.
    """

    sizes: tuple[int, int, int]
    dtype: np.dtype[Any]
    placed: bool
    data_at: int
    rewritten: bytes = field(repr=False)
    packing: Packing = Packing.PLAIN
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def data_bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize


# NIfTI

_NIFTI_TYPES: Final = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_NIFTI_1: Final[Mapping[str, tuple[int, str]]] = {
    "dim": (40, "8h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "scaling": (112, "2f"),
    "xyzt_units": (123, "B"),
    "codes": (252, "2h"),
    "quaternion": (256, "6f"),
    "affine": (280, "12f"),
}
_NIFTI_2: Final[Mapping[str, tuple[int, str]]] = {
    "dim": (16, "8q"),
    "datatype": (12, "h"),
    "bitpix": (14, "h"),
    "pixdim": (104, "8d"),
    "vox_offset": (168, "q"),
    "scaling": (176, "2d"),
    "xyzt_units": (500, "i"),
    "codes": (344, "2i"),
    "quaternion": (352, "6d"),
    "affine": (400, "12d"),
}


def parse_nifti(head: bytes) -> ImageHeader:
    """A single-file NIfTI-1 or NIfTI-2 header, of either byte order."""
    kinds = ((order, size, layout) for order in "<>" for size, layout in ((348, _NIFTI_1), (540, _NIFTI_2)))
    for order, size, layout in kinds:  # noqa: B007 (they are used after the loop)
        if len(head) >= size and struct.unpack_from(f"{order}i", head)[0] == size:
            break
    else:
        raise DamagedFileError("The NIfTI header is damaged or cut short.")
    fields = {name: struct.unpack_from(order + code, head, at) for name, (at, code) in layout.items()}
    axes, data_at = fields["dim"][0], fields["vox_offset"][0]
    if not 1 <= axes <= 7 or not 0 <= data_at <= 1 << 20:
        raise DamagedFileError("The NIfTI header is damaged.")
    if fields["datatype"][0] not in _NIFTI_TYPES:
        raise UnsupportedFormatError("The NIfTI file holds colours or complex numbers, not a CT.")
    slope, intercept = fields["scaling"]
    is_scaled = slope != 0 and math.isfinite(slope) and math.isfinite(intercept)
    return ImageHeader(
        sizes=_volume_sizes(fields["dim"][1 : axes + 1]),
        dtype=np.dtype(order + _NIFTI_TYPES[fields["datatype"][0]]),
        placed=any(code > 0 for code in fields["codes"]),
        data_at=int(data_at),
        rewritten=_nifti_1(fields),
        slope=float(slope) if is_scaled else 1.0,
        intercept=float(intercept) if is_scaled else 0.0,
    )


def _nifti_1(fields: Mapping[str, tuple[Any, ...]]) -> bytes:
    """The same geometry as a little-endian NIfTI-1 header without a scaling, which ITK reads."""
    kept = {**fields, "vox_offset": (352.0,), "scaling": (0.0, 0.0)}
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    try:
        for name, (at, code) in _NIFTI_1.items():
            struct.pack_into("<" + code, header, at, *kept[name])
    except (struct.error, OverflowError) as error:
        raise DamagedFileError("The NIfTI header is damaged: a number is out of range.") from error
    header[344:348] = b"n+1\0"
    return bytes(header)


# NRRD

_NRRD_TYPES: Final = {
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
_NRRD_ORDERS: Final = {"little": "<", "big": ">"}
_NRRD_PASSED_ON: Final = (
    "type",
    "dimension",
    "space",
    "space dimension",
    "sizes",
    "spacings",
    "space directions",
    "space origin",
    "kinds",
    "endian",
)
_NRRD_PLACES: Final = tuple(
    name
    for side in ("left", "right")
    for face in ("anterior", "posterior")
    for name in (f"{side}-{face}-superior", f"{side[0]}{face[0]}s")
)
_NRRD_PACKINGS: Final = {"raw": Packing.PLAIN, "gzip": Packing.GZIP, "gz": Packing.GZIP}


def parse_nrrd(head: bytes) -> ImageHeader:
    """An NRRD header with its pixels in the same file."""
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None:
        raise UnsupportedFormatError("The NRRD header is not followed by its pixels: it is detached or damaged.")
    text, data_at = head[: end.start()].decode("latin-1"), end.end()
    fields = _nrrd_fields(text)
    if "data file" in fields or "datafile" in fields:
        raise UnsupportedFormatError("The NRRD header points to another file; send one .nrrd that holds its pixels.")
    if any(fields.get(skip, "0") != "0" for skip in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise UnsupportedFormatError("NRRD files that skip lines or bytes are not supported.")
    packing = _NRRD_PACKINGS.get(fields.get("encoding", "").lower())
    if packing is None:
        raise UnsupportedFormatError("NRRD files are read with encoding raw or gzip.")
    kind = _NRRD_TYPES.get(fields.get("type", "").lower())
    if kind is None:
        raise UnsupportedFormatError("The NRRD file holds no plain numbers.")
    order = _NRRD_ORDERS.get(fields.get("endian", "").lower())
    if order is None and kind[1] != "1":
        raise DamagedFileError("The NRRD header is damaged: it does not say its byte order.")
    passed_on = "".join(f"{name}: {fields[name]}\n" for name in _NRRD_PASSED_ON if name in fields)
    return ImageHeader(
        sizes=_volume_sizes(_whole_numbers(fields.get("sizes", ""), "NRRD")),
        dtype=np.dtype((order or "<") + kind),
        placed=fields.get("space", "").lower() in _NRRD_PLACES and "space directions" in fields,
        data_at=data_at,
        rewritten=f"NRRD0005\n{passed_on}encoding: raw\n\n".encode("ascii", "replace"),
        packing=packing,
    )


def _nrrd_fields(text: str) -> dict[str, str]:
    """`field: value` lines; comments and `key:=value` lines are left out."""
    fields = {}
    for line in text.splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    return fields


# MetaImage

#: Not MET_LONG: its size depends on who wrote it.
_META_TYPES: Final = {
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
_META_PASSED_ON: Final = (
    "NDims",
    "TransformMatrix",
    "Rotation",
    "Orientation",
    "Offset",
    "Position",
    "Origin",
    "ElementSpacing",
    "DimSize",
    "ElementType",
)


def parse_metaimage(head: bytes) -> ImageHeader:
    """A MetaImage header with its pixels in the same file."""
    fields, data_at = _meta_fields(head)
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise UnsupportedFormatError(
            "The MetaImage header points to another file; send one .mha that holds its pixels."
        )
    if fields.get("HeaderSize", "0") not in ("0", "-1"):
        raise UnsupportedFormatError("MetaImage files that skip bytes are not supported.")
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise UnsupportedFormatError("The MetaImage file holds colours, not a CT.")
    if fields.get("ElementType") not in _META_TYPES:
        raise UnsupportedFormatError("The MetaImage file holds no plain numbers.")
    if not _is_true(fields, "BinaryData", default="True"):
        raise UnsupportedFormatError("MetaImage files with pixels as text are not supported.")
    is_big_endian = _is_true(fields, "BinaryDataByteOrderMSB") or _is_true(fields, "ElementByteOrderMSB")
    passed_on = "".join(f"{name} = {fields[name]}\n" for name in _META_PASSED_ON if name in fields)
    return ImageHeader(
        sizes=_volume_sizes(_whole_numbers(fields.get("DimSize", ""), "MetaImage")),
        dtype=np.dtype((">" if is_big_endian else "<") + _META_TYPES[fields["ElementType"]]),
        placed=any(name in fields for name in ("TransformMatrix", "Rotation", "Orientation")),
        data_at=data_at,
        rewritten=f"ObjectType = Image\n{passed_on}ElementDataFile = LOCAL\n".encode("ascii", "replace"),
        packing=Packing.ZLIB if _is_true(fields, "CompressedData") else Packing.PLAIN,
    )


def _is_true(fields: Mapping[str, str], name: str, default: str = "False") -> bool:
    return fields.get(name, default).lower() in ("true", "1")


def _meta_fields(head: bytes) -> tuple[dict[str, str], int]:
    """The fields up to and with ElementDataFile, which ends the header."""
    fields, position = {}, 0
    for line in head.split(b"\n"):
        position += len(line) + 1
        name, _, value = re.sub(r"[=:]", "=", line.decode("latin-1"), count=1).partition("=")
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return fields, position
    raise DamagedFileError("The MetaImage header does not say where its pixels are.")


# All of them


def _whole_numbers(text: str, format_name: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split())
    except ValueError as error:
        raise DamagedFileError(f"The {format_name} header is damaged: its sizes are no numbers.") from error


def _volume_sizes(sizes: Sequence[int]) -> tuple[int, int, int]:
    """The first three sizes; only axes of length one may follow them.

    Raises:
        UnsupportedFormatError: a picture, a time series, or several channels.
    """
    if not sizes or min(sizes) < 1:
        raise DamagedFileError("The header is damaged: its sizes are not positive.", evidence={"size": list(sizes)})
    if len(sizes) < 3 or min(sizes[:3]) == 1:
        raise UnsupportedFormatError("The file holds a single slice, not a volume.", evidence={"size": list(sizes)})
    if math.prod(sizes[3:]) != 1:
        raise UnsupportedFormatError(
            "The file holds several volumes or channels; send one volume.", evidence={"size": list(sizes)}
        )
    return sizes[0], sizes[1], sizes[2]
