"""Commands as people call them: what they print, and how they end."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from cli.local import free_port
from jobs.models import Report
from jobs.version import __version__
from pipeline.networks.weights import load_weights, shipped_weights_dir

Run = Callable[..., "subprocess.CompletedProcess[str]"]

COMMANDS = (
    "score",
    "inspect",
    "submit",
    "serve",
    "api",
    "worker",
    "phantom",
    "doctor",
    "models",
    "demo",
    "prepare",
    "sender",
    "callback-secret",
    "train",
    "evaluate",
    "audit",
)


def test_help_names_every_command_and_exit_code(lobewise: Run) -> None:
    result = lobewise("--help")
    assert result.returncode == 0
    assert all(command in result.stdout for command in (*COMMANDS, "Exit codes"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, lobewise: Run) -> None:
    result = lobewise(command, "--help")
    assert result.returncode == 0
    assert "Example" in result.stdout or "LOBEWISE_" in result.stdout


def test_the_version(lobewise: Run) -> None:
    assert lobewise("--version").stdout.strip() == f"lobewise {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        ("score",),
        ("score", "/no/such/scan"),
        ("serve", "--port", "0"),
        ("phantom", "x", "--orientation", "LLS"),
        ("?",),
    ],
)
def test_wrong_calls_end_with_2(arguments: tuple[str, ...], lobewise: Run, tmp_path: Path) -> None:
    result = lobewise(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_scan_that_is_none_ends_with_3_and_says_what_it_is(lobewise: Run, tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"%PDF-1.7")
    result = lobewise("score", tmp_path / "scan.nii.gz")
    assert result.returncode == 3
    assert "format is not supported" in result.stderr
    assert result.stdout == ""


def test_no_service_ends_with_4_and_says_how_to_start_one(lobewise: Run, tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(b"x")
    result = lobewise("submit", tmp_path / "scan", "--service", f"http://127.0.0.1:{free_port()}")
    assert result.returncode == 4
    assert "does not answer" in result.stderr
    assert "lobewise serve" in result.stderr


def test_verifying_weights_that_are_missing_or_changed_ends_with_1(lobewise: Run, tmp_path: Path) -> None:
    shutil.copytree(shipped_weights_dir(), tmp_path / "weights")
    (tmp_path / "weights" / "lungs.safetensors").unlink()
    sums = tmp_path / "weights" / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(sums.read_text()[:8], "01234567", 1))
    result = lobewise("models", "verify", "--weights", tmp_path / "weights")
    assert result.returncode == 1
    said = " ".join(result.stdout.replace("│", " ").split())
    assert "no weights for" in said
    assert "not the weights" in said


def test_the_shipped_weights_are_the_ones_listed_and_each_has_a_card(lobewise: Run) -> None:
    result = lobewise("models", "verify")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        ("torch", ("score", __file__), "worker"),
        ("SimpleITK", ("score", __file__), "worker"),
        ("fastapi", ("api",), "api"),
        ("torch", ("worker",), "worker"),
        ("safetensors", ("models",), "worker"),
        ("numpy", ("phantom", "x"), "worker"),
        ("fastapi", ("serve",), "api,worker"),
        ("statsmodels", ("evaluate", "--label", "x"), "evaluation"),
        ("matplotlib", ("evaluate", "--label", "x"), "evaluation"),
    ],
)
def test_a_missing_part_is_named_with_what_installs_it(missing: str, command: tuple[str, ...], extra: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['lobewise', *{command!r}]\n"
    program += "from cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2, result.stderr
    assert f"pip install 'lobewise[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("room", "command"),
    [
        ("training", ("train", "lesions", ".", "run")),
        ("training", ("prepare", "lesions", ".", "bank")),
        ("evaluation", ("evaluate", "--label", "x")),
    ],
)
def test_an_image_without_a_room_says_so(room: str, command: tuple[str, ...]) -> None:
    program = (
        "import sys\nclass Absent:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {room!r}: raise ModuleNotFoundError(name, name=name)\n"
        f"sys.meta_path.insert(0, Absent()); sys.argv = ['lobewise', *{command!r}]\n"
    )
    program += "from cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2, result.stderr
    assert f"needs the part '{room}', which this image does not carry" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_client_needs_neither_science_nor_server(tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(b"x")
    blocked = ("numpy", "torch", "SimpleITK", "fastapi", "uvicorn", "celery")
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    program += (
        f"sys.argv = ['lobewise', 'submit', {str(tmp_path / 'scan')!r}, '-s', 'http://127.0.0.1:{free_port()}']\n"
    )
    program += "from cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 4, result.stderr


def test_a_phantom_is_written_with_its_truth(lobewise: Run, tmp_path: Path) -> None:
    arguments = ("--spacing", 12, 9, 6, "--opacity", 20, "--seed", 4, "--orientation", "AIR")
    result = lobewise("phantom", tmp_path / "phantom", *arguments)
    assert result.returncode == 0, result.stderr
    truth = Report.model_validate_json((tmp_path / "phantom" / "truth.json").read_text())
    assert truth.severity.percent_opacity == pytest.approx(20, abs=1)
    ct, lobes, lesions, dense = (
        sitk.ReadImage(str(tmp_path / "phantom" / f"{name}.nii.gz"))
        for name in ("ct", "lobes", "lesions", "high-opacity")
    )
    assert ct.GetDirection() == (0.0, 0.0, -1.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
    assert ct.GetSpacing() == (6.0, 9.0, 12.0)
    labels, lesion = (sitk.GetArrayFromImage(image) for image in (lobes, lesions))
    assert 100 * lesion.sum() / (labels > 0).sum() == pytest.approx(truth.severity.percent_opacity, abs=0.01)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(dense) > 0, (lesion > 0) & (sitk.GetArrayFromImage(ct) >= -200)
    )
    assert f"{truth.severity.percent_opacity:.2f}" in result.stdout


def test_a_folder_of_scans_is_prepared_and_a_network_trained_on_it(lobewise: Run, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    for seed in (1, 2):
        made = lobewise("phantom", cohort / f"p{seed}", "--seed", seed, "--spacing", 6, 4, 4, "--opacity", 20)
        assert made.returncode == 0, made.stderr
    prepared = lobewise("prepare", "lesions", cohort, tmp_path / "bank")
    assert "2 volumes" in prepared.stderr, prepared.stderr
    trained = lobewise("train", "lesions", tmp_path / "bank", tmp_path / "run", "--steps", 1, "--version", "9.9.9")
    assert trained.returncode == 0, trained.stderr
    assert load_weights("lesions", tmp_path / "run").info.version == "9.9.9"


def test_a_manifest_that_cannot_be_learned_from_ends_with_3(lobewise: Run, tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("patient,ct,lungs\none,nowhere.nii.gz,[b]nowhere.nii.gz\n")
    result = lobewise("prepare", "lungs", tmp_path / "cohort.csv", tmp_path / "bank")
    assert result.returncode == 3
    assert "[b]nowhere.nii.gz" in result.stderr


def test_landmarks_are_prepared_from_marks_and_trained_by_a_recipe(lobewise: Run, tmp_path: Path) -> None:
    made = lobewise("phantom", tmp_path / "p", "--seed", 1, "--spacing", 6, 4, 4)
    assert made.returncode == 0, made.stderr
    header = "patient,ct,carina_x_mm,carina_y_mm,carina_z_mm,sternum_tip_x_mm,sternum_tip_y_mm,sternum_tip_z_mm"
    (tmp_path / "cohort.csv").write_text(f"{header}\none,p/ct.nii.gz,0,0,0,0,-90,-60\n")
    prepared = lobewise("prepare", "landmarks", tmp_path / "cohort.csv", tmp_path / "bank", "--copies", 2)
    assert "2 volumes" in prepared.stderr, prepared.stderr
    recipe = {"warm_steps": [1, 1, 1], "dqn_steps": [1, 1, 1], "batch": 4, "replay_first": 8, "walkers": 4}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    trained = lobewise("train", "landmarks", tmp_path / "bank", tmp_path / "run", "--recipe", tmp_path / "recipe.json")
    assert trained.returncode == 0, trained.stderr
    assert load_weights("landmarks", tmp_path / "run").recipe["warm_steps"] == [1, 1, 1]


def test_a_recipe_with_an_unknown_field_ends_with_2_and_says_what_there_is(lobewise: Run, tmp_path: Path) -> None:
    (tmp_path / "bank").mkdir()
    result = lobewise("train", "lesions", tmp_path / "bank", tmp_path / "run", "--recipe", '{"step": 3}')
    assert result.returncode == 2
    assert "LesionRecipe has no step" in result.stderr


@pytest.mark.parametrize("stage", ["landmarks", "lungs", "lesions"])
def test_training_on_nothing_ends_with_2_and_says_how_to_prepare(lobewise: Run, tmp_path: Path, stage: str) -> None:
    (tmp_path / "bank").mkdir()
    result = lobewise("train", stage, tmp_path / "bank", tmp_path / "run")
    assert result.returncode == 2
    assert f"lobewise prepare {stage}" in result.stderr
