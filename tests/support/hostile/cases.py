"""Files that mean harm, or that are what such files are made of, each with what must come of it.

All are made when they are asked for, and small: the largest has a few megabytes.
"""

import gzip
import io
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from tests.support.hostile import build
from tests.support.hostile.build import (
    PER_FRAME,
    PIXEL_DATA,
    PIXELS,
    SHARED,
    dicom,
    element,
    fragments,
    frame_elements,
    item,
    metaimage,
    nifti,
    nrrd,
    series,
    slice_elements,
    us,
    zipped,
)

UNSUPPORTED: Final = "unsupported-format"
DAMAGED: Final = "damaged-file"
TOO_LARGE: Final = "scan-too-large"
NOT_CT: Final = "not-chest-ct"
#: It is read, and does no harm: the test is that nothing else happens.
READ: Final = "read"

#: A name that no answer may quote, in characters that turn the order of a line.
CANARY: Final = "DOE\u202eENAJ"
#: The same characters where a number or a known word belongs: an answer quotes what stands there, without them.
TURNING: Final = "left\u202ethgir"


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        problem: the slug of the problem that it ends as, or `READ`.
        status: the gateway's answer: 202 where the reader decides, 415 where the first bytes do.
    """

    name: str
    make: Callable[[], bytes]
    problem: str
    status: int = 202


def _fixed(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def _many(
    prefix: str, problem: str, contents: Mapping[str, bytes | Callable[[], bytes]], status: int = 202
) -> Iterator[Case]:
    for name, content in contents.items():
        yield Case(f"{prefix} {name}", _fixed(content) if isinstance(content, bytes) else content, problem, status)


# Images


def _nifti_cases() -> Iterator[Case]:
    nan, inf = float("nan"), float("inf")
    yield from _many(
        "nifti",
        DAMAGED,
        {
            "sizes of 0": nifti(dim=(3, 0, 5, 4, 1, 1, 1, 1)),
            "sizes below 0": nifti(dim=(3, -6, 5, 4, 1, 1, 1, 1)),
            "product of sizes overflows 64 bits to 0": nifti(version=2, dim=(3, 2**31, 2**31, 2**31, 1, 1, 1, 1)),
            "largest 64-bit size": nifti(version=2, dim=(3, 2**63 - 1, 5, 4, 1, 1, 1, 1)),
            "smallest 64-bit size": nifti(version=2, dim=(3, -(2**63), 5, 4, 1, 1, 1, 1)),
            "no axes": nifti(dim=(0, 6, 5, 4, 1, 1, 1, 1)),
            "eight axes": nifti(dim=(8, 6, 5, 4, 1, 1, 1, 1)),
            "axes below 0": nifti(dim=(-3, 6, 5, 4, 1, 1, 1, 1)),
            "pixels before the end of the header": nifti(vox_offset=0),
            "pixels at an offset below 0": nifti(vox_offset=-352),
            "pixels at no number": nifti(vox_offset=nan),
            "pixels beyond all files": nifti(vox_offset=1e30),
            "pixels at a half byte": nifti(vox_offset=352.5),
            "64-bit offset": nifti(version=2, vox_offset=2**62),
            "spacing of 0": nifti(codes=(1, 0), pixdim=(1.0, 0.0, 2.0, 2.0, 0, 0, 0, 0)),
            "spacing is no number": nifti(codes=(1, 0), pixdim=(1.0, nan, 2.0, 2.0, 0, 0, 0, 0)),
            "spacing is infinite": nifti(codes=(1, 0), pixdim=(1.0, inf, 2.0, 2.0, 0, 0, 0, 0)),
            "spacing of a galaxy": nifti(affine=(1e30, 0, 0, 0, 0, 1e30, 0, 0, 0, 0, 1e30, 0)),
            "spacing of an atom": nifti(affine=(1e-7, 0, 0, 0, 0, 1e-7, 0, 0, 0, 0, 1e-7, 0)),
            "affine without volume": nifti(affine=(2.0, 0, 0, 0, 2.0, 0, 0, 0, 0, 0, 2.0, 0)),
            "affine of nothing": nifti(affine=(0,) * 12),
            "affine is no number": nifti(affine=(nan,) * 12),
            "origin is infinite": nifti(affine=(2.0, 0, 0, inf, 0, 2.0, 0, 0, 0, 0, 2.0, 0)),
            "quaternion longer than 1": nifti(codes=(1, 0), quaternion=(9.0, 9.0, 9.0, 0, 0, 0)),
            "quaternion is no number": nifti(codes=(1, 0), quaternion=(nan, 0, 0, 0, 0, 0)),
            "code that is undefined": nifti(codes=(0, 99)),
            "code below 0": nifti(codes=(-1, -1)),
            "slope is no number": nifti(scaling=(nan, 0.0)),
            "intercept is infinite": nifti(scaling=(1.0, inf)),
            "without pixels": nifti(b""),
            "half of the pixels": nifti(PIXELS[: len(PIXELS) // 2]),
            "size of the header is wrong": nifti(sizeof_hdr=349),
            "far more than its header says": lambda: nifti(PIXELS + bytes(1 << 20)),
        },
    )
    yield from _many(
        "nifti",
        TOO_LARGE,
        {
            "32767 voxels each way": nifti(dim=(3, 32767, 32767, 32767, 1, 1, 1, 1)),
            "more voxels than are read": nifti(dim=(3, 32767, 32767, 3, 1, 1, 1, 1)),
            "64-bit sizes": nifti(version=2, dim=(3, 2**20, 2**20, 2**20, 1, 1, 1, 1)),
            "product of sizes overflows 32 bits": nifti(dim=(3, 2048, 2048, 1024, 1, 1, 1, 1)),
        },
    )
    yield from _many(
        "nifti",
        UNSUPPORTED,
        {
            "colours": nifti(datatype=128),
            "complex numbers": nifti(datatype=32),
            "type that is undefined": nifti(datatype=-1),
            "float128": nifti(datatype=1536),
            "a thousand volumes": nifti(dim=(4, 6, 5, 4, 1000, 1, 1, 1)),
            "picture": nifti(dim=(2, 6, 5, 4, 1, 1, 1, 1)),
            "sheared axes": nifti(affine=(2.0, 1.0, 0, 0, 0, 2.0, 0, 0, 0, 0, 2.0, 0)),
            "unit that is undefined": nifti(xyzt_units=7),
        },
    )
    yield from _many(
        "nifti",
        UNSUPPORTED,
        {"pixels in another file": nifti(magic=b"ni1\0"), "header cut short": nifti()[:347]},
        status=415,
    )
    yield from _many(
        "nifti",
        READ,
        {
            "values that are no numbers": nifti(struct.pack("<120f", *[nan] * 60, *[inf] * 60), datatype=16, bitpix=32),
            "slope beyond all numbers": nifti(scaling=(3e38, 3e38)),
            "bits that contradict the type": nifti(bitpix=-64),
            "extension of code": nifti(vox_offset=368).replace(b"\0" * 4 + PIXELS[:8], b"\1\0\0\0" + PIXELS[:8])[:352]
            + struct.pack("<2i", 16, 44)
            + b"\x90" * 8
            + PIXELS,
        },
    )


def _nrrd_cases() -> Iterator[Case]:
    yield from _many(
        "nrrd",
        UNSUPPORTED,
        {
            "data file": nrrd(more="data file: /etc/passwd\n"),
            "datafile": nrrd(more="datafile: ../../../etc/passwd\n"),
            "data file in capitals": nrrd(more="DATA FILE: /etc/passwd\n"),
            "list of data files": nrrd(more="data file: LIST\n/etc/passwd\n/etc/shadow\n"),
            "pattern of data files": nrrd(more="data file: /proc/self/fd/%d 0 9 1\n"),
            "address as data file": nrrd(more="data file: http://169.254.169.254/latest/meta-data\n"),
            "named pipe as data file": nrrd(more="data file: /dev/stdin\n"),
            "detached": nrrd(b"", end=""),
            "lines skipped": nrrd(more="line skip: 1000000000\n"),
            "bytes skipped backwards": nrrd(more="byte skip: -1\n"),
            "byteskip": nrrd(more="byteskip: 99999999999999999999\n"),
            "pixels as text": nrrd(fields={"encoding": "text"}),
            "bzip2": nrrd(fields={"encoding": "bzip2"}),
            "encoding of its own": nrrd(fields={"encoding": TURNING}),
            "blocks": nrrd(fields={"type": "block"}),
            "type of its own": nrrd(fields={"type": "__import__('os').system('id')"}),
            "unit of its own": nrrd(more='space units: "parsec" "parsec" "parsec"\n'),
            "four numbers a vector": nrrd(fields={"space directions": "(2,0,0,0) (0,2,0,0) (0,0,2,0)"}),
            "colours": nrrd(
                fields={"sizes": "3 6 5 4", "dimension": "4", "space directions": "none (2,0,0) (0,2,0) (0,0,2)"}
            ),
            "header of 65 KiB": nrrd(more="# " + "x" * 70_000 + "\n"),
        },
    )
    yield from _many(
        "nrrd",
        DAMAGED,
        {
            "15,000 axes": nrrd(fields={"sizes": "6 " * 15_000, "dimension": "15000", "space directions": None}),
            "sizes below 0": nrrd(fields={"sizes": "-6 5 4"}),
            "sizes of 0": nrrd(fields={"sizes": "0 0 0"}),
            "size of 4000 digits": nrrd(fields={"sizes": f"{'9' * 4000} 5 4"}),
            "size of 20,000 digits": nrrd(fields={"sizes": f"{'9' * 20_000} 5 4"}),
            "product of sizes overflows": nrrd(fields={"sizes": "4294967296 4294967296 4294967296"}),
            "sizes with a point": nrrd(fields={"sizes": "6.0 5 4"}),
            "sizes as code": nrrd(fields={"sizes": "__import__('os') 5 4"}),
            "no sizes": nrrd(fields={"sizes": None}),
            "dimension contradicts": nrrd(fields={"dimension": "2"}),
            "sizes twice": nrrd(more="sizes: 600 500 400\n"),
            "directions twice": nrrd(more="space directions: (200,0,0) (0,200,0) (0,0,200)\n"),
            "directions of infinity": nrrd(fields={"space directions": "(inf,0,0) (0,2,0) (0,0,2)"}),
            "directions beyond floats": nrrd(fields={"space directions": "(1e400,0,0) (0,2,0) (0,0,2)"}),
            "directions of no numbers": nrrd(fields={"space directions": "(nan,0,0) (0,2,0) (0,0,2)"}),
            "directions of text": nrrd(fields={"space directions": "(a,0,0) (0,2,0) (0,0,2)"}),
            "directions of brackets": nrrd(fields={"space directions": "(" * 60_000}),
            "two directions": nrrd(fields={"space directions": "(2,0,0) (0,2,0)"}),
            "no spacing": nrrd(fields={"space directions": None}),
            "origin beyond floats": nrrd(fields={"space origin": "(1e309,0,0)"}),
            "no byte order": nrrd(fields={"endian": None}),
            "byte order of its own": nrrd(fields={"endian": "middle"}),
            "cut short": nrrd(PIXELS[:10]),
            "gzip that is none": nrrd(fields={"encoding": "gzip"}),
            "gzip cut short": nrrd(gzip.compress(PIXELS, mtime=0)[:-12], {"encoding": "gzip"}),
            "gzip of too much": lambda: nrrd(gzip.compress(bytes(1 << 22), mtime=0), {"encoding": "gzip"}),
        },
    )
    yield Case(
        "nrrd gzip bomb of the announced size",
        lambda: nrrd(gzip.compress(bytes(64 << 20), 6, mtime=0), {"encoding": "gzip", "sizes": "512 512 128"}),
        TOO_LARGE,
    )
    yield from _many(
        "nrrd",
        READ,
        {
            "name in a comment": nrrd(more=f"# {CANARY}\n"),
            "key that is no field": nrrd(more="data file:=/etc/passwd\n"),
        },
    )


def _metaimage_cases() -> Iterator[Case]:
    yield from _many(
        "metaimage",
        UNSUPPORTED,
        {
            "data in another file": metaimage(data="/etc/passwd"),
            "data in a file above": metaimage(data="../../other/input"),
            "data at an address": metaimage(data="http://169.254.169.254/"),
            "list of data files": metaimage(data="LIST\n/etc/passwd"),
            "pattern of data files": metaimage(data="/proc/self/fd/%d 0 9 1"),
            "local, almost": metaimage(data="LOCAL /etc/passwd"),
            "local with a zero byte": metaimage(data="LOCAL\0/etc/passwd"),
            "header of a size": metaimage(fields={"HeaderSize": "1000000"}),
            "header of a size below 0": metaimage(fields={"HeaderSize": "-2"}),
            "colours": metaimage(fields={"ElementNumberOfChannels": "3"}),
            "channels beyond all numbers": metaimage(fields={"ElementNumberOfChannels": "99999999999999999999"}),
            "type of its own": metaimage(fields={"ElementType": "MET_STRING"}),
            "type that depends on its writer": metaimage(fields={"ElementType": "MET_LONG"}),
            "no type": metaimage(fields={"ElementType": None}),
            "pixels as text": metaimage(fields={"BinaryData": "False"}),
            "unit of its own": metaimage(fields={"DistanceUnits": TURNING}),
            "a thousand volumes": metaimage(
                fields={
                    "NDims": "4",
                    "DimSize": "6 5 4 1000",
                    "ElementSpacing": "2 2 2 1",
                    "Offset": "0 0 0 0",
                    "TransformMatrix": "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1",
                }
            ),
            "picture": metaimage(
                fields={
                    "NDims": "2",
                    "DimSize": "6 20",
                    "ElementSpacing": "2 2",
                    "Offset": "0 0",
                    "TransformMatrix": "1 0 0 1",
                }
            ),
            "sheared axes": metaimage(fields={"TransformMatrix": "1 0.5 0 0 1 0 0 0 1"}),
        },
    )
    yield from _many(
        "metaimage",
        DAMAGED,
        {
            "no data": metaimage().partition(b"ElementDataFile")[0],
            "header of 65 KiB": metaimage(fields={"Comment": "x" * 70_000}),
            "sizes below 0": metaimage(fields={"DimSize": "-6 5 4"}),
            "sizes of 0": metaimage(fields={"DimSize": "6 0 4"}),
            "size of 4000 digits": metaimage(fields={"DimSize": f"{'9' * 4000} 5 4"}),
            "product of sizes overflows": metaimage(fields={"DimSize": "9223372036854775807 2 2"}),
            "no sizes": metaimage(fields={"DimSize": None}),
            "dimensions contradict": metaimage(fields={"NDims": "2"}),
            "sizes twice": metaimage(fields={"DimSize": "6 5 4\nDimSize = 600 500 400"}),
            "spacing of 0": metaimage(fields={"ElementSpacing": "0 2 2"}),
            "spacing below 0": metaimage(fields={"ElementSpacing": "-2 2 2"}),
            "spacing is no number": metaimage(fields={"ElementSpacing": "nan 2 2"}),
            "spacing is infinite": metaimage(fields={"ElementSpacing": "inf 2 2"}),
            "no spacing": metaimage(fields={"ElementSpacing": None}),
            "two numbers of spacing": metaimage(fields={"ElementSpacing": "2 2"}),
            "matrix without volume": metaimage(fields={"TransformMatrix": "1 0 0 1 0 0 0 0 1"}),
            "matrix of text": metaimage(fields={"TransformMatrix": f"{TURNING} 0 0 0 1 0 0 0 1"}),
            "matrix is no number": metaimage(fields={"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}),
            "origin beyond floats": metaimage(fields={"Offset": "1e999 0 0"}),
            "cut short": metaimage(PIXELS[:10]),
            "zlib that is none": metaimage(fields={"CompressedData": "True"}),
            "zlib of too much": lambda: metaimage(zlib.compress(bytes(1 << 22)), {"CompressedData": "True"}),
            "zlib cut short": metaimage(zlib.compress(PIXELS)[:-8], {"CompressedData": "True"}),
        },
    )
    yield from _many(
        "metaimage",
        TOO_LARGE,
        {
            "more voxels than are read": metaimage(fields={"DimSize": "60000 60000 100"}),
            "bomb of the announced size": lambda: metaimage(
                zlib.compress(bytes(100 << 20)), {"CompressedData": "True", "DimSize": "512 512 200"}
            ),
        },
    )
    yield from _many(
        "metaimage",
        READ,
        {
            "name in a comment": metaimage(fields={"Comment": CANARY}),
            "size of compressed data that lies": metaimage(
                zlib.compress(PIXELS), {"CompressedData": "True", "CompressedDataSize": "99999999999"}
            ),
        },
    )


def _gzip_cases() -> Iterator[Case]:
    packed = gzip.compress(nifti(), mtime=0)
    large = {"dim": (3, 512, 512, 128, 1, 1, 1, 1)}
    yield from _many(
        "gzip",
        DAMAGED,
        {
            "cut short": gzip.compress(nifti(random.Random(2).randbytes(240)), 0, mtime=0)[:-20],
            "wrong checksum": packed[:-8] + b"\0\0\0\0" + packed[-4:],
            "wrong length": packed[:-4] + b"\xff\xff\xff\xff",
            "damaged in the middle": gzip.compress(nifti(random.Random(1).randbytes(240)), 0, mtime=0)[:400]
            + b"\xff" * 90,
            "bomb of little announced": lambda: gzip.compress(nifti() + bytes(64 << 20), 9, mtime=0),
            "second member damaged": gzip.compress(nifti()[:500], mtime=0) + packed[:30],
        },
    )
    yield from _many(
        "gzip",
        UNSUPPORTED,
        {
            "gzip in a gzip": gzip.compress(packed, mtime=0),
            "of a zip": gzip.compress(zipped(series()), mtime=0),
            "of a DICOM": gzip.compress(series()["0.dcm"], mtime=0),
            "of NRRD": gzip.compress(nrrd(), mtime=0),
            "of nothing": gzip.compress(b"", mtime=0),
            "of zeros": lambda: gzip.compress(bytes(1 << 24), 9, mtime=0),
            "name without end": b"\x1f\x8b\x08\x08\0\0\0\0\0\x03" + b"A" * 10_000,
            "two bytes": b"\x1f\x8b",
        },
    )
    yield Case(
        "gzip bomb of the announced size",
        lambda: gzip.compress(nifti(bytes(64 << 20), **large), 6, mtime=0),
        TOO_LARGE,
    )
    yield Case(
        "gzip of 150,000 empty members",
        lambda: gzip.compress(nifti()[:400], mtime=0) + gzip.compress(b"", mtime=0) * 150_000 + packed,
        TOO_LARGE,
    )
    yield Case(
        "gzip of 90,000 empty members",
        lambda: (
            gzip.compress(nifti()[:400], mtime=0)
            + gzip.compress(b"", mtime=0) * 90_000
            + gzip.compress(nifti()[400:], mtime=0)
        ),
        READ,
    )
    yield Case("gzip whose reserved flags are set", _fixed(packed[:3] + b"\xe0" + packed[4:]), READ)
    yield Case("gzip with a page behind it", _fixed(packed + b"<script>alert(1)</script>"), READ)


# Zips


def _with_central(content: bytes, changes: dict[int, tuple[str, Any]], *, also_local: bool = False) -> bytes:
    """Every entry of the directory changed at the offsets; sizes, flags and methods in local headers too."""
    changed = bytearray(content)
    local_of = {8: 6, 10: 8, 20: 18, 24: 22}
    for signature, offsets in ((b"PK\x01\x02", {at: at for at in changes}), (b"PK\x03\x04", local_of)):
        begin = changed.find(signature)
        while begin >= 0:
            for at, (code, value) in changes.items():
                if signature == b"PK\x01\x02" or (also_local and at in local_of):
                    struct.pack_into(code, changed, begin + offsets[at], value)
            begin = changed.find(signature, begin + 4)
    return bytes(changed)


def overlapping_zip(members: int = 2000, *, kernel_bytes: int = 1 << 20) -> bytes:
    """Entries of a directory that all name the same local header."""
    one = zipped({"a": b"\0" * kernel_bytes})
    at = one.index(b"PK\x01\x02")
    end = one.rindex(b"PK\x05\x06")
    directory = one[at:end]
    counted = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, members, members, len(directory) * members, at, 0)
    return one[:at] + directory * members + counted


def quoting_zip(members: int = 250) -> bytes:
    """Each member holds, as stored data, the local headers of all that follow, down to one kernel."""
    kernel = zlib.compressobj(9, zlib.DEFLATED, -15)
    plain = bytes(1 << 20)
    packed = kernel.compress(plain) + kernel.flush()
    body, entries = packed, []
    head_bytes = 30 + 4
    for index in range(members):
        name = b"%04d" % index
        quoted = b"" if index == 0 else b"\0" + struct.pack("<HH", head_bytes, head_bytes ^ 0xFFFF)
        sizes = (len(body) + len(quoted), len(plain))
        local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, *sizes, 4, 0) + name
        body = local + quoted + body
        entries.append((name, sizes, len(body)))
    directory = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, *sizes, 4, 0, 0, 0, 0, 0, len(body) - from_end)
        + name
        for name, sizes, from_end in entries
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, members, members, len(directory), len(body), 0)
    return body + directory + end


def _linked(target: bytes, mode: int = stat.S_IFLNK | 0o777) -> bytes:
    content = io.BytesIO()
    info = zipfile.ZipInfo("scan.nii")
    info.create_system, info.external_attr = 3, mode << 16
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(info, target)
    return content.getvalue()


def _zip_cases() -> Iterator[Case]:
    good = zipped({"scan.nii": nifti()})
    names = {
        "above": "../../../../etc/cron.d/x",
        "absolute": "/etc/passwd",
        "with a drive": "C:\\Windows\\x",
        "of another machine": "\\\\host\\share\\x",
        "above by backslashes": "..\\..\\x",
        "above in the middle": "a/../../x",
    }
    yield from _many("zip name", DAMAGED, {why: zipped({name: nifti()}) for why, name in names.items()})
    yield from _many(
        "zip",
        DAMAGED,
        {
            "link to a file": _linked(b"/etc/passwd"),
            "link to its parent's memory": _linked(b"/proc/self/mem"),
            "overlapping entries": lambda: overlapping_zip(),
            "overlapping entries that quote each other": lambda: quoting_zip(),
            "entry before the file": _with_central(good, {42: ("<I", 0xFFFFFFF0)}),
            "entry behind the directory": _with_central(good, {42: ("<I", len(good) - 30)}),
            "compressed size beyond the file": _with_central(good, {20: ("<I", 0x7FFFFFFF)}),
            "size that is too small": _with_central(good, {24: ("<I", 10)}, also_local=True),
            "wrong checksum": _with_central(good, {16: ("<I", 1)}),
            "name in the directory differs": good.replace(b"scan.nii", b"SCAN.nii", 1),
            "local name that is no UTF-8": _with_central(good, {8: ("<H", 0x800)}).replace(
                b"scan.nii", b"sc\xff\xfe.nii", 1
            ),
            "cut short": good[:-10],
            "without a directory": good[: good.index(b"PK\x01\x02")],
            "directory beyond the file": good[:-6] + struct.pack("<IH", 0x7FFFFFFF, 0),
            "directory larger than the file": good[:-10] + struct.pack("<IIH", 0x7FFFFFFF, 0, 0),
            "64-bit directory that is not there": good[:-22]
            + struct.pack("<4sIQI", b"PK\x06\x07", 0, 2**63, 1)
            + good[-22:-6]
            + struct.pack("<IH", 0xFFFFFFFF, 0),
            "deflate that is none": zipped({"scan.nii": nifti()}).replace(zlib.compress(nifti())[2:10], b"\xff" * 8, 1),
        },
    )
    yield from _many(
        "zip",
        UNSUPPORTED,
        {
            "encrypted": _with_central(good, {8: ("<H", 1)}, also_local=True),
            "strongly encrypted": _with_central(good, {8: ("<H", 0x41)}, also_local=True),
            "encrypted by AES": _with_central(good, {8: ("<H", 1), 10: ("<H", 99)}, also_local=True),
            "method that is undefined": _with_central(good, {10: ("<H", 77)}, also_local=True),
            "bzip2": zipped({"scan.nii": nifti()}, zipfile.ZIP_BZIP2),
            "LZMA": lambda: zipped({"scan.nii": nifti()}, zipfile.ZIP_LZMA),
            "zip in a zip": zipped({"a.zip": good}),
            "ten zips deep": _nested(10),
            "nothing": zipped({}),
            "two images": zipped({"a.nii": nifti(), "b.nii": nifti()}),
            "letters": zipped({"a.txt": b"a", "b.html": b"<script>"}),
            "NRRD that names its neighbour": zipped({"a.nhdr": nrrd(more="data file: b.raw\n"), "b.raw": PIXELS}),
            "MetaImage that names its neighbour": zipped({"a.mhd": metaimage(data="b.raw"), "b.raw": PIXELS}),
            "DICOM that is a zip as well": good[:128].ljust(128, b"\0")[:128] + b"DICM" + good,
        },
    )
    yield from _many(
        "zip",
        TOO_LARGE,
        {
            "bomb of one member": lambda: zipped({"scan.nii": nifti() + bytes(64 << 20)}),
            "bomb of many members": lambda: zipped({f"{i}": bytes(1 << 20) for i in range(60)}),
            "5 GB announced": _with_central(good, {24: ("<I", 0xFFFFFFFE)}, also_local=True),
        },
    )
    yield Case(
        "zip of 20,000 members", lambda: zipped({f"{i}": b"" for i in range(20_000)}, zipfile.ZIP_STORED), TOO_LARGE
    )
    yield Case("zip of 45,000 folders", lambda: _folders(45_000), TOO_LARGE)
    yield Case("zip of names of 64 KB", lambda: zipped({f"{i:04d}" + "x" * 65_000: b"" for i in range(200)}), TOO_LARGE)
    yield from _many(
        "zip",
        READ,
        {
            "several disks": good[:-18] + struct.pack("<HH", 3, 2) + good[-14:],
            "name with a zero byte": zipped({"scanXnii": nifti()}).replace(b"scanXnii", b"scan\0nii"),
            "name of 60,000 folders": lambda: zipped({"a/" * 30_000 + "scan.nii": nifti()}),
            "name in Hebrew that turns round": zipped({f"{CANARY}.nii": nifti()}),
            "device as a member": _linked(nifti(), stat.S_IFCHR | 0o666),
            "setuid member": _linked(nifti(), stat.S_IFREG | 0o6777),
            "one name twice": _twice(),
            "program beside the scan": zipped({"scan.nii": nifti(), "viewer.exe": b"MZ" + bytes(5000)}),
            "comment of 64 KB": lambda: good[:-2] + struct.pack("<H", 65535) + b"PK\x05" * 21845,
        },
    )


def _nested(depth: int) -> bytes:
    content = nifti()
    for _ in range(depth):
        content = zipped({"a.zip": content})
    return content


def _folders(count: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for index in range(count):
            archive.writestr(zipfile.ZipInfo("x" * 250 + f"{index}/"), b"")
    return content.getvalue()


def _twice() -> bytes:
    """The same image twice under one name would be two images; text and image are one."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo("scan.nii"), b"text")
        archive.fp.write(b"")  # type: ignore[union-attr]  # it is open
        archive.writestr(zipfile.ZipInfo("scan.nij"), nifti())
    return content.getvalue().replace(b"scan.nij", b"scan.nii")


# DICOM


def _of(change: Callable[[int, dict[int, tuple[str, bytes]]], Any], slices: int = 4, **options: Any) -> bytes:
    """A series of whose slices each is changed; what `change` returns, if anything, goes to `dicom`."""
    files = {}
    for index in range(slices):
        elements = slice_elements(index)
        more = change(index, elements) or {}
        files[f"{index}.dcm"] = dicom(elements, **{**options, **more})
    return zipped(files)


def _with(tag: int, vr: str, value: bytes) -> bytes:
    return _of(lambda _, e: e.update({tag: (vr, value)}))


def _without(*tags: int) -> bytes:
    return _of(lambda _, e: [e.pop(tag) for tag in tags] and None)


def _frames(**changes: tuple[str, bytes]) -> bytes:
    elements = frame_elements()
    elements.update({int(tag[1:], 16): value for tag, value in changes.items()})
    return zipped({"a.dcm": dicom(elements)})


def _compressed(syntax: bytes, codestream: bytes) -> bytes:
    return _of(lambda _, e: e.update({PIXEL_DATA: ("OB", fragments(codestream))}), syntax=syntax)


def jpeg(rows: int = 4, columns: int = 4, *, marker: int = 0xC0, samples: int = 1) -> bytes:
    frame = struct.pack(">BHHB", 8, rows, columns, samples) + b"\1\x11\0" * samples
    return (
        b"\xff\xd8\xff"
        + bytes([marker])
        + struct.pack(">H", len(frame) + 2)
        + frame
        + b"\xff\xda\0\x08\1\1\0\0\x3f\0\x3f\xff\xd9"
    )


def jpeg_2000(rows: int = 4, columns: int = 4, *, tile: int | None = None, samples: int = 1) -> bytes:
    side = tile or max(rows, columns)
    size = struct.pack(">H8IH", 0, columns, rows, 0, 0, side, side, 0, 0, samples) + b"\x0f\1\1" * min(samples, 3)
    return (
        b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + b"\xff\x52\0\x0c\0\0\0\x20\0\0\4\4\0\0\xff\xd9"
    )


def deflated(pixels: bytes = b"", *, zeros: int = 0, meta: bytes = b"") -> bytes:
    """A slice in Deflated Explicit VR Little Endian, with so many zeros behind it."""
    whole = dicom(slice_elements(), syntax=build.DEFLATED, meta=meta)
    size = struct.unpack_from("<I", whole, 140)[0]
    begin = 144 + size
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(whole[begin:])
    if zeros:
        packed += packer.compress(struct.pack("<HH2s2xI", 0x7FE1, 0x0010, b"OB", zeros))
        for _ in range(zeros >> 20):
            packed += packer.compress(bytes(1 << 20))
    return whole[:begin] + packed + packer.flush()


@cache
def _elements(count: int) -> bytes:
    """So many empty private elements."""
    return b"".join(struct.pack("<HH2sH", 0x0029, 0x1000 + i % 0xE000, b"LO", 0) for i in range(count))


def _positions(z_mm: Callable[[int], str], slices: int = 4) -> bytes:
    return _of(lambda i, e: e.update({0x00200032: ("DS", f"0\\0\\{z_mm(i)}".encode())}), slices)


def _open_sequences(depth: int) -> bytes:
    """Sequences in sequences, all of undefined length."""
    head = struct.pack("<HH2s2xI", 0x0029, 0x1010, b"SQ", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    tail = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return head * depth + tail * depth


def _dicom_cases() -> Iterator[Case]:
    programs = {
        "for Windows": b"MZ\x90\0",
        "for Linux": b"\x7fELF\2\1\1",
        "for macOS": b"\xcf\xfa\xed\xfe",
        "for macOS of two kinds": b"\xca\xfe\xba\xbe",
        "in a shell": b"#!/bin/sh\nid\n",
        "in a browser": b"<script>alert(1)</script>",
        "in WebAssembly": b"\0asm\1\0\0\0",
    }
    yield from _many(
        "dicom and a program",
        UNSUPPORTED,
        {where: _of(lambda _, e, p=head: {"preamble": p}) for where, head in programs.items()},  # type: ignore[misc]
    )
    yield from _many(
        "dicom",
        READ,
        {
            "that is a TIFF as well": _of(lambda _, e: {"preamble": b"II*\0\x08\0\0\0"}),
            "with a preamble of spaces": _of(lambda _, e: {"preamble": b" " * 128}),
            "length of the meta header lies": _of(lambda _, e: {"meta_length": 0xFFFFFFFF}),
            "name in private tags": _of(lambda _, e: {"more": element(0x00291010, "LO", CANARY.encode())}),
            "1000 empty elements": _of(lambda _, e: {"more": _elements(1000)}),
            "patient's name in a script": _with(0x00100010, "PN", b"<img src=x onerror=alert(1)>"),
            "character set of its own": _with(0x00080005, "CS", b"zlib_codec\\punycode"),
            "a million bits in a UID": _with(0x00080018, "UI", b"1." * 30_000),
            "window of no numbers": _with(0x00281050, "DS", b"nan"),
            "sequence in sequence, 100 deep": _of(lambda _, e: {"more": _open_sequences(100)}),
        },
    )
    yield from _many(
        "dicom deflated",
        UNSUPPORTED,
        {
            "series": zipped({f"{i}": deflated() for i in range(3)}),
            "bomb": lambda: zipped({"a": deflated(zeros=1 << 26)}),
            "bomb behind a long meta header": lambda: zipped(
                {"a": deflated(zeros=1 << 26, meta=element(0x00020013, "OB", b"x" * 9000))}
            ),
            "without a preamble": zipped({"a": deflated()[132:]}),
        },
    )
    syntaxes = {
        "MPEG": build.MPEG,
        "JPIP": b"1.2.840.10008.1.2.4.94",
        "JPIP deflated": b"1.2.840.10008.1.2.4.95",
        "JPEG XL": b"1.2.840.10008.1.2.4.110",
        "its own": b"1.2.3.4.5.6.7",
        "text": b"../../etc/passwd",
    }
    yield from _many(
        "dicom syntax", UNSUPPORTED, {name: _of(lambda _, e: None, syntax=uid) for name, uid in syntaxes.items()}
    )
    photometrics = {"RGB": b"RGB", "palette": b"PALETTE COLOR", "almost": b"MONOCHROME9", "YBR": b"YBR_FULL"}
    yield from _many(
        "dicom photometric", UNSUPPORTED, {name: _with(0x00280004, "CS", value) for name, value in photometrics.items()}
    )
    yield from _many(
        "dicom",
        UNSUPPORTED,
        {
            "three samples": _with(0x00280002, "US", us(3)),
            "12 bits packed": _with(0x00280100, "US", us(12)),
            "1 bit": _with(0x00280100, "US", us(1)),
            "64 bits": _with(0x00280100, "US", us(64)),
            "table of values": _with(0x00283000, "SQ", item(element(0x00283002, "US", us(1)))),
            "values of its own": _with(0x00281054, "LO", TURNING.encode()),
            "single slice": zipped({"a": dicom(slice_elements())}),
            "two patients": _of(lambda i, e: e.update({0x00100020: ("LO", b"P%d" % i)})),
            "frames without places": _with(0x00280008, "IS", b"3"),
            "no positions": _without(0x00200032),
            "no spacing": _without(0x00280030),
            "300 directions in one series": lambda: _of(
                lambda i, e: e.update({0x00280030: ("DS", b"%d.%d\\2" % (1 + i // 50, i % 50 * 2))}), 300
            ),
            "same place, other pixels": _of(
                lambda i, e: e.update({0x00200032: ("DS", b"0\\0\\0"), PIXEL_DATA: ("OW", PIXELS[i : i + 32])})
            ),
            "report": _of(
                lambda _, e: (
                    [e.pop(t) for t in (build.ROWS, build.COLUMNS, PIXEL_DATA)]
                    and e.update({0x00080016: ("UI", b"1.2.840.10008.5.1.4.1.1.88.11"), 0x00080060: ("CS", b"SR")})
                )
            ),
        },
    )
    yield from _many(
        "dicom",
        NOT_CT,
        {
            "other modality": _with(0x00080060, "CS", b"MR"),
            "name as a modality": _with(0x00080060, "CS", CANARY.encode()),
            "name as a class": _with(0x00080016, "UI", b"Doe Jane MR Image Storage"),
        },
    )
    yield from _many(
        "dicom",
        DAMAGED,
        {
            "cut short": _of(lambda i, e: e.update({PIXEL_DATA: ("OW", PIXELS[:8])})),
            "without pixels": _without(PIXEL_DATA),
            "more pixels than it says": _of(lambda i, e: e.update({PIXEL_DATA: ("OW", b"\1" * 4000)})),
            "65535 rows": _of(lambda i, e: e.update({build.ROWS: ("US", us(65535)), build.COLUMNS: ("US", us(100))})),
            "17 bits of 16": _with(0x00280101, "US", us(17)),
            "no bits": _with(0x00280101, "US", us(0)),
            "spacing of 0": _with(0x00280030, "DS", b"0\\0"),
            "spacing below 0": _with(0x00280030, "DS", b"-2\\2"),
            "spacing is no number": _with(0x00280030, "DS", b"nan\\2"),
            "spacing of a galaxy": _with(0x00280030, "DS", b"1e30\\1e30"),
            "position is no number": _positions(lambda i: "nan"),
            "position is infinite": _positions(lambda i: "inf"),
            "position beyond all floats": _positions(lambda i: f"{i}e308"),
            "position of text": _with(0x00200032, "DS", TURNING.encode()),
            "one slice lies on the moon": _positions(lambda i: "4e8" if i == 3 else str(i)),
            "directions of 0": _with(0x00200037, "DS", b"0\\0\\0\\0\\0\\0"),
            "directions that are the same": _with(0x00200037, "DS", b"1\\0\\0\\1\\0\\0"),
            "directions are no numbers": _with(0x00200037, "DS", b"nan\\0\\0\\0\\1\\0"),
            "slope of 0": _with(0x00281053, "DS", b"0"),
            "slope is no number": _with(0x00281053, "DS", b"nan"),
            "slope beyond all floats": _with(0x00281053, "DS", b"1e309"),
            "intercept of text": _with(0x00281052, "DS", TURNING.encode()),
            "slices a thousandth apart": _positions(lambda i: f"{i * 0.011}", 12),
            "frames that are not described": _frames(x00280008=("IS", b"1000000")),
            "frames below 0": _frames(x00280008=("IS", b"-3")),
            "frames beyond all numbers": _frames(x00280008=("IS", b"999999999999")),
            "frames of damaged groups": _frames(x52009230=("SQ", b"\xfe\xff\x00\xe0\xff\xff\xff\x7f")),
            "fragments under a plain syntax": _of(
                lambda i, e: e.update({PIXEL_DATA: ("OB", fragments(b"x" * 32))}), syntax=build.RLE
            ).replace(build.RLE, build.EXPLICIT[: len(build.RLE)]),
            "plain pixels under a compressed syntax": _plain_under(build.JPEG_LOSSLESS),
            "RLE segments beyond the file": _compressed(build.RLE, struct.pack("<16I", 15, *[0xFFFFFFFF] * 15)),
            "RLE of no segments": _compressed(build.RLE, bytes(64)),
            "RLE that is cut": _compressed(build.RLE, b"\1\0"),
            "JPEG of 65535 x 65535": _compressed(build.JPEG, jpeg(65535, 65535)),
            "JPEG of three samples": _compressed(build.JPEG, jpeg(samples=3)),
            "JPEG without a frame": _compressed(build.JPEG, b"\xff\xd8\xff\xd9"),
            "JPEG whose marker leads out": _compressed(build.JPEG, b"\xff\xd8\xff\xe0\xff\xff" + bytes(20)),
            "JPEG whose marker has no length": _compressed(build.JPEG, b"\xff\xd8" + b"\xff\xe0\0\0" * 50),
            "JPEG of nothing": _compressed(build.JPEG, jpeg()),
            "lossless JPEG of 65535 x 65535": _compressed(build.JPEG_LOSSLESS, jpeg(65535, 65535, marker=0xC3)),
            "JPEG-LS of 65535 x 65535": _compressed(build.JPEG_LS, jpeg(65535, 65535, marker=0xF7)),
            "JPEG 2000 of 4 billion rows": _compressed(build.JPEG_2000, jpeg_2000(0xFFFFFFFF, 0xFFFFFFFF)),
            "JPEG 2000 of 60000 x 60000": _compressed(build.JPEG_2000, jpeg_2000(60000, 60000)),
            "JPEG 2000 of 16384 samples": _compressed(build.JPEG_2000, jpeg_2000(samples=16384)),
            "JPEG 2000 of tiles without size": _compressed(
                build.JPEG_2000, jpeg_2000(tile=0).replace(b"\0\0\0\4", b"\0\0\0\0")
            ),
            "JPEG 2000 cut": _compressed(build.JPEG_2000, jpeg_2000()[:20]),
            "no codestream": _compressed(build.JPEG_2000, b"%PDF-1.7 " * 5),
            "fragments without end": _of(
                lambda i, e: e.update({PIXEL_DATA: ("OB", item(b"") + b"\xfe\xff\x00\xe0\xff\xff\xff\x7f")}),
                syntax=build.RLE,
            ),
            "value longer than the file": _of(
                lambda i, e: {"more": struct.pack("<HH2s2xI", 0x5200, 0x9230, b"SQ", 0x7FFFFFFF)}
            ),
            "element without end": _of(
                lambda i, e: {"more": struct.pack("<HH2s2xI", 0x0029, 0x1010, b"UN", 0xFFFFFFFF)}
            ),
            "noise behind the meta header": zipped(
                {"a": dicom({}) + random.Random(3).randbytes(4000), "b": dicom({}) + random.Random(4).randbytes(4000)}
            ),
        },
    )
    yield from _many(
        "dicom",
        TOO_LARGE,
        {
            "400,000 items": lambda: _of(
                lambda i, e: {"more": element(PER_FRAME, "SQ", item(b"") * 400_000)} if not i else None
            ),
            "400,000 items of undefined length": lambda: _of(
                lambda i, e: {"more": element(SHARED, "SQ", item(b"", is_open=True) * 400_000)} if not i else None
            ),
            "60,000 items in each of ten files": lambda: _of(
                lambda i, e: {"more": element(0x00291010, "SQ", item(b"") * 60_000)}, 10
            ),
            "600,000 empty elements": lambda: _of(lambda i, e: {"more": _elements(600_000)} if not i else None),
            "60,000 empty elements in each of ten files": lambda: _of(lambda i, e: {"more": _elements(60_000)}, 10),
            "value of 17 MB": lambda: _of(
                lambda i, e: {"more": element(0x00200052 - 1, "UT", b"1" * (17 << 20))} if not i else None
            ),
        },
    )
    for name, problem, change, slices in (
        ("200 copies of one slice", UNSUPPORTED, lambda i: slice_elements(0), 200),
        (
            "50 series",
            READ,
            lambda i: {0x0020000E: ("UI", b"1.2.%d" % (i // 2)), 0x00200032: ("DS", b"0\\0\\%d" % (i % 2 * 5))},
            100,
        ),
        (
            "250 slices at two places",
            UNSUPPORTED,
            lambda i: {
                0x00200032: ("DS", b"0\\0\\%d" % (i % 2)),
                0x00200012: ("IS", b"%d" % i),
                PIXEL_DATA: ("OW", struct.pack("<16h", *[i] * 16)),
            },
            250,
        ),
    ):
        yield Case(
            f"dicom of {name}",
            lambda change=change, slices=slices: _of(lambda i, e: e.update(change(i)), slices),  # type: ignore[misc]
            problem,
        )
    single = dicom(slice_elements())
    yield from _many("dicom alone", UNSUPPORTED, {"as it is": single, "a program": b"MZ" + single[2:]}, status=415)


def _plain_under(syntax: bytes) -> bytes:
    files = {}
    for name, content in series(4).items():
        group = element(0x00020010, "UI", build.EXPLICIT)
        files[name] = content.replace(group, element(0x00020010, "UI", syntax))
    return zipped(files)


def _other_cases() -> Iterator[Case]:
    yield from _many(
        "other",
        UNSUPPORTED,
        {
            "nothing": b"",
            "zeros": bytes(4096),
            "PDF": b"%PDF-1.7\n" + bytes(600),
            "program for Windows": b"MZ" + bytes(600),
            "program for Linux": b"\x7fELF" + bytes(600),
            "script": b"#!/bin/sh\nid\n",
            "page": b"<html><script>alert(1)</script>",
            "XML that names a file": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
            "pickle": b"\x80\x04\x95cos\nsystem\n(S'id'\ntR.",
            "NumPy array of objects": b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
            "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(600),
            "picture": b"\x89PNG\r\n\x1a\n" + bytes(600),
            "7z": b"7z\xbc\xaf\x27\x1c" + bytes(600),
            "RAR": b"Rar!\x1a\x07\0" + bytes(600),
            "tar": b"scan.nii".ljust(257, b"\0") + b"ustar\0" + bytes(600),
            "xz": b"\xfd7zXZ\0" + bytes(600),
            "zstd": b"\x28\xb5\x2f\xfd" + bytes(600),
            "bzip2": b"BZh9" + bytes(600),
            "Analyze": b"\x5c\1\0\0" + bytes(600),
        },
        status=415,
    )


CASES: Final[tuple[Case, ...]] = (
    *_nifti_cases(),
    *_nrrd_cases(),
    *_metaimage_cases(),
    *_gzip_cases(),
    *_zip_cases(),
    *_dicom_cases(),
    *_other_cases(),
)
