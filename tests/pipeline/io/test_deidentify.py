"""What is left of a scan once nothing in it may name the patient: the same volume, and no name."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from numpy.testing import assert_array_equal

from pipeline.errors import UnsupportedFormatError
from pipeline.io.deidentify import deidentify
from pipeline.io.read import ReadLimits, read_ct
from tests.support.canary import (
    BIRTH_DATE,
    CANARY,
    NAME,
    ROOT_UID,
    plain_parts,
    planted_dicom,
    planted_metaimage,
    planted_nifti,
    planted_nrrd,
    planted_zip,
)

KEY = bytes(range(32))
HU = np.random.default_rng(0).integers(-1000, 400, (6, 8, 10), dtype=np.int16)


def dicom() -> bytes:
    return planted_zip([planted_dicom(plane, number, 2.0 * number - 40) for number, plane in enumerate(HU, 1)])


SCANS: dict[str, Callable[[], bytes]] = {
    "DICOM": dicom,
    "NIfTI-1": lambda: planted_nifti(HU),
    "NIfTI-1, big-endian": lambda: planted_nifti(HU, order=">"),
    "NIfTI-1, gzipped": lambda: planted_nifti(HU, packed=True),
    "NIfTI-2": lambda: planted_nifti(HU, version=2),
    "NRRD": lambda: planted_nrrd(HU),
    "NRRD, gzipped": lambda: planted_nrrd(HU, packed=True),
    "MetaImage": lambda: planted_metaimage(HU),
    "MetaImage, compressed": lambda: planted_metaimage(HU, packed=True),
}


def deidentified(data: bytes, folder: Path, key: bytes = KEY) -> Path:
    path, target = folder / "scan", folder / "target"
    path.write_bytes(data)
    deidentify(path, target, key, ReadLimits())
    return target


@pytest.mark.parametrize("kind", SCANS)
def test_no_name_is_left_and_the_same_volume_is_read(kind: str, tmp_path: Path) -> None:
    data = SCANS[kind]()
    assert any(CANARY in part for part in plain_parts(data))
    target = deidentified(data, tmp_path)
    left = plain_parts(target.read_bytes())
    for trace in (CANARY, NAME.title().encode(), BIRTH_DATE.encode(), ROOT_UID.encode()):
        assert not any(trace in part for part in left), trace
    before, after = read_ct(tmp_path / "scan"), read_ct(target)
    assert_array_equal(after.volume.hu, before.volume.hu)
    assert_array_equal(after.volume.hu, HU)
    assert after.volume.grid == before.volume.grid
    # A remark on a field that is gone goes with it.
    assert {f.code for f in before.findings} - {f.code for f in after.findings} <= {"geometry-fields-differ"}
    assert {f.code for f in after.findings} <= {f.code for f in before.findings}
    assert any(HU.astype(order).tobytes() in part for part in left for order in ("<i2", ">i2")) or kind == "DICOM"


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[pydicom.Dataset]:
    with zipfile.ZipFile(deidentified(dicom(), tmp_path_factory.mktemp("dicom"))) as archive:
        assert archive.namelist() == [f"{number:05d}.dcm" for number in range(6)]
        assert not archive.comment
        return [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()]


def all_sets(data: pydicom.Dataset) -> list[pydicom.Dataset]:
    """A data set and those within it."""
    nested = [item for element in data if element.VR == "SQ" for item in element.value]
    return [data, *(inner for item in nested for inner in all_sets(item))]


def test_every_attribute_of_the_profile_is_as_its_table_says(slices: list[pydicom.Dataset]) -> None:
    planted = pydicom.dcmread(io.BytesIO(planted_dicom(HU[0], 1, 0)[: -len(CANARY)]))
    looked_at = 0
    for original, data in zip(all_sets(planted), all_sets(slices[0]), strict=False):
        for tag in table.X_TAGS:
            assert len(tag) > 2 or tag not in data or tag[0] < 8, tag
        for tag in table.U_TAGS:
            if tag in data and tag[0] >= 8:
                looked_at += 1
                assert str(data[tag].value).startswith("2.25."), tag
        for tag in table.ALL_TAGS:
            if len(tag) == 2 and tag in data and tag in original and data[tag].VR != "SQ":
                looked_at += 1
                assert not data[tag].value or data[tag].value != original[tag].value, tag
    assert looked_at > 300


def test_pixels_stay_and_the_file_says_what_was_done(slices: list[pydicom.Dataset]) -> None:
    for plane, data in zip(HU, slices, strict=True):
        assert data.PixelData == plane.astype("<i2").tobytes()
        assert data.PatientIdentityRemoved == "YES"
        assert data.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert not [element for element in data if element.tag.is_private]
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
        assert bytes(data.preamble) == bytes(128)


def test_what_belongs_together_still_does_under_the_same_key_alone(tmp_path: Path) -> None:
    def uids(key: bytes, number: int) -> tuple[str, str, str]:
        data = pydicom.dcmread(deidentified(planted_dicom(HU[0], number, 0), tmp_path, key))
        return str(data.StudyInstanceUID), str(data.SeriesInstanceUID), str(data.SOPInstanceUID)

    first, second, other = uids(KEY, 1), uids(KEY, 2), uids(bytes(32), 1)
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert not {*first, *second} & {*other}
    assert all(len(uid) <= 64 for uid in first)


def test_what_is_no_slice_is_not_kept(tmp_path: Path) -> None:
    sheet = pydicom.dcmread(io.BytesIO(planted_dicom(HU[0], 9, 0)))
    sheet.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"  # a picture of a dose report, with the name in its pixels
    del sheet.ImagePositionPatient
    file = io.BytesIO()
    pydicom.dcmwrite(file, sheet)
    slices = [planted_dicom(plane, number, 2.0 * number) for number, plane in enumerate(HU, 1)]
    with zipfile.ZipFile(deidentified(planted_zip([*slices, file.getvalue()]), tmp_path)) as archive:
        assert len(archive.namelist()) == len(HU)


def test_pixels_that_hold_text_are_not_kept(tmp_path: Path) -> None:
    data = pydicom.dcmread(io.BytesIO(planted_dicom(HU[0], 1, 0)))
    data.BurnedInAnnotation = "YES"
    file = io.BytesIO()
    pydicom.dcmwrite(file, data)
    with pytest.raises(UnsupportedFormatError, match="BurnedInAnnotation"):
        deidentified(file.getvalue(), tmp_path)
