"""Prepares a cohort of one's own (`datasets.py`) for training: its scans at the grid of a network, bent and checked.

Lobes are labelled as in reports: 1 left upper, 2 left lower, 3 right upper, 4 right middle, 5 right lower. Where
lesions are learned, a scan whose `lesions` are not named is left out; an empty mask says that there are none.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, UInt8

from pipeline.anatomy import LEFT_LOBES, RIGHT_LOBES, Landmark
from pipeline.geometry import Volume, area_on_faces_cm2
from pipeline.io.read import read_ct, read_volume
from pipeline.lesions import SPACING_MM
from pipeline.lungs.fissure_model import read_shapes
from pipeline.lungs.fissure_refinement import THICKEST_SLICES_MM
from pipeline.networks.di2in import LungConfig
from pipeline.networks.q_network import LandmarkConfig
from pipeline.resampling import TRUNCATED_CM2, resample, resample_labels
from training.data.cohort import CohortError, Row
from training.data.fissure_atlas import SidesError
from training.data.fissure_atlas import draw_lobes as draw_lobes_of
from training.data.landmark_dataset import base_of, deform, write_scan
from training.data.lesion_dataset import to_8_bit, write_lesion_volume
from training.data.lung_batches import UNKNOWN_LOBE
from training.data.lung_dataset import Chest, crop_to_lungs, deformed_copy, write_volume
from training.data.splits import SPLIT_FILE, Stage

#: Of the patients, to choose the model (paper: 10 %).
VALIDATION_SHARE: Final = 0.1
#: Half of what is called lung must be emptier than that, or the mask lies elsewhere.
DENSEST_LUNG_HU: Final = -250.0
#: Of each scan, the first as it is and the others deformed. Lesions are bent while the training runs.
COPIES: Final = {Stage.LANDMARKS: 20, Stage.LUNGS: 10, Stage.LESIONS: 1}
#: Share of the lesions that must lie in the lungs.
LEAST_INSIDE_LUNGS: Final = 0.5
#: A landmark within a scan has more than air around it.
AIR_AROUND_HU: Final = -900.0
AROUND_MM: Final = 15.0

Labels = UInt8[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]


def prepare_cohort(
    rows: Sequence[Row],
    stage: Stage,
    dataset: Path,
    processes: int = 1,
    progress: Callable[[float], None] | None = None,
    copies: int | None = None,
    *,
    draw_lobes: bool = False,
) -> list[Path]:
    """Write the prepared volumes, and who is kept for validation, to `dataset`; volumes that are there already stay.

    Args:
        copies: of each training scan; by default `COPIES` of the stage.
        draw_lobes: where only lungs are named, draw their lobes by the fissures that the scan shows.

    Raises:
        CohortError: a scan or mask cannot be learned from, or none is left. The volumes before it stay prepared.
    """
    rows = [row for row in rows if row.has_labels_for(stage)]
    if not rows:
        raise CohortError(f"no scan of the dataset has {stage.value}")
    dataset.mkdir(parents=True, exist_ok=True)
    split = split_of(rows, stage)
    (dataset / SPLIT_FILE).write_text(json.dumps(split, indent=2) + "\n", encoding="utf-8")
    aside = split[stage.value]["validation"]
    written: list[Path] = []
    with ProcessPoolExecutor(processes) as pool:
        counts = [1 if row.slug in aside else copies or COPIES[stage] for row in rows]
        prepare = partial(prepare_scan, draw_lobes=draw_lobes)
        waiting = [pool.submit(prepare, row, stage, dataset, n) for row, n in zip(rows, counts, strict=True)]
        for done, future in enumerate(as_completed(waiting), start=1):
            try:
                written += future.result()
            # Also when interrupted: the scans that wait would else be prepared before the command ends.
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            if progress is not None:
                progress(done / len(rows))
    return sorted(written)


def prepare_scan(row: Row, stage: Stage, dataset: Path, copies: int = 1, *, draw_lobes: bool = False) -> list[Path]:
    """Bring one scan to the grid of the stage: as it is, and deformed.

    Raises:
        CohortError: a mask or a landmark does not fit its scan.
        PipelineError: a file cannot be read.
    """
    paths = [dataset / file_name(row, stage, copy) for copy in range(copies)]
    if all(path.exists() for path in paths):
        return paths
    volume = read_ct(row.ct).volume
    if stage is Stage.LANDMARKS:
        _check_landmarks(row, volume)
        base = base_of(volume)
        for copy, path, rng in _missing(paths):
            scan = deform(base, row.landmarks_mm, rng) if copy else (volume, row.landmarks_mm)
            write_scan(path, *scan, LandmarkConfig())
        return paths
    lobes = _read_mask(row.lobes, volume)
    labels = _read_mask(row.lungs, volume) if row.lungs else lobes
    if labels is None:
        raise CohortError(f"{row.ct.name}: name lungs or lobes")
    lungs = labels > 0
    _check_lungs(row, volume, lungs, lobes)
    if stage is Stage.LUNGS:
        if lobes is None and draw_lobes:
            lobes = _drawn(volume, lungs)
        if lobes is None:
            lobes = np.where(lungs, UNKNOWN_LOBE, 0).astype(np.uint8)
        config = LungConfig()
        chest, box = Chest.of(volume, lobes, config), volume.grid.covering((config.spacing_mm,) * 3)
        for copy, path, rng in _missing(paths):
            if copy:
                region = deformed_copy(chest, config, rng)
            else:
                region = resample(volume.hu, volume.grid, box), resample_labels(lobes, volume.grid, box)
            write_volume(path, *crop_to_lungs(*region, rng), config)
        return paths
    marked = _read_mask(row.lesions, volume)
    if marked is None:
        raise CohortError(f"{row.ct.name}: name its lesions")
    # Lesions lie in lungs; a mask that does not is flipped or another patient's.
    lesions = marked > 0
    if lesions.any() and (lesions & lungs).sum() < LEAST_INSIDE_LUNGS * lesions.sum():
        inside = 100 * (lesions & lungs).sum() / lesions.sum()
        raise CohortError(f"{row.ct.name}: {inside:.0f} % of its lesions lie in its lungs; is a mask flipped?")
    box = volume.grid.covering(SPACING_MM)
    on_box = (resample_labels(mask, volume.grid, box) > 0 for mask in (lungs, lesions))
    write_lesion_volume(paths[0], to_8_bit(resample(volume.hu, volume.grid, box)), *on_box)
    return paths


def file_name(row: Row, stage: Stage, copy: int = 0) -> str:
    """Where a scan's volume lies: its first part is the kind that the recipes weight."""
    if stage is Stage.LESIONS:
        return f"cohort-{row.slug}-{row.number}.npz"
    kind = "case" if stage is Stage.LUNGS else "real"
    return f"{kind}-{row.slug}-{row.number}-{copy:02}.npz"


def split_of(rows: Sequence[Row], stage: Stage) -> dict[str, dict[str, list[str]]]:
    """A tenth of the patients, at least one of several, chosen by their names alone, for validation."""
    # By the hash of the name: the same patients whatever else the cohort holds, and in whatever order.
    by_hash = sorted({row.slug for row in rows}, key=lambda slug: hashlib.sha256(slug.encode()).hexdigest())
    count = max(1, round(VALIDATION_SHARE * len(by_hash))) if len(by_hash) > 1 else 0
    aside = set(by_hash[:count])
    volumes = [file_name(row, stage).removesuffix(".npz") for row in rows if row.slug in aside]
    return {stage.value: {"validation": sorted(aside), "validation_volumes": sorted(volumes), "test": []}}


def _read_mask(path: Path | None, volume: Volume) -> Labels | None:
    """A mask or labels on the grid of the scan; it may be stored on another."""
    if path is None:
        return None
    stored = read_volume(path).volume
    if stored.hu.min() < 0 or stored.hu.max() > 255:
        raise CohortError(f"{path.name} is no mask: it holds values from {stored.hu.min()} to {stored.hu.max()}")
    labels = stored.hu.astype(np.uint8)
    return labels if stored.grid == volume.grid else resample_labels(labels, stored.grid, volume.grid)


def _drawn(volume: Volume, lungs: Mask) -> Labels | None:
    """Lobes by the shape model of the fissures; None where slices are too thick, or a lung is cut off or missing."""
    if max(volume.grid.spacing_mm) > THICKEST_SLICES_MM or area_on_faces_cm2(lungs, volume.grid) >= TRUNCATED_CM2:
        return None
    with suppress(SidesError):
        return draw_lobes_of(volume, lungs, read_shapes())[0]
    return None


def _check_lungs(row: Row, volume: Volume, lungs: Mask, lobes: Labels | None) -> None:
    """Lungs are there and emptier than tissue; lobes are 1 to 5, the left ones where LPS has left."""
    if lobes is not None and lobes.max() > max(RIGHT_LOBES):
        raise CohortError(f"{row.ct.name}: lobes are 1 to 5, not {lobes.max()}")
    if lobes is not None:
        sides = (np.argwhere(np.isin(lobes, side)) for side in (LEFT_LOBES, RIGHT_LOBES))
        middles_mm = [volume.grid.to_lps(where.mean(axis=0))[0] for where in sides if len(where)]
        if len(middles_mm) == 2 and middles_mm[0] < middles_mm[1]:
            raise CohortError(f"{row.ct.name}: its left lobes lie on the right; is the mask flipped?")
    if not lungs.any():
        raise CohortError(f"{row.ct.name}: its lung mask is empty there; do mask and scan belong together?")
    median_hu = float(np.median(volume.hu[lungs]))
    if median_hu > DENSEST_LUNG_HU:
        raise CohortError(f"{row.ct.name}: what is marked as lung has {median_hu:.0f} HU; is the mask flipped?")


def _check_landmarks(row: Row, volume: Volume) -> None:
    """A landmark within the scan lies in the body; the sternum tip in front of the carina and below it."""
    shape, reach = np.array(volume.grid.shape), AROUND_MM / np.array(volume.grid.spacing_mm)
    for mark, place_mm in row.landmarks_mm.items():
        centre = volume.grid.to_index(np.array([place_mm]))[0]
        if (centre >= 0).all() and (centre <= shape - 1).all():
            low, high = np.maximum(np.floor(centre - reach), 0).astype(int), np.ceil(centre + reach).astype(int) + 1
            if volume.hu[tuple(map(slice, low, high))].max() < AIR_AROUND_HU:
                raise CohortError(f"{row.ct.name}: its {mark.value} lies in the air; LPS mm of the file's own space?")
    carina, tip = (row.landmarks_mm.get(mark) for mark in (Landmark.CARINA, Landmark.STERNUM_TIP))
    if carina is not None and tip is not None:
        (_, carina_y, carina_z), (_, tip_y, tip_z) = carina, tip
        if tip_y > carina_y or tip_z > carina_z:
            reason = "its sternum tip is behind or above its carina; are they RAS, or swapped?"
            raise CohortError(f"{row.ct.name}: {reason}")


def _missing(paths: Sequence[Path]) -> Iterator[tuple[int, Path, np.random.Generator]]:
    """The copies that are still to be made, and each one's own chance."""
    for copy, path in enumerate(paths):
        if not path.exists():
            yield copy, path, np.random.default_rng(int(hashlib.sha256(path.name.encode()).hexdigest()[:8], 16))
