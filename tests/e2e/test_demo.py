"""`lobewise demo` stops all that it started, whatever comes of the scan."""

import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.io.write import write_ct
from pipeline.phantom import PhantomRecipe, make_phantom

Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def processes_with(mark: str) -> set[int]:
    """Those that were started, however indirectly, with `mark` in their environment: other tests run beside this."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def test_a_refused_scan_ends_with_3_and_leaves_nothing_running(
    lobewise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"LOBEWISE_TEST_MARK={uuid.uuid4()}"
    monkeypatch.setenv(*mark.split("="))
    head = make_phantom(PhantomRecipe(seed=5, spacing_mm=(4.0, 3.0, 3.0), fit="head"))
    write_ct(tmp_path / "head.nii.gz", head.volume)
    result = lobewise("demo", tmp_path / "head.nii.gz", "--out", tmp_path / "out", "--device", "cpu")
    assert result.returncode == 3, result.stderr
    assert "not a CT of the chest" in result.stderr
    assert processes_with(mark) == set()


def test_a_scored_scan_leaves_masks_report_and_picture(lobewise: Run, tmp_path: Path) -> None:
    chest = make_phantom(PhantomRecipe(seed=11, spacing_mm=(5.0, 3.0, 3.0), percent_opacity=15.0))
    write_ct(tmp_path / "chest.nii.gz", chest.volume)
    result = lobewise("demo", tmp_path / "chest.nii.gz", "--out", tmp_path / "out", "--device", "cpu", timeout=500)
    assert result.returncode == 0, result.stderr
    assert "PO, percent opacity" in result.stdout
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left >= {f"{name}.nii.gz" for name in ("lungs", "lobes", "lesions", "high-opacity")}
    assert left >= {"labels.json", "report.json"}
    assert (tmp_path / "out" / "overview.png").read_bytes().startswith(b"\x89PNG")
