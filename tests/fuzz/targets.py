"""What is fuzzed: bytes that become a file of each format, which is read in this process, as the sandbox's child would.

A file may be read, or refused by a `PipelineError` whose words are fit to be shown; anything else is a finding.
"""

import gzip
import io
import json
import math
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pipeline.errors import PipelineError
from pipeline.io.formats.archive import FileMember, members_of_zip, open_zip
from pipeline.io.formats.content import HEAD_BYTES, Content, identify
from pipeline.io.formats.dicom_inventory import Inventory, take_stock
from pipeline.io.formats.gate import require_no_program
from pipeline.io.formats.image_header import MAX_HEADER_BYTES
from pipeline.io.formats.images import PARSERS
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.formats.placement import place
from pipeline.io.formats.scan import _read as read
from pipeline.io.formats.unpack import Packing, unpacked
from tests.support.hostile import build

#: Small, so that what goes wrong shows in megabytes and milliseconds.
LIMITS: Final = SizeLimits(max_voxels=10**5, max_bytes=10**6, max_files=20)

#: What a sentence or its evidence may hold: nothing that leaves its line, turns its order or is invisible.
_LONGEST_TEXT: Final = 4000


def _as_it_is(content: bytes) -> bytes:
    return content


def _gzipped(content: bytes) -> bytes:
    """The first byte says whether the rest is a gzip file or what one holds, in one member or two."""
    if not content or content[0] % 4 == 0:
        return content[1:]
    level, plain = content[0] % 3, content[1:]
    if content[0] % 4 == 1:
        return gzip.compress(plain[:350], level, mtime=0) + gzip.compress(plain[350:], level, mtime=0)
    return gzip.compress(plain, level, mtime=0)


def _zipped(content: bytes) -> bytes:
    """The first byte says whether the rest is a zip file or what its members hold, which are divided by `PART`."""
    if not content or content[0] % 2 == 0:
        return content[1:]
    members = {f"{i}": part for i, part in enumerate(content[1:].split(PART)[:8])}
    return build.zipped(members, zipfile.ZIP_DEFLATED if content[0] % 4 == 1 else zipfile.ZIP_STORED)


#: Divides members: no format holds it.
PART: Final = b"\xf5=PART=\xf5"

Making = Callable[[bytes], bytes]


def _dicoms() -> list[bytes]:
    frames, plain = build.frame_elements(), build.slice_elements()
    kinds = (build.EXPLICIT, build.IMPLICIT, build.BIG_ENDIAN)
    files = [build.dicom(plain, syntax=syntax) for syntax in kinds] + [build.dicom(frames)]
    # Two segments, of the upper and the lower bytes, each a literal run of 16.
    offsets = struct.pack("<16I", 2, 64, 82, *[0] * 13)
    rle = {**frames, build.PIXEL_DATA: ("OB", build.fragments(*[offsets + (b"\x0f" + bytes(16) + b"\0") * 2] * 3))}
    files += [build.dicom(rle, syntax=build.RLE), build.dicom(frames)[132:]]
    return files


def _series() -> bytes:
    return b"\x01" + PART.join(build.series(3).values())


_IMAGES: Final = {
    "nifti": [
        build.nifti(),
        build.nifti(order=">"),
        build.nifti(version=2),
        build.nifti(codes=(1, 0), quaternion=(0.0, 1.0, 0.0, 1.0, 2.0, 3.0)),
        build.nifti(codes=(1, 1)),
        build.nifti(codes=(0, 0)),
    ],
    "nrrd": [
        build.nrrd(),
        build.nrrd(gzip.compress(build.PIXELS, mtime=0), {"encoding": "gzip"}),
        build.nrrd(fields={"space directions": None, "spacings": "2 2 2", "units": '"mm" "mm" "mm"'}),
        build.nrrd(fields={"sizes": "1 6 5 4", "dimension": "4", "space directions": "none (2,0,0) (0,2,0) (0,0,2)"}),
    ],
    "metaimage": [
        build.metaimage(),
        build.metaimage(zlib.compress(build.PIXELS), {"CompressedData": "True"}),
        build.metaimage(fields={"ElementSize": "2 2 3", "Position": "0 0 0", "DistanceUnits": "cm"}),
    ],
}

#: By format: how the file is made from what the fuzzer gives, and what it begins with.
FORMATS: Final[Mapping[str, tuple[Making, list[bytes]]]] = {
    **{name: (_as_it_is, seeds) for name, seeds in _IMAGES.items()},
    "dicom": (_as_it_is, _dicoms()),
    "gzip": (
        _gzipped,
        [b"\0" + gzip.compress(build.nifti(), mtime=0), b"\1" + build.nifti(), b"\2" + build.nifti(version=2)],
    ),
    "zip": (
        _zipped,
        [
            b"\0" + build.zipped(build.series(3)),
            b"\0" + build.zipped({"a": build.nifti(), "b/c": b"text"}, zipfile.ZIP_STORED),
            b"\x01" + PART.join([build.nifti(), b"text"]),
            _series(),
        ],
    ),
}


def _parse(made: bytes) -> None:
    content = identify(made[:HEAD_BYTES])
    if content in PARSERS and content is not Content.NIFTI_GZ:
        header = PARSERS[content](made[:MAX_HEADER_BYTES])
        LIMITS.check_voxels(header.sizes)
        place(header.placement, header.sizes)


def _unpack(made: bytes) -> None:
    identify(made[:HEAD_BYTES])
    left = LIMITS.max_bytes
    for block in unpacked(io.BytesIO(made).read, Packing.GZIP, 4096):
        left -= len(block)
        if left < 0:
            return


class Reader:
    """Reads what the fuzzer makes, one file after the other, in a folder in memory."""

    def __init__(self, name: str) -> None:
        self._make = FORMATS[name][0]
        self._header: Callable[[bytes], object] = {
            "dicom": self._dicom,
            "zip": self._zip,
            "gzip": _unpack,
        }.get(name, _parse)
        in_memory = Path("/dev/shm")  # noqa: S108 (a folder of its own in it)
        self._folder = Path(tempfile.mkdtemp(prefix="lobewise-fuzz-", dir=in_memory if in_memory.is_dir() else None))
        self._scan, self._work = self._folder / "scan", self._folder / "work"
        self._work.mkdir()

    def read(self, content: bytes) -> str:
        """The kind of what came of it.

        Raises:
            Exception: a finding.
        """
        self._scan.write_bytes(self._make(content))
        try:
            scan = read(self._scan, self._work, LIMITS)
        except PipelineError as error:
            require_fit({"detail": error.detail, "evidence": error.evidence})
            return error.code
        finally:
            for entry in os.scandir(self._work):
                os.unlink(entry)
        grid = scan.volume.grid
        assert scan.volume.hu.shape == grid.shape
        assert math.prod(grid.shape) <= LIMITS.max_voxels
        numbers = (*grid.spacing_mm, *grid.origin_mm, *(v for row in grid.direction for v in row))
        assert all(map(math.isfinite, numbers))
        assert min(grid.spacing_mm) > 0
        require_fit([asdict(finding) for finding in scan.findings])
        return "read"

    def look(self, content: bytes) -> None:
        """As far as headers go, which takes a tenth of the time.

        Raises:
            Exception: a finding.
        """
        made = self._make(content)
        try:
            self._header(made)
        except PipelineError as error:
            require_fit({"detail": error.detail, "evidence": error.evidence})

    def _zip(self, made: bytes) -> None:
        self._scan.write_bytes(made)
        with open_zip(self._scan, LIMITS) as archive:
            for number, member in enumerate(members_of_zip(archive, LIMITS)):
                member.as_file(self._work / str(number))

    def _dicom(self, made: bytes) -> None:
        self._scan.write_bytes(made)
        require_no_program(made[:HEAD_BYTES])
        take_stock([FileMember(self._scan, identify(made[:HEAD_BYTES]))], self._work, LIMITS, Inventory())

    def close(self) -> None:
        shutil.rmtree(self._folder)


def require_fit(told: object) -> None:
    """What is told goes through JSON, and each of its texts can be shown: one line, of a length, left to right."""
    json.dumps(told)
    waiting = [told]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            waiting += one
        elif isinstance(one, str):
            is_fit = len(one) <= _LONGEST_TEXT and one.isascii() and one.isprintable()
            assert is_fit, f"not fit to be shown: {one[:200]!r}"
        elif isinstance(one, int):
            assert -(2**63) <= one < 2**63, f"a number of {one.bit_length()} bits"
