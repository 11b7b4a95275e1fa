"""Files as they are uploaded, through the child: what comes back, and what is said about what does not."""

import gzip
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.errors import DamagedFileError, PipelineError, ScanTooLargeError, UnsupportedFormatError
from pipeline.geometry import Grid, Volume, to_sitk
from pipeline.io.read import ReadLimits, read_ct
from pipeline.io.write import write_mask

WriteSeries = Callable[..., list[Path]]


@pytest.fixture
def nifti(tmp_path: Path, chest: Volume) -> Path:
    """Named as uploads are: not at all."""
    sitk.WriteImage(to_sitk(chest.hu, chest.grid), str(tmp_path / "scan.nii.gz"))
    return (tmp_path / "scan.nii.gz").rename(tmp_path / "input")


def test_a_scan_comes_back_whole(nifti: Path, chest: Volume) -> None:
    scan = read_ct(nifti)
    np.testing.assert_array_equal(scan.volume.hu, chest.hu)
    assert scan.volume.hu.dtype == np.int16
    np.testing.assert_allclose(scan.volume.grid.origin_mm, chest.grid.origin_mm, atol=1e-4)


def test_one_image_in_a_zip(nifti: Path, chest: Volume, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.write(nifti, "study/scan.nii.gz")
        archive.writestr("study/readme.txt", "a scan")
    np.testing.assert_array_equal(read_ct(tmp_path / "zip").volume.hu, chest.hu)


def test_the_name_of_a_file_says_nothing(nifti: Path, chest: Volume, tmp_path: Path) -> None:
    misleading = nifti.rename(tmp_path / "scan.nrrd")
    np.testing.assert_array_equal(read_ct(misleading).volume.hu, chest.hu)


def test_a_neighbour_of_nearly_the_same_name_is_not_read(nifti: Path, chest: Volume, tmp_path: Path) -> None:
    """With x.nii beside x.nii.gz, the NIfTI library reads the wrong pixels."""
    packed = nifti.rename(tmp_path / "x.nii.gz")
    sitk.WriteImage(to_sitk(np.zeros_like(chest.hu), chest.grid), str(tmp_path / "x.nii"))
    np.testing.assert_array_equal(read_ct(packed).volume.hu, chest.hu)


def test_nothing_is_left_behind(nifti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    read_ct(nifti)
    with pytest.raises(UnsupportedFormatError):
        read_ct(Path(__file__))
    assert list(scratch.iterdir()) == []


def test_no_such_file_is_a_fault_of_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_ct(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "of an unknown format"),
        (b"%PDF-1.7 ...", "of an unknown format"),
        (os.urandom(5000), "of an unknown format|a gzip|DICOM"),
        (gzip.compress(b"hello", mtime=0), "a gzip of something"),
        (b"\x5c\x01\0\0" + bytes(340) + b"ni1\0" + bytes(200), "pixels in another file"),
        (b"\x5c\x01\0\0" + bytes(600), "of an unknown format"),  # Analyze 7.5 does not say which side is left
    ],
    ids=["empty", "pdf", "noise", "gzip", "pair", "analyze"],
)
def test_what_is_no_ct_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(content)
    with pytest.raises(UnsupportedFormatError, match=words):
        read_ct(tmp_path / "input")


def test_two_images_in_a_zip_are_one_too_many(nifti: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.write(nifti, "a.nii.gz")
        archive.write(nifti, "b.nii.gz")
    with pytest.raises(UnsupportedFormatError, match="2 images"):
        read_ct(tmp_path / "zip")


def test_a_zip_of_letters(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(UnsupportedFormatError, match="None of the 1 files"):
        read_ct(tmp_path / "zip")


@pytest.mark.parametrize(
    "limits",
    [ReadLimits(max_voxels=24 * 20 * 28 - 1), ReadLimits(max_bytes=1000), ReadLimits(memory_bytes=400 << 20)],
    ids=["voxels", "bytes", "memory"],
)
def test_limits_end_in_too_large_or_in_damage(limits: ReadLimits, nifti: Path) -> None:
    expected = ScanTooLargeError if limits.memory_bytes == ReadLimits().memory_bytes else PipelineError
    with pytest.raises(expected):
        read_ct(nifti, limits)


def test_a_deadline_that_is_too_short(nifti: Path) -> None:
    with pytest.raises(DamagedFileError, match="did not finish"):
        read_ct(nifti, ReadLimits(seconds=0.01))


@pytest.mark.parametrize("spacing_mm", [0.001, 30.0, 200.0])
def test_impossible_voxel_sizes_are_damage(spacing_mm: float, chest: Volume, tmp_path: Path) -> None:
    grid = Grid(chest.grid.shape, (spacing_mm, 1.0, 1.0), chest.grid.origin_mm)
    sitk.WriteImage(to_sitk(chest.hu, grid), str(tmp_path / "x.nrrd"))
    with pytest.raises(DamagedFileError, match="no CT has voxels of"):
        read_ct(tmp_path / "x.nrrd")


def test_findings_of_scan_and_file_come_together(chest: Volume, tmp_path: Path) -> None:
    grid = Grid(chest.grid.shape, (8.0, 11.0, 10.0), chest.grid.origin_mm)
    stored = (chest.hu + 1024).astype(np.float32)
    stored[0, 0, 0] = np.nan
    sitk.WriteImage(to_sitk(stored, grid), str(tmp_path / "x.nrrd"))
    codes = [finding.code for finding in read_ct(tmp_path / "x.nrrd").findings]
    assert codes == [
        "not-finite-voxels",
        "thick-slices",
        "spacing-beyond-training",
        "small-field-of-view",
        "not-hounsfield",
    ]


def test_masks_of_the_same_pixels_are_the_same_bytes(lobes: object, chest: Volume, tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / name, chest.hu > -500, chest.grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "spacing_mm"),
    [
        ("lidc-1011.zip", (133, 512, 512), (2.5, 0.859375, 0.859375)),
        ("lung-dx-a0001.zip", (64, 512, 512), (5.0, 0.841796875, 0.841796875)),
    ],
)
def test_public_series(name: str, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> None:
    folder = os.environ.get("LOBEWISE_DATA")
    if not folder:
        pytest.skip("LOBEWISE_DATA does not name the folder of public scans")
    scan = read_ct(Path(folder, "dicom", name))
    assert (scan.volume.grid.shape, scan.volume.grid.spacing_mm) == (shape, spacing_mm)
    assert scan.volume.grid.direction == ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    counts, edges = np.histogram(scan.volume.hu, bins=np.arange(-5, 156, 10))
    assert 20 <= edges[np.argmax(counts)] <= 70  # muscle and blood
    assert "not-hounsfield" not in [finding.code for finding in scan.findings]
