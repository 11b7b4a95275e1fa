"""DICOM series in, DICOM out: read back by highdicom, and judged by dciodvfy and dcmqi."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom.sr import srread
from pydicom.uid import EnhancedCTImageStorage

from api import examples
from jobs import coding
from jobs.models import DicomProduct, NoDicomReason, Report
from jobs.worker_api import DicomResult
from pipeline.geometry import Grid, LesionMask, LobeLabels, LungMask, Scan, Volume
from pipeline.io.formats.archive import members_of_folder
from pipeline.io.formats.dicom import read_series
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.read import read_ct
from pipeline.severity import HIGH_OPACITY_HU
from tests.support.scans import WriteSeries, edit
from worker import dicom_seg
from worker.dicom_products import make_products
from worker.dicom_seg import NUMBERS, SEGMENTS

SHAPE = (9, 10, 12)
#: Of all orders and directions of the axes in which a scanner may lay slices down.
PLACED = [(order, signs) for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=2)]
SPACING = (2.5, 0.75, 0.75)
UIDS = {"StudyInstanceUID": "2.25.11", "SeriesInstanceUID": "2.25.12", "FrameOfReferenceUID": "2.25.13"}
PATIENT = {
    "PatientName": "Müller^Jürgen=山田^太郎",
    "PatientID": "ID 4711",
    "PatientBirthDate": "19481207",
    "PatientSex": "M",
    "AccessionNumber": "A-17",
    "StudyID": "S1",
    "StudyDate": "20260302",
    "StudyTime": "093041.25",
    "ReferringPhysicianName": "Gray^H",
    "SpecificCharacterSet": "ISO_IR 192",
}
REPORT = examples.REPORT
BIN = Path(sys.executable).parent


def volume(order: tuple[int, ...] = (0, 1, 2), signs: tuple[float, ...] = (1.0, 1.0)) -> Volume:
    """Noise on a grid whose axes are those of the patient in this order, the first two in these directions."""
    axes = np.zeros((3, 3))
    axes[order[0], 0], axes[order[1], 1] = signs
    # Slices are ordered along their normal.
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    rows = tuple(tuple(float(v) for v in row) for row in axes)
    hu = np.random.default_rng(7).integers(-1000, 400, SHAPE, dtype=np.int16)
    return Volume(hu, Grid(SHAPE, SPACING, (-31.5, 12.25, -100.0), rows))  # type: ignore[arg-type]


def read(folder: Path, scratch: Path) -> Scan:
    limits = SizeLimits(1 << 24, 1 << 28, 1000)
    scratch.mkdir(exist_ok=True)
    return read_series(members_of_folder(folder, limits), scratch, limits)


def found_in(scan: Scan) -> SimpleNamespace:
    """Masks that differ in every plane, some planes empty, from the scan's own noise."""
    grid, hu = scan.volume.grid, scan.volume.hu
    planes = np.arange(grid.shape[0])[:, None, None]
    labels = np.where((hu > -700) & (planes > 0), 1 + (hu % 5), 0).astype(np.uint8)
    lesions = (labels > 0) & (hu % 3 == 0) & (planes > 2)
    return SimpleNamespace(
        lungs=LungMask(labels > 0, grid),
        lobes=LobeLabels(labels, grid),
        lesions=LesionMask(lesions, grid),
        high_opacity=LesionMask(lesions & (hu >= HIGH_OPACITY_HU), grid),
        source=scan.source,
    )


def masks_of(found: SimpleNamespace) -> list[np.ndarray]:
    lobes = [found.lobes.labels == number for number in range(1, 6)]
    return [found.lungs.mask, *lobes, found.lesions.mask, found.high_opacity.mask]


def made(scan: Scan, folder: Path, found: SimpleNamespace | None = None, report: Report = REPORT) -> DicomResult:
    folder.mkdir(exist_ok=True)
    result: Any = found or found_in(scan)
    products = make_products(result, report, scan.identity, folder, "job 1", wanted=True)
    assert set(products.files) == (set() if products.absent else set(DicomProduct))
    return products


def frames_of(seg: pydicom.Dataset) -> list[tuple[int, pydicom.Dataset, np.ndarray]]:
    """Number of the segment, its frame's groups and pixels."""
    return [
        (frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber, frame, pixels)
        for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True)
    ]


@pytest.mark.parametrize(("order", "signs"), PLACED)
def test_every_segment_lies_on_its_source_however_the_axes_are_turned(
    order: tuple[int, ...], signs: tuple[float, ...], write_series: WriteSeries, tmp_path: Path
) -> None:
    paths = write_series(volume(order, signs), **UIDS)
    scan = read(paths[0].parent, tmp_path / "read")
    found = found_in(scan)
    seg = highdicom.seg.segread(made(scan, tmp_path / "out", found).files[DicomProduct.SEG])
    sources = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, paths)}
    seen = np.zeros((len(SEGMENTS), *SHAPE), bool)
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    for number, frame, pixels in frames_of(seg):
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        header = sources[source.ReferencedSOPInstanceUID]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == header.ImagePositionPatient
        assert orientation == header.ImageOrientationPatient
        index = scan.volume.grid.to_index(np.array([[float(v) for v in header.ImagePositionPatient]]))[0]
        assert np.allclose(index, np.rint(index), atol=1e-6)
        seen[number - 1, round(index[0])] = pixels
    assert np.array_equal(seen, masks_of(found))
    assert (seg.FrameOfReferenceUID, seg.StudyInstanceUID) == ("2.25.13", "2.25.11")
    referenced = seg.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == "2.25.12"
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == set(sources)
    # highdicom's own way back to an array, by the sources.
    uids = [scan.identity.images[plane.images[0]].sop_instance_uid for plane in scan.identity.planes]  # type: ignore[union-attr]
    back = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    assert np.array_equal(np.moveaxis(back, -1, 0), masks_of(found))


def test_what_segments_are_is_coded_and_high_opacity_is_a_density(write_series: WriteSeries, tmp_path: Path) -> None:
    scan = read(write_series(volume(), **UIDS)[0].parent, tmp_path / "read")
    seg = highdicom.seg.segread(made(scan, tmp_path / "out").files[DicomProduct.SEG])

    def of(item: pydicom.Dataset) -> tuple[str, str, str]:
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        side = kind.get("SegmentedPropertyTypeModifierCodeSequence") or [None]
        return kind.CodeValue, kind.CodingSchemeDesignator, side[0].CodeMeaning if side[0] else ""

    assert [(item.SegmentLabel, *of(item)) for item in seg.SegmentSequence] == [
        ("Lungs", "39607008", "SCT", ""),
        ("Left upper lobe", "45653009", "SCT", "Left"),
        ("Left lower lobe", "90572001", "SCT", "Left"),
        ("Right upper lobe", "45653009", "SCT", "Right"),
        ("Right middle lobe", "72481006", "SCT", ""),
        ("Right lower lobe", "90572001", "SCT", "Right"),
        ("Opacities", "112001", "DCM", ""),
        ("High opacities", "HO", coding.SCHEME, ""),
    ]
    parameters = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert all(model.sha256 in parameters for model in REPORT.provenance.models)
    text = str(seg).lower()
    assert "consolidation" not in text
    assert "covid" not in text


def test_a_scan_without_an_opacity_has_its_segments_all_the_same(write_series: WriteSeries, tmp_path: Path) -> None:
    scan = read(write_series(volume(), **UIDS)[0].parent, tmp_path / "read")
    found, none = found_in(scan), np.zeros(SHAPE, bool)
    found.lesions = found.high_opacity = LesionMask(none, scan.volume.grid)
    result = made(scan, tmp_path / "out", found)
    seg = highdicom.seg.segread(result.files[DicomProduct.SEG])
    assert len(seg.SegmentSequence) == len(SEGMENTS)
    assert {number for number, *_ in frames_of(seg)} == set(range(1, 7))
    assert errors_of(result.files[DicomProduct.SEG]) == []


def test_planes_that_were_interpolated_name_both_their_sources(write_series: WriteSeries, tmp_path: Path) -> None:
    paths = write_series(volume(), **UIDS)
    by_number = {pydicom.dcmread(path).InstanceNumber: path for path in paths}
    by_number[4].unlink()
    scan = read(paths[0].parent, tmp_path / "read")
    assert scan.volume.hu.shape == SHAPE
    seg = pydicom.dcmread(made(scan, tmp_path / "out").files[DicomProduct.SEG])
    near = {pydicom.dcmread(by_number[number]).SOPInstanceUID for number in (3, 5)}
    between = [
        frame for _, frame, _ in frames_of(seg) if len(frame.DerivationImageSequence[0].SourceImageSequence) == 2
    ]
    assert between
    for frame in between:
        sources = frame.DerivationImageSequence[0].SourceImageSequence
        assert {source.ReferencedSOPInstanceUID for source in sources} == near
        assert {source.SpatialLocationsPreserved for source in sources} == {"NO"}
        assert frame.PlanePositionSequence[0].ImagePositionPatient[2] == pytest.approx(-100 + 3 * 2.5)


def test_a_leaning_stack_keeps_its_slices_places(write_series: WriteSeries, tmp_path: Path) -> None:
    paths = write_series(volume(), **UIDS)
    for path in paths:
        number = pydicom.dcmread(path).InstanceNumber
        edit(path, ImagePositionPatient=[-31.5, 12.25 + 0.6 * number, -100.0 + 2.5 * number])
    scan = read(paths[0].parent, tmp_path / "read")
    assert any(finding.code == "gantry-tilt" for finding in scan.findings)
    sources = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, paths)}
    for _, frame, _ in frames_of(pydicom.dcmread(made(scan, tmp_path / "out").files[DicomProduct.SEG])):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        of_source = sources[source.ReferencedSOPInstanceUID].ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == of_source


def test_frames_of_an_enhanced_ct_are_named_by_their_numbers(write_series: WriteSeries, tmp_path: Path) -> None:
    scan = read(write_series(volume(), **UIDS)[0].parent, tmp_path / "read")
    assert scan.identity is not None
    images = tuple(
        replace(image, sop_class_uid=EnhancedCTImageStorage, sop_instance_uid="2.25.5", frame=SHAPE[0] - index)
        for index, image in enumerate(scan.identity.images)
    )
    result = made(replace(scan, identity=replace(scan.identity, images=images)), tmp_path / "out")
    seg = pydicom.dcmread(result.files[DicomProduct.SEG])
    assert [item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence] == [
        "2.25.5"
    ]
    for _, frame, _ in frames_of(seg):
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        height = round((frame.PlanePositionSequence[0].ImagePositionPatient[2] + 100) / 2.5)
        assert source.ReferencedFrameNumber == SHAPE[0] - height
        assert source.ReferencedSOPClassUID == EnhancedCTImageStorage
    assert errors_of(*result.files.values()) == []


def test_the_structured_report_has_the_figures_of_the_report(write_series: WriteSeries, tmp_path: Path) -> None:
    scan = read(write_series(volume(), **UIDS)[0].parent, tmp_path / "read")
    result = made(scan, tmp_path / "out")
    document = srread(result.files[DicomProduct.SR])
    seg = pydicom.dcmread(result.files[DicomProduct.SEG])
    groups = {group.tracking_identifier: group for group in document.content.get_volumetric_roi_measurement_groups()}
    assert list(groups) == list(NUMBERS)

    def figures(name: str) -> dict[str, tuple[float, str]]:
        return {m.name.value: (m.value, m.unit.value) for m in groups[name].get_measurements()}

    severity, lungs = REPORT.severity, REPORT.lungs
    assert severity.percent_opacity_range is not None
    assert figures("lungs") == {
        "118565006": (lungs.volume_ml, "mL"),
        "PO": (severity.percent_opacity, "%"),
        "PO-LOW": (severity.percent_opacity_range.low, "%"),
        "PO-HIGH": (severity.percent_opacity_range.high, "%"),
        "PHO": (severity.percent_high_opacity, "%"),
        "LSS": (severity.lung_severity_score, "{score}"),
        "LHOS": (severity.lung_high_opacity_score, "{score}"),
    }
    for lobe in REPORT.lobes:
        between = lobe.percent_opacity_range
        ends = {} if between is None else {"PO-LOW": (between.low, "%"), "PO-HIGH": (between.high, "%")}
        assert figures(lobe.lobe) == {
            "118565006": (lobe.volume_ml, "mL"),
            "PO": (lobe.percent_opacity, "%"),
            **ends,
            "PHO": (lobe.percent_high_opacity, "%"),
            "LOBE-SS": (lobe.severity_score, "{score}"),
            "LOBE-HOS": (lobe.high_opacity_score, "{score}"),
        }
    assert figures("lesions") == {"118565006": (lungs.opacity_ml, "mL")}
    assert figures("high_opacity") == {
        "118565006": (lungs.high_opacity_ml, "mL"),
        "HO-THRESHOLD": (HIGH_OPACITY_HU, "[hnsf'U]"),
    }
    described = {item.SegmentNumber: item for item in seg.SegmentSequence}
    for name, group in groups.items():
        segment = group.referenced_segment if hasattr(group, "referenced_segment") else group.roi
        assert segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert group.tracking_uid == described[NUMBERS[name]].TrackingUID
    evidence = {
        item.ReferencedSOPInstanceUID
        for study in document.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert scan.identity is not None
    assert evidence == {seg.SOPInstanceUID, *(image.sop_instance_uid for image in scan.identity.images)}
    assert all(model.sha256 in document.to_json() for model in REPORT.provenance.models)
    assert "covid" not in str(document).lower()


def test_products_are_of_the_patient_and_study_of_the_series(write_series: WriteSeries, tmp_path: Path) -> None:
    folder = write_series(volume(), **UIDS, **PATIENT)[0].parent
    scan = read_ct(folder)  # through the confined child
    result = made(scan, tmp_path / "out")
    assert result.absent is None
    assert result.identity is not None
    wanted = {name: value for name, value in PATIENT.items() if name != "SpecificCharacterSet"}
    assert result.identity.attributes == wanted
    for path in result.files.values():
        header = pydicom.dcmread(path)
        assert {name: str(header[name].value) for name in wanted} == wanted
    assert "4711" not in repr((scan, scan.identity, result, result.identity and scan.identity.planes[0]))  # type: ignore[union-attr]


def test_a_deidentified_identity_names_nobody_and_maps_uids_as_the_kept_scan(
    write_series: WriteSeries, tmp_path: Path
) -> None:
    from pipeline.io.deidentify import deidentify
    from pipeline.io.read import ReadLimits

    path = tmp_path / "scan.zip"
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for slice_path in write_series(volume(), **UIDS, **PATIENT):
            archive.write(slice_path, slice_path.name)
    key = b"k" * 32
    identity = read_ct(path).identity
    deidentify(path, tmp_path / "kept", key, ReadLimits())
    kept = read_ct(tmp_path / "kept").identity
    assert identity is not None
    assert kept is not None
    mapped = identity.deidentified(key)
    assert mapped.attributes == {}
    assert (mapped.study_uid, mapped.series_uid, mapped.images) == (kept.study_uid, kept.series_uid, kept.images)
    assert mapped.frame_of_reference_uid == kept.frame_of_reference_uid
    assert mapped.study_uid != "2.25.11"


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"])
def test_nothing_is_made_that_could_not_point_at_its_source(
    tag: str, write_series: WriteSeries, tmp_path: Path
) -> None:
    paths = write_series(volume(), **UIDS)
    for path in paths if tag == "FrameOfReferenceUID" else paths[:1] if tag == "SOPInstanceUID" else paths:
        edit(path, **{tag: ""})
    scan = read(paths[0].parent, tmp_path / "read")
    assert made(scan, tmp_path / "out") == DicomResult(absent=NoDicomReason.UIDS_MISSING)


def test_a_fault_while_making_them_costs_no_scores_and_tells_no_name(
    write_series: WriteSeries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scan = read(write_series(volume(), **UIDS, **PATIENT)[0].parent, tmp_path / "read")

    def fail(*_: object) -> None:
        raise ValueError("of Müller")

    monkeypatch.setattr(dicom_seg, "write_seg", fail)
    with caplog.at_level(logging.DEBUG):
        result = made(scan, tmp_path / "out")
    assert (result.absent, result.files) == (NoDicomReason.FAILED, {})
    assert "DICOM products were not made" in caplog.text
    assert "ller" not in caplog.text
    assert "ValueError" in str([vars(record) for record in caplog.records])


def test_nothing_is_logged_or_warned_of_that_names_a_patient(
    write_series: WriteSeries, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    # A family name alone is what highdicom remarks on, with the name.
    folder = write_series(volume(), **UIDS, **{**PATIENT, "PatientName": "Kanarienvogel"})[0].parent
    scan = read(folder, tmp_path / "read")
    recwarn.clear()
    with caplog.at_level(logging.DEBUG):
        result = made(scan, tmp_path / "out")
    assert pydicom.dcmread(result.files[DicomProduct.SR]).PatientName == "Kanarienvogel"
    assert not [
        name for name in ("Kanarien", "4711", "2.25.1") if name in caplog.text + str([str(w.message) for w in recwarn])
    ]


def errors_of(*paths: Path) -> list[str]:
    """What dciodvfy calls an error."""
    lines = []
    for path in paths:
        said = subprocess.run([BIN / "dciodvfy", path], capture_output=True, text=True, timeout=60).stderr
        assert "Segmentation" in said or "Comprehensive3DSR" in said
        lines += [line for line in said.splitlines() if line.startswith("Error")]
    return lines


def test_judges_find_no_error_and_the_same_voxels_and_figures(write_series: WriteSeries, tmp_path: Path) -> None:
    scan = read(write_series(volume((1, 2, 0), (-1.0, 1.0)), **UIDS, **PATIENT)[0].parent, tmp_path / "read")
    found = found_in(scan)
    files = made(scan, tmp_path / "out", found).files
    assert errors_of(*files.values()) == []

    (segments := tmp_path / "segments").mkdir()
    command = [
        "segimage2itkimage",
        "--inputDICOM",
        files[DicomProduct.SEG],
        "--outputDirectory",
        segments,
        "-t",
        "nifti",
    ]
    subprocess.run([BIN / command[0], *command[1:]], check=True, capture_output=True, timeout=120)
    for number, mask in enumerate(masks_of(found), 1):
        image = sitk.ReadImage(str(segments / f"{number}.nii.gz"))
        points = scan.volume.grid.to_lps(np.argwhere(mask).astype(np.float64))
        values = sitk.GetArrayFromImage(image) > 0
        assert int(values.sum()) == len(points)
        for point in points[:: max(len(points) // 50, 1)]:
            x, y, z = image.TransformPhysicalPointToIndex(point.tolist())
            assert values[z, y, x]

    out = tmp_path / "sr.json"
    command = ["tid1500reader", "--inputDICOM", files[DicomProduct.SR], "--outputMetadata", out]
    subprocess.run([BIN / command[0], *command[1:]], check=True, capture_output=True, timeout=120)
    groups = {group["TrackingIdentifier"]: group for group in json.loads(out.read_text())["Measurements"]}
    assert {name: group["ReferencedSegment"] for name, group in groups.items()} == NUMBERS
    items = {item["quantity"]["CodeValue"]: float(item["value"]) for item in groups["left_upper"]["measurementItems"]}
    lobe = next(lobe for lobe in REPORT.lobes if lobe.lobe == "left_upper")
    assert (items["118565006"], items["PO"], items["LOBE-SS"]) == (
        lobe.volume_ml,
        lobe.percent_opacity,
        lobe.severity_score,
    )
