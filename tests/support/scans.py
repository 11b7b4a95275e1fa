"""Small scans with known places, and the files they come in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pipeline.anatomy import Lobe
from pipeline.geometry import Finding, Grid, LobeLabels, Scan, Volume

WriteSeries = Callable[..., list[Path]]

#: Covers a thorax, coarsely.
SMALL_GRID = Grid((24, 20, 28), (12.0, 11.0, 10.0), (-130.0, -100.0, -400.0))

#: LPS boxes (lower, upper): left is at positive x, the back at positive y, the head at positive z.
LOBE_BOXES_MM = {
    Lobe.LEFT_UPPER: ((30, -60, -240), (110, 60, -160)),
    Lobe.LEFT_LOWER: ((30, -40, -340), (110, 80, -250)),
    Lobe.RIGHT_UPPER: ((-110, -60, -220), (-30, 60, -160)),
    Lobe.RIGHT_MIDDLE: ((-110, -60, -300), (-30, 0, -230)),
    Lobe.RIGHT_LOWER: ((-110, 10, -340), (-30, 80, -230)),
}


def boxed_lobes(grid: Grid) -> LobeLabels:
    """Five boxes where five lobes would be."""
    points = grid.to_lps(np.indices(grid.shape).reshape(3, -1).T.astype(np.float64))
    labels = np.zeros(len(points), dtype=np.uint8)
    for lobe, (lower, upper) in LOBE_BOXES_MM.items():
        labels[np.all((points >= lower) & (points <= upper), axis=1)] = lobe
    return LobeLabels(labels.reshape(grid.shape), grid)


@pytest.fixture
def lobes() -> LobeLabels:
    return boxed_lobes(SMALL_GRID)


@pytest.fixture
def chest(lobes: LobeLabels) -> Volume:
    """Air around soft tissue around lobes, each of its own density (-900 + 20 x label)."""
    hu = np.full(SMALL_GRID.shape, 40, dtype=np.int16)
    hu[:, :2], hu[:, -2:] = -1000, -1000
    inside = lobes.labels > 0
    hu[inside] = -900 + 20 * lobes.labels[inside].astype(np.int16)
    return Volume(hu, SMALL_GRID)


@pytest.fixture
def write_series(tmp_path: Path) -> WriteSeries:
    """Writes a DICOM series slice by slice along the array's first axis: `write_series(volume, **tags)`."""
    count = 0

    def write(volume: Volume, folder: Path | None = None, *, stored_offset: int = 1024, **tags: object) -> list[Path]:
        nonlocal count
        count += 1
        target = folder or tmp_path / f"series{count}"
        target.mkdir(exist_ok=True)
        series = generate_uid()
        paths = []
        for index, plane in enumerate(volume.hu):
            path = target / f"{count}-{(index * 7919) % 1000:03d}-{index}.dcm"  # names in no order
            _write_slice(path, plane, volume.grid, index, {"SeriesInstanceUID": series, **tags}, stored_offset)
            paths.append(path)
        return paths

    return write


def _write_slice(
    path: Path, plane: np.ndarray, grid: Grid, index: int, tags: dict[str, object], stored_offset: int
) -> None:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    header.PatientName, header.PatientID = "Doe^Jane", "SECRET-1"
    header.Modality, header.SeriesNumber, header.InstanceNumber = "CT", 1, index + 1
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    direction = np.asarray(grid.direction)
    header.ImageOrientationPatient = [float(v) for v in (*direction[:, 0], *direction[:, 1])]
    header.ImagePositionPatient = [float(v) for v in grid.to_lps(np.array([float(index), 0.0, 0.0]))]
    header.PixelSpacing = [grid.spacing_mm[1], grid.spacing_mm[2]]
    header.RescaleSlope, header.RescaleIntercept = 1, -stored_offset
    set_pixels(header, (plane.astype(np.int32) + stored_offset).astype(np.uint16))
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)


def edit(path: Path, **tags: object) -> None:
    """Set attributes of a DICOM file that is there."""
    header = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path)


def finding(scan: Scan, code: str) -> Finding:
    return next(f for f in scan.findings if f.code == code)


def set_pixels(header: Dataset, stored: np.ndarray) -> None:
    """Unsigned 16-bit pixels, one sample each."""
    header.Rows, header.Columns = stored.shape[-2:]
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelData = stored.astype("<u2").tobytes()
