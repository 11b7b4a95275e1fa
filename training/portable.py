"""A bank small enough for a thin line: `python -m training.portable BANK OUT`.

Its images get fewer shades, whose steps (18 HU in the lesion stage's window, 19 in the lung stage's) the noise that the
trainings add covers many times over, and everything is compressed. For banks of lungs or lesions, all volumes or those
named; a bank of landmarks is small as it is.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from training.data.splits import SPLIT_FILE

STEP: Final = 3
"""Of the 256 shades, how many become one."""


def make_portable(bank: Path, out: Path, patterns: Iterable[str] = ("*",)) -> list[Path]:
    """Write the volumes of `bank` whose names fit one of `patterns`, and its split; what is there already stays.

    Raises:
        ValueError: a volume is of a bank of landmarks.
    """
    out.mkdir(parents=True, exist_ok=True)
    if (bank / SPLIT_FILE).exists():
        shutil.copy(bank / SPLIT_FILE, out / SPLIT_FILE)
    written = []
    for source in sorted({path for pattern in patterns for path in bank.glob(f"{pattern}.npz")}):
        path = out / source.name
        if not path.exists():
            with np.load(source) as arrays:
                volume = dict(arrays)
            if "image" not in volume:
                raise ValueError(f"{source} holds no image: portable takes banks of lungs or lesions")
            volume["image"] = volume["image"] // STEP * STEP
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez_compressed(file, **volume)
            partial.replace(path)
            written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a portable copy of a bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=["*"], help="of the volumes, without ending; * and ? stand for any")
    options = parser.parse_args(arguments)
    written = make_portable(options.bank, options.out, options.names)
    sys.stdout.write(f"{len(written)} volumes, {sum(path.stat().st_size for path in written) / 2**20:.0f} MiB\n")


if __name__ == "__main__":
    main()
