"""Stored values of every syntax that is read, bit for bit; and files that do not hold what they announce."""

import base64
from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from pipeline.errors import DamagedFileError, PipelineError, ScanTooLargeError, UnsupportedFormatError
from pipeline.geometry import Grid, Scan, Volume
from pipeline.io.formats.archive import members_of_folder
from pipeline.io.formats.dicom import read_series
from pipeline.io.formats.limits import SizeLimits
from tests.support.scans import edit

LIMITS = SizeLimits(max_voxels=10**6, max_bytes=10**8, max_files=500)

WriteSeries = Callable[..., list[Path]]

COMPRESSED = {
    "RLE": gdcm.TransferSyntax.RLELossless,
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "JPEG lossless, first prediction": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
}


def read(folder: Path) -> Scan:
    return read_series(members_of_folder(folder, LIMITS), folder, LIMITS)


@pytest.fixture
def ramp() -> Volume:
    """Five slices in which every value from -1024 to 3071 occurs at least once, in no order."""
    values = np.random.default_rng(3).permutation(np.resize(np.arange(-1024, 3072), 5 * 30 * 28))
    return Volume(values.astype(np.int16).reshape(5, 30, 28), Grid((5, 30, 28), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0)))


def compress(path: Path, syntax: int) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    streams = [fragments.GetFragment(i).GetByteValue() for i in range(fragments.GetNumberOfFragments())]
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = UID(gdcm.TransferSyntax(syntax).GetString())
    header.PixelData = encapsulate([stream.GetBuffer().encode("utf-8", "surrogateescape") for stream in streams])
    header["PixelData"].is_undefined_length = True
    header["PixelData"].VR = "OB"
    header.save_as(path)


def store(path: Path, plane: np.ndarray, bits: int, signed: int, intercept: int) -> None:
    header = pydicom.dcmread(path)
    header.BitsStored, header.HighBit, header.PixelRepresentation = bits, bits - 1, signed
    header.RescaleIntercept = intercept
    stored = plane.astype(int) - intercept
    header.PixelData = (stored & ((1 << bits) - 1)).astype("<u2").tobytes()
    header.save_as(path)


FORMS = [(12, 0, -1024), (16, 0, -1024), (16, 1, 0), (13, 1, 0), (12, 1, 1024)]


@pytest.mark.parametrize(("bits", "signed", "intercept"), FORMS)
@pytest.mark.parametrize("name", COMPRESSED)
def test_lossless_compression_is_undone_to_the_bit(
    name: str, bits: int, signed: int, intercept: int, write_series: WriteSeries, ramp: Volume
) -> None:
    paths = write_series(ramp)
    for path, plane in zip(paths, ramp.hu, strict=True):
        store(path, plane, bits, signed, intercept)
        compress(path, COMPRESSED[name])
    np.testing.assert_array_equal(read(paths[0].parent).volume.hu, ramp.hu)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(("bits", "signed", "intercept"), FORMS)
def test_uncompressed_pixels_in_every_encoding(
    syntax: UID, bits: int, signed: int, intercept: int, write_series: WriteSeries, ramp: Volume
) -> None:
    paths = write_series(ramp)
    for path, plane in zip(paths, ramp.hu, strict=True):
        store(path, plane, bits, signed, intercept)
        header = pydicom.dcmread(path)
        if syntax == ExplicitVRBigEndian:
            header.PixelData = np.frombuffer(header.PixelData, "<u2").astype(">u2").tobytes()
        header["PixelData"].VR = "OW"
        header.file_meta.TransferSyntaxUID = syntax
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        pydicom.dcmwrite(path, header, implicit_vr=implicit, little_endian=little, force_encoding=True)
    np.testing.assert_array_equal(read(paths[0].parent).volume.hu, ramp.hu)


@pytest.mark.parametrize("syntax", [gdcm.TransferSyntax.JPEGExtendedProcess2_4])
def test_jpeg_with_loss_is_near(syntax: int, write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest, BitsStored=12, HighBit=11)
    for path in paths:
        compress(path, syntax)
    scan = read(paths[0].parent)
    assert np.abs(scan.volume.hu.astype(int) - chest.hu).max() <= 60
    assert [f.code for f in scan.findings] == ["lossy-compression"]


def test_htj2k(write_series: WriteSeries) -> None:
    """16 x 16 values 1000 + 16 y + x, which OpenJPH has compressed."""
    y, x = np.mgrid[:16, :16]
    hu = np.tile((1000 + 16 * y + x - 1024).astype(np.int16), (3, 1, 1))
    paths = write_series(Volume(hu, Grid((3, 16, 16), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0))))
    for path in paths:
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
        header.PixelData = encapsulate([base64.b64decode(HTJ2K)])
        header["PixelData"].is_undefined_length = True
        header.save_as(path)
    np.testing.assert_array_equal(read(paths[0].parent).volume.hu, hu)


HTJ2K = (
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI"
    "kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAGsAAf+TwAAmk/cFB3QAAMAAEsAAEoDwAMd0"
    "ACIBh3QAwAASwAATAMAAQnQAkJAAQ1QAwAASwAAVQPC08nQARsMw/sAQgey2AMAAJ4AAVgAA58ApS+YA3t3d3f3ye/fJ7LgA/9k="
)


# Bits


@pytest.mark.parametrize("signed", [0, 1])
def test_values_may_lie_in_the_upper_bits(signed: int, write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp, BitsStored=13, HighBit=15, PixelRepresentation=signed, RescaleIntercept=-1024)
    for path, plane in zip(paths, ramp.hu, strict=True):
        edit(path, PixelData=((plane.astype(int) + 1024) << 3).astype("<u2").tobytes())
    scan = read(paths[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, ramp.hu)
    assert not scan.findings


def test_an_overlay_in_unused_bits_is_no_part_of_a_value(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp, BitsStored=12, HighBit=11)
    for path, plane in zip(paths, ramp.hu, strict=True):
        header = pydicom.dcmread(path)
        header.add_new(0x60000100, "US", 16)
        header.add_new(0x60000102, "US", 15)
        header.PixelData = ((plane.astype(int) + 1024) | 0x8000).astype("<u2").tobytes()
        header.save_as(path)
    scan = read(paths[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, ramp.hu)
    assert not scan.findings


def test_bits_that_nothing_explains_are_told(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp, BitsStored=11, HighBit=10)
    assert [f.code for f in read(paths[0].parent).findings] == ["pixel-bits"]


@pytest.mark.parametrize("high_bit", [15, 5])
def test_a_high_bit_that_was_forgotten_is_told(high_bit: int, write_series: WriteSeries, ramp: Volume) -> None:
    scan = read(write_series(ramp, BitsStored=12, HighBit=high_bit)[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, ramp.hu)
    assert [f.code for f in scan.findings] == ["pixel-bits"]


# Files that do not hold what they announce


def test_half_the_pixels_are_refused_with_both_numbers(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp)
    edit(paths[2], PixelData=bytes(840))
    with pytest.raises(DamagedFileError, match=r"840 bytes.*1680 bytes"):
        read(paths[0].parent)


def test_a_second_frame_that_the_header_does_not_name_is_refused(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp)
    edit(paths[2], PixelData=bytes([1, 2]) * 1680)
    with pytest.raises(DamagedFileError, match="more than the 1680"):
        read(paths[0].parent)
    edit(paths[2], PixelData=pydicom.dcmread(paths[1]).PixelData + bytes(1024))  # padded with zeros
    assert read(paths[0].parent).volume.hu.shape == ramp.hu.shape


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compressed_file_cut_short_is_refused(
    name: str, kept: float, write_series: WriteSeries, ramp: Volume
) -> None:
    paths = write_series(ramp)
    compress(paths[2], COMPRESSED[name])
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(PipelineError):
        read(paths[0].parent)


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
@pytest.mark.parametrize("name", COMPRESSED)
def test_a_codestream_cut_short_is_refused_though_its_fragment_is_whole(
    name: str, end: bytes, write_series: WriteSeries, ramp: Volume
) -> None:
    paths = write_series(ramp)
    compress(paths[2], COMPRESSED[name])
    header = pydicom.dcmread(paths[2])
    *_, stream = generate_fragments(header.PixelData)
    header.PixelData = encapsulate([stream[: len(stream) * 2 // 3] + end])
    header["PixelData"].is_undefined_length = True
    header.save_as(paths[2])
    with pytest.raises(DamagedFileError, match=r"cut short|damaged"):
        read(paths[0].parent)


def test_fewer_frames_than_announced_are_refused(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp)
    compress(paths[2], COMPRESSED["RLE"])
    header = pydicom.dcmread(paths[2])
    *_, stream = generate_fragments(header.PixelData)
    header.PixelData = encapsulate([stream, stream])
    header["PixelData"].is_undefined_length = True
    header.save_as(paths[2])
    with pytest.raises(DamagedFileError, match="holds 2 compressed frames in 2 fragments; NumberOfFrames is 1"):
        read(paths[0].parent)


def test_a_frame_may_be_in_several_fragments(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp)
    for path in paths:
        compress(path, COMPRESSED["JPEG 2000"])
        header = pydicom.dcmread(path)
        *_, stream = generate_fragments(header.PixelData)
        header.PixelData = encapsulate([stream], fragments_per_frame=3)
        header["PixelData"].is_undefined_length = True
        header.save_as(path)
    np.testing.assert_array_equal(read(paths[0].parent).volume.hu, ramp.hu)


def test_a_deflated_file_is_not_opened(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp)
    header = pydicom.dcmread(paths[0])
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.add_new(0x7FE10010, "OB", bytes(40 << 20))
    header.save_as(paths[0])
    assert paths[0].stat().st_size < 100_000
    message = next(f.message for f in read(paths[0].parent).findings if f.code == "images-left-out")
    assert message == "1 deflated DICOM files were left out, unopened: they may hold slices of the scan."


def test_a_sequence_of_very_many_items_ends_before_it_is_read(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp)
    header = pydicom.dcmread(paths[0])
    header.add_new(0x52009230, "UN", b"\xfe\xff\x00\xe0\0\0\0\0" * 250_000)
    header.save_as(paths[0])
    with pytest.raises(ScanTooLargeError, match="more than 200000 sequence items"):
        read(paths[0].parent)


@pytest.mark.parametrize(
    ("uid", "words"), [("1.2.840.10008.1.2.4.100", "MPEG2"), ("1.2.3.4", "TransferSyntaxUID is '1.2.3.4'")]
)
def test_another_transfer_syntax_is_refused_by_name(
    uid: str, words: str, write_series: WriteSeries, ramp: Volume
) -> None:
    paths = write_series(ramp)
    header = pydicom.dcmread(paths[0])
    header.file_meta.TransferSyntaxUID = UID(uid)
    header.PixelData = encapsulate([b"\x00\x01\x02\x03" * 10])
    header["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(paths[0], header, implicit_vr=False, little_endian=True, force_encoding=True)
    with pytest.raises(UnsupportedFormatError, match=words):
        read(paths[0].parent)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"BitsAllocated": 12}, "BitsAllocated is 12"),
        ({"BitsStored": 17}, "BitsStored is 17"),
        ({"PixelData": None}, "holds 0 bytes"),
    ],
)
def test_pixels_that_cannot_be_are_refused_by_tag(
    tags: dict[str, object], words: str, write_series: WriteSeries, ramp: Volume
) -> None:
    paths = write_series(ramp)
    edit(paths[1], **tags)
    with pytest.raises(PipelineError, match=words):
        read(paths[0].parent)


def test_pixels_that_are_missing_are_named(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp)
    header = pydicom.dcmread(paths[1])
    del header.PixelData
    header.save_as(paths[1])
    with pytest.raises(DamagedFileError, match="PixelData is missing"):
        read(paths[0].parent)


# Rescaling


def test_signs_bits_and_rescale_may_differ_by_slice(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp)
    for path, plane, (bits, signed, intercept) in zip(paths, ramp.hu, FORMS, strict=True):
        store(path, plane, bits, signed, intercept)
    np.testing.assert_array_equal(read(paths[0].parent).volume.hu, ramp.hu)


@pytest.mark.parametrize(("lacking", "severity"), [([0, 1, 2, 3, 4], "warning"), ([2], "error")])
def test_a_missing_rescale_is_told(lacking: list[int], severity: str, write_series: WriteSeries, ramp: Volume) -> None:
    hu = np.abs(ramp.hu)
    paths = write_series(Volume(hu, ramp.grid), stored_offset=0)
    for index in lacking:
        header = pydicom.dcmread(paths[index])
        del header.RescaleSlope
        header.RescaleIntercept = None
        header.save_as(paths[index])
    scan = read(paths[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, hu)
    assert [(f.code, f.severity) for f in scan.findings] == [("rescale-missing", severity)]
    assert scan.findings[0].evidence == {"slices": 5, "missing": len(lacking)}


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        ("RescaleSlope", "0", r"RescaleSlope is '0'.*other than 0"),
        ("RescaleSlope", "0.0", "RescaleSlope is '0.0'"),
        ("RescaleSlope", "NaN", "RescaleSlope is 'NaN'.*finite"),
        ("RescaleSlope", "1e308", "beyond all numbers"),
        ("RescaleIntercept", "inf", "RescaleIntercept is 'inf'"),
        ("RescaleIntercept", "abc", "RescaleIntercept is 'abc'"),
        ("RescaleSlope", "1\\2", r"RescaleSlope is '1\\\\2'"),
        ("RescaleType", "US", "RescaleType is 'US'.*'HU'"),
        ("RescaleType", "OD", "RescaleType is 'OD'"),
    ],
)
def test_a_rescale_that_makes_no_hounsfield_units_is_refused_by_its_tag(
    tag: str, value: str, words: str, write_series: WriteSeries, ramp: Volume
) -> None:
    paths = write_series(ramp)
    header = pydicom.dcmread(paths[2])
    header[tag] = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(tag), "LO" if tag == "RescaleType" else "DS", len(value), value.encode(), 0, False, True
    )
    header.save_as(paths[2])
    with pytest.raises(PipelineError, match=words):
        read(paths[0].parent)


def test_two_reads_are_equal(write_series: WriteSeries, ramp: Volume) -> None:
    paths = write_series(ramp)
    compress(paths[1], COMPRESSED["JPEG-LS"])
    np.testing.assert_array_equal(read(paths[0].parent).volume.hu, read(paths[0].parent).volume.hu)
