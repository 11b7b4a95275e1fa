"""Generated NIfTI, NRRD and MetaImage files are read as they were meant, or refused, or remarked upon: never silently.

LOBEWISE_TEST_FILES sets how many are generated for each test (`make test-files`).
"""

import gzip
import math
import os
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from hypothesis import given, note, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from pipeline.errors import UnreadableScanError
from pipeline.geometry import Scan
from pipeline.io.formats.content import HEAD_BYTES, identify
from pipeline.io.formats.images import read_image
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.write import write_mask

EXAMPLES = int(os.environ.get("LOBEWISE_TEST_FILES", "125"))
#: The same files in every run, unless more are asked for.
FILES = settings(max_examples=EXAMPLES, deadline=None, derandomize="LOBEWISE_TEST_FILES" not in os.environ)
LIMITS = SizeLimits(max_voxels=10**5, max_bytes=10**6, max_files=10)
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])

NIFTI_TYPES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}
NRRD_TYPES = {
    "u1": "uchar",
    "i2": "short",
    "i4": "int32",
    "f4": "float",
    "f8": "double",
    "i1": "int8",
    "u2": "ushort",
    "u4": "uint",
}
META_TYPES = {
    "u1": "MET_UCHAR",
    "i2": "MET_SHORT",
    "i4": "MET_INT",
    "f4": "MET_FLOAT",
    "f8": "MET_DOUBLE",
    "i1": "MET_CHAR",
    "u2": "MET_USHORT",
    "u4": "MET_UINT",
}


@dataclass(frozen=True)
class World:
    """A scan as its maker meant it.

    Attributes:
        stored: z, y, x.
        steps: LPS columns of one voxel along x, y, z in millimetres.
        order: byte order.
    """

    stored: np.ndarray
    slope: float
    intercept: float
    steps: np.ndarray
    origin: np.ndarray
    order: str

    @property
    def hu(self) -> np.ndarray:
        values = self.stored.astype(np.float64) * self.slope + self.intercept
        return np.clip(np.rint(values), -1024, 32767)

    @property
    def spacing(self) -> np.ndarray:
        return np.linalg.norm(self.steps, axis=0)


# 32 bits hold these exactly, so that a NIfTI header says what was meant.
def rounded(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32).map(lambda v: float(np.float32(round(v * 64) / 64)))


@st.composite
def worlds(draw: st.DrawFn, *, scaled: bool, kinds: tuple[str, ...]) -> World:
    sizes = draw(st.tuples(*[st.integers(2, 6)] * 3))
    kind = draw(st.sampled_from(kinds))
    order = draw(st.sampled_from("<>"))
    seed = draw(st.integers(0, 2**32 - 1))
    low = 0 if kind[0] == "u" else -100
    stored = np.random.default_rng(seed).integers(low, 127, sizes).astype(order + kind)
    spacing = np.array(draw(st.tuples(*[rounded(0.25, 10)] * 3)))
    angles = draw(st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(*[st.floats(-180, 180)] * 3)))
    flips = np.diag(draw(st.tuples(*[st.sampled_from((1.0, -1.0))] * 3)))
    order_of_axes = draw(st.permutations(range(3)))
    axes = (Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ flips)[:, order_of_axes]
    return World(
        stored=stored,
        slope=draw(st.sampled_from((1.0, 0.5, 2.0, 8.0, -1.0))) if scaled else 1.0,
        intercept=draw(st.sampled_from((0.0, -1024.0, -8192.0, 3.5))) if scaled else 0.0,
        steps=axes * spacing,
        origin=np.array(draw(st.tuples(*[rounded(-500, 500)] * 3))),
        order=order,
    )


def read(content: bytes, folder: Path) -> Scan:
    path = folder / "scan"
    path.write_bytes(content)
    return read_image(path, identify(content[:HEAD_BYTES]), folder, LIMITS)


def assert_equals(scan: Scan, world: World, *, radians: float = 1e-5) -> None:
    np.testing.assert_array_equal(scan.volume.hu, world.hu)
    grid = scan.volume.grid
    assert_allclose(grid.index_to_lps_matrix[:, ::-1], world.steps, atol=2 * radians * float(world.spacing.max()))
    assert_allclose(grid.origin_mm, world.origin, atol=1e-3)
    directions = np.asarray(grid.direction)
    assert_allclose(directions.T @ directions, np.eye(3), atol=1e-5)


# NIfTI


def quaternion_of(steps_lps: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """qfac, and b, c, d."""
    axes = RAS_TO_LPS @ steps_lps / np.linalg.norm(steps_lps, axis=0)
    qfac = 1.0 if np.linalg.det(axes) > 0 else -1.0
    b, c, d, a = Rotation.from_matrix(axes * [1.0, 1.0, qfac]).as_quat()
    sign = 1.0 if a >= 0 else -1.0
    return qfac, (sign * b, sign * c, sign * d)


def nifti(world: World, codes: tuple[int, int], elsewhere: np.ndarray, unit: int, version: int) -> bytes:
    """With the true geometry in the form that wins, and the qform `elsewhere` (mm) away where it does not."""
    mm = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}[unit]
    qfac, bcd = quaternion_of(world.steps)
    ras_origin = RAS_TO_LPS @ world.origin / mm
    affine = np.column_stack([RAS_TO_LPS @ world.steps / mm, ras_origin])
    shift = elsewhere if codes[1] else np.zeros(3)
    fields: dict[str, tuple[Any, ...]] = {
        "dim": (3, *world.stored.shape[::-1], 1, 1, 1, 1),
        "datatype": (NIFTI_TYPES[world.stored.dtype.str[1:]],),
        "pixdim": (qfac, *world.spacing / mm, 0, 0, 0, 0),
        "scaling": (world.slope, world.intercept),
        "codes": codes,
        "quaternion": (*bcd, *(ras_origin + shift / mm)),
        "affine": tuple(affine.ravel()),
        "units": (unit,),
        "vox_offset": (352 if version == 1 else 544,),
    }
    one = {
        "dim": (40, "8h"),
        "datatype": (70, "h"),
        "pixdim": (76, "8f"),
        "vox_offset": (108, "f"),
        "scaling": (112, "2f"),
        "units": (123, "B"),
        "codes": (252, "2h"),
        "quaternion": (256, "6f"),
        "affine": (280, "12f"),
    }
    two = {
        "dim": (16, "8q"),
        "datatype": (12, "h"),
        "pixdim": (104, "8d"),
        "vox_offset": (168, "q"),
        "scaling": (176, "2d"),
        "units": (500, "i"),
        "codes": (344, "2i"),
        "quaternion": (352, "6d"),
        "affine": (400, "12d"),
    }
    header = bytearray(352 if version == 1 else 544)
    struct.pack_into(world.order + "i", header, 0, 348 if version == 1 else 540)
    for name, (at, code) in (one if version == 1 else two).items():
        struct.pack_into(world.order + code, header, at, *fields[name])
    bitpix = world.stored.dtype.itemsize * 8
    struct.pack_into(world.order + "h", header, 72 if version == 1 else 14, bitpix)
    if version == 1:
        header[344:348] = b"n+1\0"
    else:
        header[4:12] = b"n+2\0\r\n\x1a\n"
    return bytes(header) + world.stored.tobytes()


@FILES
@given(
    world=worlds(scaled=True, kinds=tuple(NIFTI_TYPES)),
    codes=st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(any),
    elsewhere=st.sampled_from(((0.0, 0.0, 0.0), (0.0, 0.0, 2.0), (-30.0, 10.0, 5.0))),
    unit=st.sampled_from((0, 1, 2, 3)),
    version=st.sampled_from((1, 2)),
    members=st.integers(0, 3),
)
def test_a_nifti_is_read_as_it_was_meant(
    world: World, codes: tuple[int, int], elsewhere: tuple[float, ...], unit: int, version: int, members: int
) -> None:
    content = nifti(world, codes, np.array(elsewhere), unit, version)
    if members:
        parts = np.array_split(np.frombuffer(content, np.uint8), members)
        packed = b"".join(gzip.compress(part.tobytes()) for part in parts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = read(packed if members else content, folder)
        assert_equals(scan, world, radians=1e-5 if codes[1] else 5e-4)  # 32 bits of a quaternion
        contradicts = all(codes) and any(elsewhere)
        assert [f.code for f in scan.findings] == ["geometry-fields-differ"] * contradicts
        # Where nibabel shows the scan, it shows the mask.
        (folder / "scan.nii").write_bytes(content)
        write_mask(folder / "mask.nii.gz", scan.volume.hu > 0, scan.volume.grid, scan.source)
        shown, mask = nibabel.load(folder / "scan.nii"), nibabel.load(folder / "mask.nii.gz")
        # NIfTI-2 has quaternions of 64 bits.
        radians = 5e-4 if version == 2 and not codes[1] else 1e-5
        assert_allclose(mask.affine, shown.affine, rtol=1e-5, atol=radians * float(np.abs(shown.affine[:3, :3]).max()))
        np.testing.assert_array_equal(np.asarray(mask.dataobj), scan.volume.hu.T > 0)


# NRRD and MetaImage


def numbers(values: Any) -> str:
    return " ".join(repr(float(v)) for v in np.ravel(values))


@FILES
@given(
    world=worlds(scaled=False, kinds=tuple(NRRD_TYPES)),
    space=st.tuples(*[st.sampled_from((1.0, -1.0))] * 3),
    short_names=st.booleans(),
    unit=st.sampled_from((("", 1.0), ("mm", 1.0), ("cm", 10.0), ("um", 0.001))),
    extra_axis=st.sampled_from((None, 0, 3)),
    packed=st.booleans(),
)
def test_a_nrrd_is_read_as_it_was_meant(
    world: World,
    space: tuple[float, ...],
    short_names: bool,
    unit: tuple[str, float],
    extra_axis: int | None,
    packed: bool,
) -> None:
    to_space, mm = np.diag(space), unit[1]
    sides = (("left", "right"), ("posterior", "anterior"), ("superior", "inferior"))
    words = [names[sign < 0] for names, sign in zip(sides, space, strict=True)]
    steps = to_space @ world.steps / mm
    vectors = [f"({','.join(repr(float(v)) for v in steps[:, axis])})" for axis in range(3)]
    sizes = [str(n) for n in world.stored.shape[::-1]]
    if extra_axis is not None:
        vectors.insert(extra_axis, "none")
        sizes.insert(extra_axis, "1")
    lines = [
        "NRRD0005",
        f"type: {NRRD_TYPES[world.stored.dtype.str[1:]]}",
        f"dimension: {len(sizes)}",
        f"space: {''.join(w[0] for w in words).upper() if short_names else '-'.join(words)}",
        f"sizes: {' '.join(sizes)}",
        f"space directions: {' '.join(vectors)}",
        f"space origin: ({','.join(repr(float(v)) for v in to_space @ world.origin / mm)})",
        *([f'space units: "{unit[0]}" "{unit[0]}" "{unit[0]}"'] if unit[0] else []),
        f"endian: {'little' if world.order == '<' else 'big'}",
        f"encoding: {'gzip' if packed else 'raw'}",
        "",
        "",
    ]
    pixels = world.stored.tobytes()
    with tempfile.TemporaryDirectory() as name:
        scan = read("\n".join(lines).encode() + (gzip.compress(pixels) if packed else pixels), Path(name))
    assert_equals(scan, world)
    assert scan.findings == ()


@FILES
@given(
    world=worlds(scaled=False, kinds=tuple(META_TYPES)),
    matrix=st.sampled_from(("TransformMatrix", "Rotation", "Orientation")),
    origin=st.sampled_from(("Offset", "Position", "Origin")),
    spacing=st.sampled_from(("ElementSpacing", "ElementSize")),
    packed=st.booleans(),
)
def test_a_metaimage_is_read_as_it_was_meant(
    world: World, matrix: str, origin: str, spacing: str, packed: bool
) -> None:
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        f"BinaryDataByteOrderMSB = {world.order == '>'}",
        f"{matrix} = {numbers((world.steps / world.spacing).T)}",
        f"{origin} = {numbers(world.origin)}",
        f"{spacing} = {numbers(world.spacing)}",
        f"CompressedData = {packed}",
        f"DimSize = {' '.join(str(n) for n in world.stored.shape[::-1])}",
        f"ElementType = {META_TYPES[world.stored.dtype.str[1:]]}",
        "ElementDataFile = LOCAL",
        "",
    ]
    pixels = world.stored.tobytes()
    with tempfile.TemporaryDirectory() as name:
        scan = read("\n".join(lines).encode() + (zlib.compress(pixels) if packed else pixels), Path(name))
    assert_equals(scan, world)
    assert scan.findings == ()


# Headers that lie


@FILES
@given(
    world=worlds(scaled=True, kinds=("i2",)),
    codes=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    field=st.sampled_from(("dim", "pixdim", "vox_offset", "scaling", "codes", "quaternion", "affine", "units")),
    place=st.integers(0, 11),
    value=st.sampled_from((0.0, -1.0, 0.01, 3.0, 600.0, 1e7, math.nan, math.inf, -math.inf)),
)
def test_one_wrong_number_in_a_nifti_is_refused_remarked_upon_or_without_effect(
    world: World, codes: tuple[int, int], field: str, place: int, value: float
) -> None:
    offsets = {
        "dim": (40, "h", 8),
        "pixdim": (76, "f", 8),
        "vox_offset": (108, "f", 1),
        "scaling": (112, "f", 2),
        "codes": (252, "h", 2),
        "quaternion": (256, "f", 6),
        "affine": (280, "f", 12),
        "units": (123, "B", 1),
    }
    content = bytearray(nifti(world, codes, np.zeros(3), 2, 1))
    at, code, count = offsets[field]
    stored = value if code == "f" else 99 if not math.isfinite(value) else int(value) % 100
    struct.pack_into(world.order + code, content, at + place % count * struct.calcsize(code), stored)
    note(f"{field}[{place % count}] = {stored}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scan.nii").write_bytes(content)
        try:
            scan = read(bytes(content), folder)
        except UnreadableScanError:
            return
        write_mask(folder / "mask.nii.gz", scan.volume.hu > 0, scan.volume.grid, scan.source)
        assert scan.source is not None
        if scan.findings:
            return
        # Nobody was told of anything, so that this is what nibabel makes of the file as well.
        shown, mask = nibabel.load(folder / "scan.nii"), nibabel.load(folder / "mask.nii.gz")
        assert_allclose(mask.affine, shown.affine, atol=1e-4)
        ours = np.column_stack(
            [RAS_TO_LPS @ scan.volume.grid.index_to_lps_matrix[:, ::-1], RAS_TO_LPS @ scan.volume.grid.origin_mm]
        )
        mm = {1: 1000.0, 3: 0.001}.get(scan.source.nifti.xyzt_units & 7 if scan.source.nifti else 2, 1.0)
        assert_allclose(ours, shown.affine[:3] * mm, rtol=1e-4, atol=2e-2 * mm)
        values = np.clip(np.rint(np.asarray(shown.dataobj, dtype=np.float64)), -1024, 32767)
        np.testing.assert_array_equal(scan.volume.hu.T.squeeze(), values.squeeze())
