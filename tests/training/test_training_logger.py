"""The log of a training, in CSV and for TensorBoard."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.loop import TrainingLogger, read_log, side_by_side

COLUMNS = ("step", "loss", "stage")


def test_rows_after_the_step_that_a_run_goes_on_from_are_taken_back(tmp_path: Path) -> None:
    logger = TrainingLogger(tmp_path / "log.csv", COLUMNS)
    for step in (10, 20, 30):
        logger.add_row({"step": step, "loss": 1 / step, "stage": "trunk"})
    again = TrainingLogger(tmp_path / "log.csv", COLUMNS, resumed_at=20)
    again.add_row({"step": 30, "loss": 0.25, "stage": "detail"})
    rows = read_log(tmp_path / "log.csv")
    assert [(row["step"], row["loss"], row["stage"]) for row in rows] == [
        ("10", "0.1", "trunk"),
        ("20", "0.05", "trunk"),
        ("30", "0.25", "detail"),
    ]


def test_tensorboard_shows_the_numbers_and_the_pictures(tmp_path: Path) -> None:
    logger = TrainingLogger(tmp_path / "log.csv", COLUMNS)
    logger.add_row({"step": 10, "loss": 0.5, "stage": "trunk"})
    logger.add_pictures([("case", np.zeros((4, 6, 3), dtype=np.uint8))], 10)
    logger.add_row({"step": 20, "loss": float("nan"), "stage": "trunk"})
    board = EventAccumulator(str(tmp_path / "tensorboard" / "log"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(10, 0.5)]
    (picture,) = board.Images("case")
    assert (picture.height, picture.width) == (4, 6)


def test_without_tensorboard_the_csv_is_written_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    logger = TrainingLogger(tmp_path / "log.csv", COLUMNS)
    logger.add_row({"step": 10, "loss": 0.5, "stage": "trunk"})
    logger.add_pictures([("case", np.zeros((4, 6, 3), dtype=np.uint8))], 10)
    assert len(read_log(tmp_path / "log.csv")) == 1
    assert not (tmp_path / "tensorboard").exists()


def test_a_picture_shows_the_slice_the_truth_in_green_and_what_was_found_in_red() -> None:
    image = np.full((2, 3), 50, dtype=np.uint8)
    truth, found = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    truth[0, 0], found[1, 2] = True, True
    picture = side_by_side(image, truth, found)
    assert picture.shape == (2, 9, 3)
    assert tuple(picture[0, 3]) == (50, 200, 50)
    assert tuple(picture[1, 8]) == (200, 50, 50)
    assert (picture[:, :3] == 50).all()
