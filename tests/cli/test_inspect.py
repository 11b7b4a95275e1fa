"""What `lobewise inspect` says of a file, to people and to programs, and what it never says."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from jobs.models import Inspection
from pipeline.geometry import Volume
from pipeline.io.write import write_ct
from tests.support.scans import WriteSeries

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def scan(tmp_path: Path, chest: Volume) -> Path:
    write_ct(tmp_path / "ct.nii.gz", chest)
    return tmp_path / "ct.nii.gz"


def test_what_was_seen_is_printed_with_the_field_that_it_comes_from(scan: Path, tmp_path: Path, lobewise: Run) -> None:
    result = lobewise("inspect", scan, "--picture", tmp_path / "out" / "slices.png")
    assert result.returncode == 0, result.stderr
    for words in ("NIfTI-1", "24, 20, 28", "12, 11, 10", "sform", "LPS", "Hounsfield units, -1000 to 40"):
        assert words in result.stdout
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "slices.png")))
    assert picture.shape[0] == 288  # mm from feet to head
    assert picture.min() < 60 < 200 < picture.max()


def test_the_json_holds_every_number(scan: Path, chest: Volume, lobewise: Run) -> None:
    result = lobewise("inspect", scan, "--json")
    seen = Inspection.model_validate_json(result.stdout)
    assert seen.geometry is not None
    assert seen.geometry.used == ["sform"]
    assert (seen.shape, seen.spacing_mm, seen.origin_mm) == (chest.hu.shape, (12, 11, 10), (-130, -100, -400))
    assert seen.histogram is not None
    assert sum(seen.histogram.voxels) == chest.hu.size
    edges = seen.histogram.first_hu + seen.histogram.bin_hu * np.arange(len(seen.histogram.voxels) + 1)
    np.testing.assert_array_equal(np.histogram(chest.hu, edges)[0], seen.histogram.voxels)
    assert seen.input_size_bytes == scan.stat().st_size
    assert seen.refused is None


def test_a_series_is_inspected_without_its_patient(write_series: WriteSeries, chest: Volume, lobewise: Run) -> None:
    paths = write_series(chest, PatientName="Doe^Jane", PatientID="4711", InstitutionName="St. Elsewhere")
    for arguments in ((), ("--json",)):
        result = lobewise("inspect", paths[0].parent, *arguments)
        assert result.returncode == 0
        assert "DICOM" in result.stdout
        assert not [word for word in ("Doe", "Jane", "4711", "Elsewhere") if word in result.stdout + result.stderr]


def test_a_refusal_is_an_answer_with_what_was_seen(tmp_path: Path, lobewise: Run) -> None:
    bad = tmp_path / "scan"
    bad.write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n\n" + bytes(240)
    )
    result = lobewise("inspect", bad)
    assert result.returncode == 3
    assert "neither space directions nor spacings" in result.stdout
    refused = json.loads(lobewise("inspect", bad, "--json").stdout)["refused"]
    assert refused["type"] == "/problems/damaged-file"
    assert refused["evidence"] == {"fields": "space directions, spacings"}
