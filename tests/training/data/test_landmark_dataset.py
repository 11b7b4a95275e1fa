import numpy as np
import pytest

from pipeline.anatomy import AIR_HU, Landmark
from pipeline.geometry import Grid, Volume
from pipeline.networks.q_network import LandmarkConfig
from training.data import landmark_dataset
from training.data.landmark_batches import LandmarkDataset, LandmarkScan
from training.data.landmark_dataset import (
    BASE_SPACING_MM,
    REAL_CASES,
    add_phantoms,
    add_real,
    base_of,
    deform,
    read_marks,
    write_scan,
)

CENTRE = (60.0, 50.0, 40.0)


def spot_volume() -> Volume:
    """A bright ball of 8 mm in soft tissue."""
    grid = Grid((60, 60, 60), BASE_SPACING_MM, (0.0, 0.0, 0.0))
    index = np.stack(np.indices(grid.shape), axis=-1).astype(np.float64)
    away = np.linalg.norm(grid.to_lps(index) - np.array(CENTRE), axis=-1)
    return Volume(np.where(away < 8, 2500, 0).astype(np.int16), grid)


@pytest.mark.parametrize("seed", range(8))
def test_the_mark_stays_on_the_spot_however_the_scan_is_deformed(seed):
    copy, marks = deform(spot_volume(), {Landmark.CARINA: CENTRE}, np.random.default_rng(seed))
    bright = copy.grid.to_lps(np.argwhere(copy.hu > 1000).astype(np.float64))
    assert len(bright) > 5
    assert np.linalg.norm(bright.mean(axis=0) - np.array(marks[Landmark.CARINA])) < 1.5


def test_copies_differ_and_a_seed_repeats_its_copy():
    first, again, other = (deform(spot_volume(), {}, np.random.default_rng(seed))[0].hu for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_copies_stay_within_the_range_of_a_ct():
    copy, _ = deform(spot_volume(), {}, np.random.default_rng(3))
    assert copy.hu.min() >= AIR_HU
    assert copy.hu.max() <= 3000


def test_the_base_keeps_the_scan_in_its_place():
    grid = Grid((20, 60, 60), (6.0, 2.0, 2.0), (3.0, 4.0, 5.0))
    base = base_of(Volume(np.full(grid.shape, 50, dtype=np.int16), grid))
    assert base.grid.spacing_mm == BASE_SPACING_MM
    assert np.allclose(base.grid.bounds_mm(), grid.bounds_mm())
    assert (base.hu[2:-2] == 50).all()


def test_landmarks_beyond_the_border_are_kept_with_their_scan(tmp_path):
    config = LandmarkConfig(scales_mm=(12.0, 6.0), box=9)
    write_scan(tmp_path / "phantom-1.npz", spot_volume(), {Landmark.CARINA: (60.0, 50.0, -80.0)}, config)
    scan = LandmarkScan.read(tmp_path / "phantom-1.npz", config)
    assert np.allclose(scan.landmarks_mm[Landmark.CARINA], (-79.0, 51.0, 61.0))
    assert Landmark.STERNUM_TIP not in scan.landmarks_mm


def test_both_landmarks_are_marked_on_every_real_scan():
    marks = read_marks()
    assert {"case01", "case02", "case03", "case04", "case05", "lidc-1011", "lung-dx-a0001", "ct-64"} == set(marks)
    assert all(set(mark) == set(Landmark) for mark in marks.values())


def test_the_carina_lies_above_and_behind_the_sternum_tip():
    for case, marks in read_marks().items():
        gap = np.subtract(marks[Landmark.CARINA], marks[Landmark.STERNUM_TIP])
        assert gap[1] > 70, case
        assert gap[2] > 70, case


def test_a_phantom_without_its_carina_knows_where_it_would_be(tmp_path, monkeypatch):
    monkeypatch.setattr(landmark_dataset, "PHANTOM_SPACING_MM", (12.0, 10.0, 10.0))
    config = LandmarkConfig(scales_mm=(24.0, 12.0), box=9)
    added = list(add_phantoms(tmp_path, [0], 2, config))
    assert added == ["phantom 0 chest", "phantom 0 abdomen"]
    abdomen, other_abdomen, chest, other_chest = LandmarkDataset.read(tmp_path, config).training_scans
    for scan in (chest, other_chest):
        for place in scan.landmarks_mm.values():
            assert (place > 0).all()
            assert (place < np.array(scan.shapes[1]) * 12).all()
    for scan in (abdomen, other_abdomen):
        assert scan.landmarks_mm[Landmark.CARINA][0] > scan.shapes[1][0] * 12


def test_a_missing_real_scan_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=REAL_CASES[0]):
        list(add_real(tmp_path, tmp_path, 1, LandmarkConfig()))
