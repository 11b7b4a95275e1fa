"""What fuzzing found stays mended, and a little of it runs with all tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import FORMAT_NAMES
from tests.fuzz.targets import Reader

CRASHES = sorted((Path(__file__).parent / "crashes").glob("*-*"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", CRASHES, ids=[path.name for path in CRASHES])
def test_what_was_found_stays_mended(path: Path) -> None:
    reader = Reader(path.name.partition("-")[0])
    try:
        reader.look(path.read_bytes())
        reader.read(path.read_bytes())
    finally:
        reader.close()


def test_the_seeds_are_what_they_seem() -> None:
    """Else most of what is made of them would end at the first check."""
    from tests.fuzz.targets import FORMATS

    for name in FORMAT_NAMES:
        reader = Reader(name)
        try:
            assert "read" in {reader.read(seed) for seed in FORMATS[name][1]}, name
        finally:
            reader.close()


@pytest.mark.parametrize("name", ["zip"])  # the others take as long to begin; `make fuzz` has them all
def test_a_little_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz", "--only", name, "--runs", "1500", "--minutes", "0.5"]
    tried = subprocess.run(
        [*command, "--corpus", str(tmp_path)], capture_output=True, text=True, timeout=200, check=False
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert '"findings": []' in tried.stdout
