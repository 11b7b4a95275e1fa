"""What a training tells while it runs: a CSV, and TensorBoard with sample pictures where that is installed."""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

Picture = UInt8[np.ndarray, "rows columns 3"]


class Journal:
    """The log of one network's training.

    Args:
        path: of the CSV; TensorBoard's events go to `tensorboard/` beside it.
        columns: of the CSV; one of them is `step`.
        resumed_at: the step that a run goes on from; rows after it are taken back, since they will be written again.
    """

    def __init__(self, path: Path, columns: Sequence[str], resumed_at: int = 0) -> None:
        self._path, self._columns = path, columns
        kept = [row for row in read_log(path) if int(row["step"]) <= resumed_at]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(kept)
        self._board = _tensorboard(path.parent / "tensorboard" / path.stem, resumed_at)

    def note(self, row: Mapping[str, Any]) -> None:
        """One row: what is a number goes to TensorBoard too."""
        shown = {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(shown)
        sys.stderr.write(" ".join(f"{name}={value}" for name, value in shown.items()) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step" and np.isfinite(value):
                    self._board.add_scalar(name, value, row["step"])
            self._board.flush()

    def show(self, name: str, picture: Picture, step: int) -> None:
        """A sample picture, which only TensorBoard keeps."""
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log that was written so far; none if there is none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def side_by_side(
    image: UInt8[np.ndarray, "y x"], truth: Bool[np.ndarray, "y x"], found: Bool[np.ndarray, "y x"]
) -> Picture:
    """A slice as it is, with the truth in green, and with what was found in red."""
    grey = np.repeat(image[..., None], 3, axis=2)
    tinted = [grey]
    for mask, channel in ((truth, 1), (found, 0)):
        picture = grey.copy()
        picture[mask, channel] = np.maximum(picture[mask, channel], 200)
        tinted.append(picture)
    return np.concatenate(tinted, axis=1)


def _tensorboard(folder: Path, resumed_at: int) -> Any:
    """A writer of TensorBoard's events, where it is installed (extra `training`)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)
