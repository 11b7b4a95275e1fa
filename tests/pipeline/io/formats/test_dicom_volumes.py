"""Several volumes in one series, slices that are missing or repeated, and headers that geometry does not need."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import EnhancedCTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage, generate_uid

from pipeline.errors import DamagedFileError, NotChestCTError, PipelineError, UnsupportedFormatError
from pipeline.geometry import Grid, Scan, Volume
from pipeline.io.formats.archive import members_of_folder
from pipeline.io.formats.dicom import read_series
from pipeline.io.formats.limits import SizeLimits
from tests.support.scans import edit, finding

LIMITS = SizeLimits(max_voxels=10**6, max_bytes=10**8, max_files=500)
UID = "1.2.3"

WriteSeries = Callable[..., list[Path]]


def read(folder: Path) -> Scan:
    return read_series(members_of_folder(folder, LIMITS), folder, LIMITS)


def write_raw(path: Path, tag: str, value: str, vr: str) -> None:
    """A value that pydicom would not let us set."""
    header = pydicom.dcmread(path)
    header[tag] = RawDataElement(Tag(tag), vr, len(value), value.encode(), 0, False, True)
    header.save_as(path)


def volume(seed: int, slices: int = 8, step_mm: float = 5.0, z_mm: float = 0.0, x_mm: float = 0.0) -> Volume:
    hu = np.random.default_rng(seed).integers(-1000, 1000, (slices, 6, 7)).astype(np.int16)
    return Volume(hu, Grid(hu.shape, (step_mm, 2.0, 2.0), (x_mm, 0.0, z_mm)))


def assert_read(scan: Scan, expected: Volume) -> None:
    np.testing.assert_array_equal(scan.volume.hu, expected.hu)
    assert scan.volume.grid == expected.grid


# Several volumes in one series

APART = {
    "TemporalPositionIdentifier": (1, 2),
    "TemporalPositionIndex": (1, 2),
    "ConvolutionKernel": ("B30f", "B70f"),
    "ImageType": (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"]),
    "SliceThickness": ("1.0", "5"),
    "KVP": (80, 140),
    "EchoNumbers": (1, 2),
    "TriggerTime": (0, 500),
    "NominalPercentageOfCardiacPhase": (30, 70),
    "AcquisitionNumber": (4, 5),
    "FrameOfReferenceUID": (UID + ".8", UID + ".9"),
    "StudyInstanceUID": (UID + ".8", UID + ".9"),
    "ContrastBolusAgent": (None, "Ultravist"),
    "PixelSpacing": ([2.0, 2.0], [2.1, 2.1]),
    "InstanceNumber": (None, None),
}


@pytest.mark.parametrize("shift_mm", [0.0, 2.5, 1.0])
@pytest.mark.parametrize("tag", APART)
def test_volumes_of_one_series_are_told_apart(tag: str, shift_mm: float, write_series: WriteSeries) -> None:
    """On the same positions, halfway between them, and anywhere."""
    first, second = volume(1), volume(2, z_mm=shift_mm)
    values = APART[tag]
    paths = write_series(first, SeriesInstanceUID=UID, **({} if tag == "InstanceNumber" else {tag: values[0]}))
    more = write_series(
        second, paths[0].parent, SeriesInstanceUID=UID, **({} if tag == "InstanceNumber" else {tag: values[1]})
    )
    for index, path in enumerate(more):
        edit(path, InstanceNumber=len(paths) + index + 1)
    scan = read(paths[0].parent)
    assert_read(scan, first)
    several = finding(scan, "several-volumes")
    assert several.severity == "warning"
    assert several.evidence["chosen"]["slices"] == 8
    assert [other["slices"] for other in several.evidence["others"]] == [8]


def test_acquisitions_one_above_the_other_are_one_volume(write_series: WriteSeries) -> None:
    """Acquisitions 1 and 2 are one phase, 3 and 4 the next."""
    first, second = volume(1), volume(2)
    folder = None
    for number, whole in enumerate((first, second)):
        for half in (0, 1):
            part = Volume(whole.hu[4 * half : 4 * half + 4], volume(0, 4, z_mm=20.0 * half).grid)
            acquisition = 1 + 2 * number + half
            folder = write_series(part, folder, SeriesInstanceUID=UID, AcquisitionNumber=acquisition)[0].parent
    assert folder is not None
    scan = read(folder)
    assert_read(scan, first)
    assert finding(scan, "several-volumes").evidence["others"][0]["slices"] == 8


def test_a_trait_that_alternates_within_one_volume_divides_nothing(write_series: WriteSeries) -> None:
    whole = volume(1, 12)
    paths = write_series(whole)
    for index, path in enumerate(paths):
        edit(path, ConvolutionKernel="AB"[index in (1, 2, 5, 7, 8)], AcquisitionNumber=index // 3)
    scan = read(paths[0].parent)
    assert_read(scan, whole)
    assert not [f for f in scan.findings if f.code != "thick-slices"]


def test_a_trait_that_explains_all_comes_before_one_that_alternates(write_series: WriteSeries) -> None:
    first, second = volume(1), volume(2)
    paths = write_series(first, SeriesInstanceUID=UID, AcquisitionNumber=1)
    more = write_series(second, paths[0].parent, SeriesInstanceUID=UID, AcquisitionNumber=2)
    for index, path in enumerate((*paths, *more)):
        edit(path, ConvolutionKernel="AB"[index in (1, 2, 5, 9, 12, 13)])
    assert_read(read(paths[0].parent), first)


def test_two_kernels_of_two_phases(write_series: WriteSeries) -> None:
    folder, first = None, volume(1)
    for seed, (phase, kernel) in enumerate([(1, "B30f"), (1, "B70f"), (2, "B30f"), (2, "B70f")], start=1):
        tags = {"TemporalPositionIdentifier": phase, "ConvolutionKernel": kernel, "SeriesInstanceUID": UID}
        folder = write_series(volume(seed), folder, **tags)[0].parent
    assert folder is not None
    scan = read(folder)
    assert_read(scan, first)
    assert len(finding(scan, "several-volumes").evidence["others"]) == 3


def test_phases_that_only_their_times_tell_apart(write_series: WriteSeries) -> None:
    first, second = volume(1), volume(2)
    paths = write_series(first, SeriesInstanceUID=UID, AcquisitionTime="101500.5")
    more = write_series(second, paths[0].parent, SeriesInstanceUID=UID, AcquisitionTime="101512")
    for index, (a, b) in enumerate(zip(paths, more, strict=True)):
        edit(a, InstanceNumber=2 * index + 1)
        edit(b, InstanceNumber=2 * index + 2)
    assert_read(read(paths[0].parent), first)


def test_a_bed_that_moves_on_after_each_phase(write_series: WriteSeries) -> None:
    """Phase 1 and 2 at one position of the bed, then both at the next."""
    first, second = volume(1), volume(2)
    folder, number = None, 0
    for bed in (0, 1):
        for phase, whole in enumerate((first, second)):
            part = Volume(whole.hu[4 * bed : 4 * bed + 4], volume(0, 4, z_mm=20.0 * bed).grid)
            time = f"1015{2 * bed + phase:02d}"
            paths = write_series(part, folder, SeriesInstanceUID=UID, AcquisitionTime=time)
            folder = paths[0].parent
            for path in paths:
                number += 1
                edit(path, InstanceNumber=number)
    assert folder is not None
    assert_read(read(folder), first)
    for path in folder.iterdir():
        edit(path, AcquisitionTime=None)
    with pytest.raises(UnsupportedFormatError, match="no tag tells the volumes apart"):
        read(folder)


def test_a_bed_that_goes_to_and_fro(write_series: WriteSeries) -> None:
    first, second = volume(1), volume(2)
    paths = write_series(first, SeriesInstanceUID=UID)
    more = write_series(second, paths[0].parent, SeriesInstanceUID=UID)
    for index, path in enumerate(more):
        edit(path, InstanceNumber=100 - index)
    assert_read(read(paths[0].parent), first)


def test_targeted_reconstructions_of_both_lungs(write_series: WriteSeries) -> None:
    paths = write_series(volume(1, x_mm=-50.0), SeriesInstanceUID=UID, InstanceNumber=1)
    write_series(volume(2, x_mm=50.0), paths[0].parent, SeriesInstanceUID=UID, InstanceNumber=1)
    assert finding(read(paths[0].parent), "several-volumes")


def test_positions_that_nothing_tells_apart_are_refused(write_series: WriteSeries) -> None:
    paths = write_series(volume(1), SeriesInstanceUID=UID)
    more = write_series(volume(2), paths[0].parent, SeriesInstanceUID=UID)
    numbers = np.random.default_rng(5).permutation(16)
    for path, number in zip((*paths, *more), numbers, strict=True):
        edit(path, InstanceNumber=int(number))
    with pytest.raises(UnsupportedFormatError, match="16 slices share 8 positions, 8 of them with other pixels"):
        read(paths[0].parent)


def test_slices_with_the_same_pixels_are_duplicates_under_any_name(write_series: WriteSeries) -> None:
    whole = volume(1)
    paths = write_series(whole)
    for name in ("again.dcm", "once more.dcm"):
        header = pydicom.dcmread(paths[3])
        header.SOPInstanceUID = generate_uid()
        header.save_as(paths[0].parent / name)
    scan = read(paths[0].parent)
    assert_read(scan, whole)
    assert finding(scan, "duplicate-positions").evidence == {"slices": 10, "positions": 8}


def test_a_folder_that_holds_everything_twice(write_series: WriteSeries) -> None:
    whole = volume(1)
    paths = write_series(whole)
    for path in paths:
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    scan = read(paths[0].parent)
    assert_read(scan, whole)
    assert finding(scan, "duplicate-positions").evidence == {"slices": 16, "copies": 8}


# Which volume is scored


def chosen_of(write_series: WriteSeries, *volumes: tuple[Volume, dict[str, object]]) -> Scan:
    folder = None
    for whole, tags in volumes:
        folder = write_series(whole, folder, **tags)[0].parent
    assert folder is not None
    return read(folder)


def test_without_contrast_comes_first(write_series: WriteSeries) -> None:
    native, enhanced = volume(1), volume(2, 9)
    scan = chosen_of(write_series, (enhanced, {"ContrastBolusAgent": "x"}), (native, {}))
    assert_read(scan, native)


def test_but_not_a_few_slices_to_time_the_contrast(write_series: WriteSeries) -> None:
    enhanced = volume(2, 12)
    scan = chosen_of(write_series, (volume(1, 3), {}), (enhanced, {"ContrastBolusAgent": "x"}))
    assert_read(scan, enhanced)


def test_then_the_longest_then_the_most_slices_then_the_lowest_number(write_series: WriteSeries) -> None:
    thin = volume(2, 21, 2.0)
    tags = [{"SeriesNumber": n} for n in (9, 4, 3, 1)]
    volumes = (volume(1, 9), thin, thin, volume(3, 12, 1.0))
    chosen = finding(chosen_of(write_series, *zip(volumes, tags, strict=True)), "several-series").evidence["chosen"]
    assert (chosen["series_number"], chosen["slices"]) == (3, 21)


def test_reformatted_and_projected_stacks_come_last(write_series: WriteSeries) -> None:
    axial = volume(1)
    sagittal = Volume(
        volume(2, 30).hu, Grid((30, 6, 7), (5.0, 2.0, 2.0), (0.0,) * 3, ((0, 0, 1), (1, 0, 0), (0, 1, 0)))
    )
    projected = volume(3, 20)
    scan = chosen_of(
        write_series, (sagittal, {}), (projected, {"ImageType": ["DERIVED", "SECONDARY", "MIP"]}), (axial, {})
    )
    assert_read(scan, axial)


def test_values_that_are_no_hounsfield_units_come_last(write_series: WriteSeries) -> None:
    axial = volume(1)
    assert_read(chosen_of(write_series, (volume(2, 12), {"RescaleType": "Z_EFF"}), (axial, {})), axial)


def test_but_a_few_slices_are_no_substitute_for_them(write_series: WriteSeries) -> None:
    with pytest.raises(UnsupportedFormatError, match="RescaleType is 'US'"):
        chosen_of(write_series, (volume(2, 20), {"RescaleType": "US"}), (volume(1, 4), {}))


# Distances


def test_two_distances_in_one_stack_become_one(write_series: WriteSeries) -> None:
    """Each voxel holds twice its height, so that interpolation is exact."""
    heights = np.array([0, 5, 10, 15, 20, 25, 35, 45, 55])
    hu = np.broadcast_to(2 * heights[:, None, None], (9, 6, 7)).astype(np.int16)
    paths = write_series(Volume(hu, volume(0, 9).grid))
    for path, z in zip(paths, heights, strict=True):
        edit(path, ImagePositionPatient=[0.0, 0.0, float(z)])
    scan = read(paths[0].parent)
    np.testing.assert_array_equal(scan.volume.hu[:, 0, 0], np.arange(0, 111, 10))
    assert scan.volume.grid == volume(0, 12).grid
    assert finding(scan, "missing-slices").evidence["missing"] == 3


def test_a_wide_gap_divides_the_stack(write_series: WriteSeries) -> None:
    whole = volume(1, 30)
    paths = write_series(whole)
    for path in paths[10:15]:
        path.unlink()
    scan = read(paths[0].parent)
    np.testing.assert_array_equal(scan.volume.hu, whole.hu[15:])
    assert scan.volume.grid.origin_mm == (0.0, 0.0, 75.0)
    gap = finding(scan, "missing-slices")
    assert gap.severity == "error"
    assert gap.evidence == {"gap_mm": 30.0, "slices": 15, "left_out": 10, "extent_mm": 70.0}


def test_a_gap_of_four_steps_is_filled(write_series: WriteSeries) -> None:
    paths = write_series(volume(1, 30))
    for path in paths[10:13]:
        path.unlink()
    scan = read(paths[0].parent)
    assert scan.volume.grid == volume(1, 30).grid
    assert finding(scan, "missing-slices").evidence["missing"] == 3


def test_sideways_shifts_are_measured(write_series: WriteSeries) -> None:
    paths = write_series(volume(1))
    for path in paths[4:]:
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[float(x) + 30.0, y, z])
    assert finding(read(paths[0].parent), "slices-shifted")


def test_where_the_grid_comes_from(write_series: WriteSeries) -> None:
    source = read(write_series(volume(1), SpacingBetweenSlices=2.5)[0].parent).source
    assert source is not None
    assert source.file_format == "DICOM"
    assert source.ignored == {"SpacingBetweenSlices": "says 2.5 mm, positions say 5 mm"}


# Headers that geometry does not need


@pytest.mark.parametrize("tag", ["SeriesInstanceUID", "FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_uid_that_each_slice_has_for_itself_is_ignored(tag: str, write_series: WriteSeries) -> None:
    whole = volume(1)
    paths = write_series(whole)
    for path in paths:
        edit(path, **{tag: generate_uid()})
    scan = read(paths[0].parent)
    assert_read(scan, whole)
    assert finding(scan, "series-uid-per-slice").evidence == {"tags": [tag], "slices": 8}


@pytest.mark.parametrize("value", ["", "abc", "1.5", "9" * 30, "-"])
@pytest.mark.parametrize("tag", ["InstanceNumber", "AcquisitionNumber", "SeriesNumber", "KVP", "SliceThickness"])
def test_numbers_that_nobody_needs_may_be_none(tag: str, value: str, write_series: WriteSeries) -> None:
    whole = volume(1)
    paths = write_series(whole)
    for path in paths[:5]:
        write_raw(path, tag, value, "DS" if tag in ("KVP", "SliceThickness") else "IS")
    assert_read(read(paths[0].parent), whole)


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_missing_geometry_is_refused_by_its_tag(tag: str, write_series: WriteSeries) -> None:
    paths = write_series(volume(1))
    for path in paths:
        header = pydicom.dcmread(path)
        delattr(header, tag)
        header.save_as(path)
    with pytest.raises(UnsupportedFormatError, match=f"{tag} is missing in 8 of 8 CT images"):
        read(paths[0].parent)


def test_missing_geometry_is_named_where_it_leaves_single_slices(write_series: WriteSeries) -> None:
    paths = write_series(volume(1))
    for path in paths[1:]:
        header = pydicom.dcmread(path)
        del header.PixelSpacing
        header.save_as(path)
    with pytest.raises(UnsupportedFormatError, match="PixelSpacing is missing in 7 of 8"):
        read(paths[0].parent)


def test_a_slice_of_the_series_without_geometry_is_told(write_series: WriteSeries) -> None:
    paths = write_series(volume(1))
    header = pydicom.dcmread(paths[7])
    del header.PixelSpacing
    header.save_as(paths[7])
    left_out = finding(read(paths[0].parent), "images-left-out")
    assert (left_out.severity, left_out.evidence) == ("warning", {"images": 1, "of_the_scored_series": 1})


@pytest.mark.parametrize(
    ("tag", "value"),
    [("ImagePositionPatient", "0\\0\\abc"), ("PixelSpacing", "2"), ("ImageOrientationPatient", "1\\0\\0\\0\\1\\nan")],
)
def test_damaged_geometry_is_refused_by_its_tag(tag: str, value: str, write_series: WriteSeries) -> None:
    paths = write_series(volume(1))
    write_raw(paths[2], tag, value, "DS")
    with pytest.raises(DamagedFileError, match=f"{tag} is ") as caught:
        read(paths[0].parent)
    assert caught.value.evidence["tag"] == tag


@pytest.mark.parametrize("tag", ["PixelSpacing"])
@pytest.mark.parametrize("value", [[0.0, 2.0], [-1.0, 2.0], [2.0, 1000.0]])
def test_spacings_that_no_ct_has_are_refused(tag: str, value: list[float], write_series: WriteSeries) -> None:
    with pytest.raises(PipelineError, match="PixelSpacing"):
        read(write_series(volume(1), **{tag: value})[0].parent)


# Patients and modalities


def test_two_patients_are_refused_and_not_named(write_series: WriteSeries) -> None:
    paths = write_series(volume(1), SeriesInstanceUID=UID, PatientID="P-1")
    write_series(volume(2), paths[0].parent, SeriesInstanceUID=UID, PatientID="P-2")
    with pytest.raises(UnsupportedFormatError, match=r"2 patients .PatientID differs.") as caught:
        read(paths[0].parent)
    assert "P-1" not in repr(caught.value.evidence) + str(caught.value)


def test_a_missing_patient_may_be_anybody(write_series: WriteSeries) -> None:
    paths = write_series(volume(1), PatientID="P-1")
    edit(paths[3], PatientID="")
    edit(paths[4], PatientID=" p-1 ")
    assert_read(read(paths[0].parent), volume(1))


@pytest.mark.parametrize("uid", [MRImageStorage, PositronEmissionTomographyImageStorage])
def test_the_class_of_another_modality_is_refused_by_name(uid: str, write_series: WriteSeries) -> None:
    with pytest.raises(NotChestCTError, match=r"SOPClassUID says .* Image Storage, not CT Image Storage"):
        read(write_series(volume(1), SOPClassUID=uid)[0].parent)


def test_other_modalities_beside_a_ct_are_left_out_and_counted(write_series: WriteSeries) -> None:
    paths = write_series(volume(1))
    write_series(volume(2), paths[0].parent, Modality="PT")
    assert finding(read(paths[0].parent), "images-left-out").evidence == {"images": {"PT": 8}}


# Refusals say what was seen before


def test_a_refusal_has_the_findings_before_it(write_series: WriteSeries) -> None:
    paths = write_series(volume(1, 12))
    write_series(volume(2), paths[0].parent)
    edit(paths[2], PixelData=bytes(10))
    with pytest.raises(DamagedFileError, match="10 bytes") as caught:
        read(paths[0].parent)
    assert [f["code"] for f in caught.value.evidence["findings"]] == ["several-series"]
    assert caught.value.evidence["slices"] == 20
    assert caught.value.evidence["series"] == 2


# Enhanced CT


def enhanced(paths: list[Path], whole: Volume, rescales: list[tuple[float, float]], phases: list[int]) -> Path:
    header = pydicom.dcmread(paths[0])
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = EnhancedCTImageStorage
    frames, stored = [], []
    for index, (slope, intercept) in enumerate(rescales):
        position, content, rescale, frame = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, 5.0 * (index % len(whole.hu))]
        content.TemporalPositionIndex = phases[index]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, intercept, "HU"
        frame.PlanePositionSequence, frame.FrameContentSequence = Sequence([position]), Sequence([content])
        frame.PixelValueTransformationSequence = Sequence([rescale])
        frames.append(frame)
        stored.append(np.rint((whole.hu[index % len(whole.hu)] + 10 * (phases[index] - 1) - intercept) / slope))
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = header.ImageOrientationPatient, header.PixelSpacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    header.PerFrameFunctionalGroupsSequence = Sequence(frames)
    header.NumberOfFrames = len(frames)
    header.PixelData = np.array(stored).astype("<u2").tobytes()
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(header, name)
    for path in paths:
        path.unlink()
    header.save_as(paths[0])
    return paths[0]


def test_each_frame_has_its_own_rescale(write_series: WriteSeries) -> None:
    whole = volume(1)
    hu = Volume((whole.hu // 4 * 4).astype(np.int16), whole.grid)
    rescales = [(1.0 + index % 2, -1024.0 - 16 * index) for index in range(8)]
    enhanced(paths := write_series(hu), hu, rescales, [1] * 8)
    assert_read(read(paths[0].parent), hu)


def test_phases_in_one_enhanced_file(write_series: WriteSeries) -> None:
    whole = volume(1)
    enhanced(paths := write_series(whole), whole, [(1.0, -1024.0)] * 16, [1] * 8 + [2] * 8)
    scan = read(paths[0].parent)
    assert_read(scan, whole)
    assert finding(scan, "several-volumes").evidence["differ_in"] == ["temporal_position"]


def test_frames_and_descriptions_of_frames_must_be_as_many(write_series: WriteSeries) -> None:
    whole = volume(1)
    path = enhanced(write_series(whole), whole, [(1.0, -1024.0)] * 8, [1] * 8)
    edit(path, NumberOfFrames=7)
    with pytest.raises(DamagedFileError, match=r"NumberOfFrames is 7, but .* 8 frames"):
        read(path.parent)
    header = pydicom.dcmread(path)
    header.NumberOfFrames = 8
    header.PixelData = header.PixelData[:-84]
    header.save_as(path)
    with pytest.raises(DamagedFileError, match=r"588 bytes.*8 frames.*672 bytes"):
        read(path.parent)
