"""How far the scores of one scan move with what should not move them.

    python -m training.validation.consistency lidc-1011.zip case05_ct.nii.gz --orders 47
    python -m training.validation.consistency --phantom 1000600 --orders 2

The same chest with its axes stored in other orders, whose masks must be the same to the bit; shifted by half a voxel
along every axis; in slices of 1, 2, 3 and 5 mm; at half the dose. All but the orders are interpolated from the scan
itself, so that they show what resampling does to the scores, and less than a second scan of the patient would.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.anatomy import AIR_HU
from pipeline.canonical import CanonicalScan
from pipeline.geometry import Grid, Scan, Volume
from pipeline.intensities import noise_hu
from pipeline.io.read import read_ct
from pipeline.phantom import PhantomRecipe, make_phantom
from pipeline.quantify import Models, Quantification, load_models, quantify
from pipeline.resampling import resample

SLICES_MM: Final = (1.0, 2.0, 3.0, 5.0)
PHANTOM_MM: Final = (3.0, 2.0, 2.0)
#: What may differ: so many points of PO, or this share of it.
BAR_POINTS: Final = 0.3
BAR_SHARE: Final = 0.05


@dataclass(frozen=True)
class Row:
    """The scores of one variant.

    Attributes:
        is_same: whether every mask is the scan's own to the bit; None where it is not meant to be.
    """

    scan: str
    variant: str
    percent_opacity: float
    percent_high_opacity: float
    lung_severity_score: int
    volume_ml: float
    is_same: bool | None = None


def measure(name: str, volume: Volume, models: Models, orders: int) -> Iterator[Row]:
    """The scan as it is, then each variant.

    Args:
        orders: how many of the 47 other orders of the axes.
    """
    first = quantify(Scan(volume), models)
    yield _row(name, "as it is", first)
    for order, signs in other_orders()[:orders]:
        found = quantify(Scan(reordered(volume, order, signs)), models)
        is_same = all(
            np.array_equal(_in_order(of_first, order, signs), of_other)
            for of_first, of_other in (
                (first.lobes.labels, found.lobes.labels),
                (first.lesions.mask, found.lesions.mask),
                (first.high_opacity.mask, found.high_opacity.mask),
            )
        )
        yield replace(_row(name, f"order {order} {signs}", found), is_same=is_same)
    for variant, other in variants(CanonicalScan.of(volume).volume):
        yield _row(name, variant, quantify(Scan(other), models))


def other_orders() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The axes of an array in each other order, each in both ways; those that differ most come first."""
    found = list(product(permutations(range(3)), product((1, -1), repeat=3)))
    return found[:0:-1]


def reordered(volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same voxels in the same places, stored in another order of the axes (z, y, x)."""
    grid = volume.grid
    columns = np.asarray(grid.direction)[:, ::-1][:, list(order)] * np.asarray(signs)
    first = np.zeros(3)
    first[list(order)] = [grid.shape[axis] - 1 if sign < 0 else 0 for axis, sign in zip(order, signs, strict=True)]
    x, y, z = grid.to_lps(first).tolist()
    a, b, c = (tuple(row) for row in columns[:, ::-1].tolist())
    k, j, i = order
    shape = (grid.shape[k], grid.shape[j], grid.shape[i])
    spacing_mm = (grid.spacing_mm[k], grid.spacing_mm[j], grid.spacing_mm[i])
    return Volume(_in_order(volume.hu, order, signs), Grid(shape, spacing_mm, (x, y, z), (a, b, c)))


def variants(volume: Volume) -> Iterator[tuple[str, Volume]]:
    """The scan on other grids, and with more noise."""
    grid = volume.grid
    z, y, x = grid.shape
    a, b, c = grid.to_lps(np.array([0.5, 0.5, 0.5])).tolist()
    yield "half a voxel", _on(volume, Grid((z - 1, y - 1, x - 1), grid.spacing_mm, (a, b, c), grid.direction))
    for slice_mm in SLICES_MM:
        if abs(slice_mm - grid.spacing_mm[0]) > 0.1:
            count = int((z - 1) * grid.spacing_mm[0] / slice_mm) + 1
            spacing_mm = (slice_mm, *grid.spacing_mm[1:])
            yield f"slices of {slice_mm:g} mm", _on(volume, replace(grid, shape=(count, y, x), spacing_mm=spacing_mm))
    own_hu = noise_hu(volume)
    if own_hu is not None:
        noise = np.random.default_rng(0).normal(0, own_hu, grid.shape)
        noisy = np.clip(np.rint(volume.hu + noise), AIR_HU, 3071).astype(np.int16)
        yield "half the dose", Volume(noisy, grid)


def summarise(rows: Sequence[Row]) -> dict[str, object]:
    """The spread of PO over the variants of one scan, and whether it is within the bar."""
    opacities = [row.percent_opacity for row in rows]
    spread = max(opacities) - min(opacities)
    orders = [row.is_same for row in rows if row.is_same is not None]
    return {
        "scan": rows[0].scan,
        "orders": len(orders),
        "orders_same_to_the_bit": sum(orders),
        "percent_opacity": rows[0].percent_opacity,
        "spread_points": round(spread, 3),
        "within_bar": spread <= max(BAR_POINTS, BAR_SHARE * rows[0].percent_opacity),
    }


def _row(name: str, variant: str, found: Quantification) -> Row:
    severity = found.severity
    return Row(
        name,
        variant,
        round(severity.percent_opacity, 3),
        round(severity.percent_high_opacity, 3),
        severity.lung_severity_score,
        round(severity.volume_ml, 1),
    )


def _in_order(array: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.transpose(array, order)[tuple(slice(None, None, sign) for sign in signs)])


def _on(volume: Volume, grid: Grid) -> Volume:
    return Volume(np.rint(resample(volume.hu, volume.grid, grid)).astype(np.int16), grid)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a JSON row for each variant, then a summary of each scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="*", help="scans of chests")
    parser.add_argument("--phantom", type=int, action="append", default=[], help="seed of a phantom; may be repeated")
    parser.add_argument("--orders", type=int, default=3, help="how many of the 47 other orders of the axes")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    models = load_models(options.device)
    phantoms = (
        (f"phantom-{seed}", make_phantom(PhantomRecipe(seed=seed, spacing_mm=PHANTOM_MM)).volume)
        for seed in options.phantom
    )
    files = ((path.name, read_ct(path).volume) for path in options.scans)
    for scans in (phantoms, files):
        for name, volume in scans:
            rows = []
            for row in measure(name, volume, models, options.orders):
                rows.append(row)
                print(json.dumps(row.__dict__), flush=True)
            print(json.dumps(summarise(rows)), flush=True)


if __name__ == "__main__":
    main()
