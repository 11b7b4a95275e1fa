"""A GPU machine has torch and numpy; beside them the trainings need two small wheels, and nothing else."""

import subprocess
import sys

import pytest

ALLOWED = ("torch", "numpy", "jaxtyping", "safetensors")
NOT_INSTALLED = """
from importlib import metadata
def version(name, ask=metadata.version):
    if name == "lobewise":
        raise metadata.PackageNotFoundError(name)
    return ask(name)
metadata.version = version
"""
ABSENT = ("SimpleITK", "scipy", "pydicom", "cc3d", "edt", "isal", "celery", "redis", "pydantic", "typer", "rich", "PIL")


@pytest.mark.parametrize("stage", ["landmarks", "lungs", "lesions"])
def test_a_training_begins_where_nothing_but_torch_numpy_and_two_small_wheels_is_installed(stage: str) -> None:
    hide = f"import sys; sys.modules.update(dict.fromkeys({(*ABSENT, 'tensorboard')!r}))"
    code = f"{NOT_INSTALLED}{hide}; from training import {stage}; {stage}.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--recipe" in done.stdout
