"""Public scans with lungs that are all but clear, through the whole service."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.models import Report

Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = [pytest.mark.data, pytest.mark.slow, pytest.mark.timeout(900)]

LOBE_ML = (100, 2500)
"""What a lobe of an adult may measure: small middle lobes to large lower ones at full inspiration."""


@pytest.mark.skipif("LOBEWISE_DATA" not in os.environ, reason="LOBEWISE_DATA names no folder of public scans")
@pytest.mark.parametrize("name", ["lidc-1011.zip", "lung-dx-a0001.zip"])
def test_a_real_scan_has_five_lobes_and_nearly_clear_lungs(name: str, service: str, lobewise: Run) -> None:
    scan = Path(os.environ["LOBEWISE_DATA"]) / "dicom" / name
    result = lobewise("submit", scan, "--service", service, "--json", timeout=800)
    assert result.returncode == 0, result.stderr
    report = Report.model_validate_json(result.stdout)
    assert 2000 < report.lungs.volume_ml < 8000
    assert all(LOBE_ML[0] < lobe.volume_ml < LOBE_ML[1] for lobe in report.lobes), report.lobes
    assert report.severity.percent_opacity < 5
