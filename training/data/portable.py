"""A copy of a dataset that is small enough for a slow connection: `python -m training.data.portable DATASET OUT`.

Its images get fewer shades and everything is compressed. For datasets of lungs or lesions, all volumes or those named;
a dataset of landmarks is small as it is.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from training.data.splits import SPLIT_FILE, write_arrays

#: Of the 256 shades, how many become one. A step is then 18 HU in the lesion stage's window and 19 HU in the lung
#: stage's, which the noise that the trainings add covers many times over.
STEP: Final = 3


def make_portable(dataset: Path, out: Path, patterns: Iterable[str] = ("*",)) -> list[Path]:
    """Write the volumes of `dataset` whose names fit one of `patterns`, and its split; what is there already stays.

    Raises:
        ValueError: a volume is of a dataset of landmarks.
    """
    out.mkdir(parents=True, exist_ok=True)
    if (dataset / SPLIT_FILE).exists():
        shutil.copy(dataset / SPLIT_FILE, out / SPLIT_FILE)
    written = []
    for source in sorted({path for pattern in patterns for path in dataset.glob(f"{pattern}.npz")}):
        path = out / source.name
        if not path.exists():
            with np.load(source) as arrays:
                volume = dict(arrays)
            if "image" not in volume:
                raise ValueError(f"{source} holds no image: portable takes datasets of lungs or lesions")
            volume["image"] = volume["image"] // STEP * STEP
            write_arrays(path, volume)
            written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a portable copy of a dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=["*"], help="of the volumes, without ending; * and ? stand for any")
    options = parser.parse_args(arguments)
    written = make_portable(options.dataset, options.out, options.names)
    sys.stdout.write(f"{len(written)} volumes, {sum(path.stat().st_size for path in written) / 2**20:.0f} MiB\n")


if __name__ == "__main__":
    main()
