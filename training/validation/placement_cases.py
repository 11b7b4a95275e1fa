"""Scans for `training.validation.placement`: chests whose lungs are hard to see, and what is no chest.

Everything here is synthetic or a real chest changed by a formula; case05 of LCTSC was never trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Int16
from scipy import ndimage

from pipeline.geometry import Grid, Slices, Triple, Volume, part_of
from pipeline.phantom import PhantomRecipe, make_phantom
from training.data.lung_dataset import read_lctsc
from training.data.splits import FIRST_UNSEEN_SEED

Mask = Bool[np.ndarray, "z y x"]
Hu = Int16[np.ndarray, "z y x"]
NotChest = Literal["abdomen", "head", "pelvis", "legs", "bottle", "mr"]

#: Fluid and consolidation without air.
FILLED_HU: Final = (10.0, 50.0)
FILLED_PERCENT: Final = (30, 50, 70, 85, 100)
DENSER_BY_HU: Final = (200, 300, 400, 500, 600, 700)
#: A lung that is made denser does not get denser than this.
DENSEST_HU: Final = 60
FIELD_MM: Final = 120.0
PHANTOM_MM: Final[Triple] = (3.0, 2.0, 2.0)
#: Sections of the real chests that lie this far below their lungs count as abdomens.
BELOW_LUNGS_MM: Final = 9.0
LEAST_SLICES: Final = 12
REAL_CASES: Final = ("case01", "case02", "case03", "case04", "case05")
SECOND_HALF: Final = 500


@dataclass(frozen=True, eq=False)
class Case:
    """A scan and what should become of it.

    Attributes:
        kind: what was done to it, or what it shows.
        lungs: those that the scan shows; None where it is no chest.
    """

    name: str
    kind: str
    volume: Volume
    lungs: Mask | None = None


@dataclass(frozen=True, eq=False)
class _Chest:
    name: str
    volume: Volume
    lungs: Mask
    left: Mask


def chests(count: int, data: Path | None) -> Iterator[Case]:
    """Phantoms never trained on and, with the public scans, case05, each in every variant."""
    for seed in range(FIRST_UNSEEN_SEED + SECOND_HALF, FIRST_UNSEEN_SEED + SECOND_HALF + count):
        phantom = make_phantom(PhantomRecipe(seed=seed, spacing_mm=PHANTOM_MM))
        chest = _Chest(f"phantom-{seed}", phantom.volume, phantom.lobes.labels > 0, phantom.lobes.left())
        yield from _variants(chest, np.random.default_rng(seed))
    if data is not None:
        scan, lungs = read_lctsc(data, "case05")
        # Rows run to the left of the patient, and the mediastinum is wider than what sides differ by.
        left = np.zeros_like(lungs)
        left[:, :, round(float(np.argwhere(lungs)[:, 2].mean())) :] = True
        yield from _variants(_Chest("case05", scan.volume, lungs, left & lungs), np.random.default_rng(5))


def not_chests(count: int, data: Path | None) -> Iterator[Case]:
    """`count` of each kind, and with the public scans the abdomens of the real chests."""
    for seed in range(FIRST_UNSEEN_SEED + SECOND_HALF, FIRST_UNSEEN_SEED + SECOND_HALF + count):
        for kind in get_args(NotChest):
            yield Case(f"{kind}-{seed}", kind, not_chest(kind, seed))
    if data is None:
        return
    for name in REAL_CASES:
        scan, lungs = read_lctsc(data, name)
        lowest = int(np.argwhere(lungs)[:, 0].min()) - round(BELOW_LUNGS_MM / scan.volume.grid.spacing_mm[0])
        if lowest >= LEAST_SLICES:
            yield Case(f"{name}-below", "abdomen", _part(scan.volume, (slice(0, lowest), slice(None), slice(None))))


def not_chest(kind: NotChest, seed: int) -> Volume:
    """A scan without lungs."""
    if kind in ("abdomen", "head"):
        return make_phantom(PhantomRecipe(seed=seed, spacing_mm=PHANTOM_MM, fit=kind)).volume
    if kind == "mr":
        volume = make_phantom(PhantomRecipe(seed=seed, spacing_mm=PHANTOM_MM)).volume
        # Air and cortical bone dark, fat bright, water between: no order of densities.
        hu = volume.hu.astype(np.float32)
        signal = 900 * np.exp(-(((hu + 100) / 90) ** 2)) + 420 * np.exp(-(((hu - 40) / 70) ** 2))
        noise = np.random.default_rng(seed).normal(0, 25, hu.shape)
        return Volume(np.abs(signal + noise).astype(np.int16), volume.grid)
    draw = {"pelvis": _pelvis, "legs": _legs, "bottle": _bottle}[kind]
    rng = np.random.default_rng([seed, 7])
    half = np.array([rng.uniform(110, 170), 150.0, 190.0])
    grid = Grid.axis_aligned((-half[::-1]).tolist(), half[::-1].tolist(), PHANTOM_MM)
    z, y, x = ((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(grid.shape, grid.spacing_mm, strict=True))
    hu = np.full(grid.shape, -1000.0)
    draw(hu, z[:, None, None], y[None, :, None], x[None, None, :], rng)
    blurred = ndimage.gaussian_filter(hu, 0.5) + rng.normal(0, 14, hu.shape)
    return Volume(np.clip(np.rint(blurred), -1024, 3071).astype(np.int16), grid)


def _variants(chest: _Chest, rng: np.random.Generator) -> Iterator[Case]:
    volume, lungs = chest.volume, chest.lungs
    yield Case(chest.name, "as it is", volume, lungs)
    sides = {"left": lungs & chest.left, "right": lungs & ~chest.left, "both": lungs}
    for name, side in sides.items():
        for percent in FILLED_PERCENT:
            hu = _filled(volume.hu, side, percent, rng)
            kind = "both filled whole" if (name, percent) == ("both", 100) else "filled"
            yield Case(f"{chest.name}-{name}-{percent}", kind, Volume(hu, volume.grid), lungs)
    for more_hu in DENSER_BY_HU:
        denser = np.minimum(volume.hu + np.int16(more_hu), np.maximum(volume.hu, DENSEST_HU))
        hu = np.where(lungs, denser, volume.hu).astype(np.int16)
        yield Case(f"{chest.name}-plus-{more_hu}", "dense", Volume(hu, volume.grid), lungs)
    for name, side in sides.items():
        slices = _field(volume.grid, np.argwhere(side).mean(axis=0), (1, 2))
        yield Case(f"{chest.name}-field-{name}", "field of 120 mm", _part(volume, slices), lungs[slices])
    heights = np.argwhere(lungs)[:, 0]
    for name, share in (("low", 0.2), ("middle", 0.5), ("high", 0.8)):
        middle = np.quantile(heights, share)
        slices = _field(volume.grid, np.array([middle, 0, 0]), (0,))
        yield Case(f"{chest.name}-slab-{name}", "field of 120 mm", _part(volume, slices), lungs[slices])


def _filled(hu: Hu, lung: Mask, percent: int, rng: np.random.Generator) -> Hu:
    """The lung with the lowest-lying part of it, as patients on their backs have it, without air."""
    rows = np.arange(hu.shape[1])[None, :, None] + rng.uniform(0, 1, hu.shape)
    filled = lung & (rows >= np.quantile(rows[lung], 1 - percent / 100))
    level = rng.uniform(*FILLED_HU)
    return np.where(filled, np.rint(level + rng.normal(0, 15, hu.shape)), hu).astype(np.int16)


def _field(grid: Grid, centre: np.ndarray, axes: Sequence[int]) -> Slices:
    """Slices of `FIELD_MM` around a place along some axes, as far as the scan goes; all of the others."""
    found = []
    for axis, count in enumerate(grid.shape):
        half = FIELD_MM / 2 / grid.spacing_mm[axis]
        begin, end = round(centre[axis] - half), round(centre[axis] + half)
        found.append(slice(max(begin, 0), min(end, count)) if axis in axes else slice(0, count))
    z, y, x = found
    return z, y, x


def _part(volume: Volume, slices: Slices) -> Volume:
    z, y, x = (slice(*part.indices(n)[:2]) for part, n in zip(slices, volume.hu.shape, strict=True))
    return Volume(np.ascontiguousarray(volume.hu[z, y, x]), part_of(volume.grid, (z, y, x)))


Axis = np.ndarray


def _pelvis(hu: np.ndarray, z: Axis, y: Axis, x: Axis, rng: np.random.Generator) -> None:
    """Fat, muscle, both iliac wings, sacrum, femoral heads, bladder, and gas in the rectum."""
    wide, deep = rng.uniform(145, 175), rng.uniform(85, 110)
    flat = np.sqrt((x / wide) ** 2 + (y / deep) ** 2) + 0 * z
    hu[flat < 1] = -100
    hu[flat < 0.85] = rng.uniform(40, 60)
    hu[flat < 0.55] = rng.uniform(-80, 30)
    for side in (-1, 1):
        wing = np.abs(np.hypot((x - side * 70) / 45, (y - 5) / 70) - 1 + 0 * z)
        hu[(wing < 0.12) & (side * (x - side * 60) > 0) & (z > -20)] = 450
        hu[np.sqrt((x - side * 88) ** 2 + y**2 + (z + 45) ** 2) < 24] = 380
        hu[(np.hypot(x - side * 92, y) < 15) & (z < -45)] = 500
    hu[(np.hypot(x / 1.6, y - 62) < 22) & (z > -30)] = 280
    hu[np.sqrt(x**2 + (y + 25) ** 2 + (z + 30) ** 2) < rng.uniform(25, 50)] = 8
    hu[(np.hypot(x, y - 30) < rng.uniform(8, 20)) & (z < 20) & (z > -70)] = -990


def _legs(hu: np.ndarray, z: Axis, y: Axis, x: Axis, rng: np.random.Generator) -> None:
    """Two thighs with air between them."""
    radius, apart = rng.uniform(60, 85), rng.uniform(88, 100)
    for side in (-1, 1):
        away = np.hypot(x - side * apart, y) + 0 * z
        hu[away < radius] = -100
        hu[away < 0.82 * radius] = rng.uniform(45, 60)
        hu[away < 14] = 900
        hu[away < 7] = -40


def _bottle(hu: np.ndarray, z: Axis, y: Axis, x: Axis, rng: np.random.Generator) -> None:
    """A bottle of water that lies on a table, with or without air above the water."""
    radius, long = rng.uniform(60, 110), rng.uniform(70, 105)
    away = np.maximum(np.hypot(x, y) - radius, np.abs(z) - long)
    hu[away < 3] = rng.uniform(-80, 120)
    hu[away < 0] = rng.uniform(-10, 10)
    hu[(away < 0) & (y < -radius + rng.uniform(0, 1.2) * radius)] = -1000
    hu[(np.abs(y - radius - 12) < 5) & (np.abs(x) < 180) & (z > -1e9)] = -150
