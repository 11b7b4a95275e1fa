"""`lobewise evaluate` as people call it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.evaluation_cohorts import noisy_cohort, write_pairs

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[str, str, str, str]:
    truth, predicted = write_pairs(tmp_path, noisy_cohort(12, 6))
    return "--truth", str(truth), "--predicted", str(predicted)


def test_a_bad_table_ends_with_2_and_says_what_to_do(lobewise: Run, pairs: tuple[str, ...], tmp_path: Path) -> None:
    Path(pairs[3]).write_text("case,percent_opacity\na,1\n")
    result = lobewise("evaluate", *pairs, "--label", "x", "--out", tmp_path / "report")
    assert result.returncode == 2
    assert "missing" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "report").exists()


def test_a_mask_that_is_none_ends_with_3(lobewise: Run, tmp_path: Path) -> None:
    (tmp_path / "ct.nii.gz").write_bytes(b"%PDF-1.7")
    columns = "case,ct,true_lobes,true_lesions,predicted_lobes,predicted_lesions"
    (tmp_path / "manifest.csv").write_text(f"{columns}\na{',ct.nii.gz' * 5}\n")
    result = lobewise("evaluate", "--manifest", tmp_path / "manifest.csv", "--label", "x", "--out", tmp_path / "report")
    assert result.returncode == 3
    assert "Case 'a': ct.nii.gz" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--truth", "t.csv"),
        ("--predicted", "p.csv"),
        ("--manifest", "m.csv", "--truth", "t.csv"),
        ("--manifest", "m.csv", "--truth", "t.csv", "--predicted", "p.csv"),
        (),
        ("--truth", "no-such.csv", "--predicted", "no-such.csv"),
    ],
)
def test_half_a_request_ends_with_2(lobewise: Run, arguments: tuple[str, ...]) -> None:
    result = lobewise("evaluate", *arguments, "--label", "x")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_data_without_a_label_are_not_evaluated(lobewise: Run, pairs: tuple[str, ...]) -> None:
    assert lobewise("evaluate", *pairs).returncode == 2


WALL = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "safetensors", "cc3d", "fastapi", "uvicorn"):
            raise ModuleNotFoundError(f"{name} is not for the report", name=name)
sys.meta_path.insert(0, Wall())
from cli import main
main()
"""


def test_scores_become_a_report_without_torch_and_service(pairs: tuple[str, ...], tmp_path: Path) -> None:
    about = ("--label", "toy [cohort]", "--note", "made up", "--out", str(tmp_path / "report"))
    command = [sys.executable, "-c", WALL, "evaluate", *pairs, *about]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "Data: toy [cohort] (12 diseased, 6 controls)" in result.stdout
    assert "Pearson" in result.stdout
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.html",
        "report.md",
        "report.json",
        "figures",
    }
    about = json.loads((tmp_path / "report" / "report.json").read_text())["about"]
    assert (about["label"], about["note"]) == ("toy [cohort]", "made up")
    assert set(about["inputs"]) == {"truth.csv", "predicted.csv"}
