"""A scan goes in over HTTP; its severity and its masks come out. Real server, real worker, real weights."""

import hashlib
import json
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from jobs.models import Inspection, Report
from pipeline.geometry import Grid
from pipeline.io.write import write_ct
from pipeline.phantom import Phantom, PhantomRecipe, make_phantom
from tests.support.collector import Collector

from .conftest import Receiver

Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LEFT_AND_UPSIDE_DOWN = ((0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (-1.0, 0.0, 0.0))
"""A left-handed grid whose axes are those of no common scanner: x leads to the feet, y to the right, z to the back."""


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """Coarse, so that it is made quickly; its grid tests that masks come back where they belong."""
    recipe = PhantomRecipe(
        seed=11, spacing_mm=(3.0, 2.5, 4.0), direction=LEFT_AND_UPSIDE_DOWN, percent_opacity=15.0, noise_hu=10.0
    )
    return make_phantom(recipe)


@pytest.fixture(scope="module")
def ct(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    write_ct(path, phantom.volume)
    return path


@pytest.fixture(scope="module")
def scored(service: str, lobewise: Run, ct: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """The report that `lobewise submit` printed, and the folder it left everything in."""
    folder = tmp_path_factory.mktemp("result")
    result = lobewise("submit", ct, "--service", service, "--json", "--out", folder)
    assert result.returncode == 0, result.stderr
    return Report.model_validate_json(result.stdout), folder


def test_a_scan_is_validated_by_the_same_service(service: str, ct: Path, phantom: Phantom) -> None:
    with ct.open("rb") as file:
        job = httpx.post(f"{service}/v1/validate", files={"file": file}, headers={"prefer": "wait=60"}).json()
    assert job["status"] == "succeeded"
    seen = Inspection.model_validate_json(httpx.get(job["links"]["inspection"]).content)
    assert (seen.shape, seen.axes) == (phantom.volume.hu.shape, "IRP")
    assert seen.geometry is not None
    assert seen.geometry.file_format == "NIfTI-1"


def test_the_opacity_is_near_the_truth(scored: tuple[Report, Path], phantom: Phantom) -> None:
    report, _ = scored
    assert report.severity.percent_opacity == pytest.approx(phantom.severity.percent_opacity, abs=3.0)


def test_the_volumes_are_near_the_truth(scored: tuple[Report, Path], phantom: Phantom) -> None:
    report, _ = scored
    assert report.lungs.volume_ml == pytest.approx(phantom.severity.volume_ml, rel=0.05)
    for found, true in zip(report.lobes, phantom.severity.lobes, strict=True):
        assert found.lobe == true.lobe.slug
        assert found.volume_ml == pytest.approx(true.volume_ml, rel=0.35)


def test_the_masks_lie_on_the_scans_own_grid(scored: tuple[Report, Path], ct: Path) -> None:
    original = sitk.ReadImage(str(ct))
    for name in ("lungs", "lobes", "lesions", "high-opacity"):
        mask = sitk.ReadImage(str(scored[1] / f"{name}.nii.gz"))
        assert mask.GetSize() == original.GetSize()
        np.testing.assert_allclose(mask.GetSpacing(), original.GetSpacing(), atol=1e-4)
        np.testing.assert_allclose(mask.GetOrigin(), original.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(mask.GetDirection(), original.GetDirection(), atol=1e-4)
        assert mask.GetPixelID() == sitk.sitkUInt8


def test_masks_agree_with_the_report_and_with_each_other(scored: tuple[Report, Path], phantom: Phantom) -> None:
    report, folder = scored
    lungs, lobes, lesions, dense = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{name}.nii.gz")))
        for name in ("lungs", "lobes", "lesions", "high-opacity")
    )
    voxel_ml = phantom.volume.grid.voxel_volume_ml
    np.testing.assert_array_equal(lungs > 0, lobes > 0)
    assert not np.any((lesions > 0) & (lungs == 0))
    np.testing.assert_array_equal(dense > 0, (lesions > 0) & (phantom.volume.hu >= -200))
    assert report.lungs.volume_ml == pytest.approx(np.count_nonzero(lungs) * voxel_ml, rel=1e-4)
    assert report.severity.percent_opacity == pytest.approx(100 * lesions.sum() / lungs.sum(), abs=1e-3)
    for lobe in report.lobes:
        assert lobe.volume_ml == pytest.approx(np.count_nonzero(lobes == lobe.label) * voxel_ml, rel=1e-4)


def test_lungs_and_lobes_are_where_they_are(scored: tuple[Report, Path], phantom: Phantom) -> None:
    lobes = sitk.GetArrayFromImage(sitk.ReadImage(str(scored[1] / "lobes.nii.gz")))
    truth = phantom.lobes.labels
    overlap = 2 * np.count_nonzero((lobes > 0) & (truth > 0)) / (np.count_nonzero(lobes) + np.count_nonzero(truth))
    assert overlap > 0.9
    for label in range(1, 6):
        found, true = (centre_mm(array == label, phantom.volume.grid) for array in (lobes, truth))
        assert np.linalg.norm(found - true) < 40, label


def centre_mm(mask: np.ndarray, grid: Grid) -> np.ndarray:
    return grid.to_lps(np.argwhere(mask).astype(np.float64).mean(axis=0))


def test_the_report_says_what_it_was_made_with(scored: tuple[Report, Path], ct: Path) -> None:
    report, folder = scored
    assert report.provenance.input_sha256 == hashlib.sha256(ct.read_bytes()).hexdigest()
    assert [model.name for model in report.provenance.models] == ["landmarks", "lungs", "lesions"]
    assert report.provenance.device == "cpu"
    assert {"landmarks", "lungs", "lesions", "severity"} <= set(report.provenance.seconds)
    assert json.loads((folder / "report.json").read_text())["job_id"] == report.job_id
    assert json.loads((folder / "labels.json").read_text())["masks"]["lobes"][3]["name"] == "right_middle"
    assert report.landmarks[0].name == "carina"
    assert report.landmarks[0].found


def test_the_carina_is_near_the_truth(scored: tuple[Report, Path], phantom: Phantom) -> None:
    found = scored[0].landmarks[0].position_mm
    true = next(point for mark, point in phantom.landmarks.items() if mark.value == "carina")
    assert found is not None
    assert np.linalg.norm(np.subtract(found, true)) < 25


def submitted(service: str, content: bytes, **options: str) -> dict[str, object]:
    """The job once it is over."""
    files, headers = {"file": ("scan", content)}, {"Prefer": "wait=60"}
    answer = httpx.post(f"{service}/v1/jobs", files=files, data=options, headers=headers, timeout=120)
    assert answer.status_code in (200, 202), answer.text
    job: dict[str, object] = answer.json()
    while job["status"] in ("queued", "running"):
        job = httpx.get(f"{service}/v1/jobs/{job['id']}").json()
    return job


def test_a_head_is_not_a_chest(service: str, lobewise: Run, tmp_path: Path) -> None:
    head = make_phantom(PhantomRecipe(seed=5, spacing_mm=(4.0, 3.0, 3.0), fit="head"))
    write_ct(tmp_path / "head.nii.gz", head.volume)
    job = submitted(service, (tmp_path / "head.nii.gz").read_bytes())
    assert job["status"] == "failed"
    error = job["error"]
    assert isinstance(error, dict)
    assert error["type"].endswith("/not-chest-ct")
    assert not error["retryable"]
    assert {"extent_mm", "air_in_body_percent"} <= set(error["evidence"])
    assert httpx.get(f"{service}/v1/jobs/{job['id']}/report").status_code == 409

    result = lobewise("submit", tmp_path / "head.nii.gz", "--service", service)
    assert result.returncode == 3
    assert "Neither the carina" in result.stderr


def test_a_damaged_file_ends_failed_and_says_so_to_whoever_wants_to_be_told(
    service: str, receiver: Receiver, ct: Path
) -> None:
    job = submitted(service, ct.read_bytes()[:50_000], callback_url=receiver.url)
    assert job["status"] == "failed"
    event = json.loads(receiver.got.get(timeout=20))
    assert (event["type"], event["subject"]) == ("lobewise.job.failed", job["id"])
    assert event["data"]["error"] == job["error"]
    error = job["error"]
    assert isinstance(error, dict)
    assert error["type"].endswith("/damaged-file")
    assert "cut short" in error["detail"]


def test_what_is_no_scan_is_refused_at_the_door(service: str, lobewise: Run, tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"%PDF-1.7 and more")
    result = lobewise("submit", tmp_path / "scan.nii.gz", "--service", service)
    assert result.returncode == 4
    assert "415" in result.stderr


def test_no_log_no_metric_and_no_trace_holds_what_names_a_patient(
    service: str, service_folder: Path, collector: Collector, tmp_path: Path
) -> None:
    archive = tmp_path / "Doe_Jane.zip"
    with zipfile.ZipFile(archive, "w") as series:
        for path in dicom_series(tmp_path / "series", PatientName="Doe^Jane", PatientID="SECRET-1"):
            series.write(path, f"Doe_Jane/{path.name}")
    answer = httpx.post(
        f"{service}/v1/jobs",
        files={"file": (archive.name, archive.read_bytes())},
        data={"client_reference": "Doe-Jane-4711"},
        timeout=60,
    )
    job = answer.json()
    while job["status"] in ("queued", "running"):
        job = httpx.get(f"{service}/v1/jobs/{job['id']}?patient=Doe").json()
    assert job["status"] == "failed"  # a phantom of eight slices holds no carina: the whole way was gone
    said = (service_folder / "log").read_text() + httpx.get(f"{service}/metrics").text
    assert f'"job_id": "{job["id"]}"' in said
    assert not re.search("Doe|SECRET|Jane-4711", said)
    requests = [json.loads(line) for line in said.splitlines() if '"event": "request"' in line]
    assert {line["route"] for line in requests} >= {"/v1/jobs", "/v1/jobs/{job_id}"}
    assert all(line["request_id"] and line["seconds"] >= 0 for line in requests)
    spans = collector.wait_for(answer.headers["traceresponse"].split("-")[1], "attempt", "read", "landmarks", "publish")
    assert {span.attributes.get("lobewise.job.id") for span in spans} == {job["id"], None}
    assert not re.search("Doe|SECRET|Jane", "".join(collector.texts))


def dicom_series(folder: Path, **tags: str) -> list[Path]:
    """Eight slices of air and tissue."""
    folder.mkdir()
    pixels = np.full((64, 64), 1064, dtype=np.uint16)
    pixels[:, :32] = 24
    paths = []
    for number in range(8):
        header = pydicom.Dataset()
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid()
        header.SeriesInstanceUID, header.Modality = "1.2.3.4", "CT"
        header.ImageType, header.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], number + 1
        header.ImageOrientationPatient, header.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5.0 * number]
        header.PixelSpacing, header.RescaleSlope, header.RescaleIntercept = [4.0, 4.0], 1, -1024
        header.Rows, header.Columns, header.SamplesPerPixel, header.PixelRepresentation = 64, 64, 1, 0
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
        header.PhotometricInterpretation, header.PixelData = "MONOCHROME2", pixels.tobytes()
        for name, value in tags.items():
            setattr(header, name, value)
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(folder / f"Doe_{number}.dcm")
        header.save_as(paths[-1], enforce_file_format=True)
    return paths
