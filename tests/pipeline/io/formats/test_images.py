"""NIfTI, NRRD and MetaImage: every number type, and every way a header can lie."""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.errors import DamagedFileError, PipelineError, ScanTooLargeError, UnsupportedFormatError
from pipeline.geometry import Scan, Volume, to_sitk
from pipeline.io.formats.content import identify
from pipeline.io.formats.images import read_image
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.formats.voxels import to_hounsfield

LIMITS = SizeLimits(max_voxels=10**6, max_bytes=10**7, max_files=10)
SECRET = b"root:x:0:0:"

Read = Callable[[Path], Scan]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    work = tmp_path / "work"
    work.mkdir()
    return lambda path: read_image(path, identify(path.read_bytes()[:4096]), work, LIMITS)


def nifti_header(
    shape: tuple[int, ...] = (4, 5, 6), *, datatype: int = 4, order: str = "<", spacing: float = 1.0
) -> bytearray:
    header = bytearray(352)
    struct.pack_into(f"{order}i", header, 0, 348)
    struct.pack_into(f"{order}8h", header, 40, len(shape), *shape[::-1], *([1] * (7 - len(shape))))
    struct.pack_into(f"{order}hh", header, 70, datatype, 16)
    struct.pack_into(f"{order}8f", header, 76, 1, spacing, spacing, spacing, 1, 1, 1, 1)
    struct.pack_into(f"{order}f", header, 108, 352)
    struct.pack_into(f"{order}hh", header, 252, 0, 1)
    struct.pack_into(f"{order}12f", header, 280, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    return header


def written(path: Path, *parts: bytes | bytearray) -> Path:
    path.write_bytes(b"".join(parts))
    return path


# What is read


@pytest.mark.parametrize(
    ("datatype", "code"),
    [(256, "i1"), (2, "u1"), (4, "i2"), (512, "u2"), (8, "i4"), (768, "u4"), (1024, "i8"), (16, "f4"), (64, "f8")],
)
@pytest.mark.parametrize("order", "<>")
def test_every_number_type_of_nifti_in_both_byte_orders(
    datatype: int, code: str, order: str, read: Read, tmp_path: Path
) -> None:
    values = np.arange(120).reshape(4, 5, 6) - (0 if code[0] == "u" else 60)
    path = written(
        tmp_path / "x", nifti_header(datatype=datatype, order=order), values.astype(f"{order}{code}").tobytes()
    )
    np.testing.assert_array_equal(read(path).volume.hu, values)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -1024.0), (2.5, 10.0), (0.0, 99.0)])
def test_nifti_is_rescaled_and_slope_zero_means_not(slope: float, intercept: float, read: Read, tmp_path: Path) -> None:
    stored = np.arange(120, dtype="<u2").reshape(4, 5, 6) * 10
    header = nifti_header(datatype=512)
    struct.pack_into("<ff", header, 112, slope, intercept)
    hu = read(written(tmp_path / "x", header, stored.tobytes())).volume.hu
    expected = stored * slope + intercept if slope else stored
    np.testing.assert_array_equal(hu, np.rint(expected))


def test_twelve_bits_in_sixteen_are_read_as_they_are(read: Read, tmp_path: Path) -> None:
    stored = np.linspace(0, 4095, 120).astype("<u2").reshape(4, 5, 6)
    header = nifti_header(datatype=512)
    struct.pack_into("<ff", header, 112, 1.0, -1024.0)
    hu = read(written(tmp_path / "x", header, stored.tobytes())).volume.hu
    assert (hu.min(), hu.max()) == (-1024, 3071)


def test_a_fourth_axis_of_length_one_is_no_time_series(read: Read, tmp_path: Path) -> None:
    path = written(tmp_path / "x", nifti_header((1, 4, 5, 6)), np.arange(120, dtype="<i2").tobytes())
    np.testing.assert_array_equal(read(path).volume.hu, np.arange(120).reshape(4, 5, 6))


def test_a_nifti_without_orientation_says_so(read: Read, tmp_path: Path) -> None:
    header = nifti_header()
    struct.pack_into("<hh", header, 252, 0, 0)
    scan = read(written(tmp_path / "x", header, bytes(240)))
    assert [finding.code for finding in scan.findings] == ["orientation-assumed"]


def test_a_nifti_2_is_read(read: Read, tmp_path: Path, chest: Volume) -> None:
    header = bytearray(544)
    struct.pack_into("<i", header, 0, 540)
    header[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into("<hh", header, 12, 4, 16)
    struct.pack_into("<8q", header, 16, 3, *chest.hu.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<8d", header, 104, 1, 2, 2, 2, 1, 1, 1, 1)
    struct.pack_into("<q", header, 168, 544)
    struct.pack_into("<ii", header, 344, 0, 1)
    struct.pack_into("<12d", header, 400, -2, 0, 0, 0, 0, -2, 0, 0, 0, 0, 2, 0)
    scan = read(written(tmp_path / "x", header, chest.hu.astype("<i2").tobytes()))
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)
    assert scan.volume.grid.spacing_mm == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(("suffix", "image_io"), [("nrrd", "NrrdImageIO"), ("mha", "MetaImageIO")])
@pytest.mark.parametrize("pixel_type", [sitk.sitkInt16, sitk.sitkUInt16, sitk.sitkInt32, sitk.sitkFloat32])
def test_nrrd_and_metaimage_pass_with_the_header_we_wrote(
    compressed: bool, suffix: str, image_io: str, pixel_type: int, read: Read, tmp_path: Path, chest: Volume
) -> None:
    values = np.abs(chest.hu)
    path = tmp_path / f"x.{suffix}"
    image = sitk.Cast(to_sitk(values, chest.grid), pixel_type)
    sitk.WriteImage(image, str(path), useCompression=compressed, imageIO=image_io)
    scan = read(path)
    np.testing.assert_array_equal(scan.volume.hu, values)
    assert scan.volume.grid == chest.grid
    assert scan.findings == ()


def test_nrrd_spaces_are_turned_to_lps(read: Read, tmp_path: Path) -> None:
    header = (
        b"NRRD0004\n# a comment\nkey:=value\ntype: short\ndimension: 3\nspace: right-anterior-superior\n"
        b"sizes: 6 5 4\nspace directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (10,20,30)\n"
        b"endian: little\nencoding: raw\n\n"
    )
    scan = read(written(tmp_path / "x", header, np.arange(120, dtype="<i2").tobytes()))
    assert scan.volume.grid.origin_mm == (-10.0, -20.0, 30.0)
    assert scan.volume.grid.direction == ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
    np.testing.assert_array_equal(scan.volume.hu, np.arange(120).reshape(4, 5, 6))


def test_not_a_number_becomes_air_and_is_counted(read: Read, tmp_path: Path) -> None:
    values = np.zeros((4, 5, 6), dtype="<f4")
    values[0, 0, :3] = (np.nan, np.inf, -np.inf)
    scan = read(written(tmp_path / "x", nifti_header(datatype=16), values.tobytes()))
    assert scan.volume.hu[0, 0].tolist() == [-1024, -1024, -1024, 0, 0, 0]
    assert [(f.code, f.evidence) for f in scan.findings] == [("not-finite-voxels", {"voxels": 3})]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float64])
def test_every_type_is_clipped_not_wrapped(dtype: type[np.generic]) -> None:
    highest = np.finfo(dtype).max if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max
    hu, _ = to_hounsfield(np.full((1, 1, 2), highest, dtype=dtype))
    assert np.all(hu == min(float(highest), 32767))


def test_padding_below_air_becomes_air() -> None:
    hu, _ = to_hounsfield(np.array([[[-3024, -1025, -1024, -1023]]], dtype=np.int16))
    assert hu.ravel().tolist() == [-1024, -1024, -1024, -1023]


def test_rounding_is_to_the_nearest() -> None:
    hu, _ = to_hounsfield(np.array([[[-200.6, -200.4, -199.6]]]))
    assert hu.ravel().tolist() == [-201, -200, -200]


# What is refused


def refused(read: Read, path: Path, kind: type[PipelineError], words: str) -> PipelineError:
    with pytest.raises(kind, match=words) as caught:
        read(path)
    assert type(caught.value) is kind
    return caught.value


@pytest.mark.parametrize("points_to", [b"/etc/passwd", b"../../../etc/passwd", b"LIST", b"scan%03d.raw 1 9 1"])
def test_a_nrrd_that_points_elsewhere_is_refused(points_to: bytes, read: Read, tmp_path: Path) -> None:
    for name in (b"data file", b"datafile", b"Data File"):
        header = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n" + name + b": " + points_to
        path = written(tmp_path / "x", header + b"\n\n", bytes(8))
        assert SECRET.decode() not in str(refused(read, path, UnsupportedFormatError, "points to another file"))


@pytest.mark.parametrize("points_to", [b"/etc/passwd", b"../../../etc/passwd", b"LIST", b"scan%03d.raw 1 9 1", b""])
@pytest.mark.parametrize("separator", [b" = ", b"=", b": ", b" : "])
def test_a_metaimage_that_points_elsewhere_is_refused(
    points_to: bytes, separator: bytes, read: Read, tmp_path: Path
) -> None:
    header = b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"
    path = written(tmp_path / "x", header, b"ElementDataFile", separator, points_to, b"\n", bytes(8))
    refused(read, path, UnsupportedFormatError, "points to another file")


@pytest.mark.parametrize("packed", [True, False])
def test_a_nifti_of_sixty_thousand_cubed_ends_before_anything_is_allocated(
    packed: bool, read: Read, tmp_path: Path
) -> None:
    # int16 holds no 60000, as ITK reads it; 32767 does as well
    content = bytes(nifti_header((32767, 32767, 32767))) + bytes(1000)
    error = refused(
        read, written(tmp_path / "x", gzip.compress(content) if packed else content), ScanTooLargeError, "32767 x 32767"
    )
    assert error.evidence["max_voxels"] == LIMITS.max_voxels


@pytest.mark.parametrize(
    "header",
    [
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 60000 60000 60000\nspacings: 1 1 1\nendian: big\n"
        b"encoding: gzip\n\n",
        b"ObjectType = Image\nNDims = 3\nDimSize = 60000 60000 60000\nElementType = MET_SHORT\n"
        b"ElementSpacing = 1 1 1\nCompressedData = True\nElementDataFile = LOCAL\n",
    ],
)
def test_header_bombs_of_nrrd_and_metaimage(header: bytes, read: Read, tmp_path: Path) -> None:
    refused(read, written(tmp_path / "x", header, zlib.compress(bytes(1000))), ScanTooLargeError, "60000 x 60000")


def test_a_gzip_that_unpacks_to_more_than_its_header_says(read: Read, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(nifti_header()) + bytes(10**7))
    refused(read, written(tmp_path / "x", bomb), DamagedFileError, "unpacks to more")
    assert (tmp_path / "work" / "unpacked").stat().st_size < 3 * 10**6


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.05])
def test_a_truncated_gzip(kept: float, read: Read, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, 30**3).astype("<i2").tobytes()
    packed = gzip.compress(bytes(nifti_header((30, 30, 30))) + noise)
    refused(read, written(tmp_path / "x", packed[: int(len(packed) * kept)]), DamagedFileError, "cut short")


def test_a_flipped_bit_in_a_gzip(read: Read, tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(bytes(nifti_header()) + bytes(range(240))))
    packed[-6] ^= 1  # in the checksum
    refused(read, written(tmp_path / "x", packed), DamagedFileError, "damaged")


@pytest.mark.parametrize(
    "header",
    [
        bytes(nifti_header()),
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nspacings: 1 1 1\nencoding: raw\nendian: little\n\n",
        b"ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"
        b"ElementDataFile = LOCAL\n",
    ],
    ids=["nifti", "nrrd", "metaimage"],
)
def test_pixels_that_are_missing(header: bytes, read: Read, tmp_path: Path) -> None:
    error = refused(read, written(tmp_path / "x", header, bytes(239)), DamagedFileError, "fewer pixels")
    assert (error.evidence["bytes_expected"], error.evidence["bytes_present"]) == (240, 239)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (nifti_header((10, 4, 5, 6)), "several volumes"),
        (nifti_header((5, 6)), "single slice"),
        (nifti_header((1, 5, 6)), "single slice"),
        (nifti_header(datatype=128), "colours"),
        (nifti_header(datatype=32), "complex"),
        (b"NRRD0004\ntype: uchar\ndimension: 4\nsizes: 3 6 5 4\nencoding: raw\n\n", "several volumes"),
        (b"NRRD0004\ntype: block\ndimension: 3\nsizes: 6 5 4\nencoding: raw\n\n", "plain numbers"),
        (b"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nencoding: bzip2\n\n", "raw or gzip"),
        (b"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nencoding: raw\nbyte skip: -1\n\n", "skip"),
        (b"NRRD0004\ntype: short\nsizes: 6 5 4\nencoding: raw", "detached or damaged"),
        (
            b"ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\nElementNumberOfChannels = 3\n"
            b"ElementDataFile = LOCAL\n",
            "colours",
        ),
    ],
)
def test_what_is_no_single_volume_of_numbers(header: bytes, words: str, read: Read, tmp_path: Path) -> None:
    refused(read, written(tmp_path / "x", header, bytes(5000)), UnsupportedFormatError, words)


@pytest.mark.parametrize(
    "header",
    [
        nifti_header((0, 5, 6)),
        nifti_header((-4, 5, 6)),
        nifti_header()[:300] + b"\0" * 44 + b"n+1\0",
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 five 4\nencoding: raw\n\n",
        b"ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_SHORT\n",
        b"NRRD0004\ntype: short\ndimension: 2\nsizes: 6 5 4\nencoding: raw\nendian: little\n\n",
    ],
    ids=["zero", "negative", "no offset", "no number", "no data file", "contradiction"],
)
def test_damaged_headers(header: bytes, read: Read, tmp_path: Path) -> None:
    with pytest.raises((DamagedFileError, UnsupportedFormatError)):
        read(written(tmp_path / "x", header, bytes(240) if header[:4] != nifti_header()[:4] else b""))


def test_sheared_axes_are_refused_in_words_that_help(read: Read, tmp_path: Path) -> None:
    header = nifti_header()
    struct.pack_into("<12f", header, 280, -1, 0, 0, 0, 0, -1, 0.4, 0, 0, 0, 1, 0)
    refused(read, written(tmp_path / "x", header, bytes(240)), UnsupportedFormatError, "tilted gantry")
