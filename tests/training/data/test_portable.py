"""A dataset made small keeps what the network learns from."""

import json
from pathlib import Path

import numpy as np
import pytest

from training.data import portable


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name in ("case01-000", "case02-000", "phantom-0001"):
        image = rng.normal(120, 12, (8, 32, 32)).astype(np.uint8)
        np.savez(folder / f"{name}.npz", image=image, labels=(image > 120).astype(np.uint8))
    (folder / "splits.json").write_text(json.dumps({"lungs": {"test": ["case02"]}}))
    return folder


def test_a_portable_volume_differs_by_less_than_one_step_and_keeps_its_labels(dataset: Path, tmp_path: Path) -> None:
    portable.make_portable(dataset, tmp_path / "out")
    for name in ("case01-000", "case02-000", "phantom-0001"):
        with np.load(dataset / f"{name}.npz") as whole, np.load(tmp_path / "out" / f"{name}.npz") as thin:
            np.testing.assert_array_equal(thin["labels"], whole["labels"])
            off = whole["image"].astype(int) - thin["image"]
            assert 0 <= off.min() <= off.max() < portable.STEP
        assert (tmp_path / "out" / f"{name}.npz").stat().st_size < 0.6 * (dataset / f"{name}.npz").stat().st_size
    assert (tmp_path / "out" / "splits.json").read_text() == (dataset / "splits.json").read_text()


def test_what_is_named_is_written_once(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for told in ("2 volumes", "0 volumes"):
        portable.main([str(dataset), str(tmp_path / "out"), "case*"])
        assert told in capsys.readouterr().out
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.npz")) == ["case01-000", "case02-000"]


def test_a_dataset_of_landmarks_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "case01.npz", level0=np.zeros((4, 4, 4), np.int16))
    with pytest.raises(ValueError, match="lungs or lesions"):
        portable.make_portable(tmp_path, tmp_path / "out")
