"""Small good files, byte by byte, so that each of their parts can be replaced by one that means harm."""

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Final

#: Voxels along x, y and z.
SIZES: Final = (6, 5, 4)
VOXELS: Final = 6 * 5 * 4
PIXELS: Final = struct.pack(f"<{VOXELS}h", *((i * 37) % 1500 - 1000 for i in range(VOXELS)))

CT_CLASS: Final = b"1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_CLASS: Final = b"1.2.840.10008.5.1.4.1.1.2.1"
IMPLICIT: Final = b"1.2.840.10008.1.2"
EXPLICIT: Final = b"1.2.840.10008.1.2.1"
DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = b"1.2.840.10008.1.2.2"
JPEG: Final = b"1.2.840.10008.1.2.4.50"
JPEG_LOSSLESS: Final = b"1.2.840.10008.1.2.4.70"
JPEG_LS: Final = b"1.2.840.10008.1.2.4.80"
JPEG_2000: Final = b"1.2.840.10008.1.2.4.90"
RLE: Final = b"1.2.840.10008.1.2.5"
MPEG: Final = b"1.2.840.10008.1.2.4.100"

#: Where fields of NIfTI-1 stand, and of what type they are.
NIFTI: Final = {
    "sizeof_hdr": (0, "i"),
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
    "magic": (344, "4s"),
}
NIFTI_2: Final = {
    "sizeof_hdr": (0, "i"),
    "magic": (4, "8s"),
    "datatype": (12, "h"),
    "bitpix": (14, "h"),
    "dim": (16, "8q"),
    "pixdim": (104, "8d"),
    "vox_offset": (168, "q"),
    "scaling": (176, "2d"),
    "codes": (344, "2i"),
    "quaternion": (352, "6d"),
    "affine": (400, "12d"),
    "xyzt_units": (500, "i"),
}


def nifti(pixels: bytes = PIXELS, *, version: int = 1, order: str = "<", **fields: Any) -> bytes:
    """NIfTI of `SIZES`, voxels of 2 mm, with other values of the fields named."""
    values: dict[str, Any] = {
        "sizeof_hdr": 348 if version == 1 else 540,
        "dim": (3, *SIZES, 1, 1, 1, 1),
        "datatype": 4,
        "bitpix": 16,
        "pixdim": (1.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0),
        "vox_offset": 352 if version == 1 else 544,
        "scaling": (1.0, 0.0),
        "xyzt_units": 2,
        "codes": (0, 1),
        "quaternion": (0.0,) * 6,
        "affine": (-2.0, 0, 0, 9, 0, -2.0, 0, 9, 0, 0, 2.0, -9),
        "magic": b"n+1\0" if version == 1 else b"n+2\0\r\n\x1a\n",
        **fields,
    }
    layout = NIFTI if version == 1 else NIFTI_2
    header = bytearray(352 if version == 1 else 544)
    for name, value in values.items():
        at, code = layout[name]
        struct.pack_into(order + code, header, at, *(value if isinstance(value, tuple) else (value,)))
    return bytes(header) + pixels


NRRD_FIELDS: Final = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(2,0,0) (0,2,0) (0,0,2)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-9,-9,-9)",
}


def nrrd(pixels: bytes = PIXELS, fields: Mapping[str, str | None] = {}, *, more: str = "", end: str = "\n") -> bytes:
    """NRRD of `SIZES`; a field that is None is left out, `more` stands behind the others."""
    lines = {**NRRD_FIELDS, **fields}
    text = "".join(f"{name}: {value}\n" for name, value in lines.items() if value is not None)
    return f"NRRD0004\n{text}{more}{end}".encode() + pixels


META_FIELDS: Final = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-9 -9 -9",
    "ElementSpacing": "2 2 2",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
}


def metaimage(pixels: bytes = PIXELS, fields: Mapping[str, str | None] = {}, *, data: str = "LOCAL") -> bytes:
    """MetaImage of `SIZES`; a field that is None is left out."""
    lines = {**META_FIELDS, **fields, "ElementDataFile": data}
    text = "".join(f"{name} = {value}\n" for name, value in lines.items() if value is not None)
    return text.encode("utf-8") + pixels


# DICOM

Element = tuple[int, str, bytes]
_LONG: Final = ("OB", "OW", "SQ", "UN", "UT", "OV")

ROWS: Final = 0x00280010
COLUMNS: Final = 0x00280011
PIXEL_DATA: Final = 0x7FE00010
SHARED: Final = 0x52009229
PER_FRAME: Final = 0x52009230


def element(
    tag: int, vr: str, value: bytes, length: int | None = None, *, order: str = "<", implicit: bool = False
) -> bytes:
    """One data element; `length` is what it says, which may be another than it has."""
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB") else b" "
    size = len(value) if length is None else length
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack(f"{order}I", size) + value
    if vr in _LONG:
        return head + vr.encode() + b"\0\0" + struct.pack(f"{order}I", size) + value
    return head + vr.encode() + struct.pack(f"{order}H", size & 0xFFFF) + value


def us(number: int) -> bytes:
    return struct.pack("<H", number)


def slice_elements(index: int = 0, *, side: int = 4) -> dict[int, tuple[str, bytes]]:
    """What a CT slice of `side` rows and columns says, by tag."""
    return {
        0x00080008: ("CS", b"ORIGINAL\\PRIMARY\\AXIAL"),
        0x00080016: ("UI", CT_CLASS),
        0x00080018: ("UI", b"1.2.3.%d" % (index + 1)),
        0x00080060: ("CS", b"CT"),
        0x00100020: ("LO", b"P1"),
        0x0020000D: ("UI", b"1.2.3"),
        0x0020000E: ("UI", b"1.2.3.4"),
        0x00200011: ("IS", b"1"),
        0x00200013: ("IS", b"%d" % (index + 1)),
        0x00200032: ("DS", b"0\\0\\%d" % (5 * index)),
        0x00200037: ("DS", b"1\\0\\0\\0\\1\\0"),
        0x00280002: ("US", us(1)),
        0x00280004: ("CS", b"MONOCHROME2"),
        ROWS: ("US", us(side)),
        COLUMNS: ("US", us(side)),
        0x00280030: ("DS", b"2\\2"),
        0x00280100: ("US", us(16)),
        0x00280101: ("US", us(16)),
        0x00280102: ("US", us(15)),
        0x00280103: ("US", us(1)),
        0x00281052: ("DS", b"0"),
        0x00281053: ("DS", b"1"),
        PIXEL_DATA: ("OW", PIXELS[: 2 * side * side]),
    }


def item(content: bytes, *, is_open: bool = False) -> bytes:
    """An item of a sequence, of undefined length where it `is_open`."""
    if is_open:
        return b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + content + b"\xfe\xff\x0d\xe0\0\0\0\0"
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content)) + content


def frame_elements(frames: int = 3) -> dict[int, tuple[str, bytes]]:
    """An enhanced CT: all frames in one file."""
    measures = element(0x00280030, "DS", b"2\\2")
    turned = element(0x00200037, "DS", b"1\\0\\0\\0\\1\\0")
    shared = item(element(0x00289110, "SQ", item(measures)) + element(0x00209116, "SQ", item(turned)))
    each = b"".join(
        item(element(0x00209113, "SQ", item(element(0x00200032, "DS", b"0\\0\\%d" % (5 * frame)))))
        for frame in range(frames)
    )
    elements = slice_elements()
    del elements[0x00200032], elements[0x00200037], elements[0x00280030]
    return {
        **elements,
        0x00080016: ("UI", ENHANCED_CT_CLASS),
        0x00280008: ("IS", b"%d" % frames),
        SHARED: ("SQ", shared),
        PER_FRAME: ("SQ", each),
        PIXEL_DATA: ("OW", (PIXELS * frames)[: 32 * frames]),
    }


def dicom(
    elements: Mapping[int, tuple[str, bytes]],
    *,
    syntax: bytes = EXPLICIT,
    preamble: bytes = b"",
    meta: bytes = b"",
    more: bytes = b"",
    meta_length: int | None = None,
    without: Sequence[int] = (),
) -> bytes:
    """A DICOM file.

    Args:
        meta: elements of the meta header that stand before the transfer syntax.
        more: elements before the pixels.
        meta_length: what the meta header says of its own length.
        without: tags that are left out.
    """
    order, implicit = ">" if syntax == BIG_ENDIAN else "<", syntax == IMPLICIT
    group = element(0x00020002, "UI", CT_CLASS) + meta + element(0x00020010, "UI", syntax)
    size = len(group) if meta_length is None else meta_length
    head = preamble.ljust(128, b"\0")[:128] + b"DICM" + element(0x00020000, "UL", struct.pack("<I", size)) + group
    body = b""
    for tag in sorted(elements):
        if tag in without:
            continue
        vr, value = elements[tag]
        if tag == PIXEL_DATA:
            body += more
            if syntax in (JPEG, JPEG_LOSSLESS, JPEG_LS, JPEG_2000, RLE):
                body += element(tag, "OB", value, 0xFFFFFFFF)
                continue
        if order == ">" and vr in ("US", "OW"):
            value = b"".join(value[i : i + 2][::-1] for i in range(0, len(value), 2))
        body += element(tag, vr, value, order=order, implicit=implicit)
    return head + body


def fragments(*frames: bytes, table: bytes = b"") -> bytes:
    """Compressed frames as PixelData holds them, with the table of their offsets before them."""
    padded = (frame + b"\0" * (len(frame) % 2) for frame in frames)
    return item(table) + b"".join(item(frame) for frame in padded) + b"\xfe\xff\xdd\xe0\0\0\0\0"


def series(slices: int = 4, *, side: int = 4, syntax: bytes = EXPLICIT) -> dict[str, bytes]:
    """Files of a series that is read."""
    return {f"{i}.dcm": dicom(slice_elements(i, side=side), syntax=syntax) for i in range(slices)}


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return target.getvalue()
