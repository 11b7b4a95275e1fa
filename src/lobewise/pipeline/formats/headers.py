"""Headers of NIfTI, NRRD and MetaImage, read by ourselves before a parser of images sees the file.

NRRD and MetaImage headers are text that may name other files. So they are not passed on: what is known and harmless
is written anew.
"""

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from lobewise.pipeline.errors import DamagedFileError, UnsupportedFormatError

MAX_HEADER_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class ImageHeader:
    """What can be known before the pixels are read.

    Attributes:
        sizes: voxels along the file's axes, fastest first; at least three, no trailing ones.
        value_bytes: of one voxel.
        placed: whether the file says how the patient lies in the volume.
        data_at: offset of the first pixel byte.
        packed: whether the pixels are compressed inside the file.
        rewritten: the header that may be passed on; empty where the file's own may.
    """

    sizes: tuple[int, ...]
    value_bytes: int
    placed: bool
    data_at: int
    packed: bool = False
    rewritten: bytes = field(default=b"", repr=False)

    @property
    def data_bytes(self) -> int:
        return math.prod(self.sizes) * self.value_bytes


# NIfTI

_NIFTI_BYTES: Final = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}


def parse_nifti(head: bytes) -> ImageHeader:
    """A single-file NIfTI-1 or NIfTI-2 header, of either byte order."""
    order, version = _nifti_kind(head)
    if version == 1:
        dims = struct.unpack_from(f"{order}8h", head, 40)
        (datatype,) = struct.unpack_from(f"{order}h", head, 70)
        (data_at,) = struct.unpack_from(f"{order}f", head, 108)
        codes = struct.unpack_from(f"{order}2h", head, 252)
    else:
        dims = struct.unpack_from(f"{order}8q", head, 16)
        (datatype,) = struct.unpack_from(f"{order}h", head, 12)
        (data_at,) = struct.unpack_from(f"{order}q", head, 168)
        codes = struct.unpack_from(f"{order}2i", head, 344)
    if datatype not in _NIFTI_BYTES:
        raise UnsupportedFormatError("The NIfTI file holds colours or complex numbers, not a CT.")
    if not 1 <= dims[0] <= 7 or not 0 <= data_at <= MAX_HEADER_BYTES * 16:
        raise DamagedFileError("The NIfTI header is damaged.")
    sizes = _volume_sizes(dims[1 : dims[0] + 1])
    return ImageHeader(sizes, _NIFTI_BYTES[datatype], placed=any(code > 0 for code in codes), data_at=int(data_at))


def _nifti_kind(head: bytes) -> tuple[str, int]:
    for order in "<>":
        for version, size, length in ((1, 348, 348), (2, 540, 540)):
            if len(head) >= length and struct.unpack_from(f"{order}i", head)[0] == size:
                return order, version
    raise DamagedFileError("The NIfTI header is damaged or cut short.")


# NRRD

_NRRD_BYTES: Final = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t", "double"), 8),
}
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
    "encoding",
)
_NRRD_PLACES: Final = tuple(
    name
    for side in ("left", "right")
    for face in ("anterior", "posterior")
    for name in (f"{side}-{face}-superior", f"{side[0]}{face[0]}s")
)
_NRRD_ENCODINGS: Final = {"raw": False, "gzip": True, "gz": True}


def parse_nrrd(head: bytes) -> ImageHeader:
    """An NRRD header with its pixels in the same file."""
    text, data_at = _nrrd_text(head)
    fields = _nrrd_fields(text)
    if "data file" in fields or "datafile" in fields:
        raise UnsupportedFormatError("The NRRD header points to another file; send one .nrrd that holds its pixels.")
    if any(fields.get(skip, "0") != "0" for skip in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise UnsupportedFormatError("NRRD files that skip lines or bytes are not supported.")
    encoding = fields.get("encoding", "").lower()
    if encoding not in _NRRD_ENCODINGS:
        raise UnsupportedFormatError("NRRD files are read with encoding raw or gzip.")
    sizes = _volume_sizes(_whole_numbers(fields.get("sizes", ""), "NRRD"))
    value_bytes = _NRRD_BYTES.get(fields.get("type", "").lower())
    if value_bytes is None:
        raise UnsupportedFormatError("The NRRD file holds no plain numbers.")
    passed_on = "".join(f"{name}: {fields[name]}\n" for name in _NRRD_PASSED_ON if name in fields)
    return ImageHeader(
        sizes,
        value_bytes,
        placed=fields.get("space", "").lower() in _NRRD_PLACES and "space directions" in fields,
        data_at=data_at,
        packed=_NRRD_ENCODINGS[encoding],
        rewritten=f"NRRD0005\n{passed_on}\n".encode("ascii", "replace"),
    )


def _nrrd_text(head: bytes) -> tuple[str, int]:
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None:
        raise UnsupportedFormatError("The NRRD header is not followed by its pixels: it is detached or damaged.")
    return head[: end.start()].decode("latin-1"), end.end()


def _nrrd_fields(text: str) -> dict[str, str]:
    """`field: value` lines; comments and `key:=value` lines are left out."""
    fields = {}
    for line in text.splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    return fields


# MetaImage

_META_BYTES: Final = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG", "MET_ULONG", "MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_META_PASSED_ON: Final = (
    "NDims",
    "BinaryData",
    "BinaryDataByteOrderMSB",
    "ElementByteOrderMSB",
    "CompressedData",
    "CompressedDataSize",
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
    if fields.get("ElementType") not in _META_BYTES:
        raise UnsupportedFormatError("The MetaImage file holds no plain numbers.")
    if fields.get("BinaryData", "True").lower() != "true":
        raise UnsupportedFormatError("MetaImage files with pixels as text are not supported.")
    sizes = _volume_sizes(_whole_numbers(fields.get("DimSize", ""), "MetaImage"))
    passed_on = "".join(f"{name} = {fields[name]}\n" for name in _META_PASSED_ON if name in fields)
    return ImageHeader(
        sizes,
        _META_BYTES[fields["ElementType"]],
        placed=any(name in fields for name in ("TransformMatrix", "Rotation", "Orientation")),
        data_at=data_at,
        packed=fields.get("CompressedData", "False").lower() == "true",
        rewritten=f"ObjectType = Image\n{passed_on}ElementDataFile = LOCAL\n".encode("ascii", "replace"),
    )


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


def _volume_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Three sizes, whatever axes of length one follow them.

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
    return tuple(sizes)
