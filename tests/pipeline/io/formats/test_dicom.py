"""Series that pydicom writes, in every state that hospitals send them."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, RLELossless

from pipeline.errors import DamagedFileError, NotChestCTError, ScanTooLargeError, UnsupportedFormatError
from pipeline.geometry import Grid, Scan, Volume
from pipeline.io.formats.archive import members_of_folder
from pipeline.io.formats.dicom import read_series
from pipeline.io.formats.dicom_inventory import Inventory, take_stock
from pipeline.io.formats.dicom_tags import TAGS
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.read import read_ct
from tests.support.scans import edit, finding

LIMITS = SizeLimits(max_voxels=10**6, max_bytes=10**8, max_files=500)

WriteSeries = Callable[..., list[Path]]


def read(folder: Path) -> Scan:
    return read_series(members_of_folder(folder, LIMITS), folder, LIMITS)


def codes(scan: Scan) -> list[str]:
    return [finding.code for finding in scan.findings]


def shift_along_z(path: Path, by_mm: float) -> None:
    x, y, z = pydicom.dcmread(path).ImagePositionPatient
    edit(path, ImagePositionPatient=[x, y, float(z) + by_mm])


def test_a_clean_series_comes_out_as_it_went_in(write_series: WriteSeries, chest: Volume) -> None:
    scan = read(write_series(chest)[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)
    assert scan.volume.grid == chest.grid
    assert codes(scan) == []


def test_order_follows_position_not_number(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    numbers = np.random.default_rng(1).permutation(len(paths))
    for path, number in zip(paths, numbers, strict=True):
        edit(path, InstanceNumber=int(number) + 1)
    np.testing.assert_array_equal(read(paths[0].parent).volume.hu, chest.hu)


@pytest.mark.parametrize(
    ("bits", "signed", "slope", "intercept"),
    [(12, 0, 1.0, -1024.0), (16, 1, 1.0, 0.0), (16, 0, 1.0, -8192.0), (16, 1, 2.0, -1000.0), (16, 0, 0.5, -1024.0)],
)
def test_bits_sign_and_rescaling(
    bits: int, signed: int, slope: float, intercept: float, write_series: WriteSeries, chest: Volume
) -> None:
    hu = np.clip(chest.hu, -1000, 1000) // 2 * 2
    paths = write_series(Volume(hu, chest.grid))
    for plane, path in zip(hu, paths, strict=True):
        stored = ((plane.astype(float) - intercept) / slope).astype("<i2" if signed else "<u2")
        edit(
            path,
            BitsStored=bits,
            HighBit=bits - 1,
            PixelRepresentation=signed,
            RescaleSlope=slope,
            RescaleIntercept=intercept,
            PixelData=stored.tobytes(),
        )
    np.testing.assert_array_equal(read(paths[0].parent).volume.hu, hu)


def test_each_slice_may_have_its_own_rescaling(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    stored = (chest.hu[3].astype(int) + 2000).astype("<u2")
    edit(paths[3], RescaleIntercept=-2000, PixelData=stored.tobytes())
    np.testing.assert_array_equal(read(paths[0].parent).volume.hu, chest.hu)


def test_compressed_slices_are_decoded(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    for path in paths:
        header = pydicom.dcmread(path)
        header.compress(RLELossless)
        header.save_as(path)
    np.testing.assert_array_equal(read(paths[0].parent).volume.hu, chest.hu)


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"])
def test_no_reader_for_a_syntax_is_an_error_in_words(uid: str, write_series: WriteSeries, chest: Volume) -> None:
    """Pixels that claim a compression they do not have."""
    paths = write_series(chest)
    header = pydicom.dcmread(paths[0])
    header.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
    header.PixelData = pydicom.encaps.encapsulate([b"\x00\x01\x02\x03" * 10])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    header.save_as(paths[0])
    with pytest.raises(DamagedFileError, match=r"decoded|pixels its header"):
        read(paths[0].parent)


def test_missing_slices_are_counted(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    for index in (5, 6, 15):
        paths[index].unlink()
    scan = read(paths[0].parent)
    missing = finding(scan, "missing-slices")
    assert missing.severity == "error"
    assert missing.evidence == {"missing": 3, "gaps": 2, "largest_gap_mm": 36.0, "step_mm": 12.0}
    assert scan.volume.grid == chest.grid
    kept = [index for index in range(24) if index not in (5, 6, 15)]
    np.testing.assert_array_equal(scan.volume.hu[kept], chest.hu[kept])
    between = (chest.hu[14].astype(int) + chest.hu[16]) / 2
    np.testing.assert_array_equal(scan.volume.hu[15], np.rint(between))


def test_one_missing_slice_of_many_is_a_warning(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    paths[11].unlink()
    assert finding(read(paths[0].parent), "missing-slices").severity == "warning"


def test_uneven_spacing_is_reported_with_its_extremes(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    shift_along_z(paths[7], 2.0)
    scan = read(paths[0].parent)
    assert codes(scan) == ["uneven-spacing"]
    assert finding(scan, "uneven-spacing").evidence == {
        "smallest_mm": 10.0,
        "largest_mm": 14.0,
        "step_mm": 12.0,
        "slices": 24,
        "planes": 24,
    }
    # The plane at 84 mm lies between slices 6 (72 mm) and 7 (86 mm).
    mixed = chest.hu[6] + (chest.hu[7].astype(float) - chest.hu[6]) * 12 / 14
    np.testing.assert_array_equal(scan.volume.hu[7], np.rint(mixed))
    np.testing.assert_array_equal(np.delete(scan.volume.hu, 7, 0), np.delete(chest.hu, 7, 0))


def test_rounded_positions_are_even(write_series: WriteSeries, chest: Volume) -> None:
    grid = Grid(chest.grid.shape, (1.25, 0.7, 0.7), chest.grid.origin_mm)
    paths = write_series(Volume(chest.hu, grid))
    for path in paths:
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x, y, round(float(z), 1)])
    scan = read(paths[0].parent)
    assert codes(scan) == []
    assert scan.volume.grid.spacing_mm[0] == pytest.approx(1.25, abs=0.01)


@pytest.mark.parametrize("degrees", [-20.0, 3.0, 15.0])
def test_a_tilted_gantry_is_measured(degrees: float, write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    for index, path in enumerate(paths):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        lean = index * chest.grid.spacing_mm[0] * np.tan(np.radians(degrees))
        edit(path, ImagePositionPatient=[x, float(y) + lean, z])
    scan = read(paths[0].parent)
    assert codes(scan) == ["gantry-tilt"]
    assert finding(scan, "gantry-tilt").evidence["degrees"] == pytest.approx(abs(degrees), abs=0.01)
    assert scan.volume.grid.voxel_volume_ml == pytest.approx(chest.grid.voxel_volume_ml)


def test_repeated_positions_are_read_once(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    (paths[4].parent / "again.dcm").write_bytes(paths[4].read_bytes())
    scan = read(paths[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)
    assert finding(scan, "duplicate-positions").evidence == {"slices": 25, "copies": 1}


def test_two_acquisitions_in_one_series_are_not_mixed(write_series: WriteSeries, chest: Volume) -> None:
    series = pydicom.uid.generate_uid()
    paths = write_series(chest, SeriesInstanceUID=series, AcquisitionNumber=1)
    dark = Volume(np.full_like(chest.hu[:20], -900), Grid((20, *chest.hu.shape[1:]), *_rest(chest.grid)))
    write_series(dark, paths[0].parent, SeriesInstanceUID=series, AcquisitionNumber=2)
    scan = read(paths[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)
    evidence = finding(scan, "several-volumes").evidence
    assert evidence["differ_in"] == ["acquisition"]
    assert [other["slices"] for other in evidence["others"]] == [20]


def _rest(grid: Grid) -> tuple[object, ...]:
    return grid.spacing_mm, grid.origin_mm, grid.direction


def test_the_largest_series_is_scored_and_the_others_named(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest, SeriesNumber=7)
    short = Volume(chest.hu[:10] // 2, Grid((10, *chest.hu.shape[1:]), *_rest(chest.grid)))
    write_series(short, paths[0].parent, SeriesNumber=3)
    scan = read(paths[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)
    evidence = finding(scan, "several-series").evidence
    assert (evidence["chosen"]["series_number"], evidence["chosen"]["slices"]) == (7, 24)
    assert [(other["series_number"], other["slices"], other["extent_mm"]) for other in evidence["others"]] == [
        (3, 10, 108.0)
    ]


def test_localizers_are_dropped_and_said_so(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    for index in (0, 1):
        header = pydicom.dcmread(paths[index])
        header.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        header.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        header.save_as(paths[0].parent / f"scout{index}.dcm")
    scan = read(paths[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)
    assert finding(scan, "localizer-dropped").evidence == {"images": 2}


def test_reports_and_screen_shots_among_the_slices_are_ignored(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    header = pydicom.dcmread(paths[0])
    del header.ImagePositionPatient
    header.save_as(paths[0].parent / "dose.dcm")
    for name in ("Rows", "Columns", "PixelData"):
        delattr(header, name)
    header.Modality = "SR"
    header.save_as(paths[0].parent / "report.dcm")
    (paths[0].parent / "notes.txt").write_text("of no interest")
    folder = members_of_folder(paths[0].parent, LIMITS)
    scan = read_series([member for member in folder if member.content.value == "DICOM"], paths[0].parent, LIMITS)
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)


def test_contrast_and_loss_are_taken_from_the_header(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest, ContrastBolusAgent="Ultravist for Jane Doe", LossyImageCompression="01")
    scan = read(paths[0].parent)
    assert codes(scan) == ["intravenous-contrast", "lossy-compression"]
    assert "Jane" not in repr(scan.findings)


@pytest.mark.parametrize("slice_axis_reversed", [False, True])
def test_an_enhanced_multi_frame_ct(slice_axis_reversed: bool, write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    header = pydicom.dcmread(paths[0])
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = EnhancedCTImageStorage
    order = range(len(chest.hu))[:: -1 if slice_axis_reversed else 1]
    header.PerFrameFunctionalGroupsSequence = Sequence([_frame(chest.grid, index) for index in order])
    header.SharedFunctionalGroupsSequence = Sequence([_shared(header)])
    header.NumberOfFrames = len(chest.hu)
    header.PixelData = (chest.hu[list(order)].astype(int) + 1024).astype("<u2").tobytes()
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(header, name)
    for path in paths:
        path.unlink()
    header.save_as(paths[0])
    scan = read(paths[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)
    assert scan.volume.grid == chest.grid


def _frame(grid: Grid, index: int) -> Dataset:
    position, frame = Dataset(), Dataset()
    position.ImagePositionPatient = [float(v) for v in grid.to_lps(np.array([float(index), 0.0, 0.0]))]
    frame.PlanePositionSequence = Sequence([position])
    return frame


def _shared(header: Dataset) -> Dataset:
    orientation, measures, rescaling, shared = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = header.ImageOrientationPatient
    measures.PixelSpacing = header.PixelSpacing
    rescaling.RescaleSlope, rescaling.RescaleIntercept, rescaling.RescaleType = 1, -1024, "HU"
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([rescaling])
    return shared


def test_itk_agrees_on_pixels_and_place(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    scan = read(paths[0].parent)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(paths[0].parent))
    image = sitk.ReadImage(names)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan.volume.hu)
    np.testing.assert_allclose(image.GetOrigin(), scan.volume.grid.origin_mm)
    np.testing.assert_allclose(image.GetSpacing(), scan.volume.grid.spacing_mm[::-1])


# Refused


def test_another_modality_is_not_a_chest_ct(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest, Modality="MR")
    with pytest.raises(NotChestCTError, match="MR, not CT") as caught:
        read(paths[0].parent)
    assert caught.value.evidence == {"modalities": ["MR"]}


def test_a_single_slice_is_no_scan(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    with pytest.raises(UnsupportedFormatError, match="whole series"):
        read_series(list(members_of_folder(paths[0].parent, LIMITS))[:1], paths[0].parent, LIMITS)


def test_slices_without_a_place_are_no_scan(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    for path in paths:
        header = pydicom.dcmread(path)
        del header.ImagePositionPatient
        header.save_as(path)
    with pytest.raises(UnsupportedFormatError, match="ImagePositionPatient is missing in 24 of 24"):
        read(paths[0].parent)


@pytest.mark.parametrize(
    "orientation", [[1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0.5, 0.5]]
)
def test_impossible_orientations_are_damage(orientation: list[float], write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest, ImageOrientationPatient=orientation)
    with pytest.raises(DamagedFileError, match="geometry"):
        read(paths[0].parent)


def test_colours_are_no_ct(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest, SamplesPerPixel=3)
    with pytest.raises(UnsupportedFormatError, match="no CT slices"):
        read(paths[0].parent)


def test_a_header_that_claims_a_huge_slice_ends_before_decoding(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest, Rows=60000, Columns=60000)
    with pytest.raises(ScanTooLargeError, match="60000 x 60000 x 24"):
        read(paths[0].parent)


def test_pixels_cut_short_are_damage(write_series: WriteSeries, chest: Volume) -> None:
    paths = write_series(chest)
    paths[9].write_bytes(paths[9].read_bytes()[:-400])
    with pytest.raises(DamagedFileError):
        read(paths[0].parent)


# Through the child, as uploads come


def test_a_zip_without_suffix_and_with_litter(write_series: WriteSeries, chest: Volume, tmp_path: Path) -> None:
    paths = write_series(chest)
    upload = tmp_path / "input"
    with zipfile.ZipFile(upload, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, f"Doe^Jane/CT/{path.stem}")
        archive.writestr("__MACOSX/Doe^Jane/._1", b"\0\5\x16\7")
        archive.writestr("DICOMDIR", paths[0].read_bytes()[:400])
        archive.writestr("readme.html", "<html>")
    scan = read_ct(upload)
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)
    assert "Jane" not in repr(scan.findings)


def test_a_folder_is_read_as_a_zip_is(write_series: WriteSeries, chest: Volume) -> None:
    scan = read_ct(write_series(chest)[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)
    assert scan.volume.grid == chest.grid


def test_of_the_tags_that_name_a_patient_one_is_read_and_kept_as_a_digest(
    write_series: WriteSeries, chest: Volume, tmp_path: Path
) -> None:
    named = [tag for tag in TAGS if "Patient" in tag]
    assert named == ["PatientID", "ImagePositionPatient", "ImageOrientationPatient"]
    assert not [tag for tag in TAGS if any(word in tag for word in ("Name", "Date", "Institution", "Description"))]
    stock = Inventory()
    take_stock(members_of_folder(write_series(chest)[0].parent, LIMITS), tmp_path, LIMITS, stock)
    assert len({s.patient for s in stock.slices}) == 1
    assert "SECRET" not in repr(stock)
