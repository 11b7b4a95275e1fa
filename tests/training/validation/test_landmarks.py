import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.anatomy import Landmark
from pipeline.errors import LungsNotFoundError
from pipeline.geometry import Grid, LandmarkPosition, Volume
from pipeline.landmarks import LandmarkNetwork
from pipeline.networks.di2in import LungConfig
from pipeline.networks.weights import load_weights
from training.validation.landmarks import (
    GAP_MM,
    GOOD_MM,
    Answer,
    Case,
    ask,
    draw,
    phantom_cases,
    pieces_without,
    real_cases,
    region_recall,
    seconds_by_scale,
    slab,
    summarise,
)

DATA = os.environ.get("LOBEWISE_DATA")
GRID = Grid((100, 8, 9), (3.0, 30.0, 30.0), (-5.0, 6.0, -200.0))
CARINA_MM = (100.0, 100.0, -50.0)


def case() -> Case:
    hu = np.arange(GRID.shape[0], dtype=np.int16)[:, None, None] * np.ones(GRID.shape, dtype=np.int16)
    return Case("drawn", Volume(hu, GRID), {Landmark.CARINA: CARINA_MM})


def answer(truth_mm, position_mm) -> Answer:
    return Answer("drawn", truth_mm, LandmarkPosition(Landmark.CARINA, position_mm, 1.0))


def test_the_error_is_the_distance_to_the_truth():
    assert answer((0.0, 0.0, 0.0), (3.0, 4.0, 12.0)).error_mm == 13.0


@pytest.mark.parametrize(("truth", "position"), [(None, (0.0, 0.0, 0.0)), ((0.0, 0.0, 0.0), None), (None, None)])
def test_there_is_no_error_without_both(truth, position):
    assert answer(truth, position).error_mm is None


def test_the_summary_counts_what_is_there_apart_from_what_is_not():
    at = (0.0, 0.0, 0.0)
    answers = [
        answer(at, (1.0, 0.0, 0.0)),
        answer(at, (0.0, GOOD_MM, 0.0)),
        answer(at, (0.0, 0.0, 40.0)),
        answer(at, None),
        answer(None, None),
        answer(None, at),
    ]
    summary = summarise(Landmark.CARINA, answers)
    assert (summary.present, summary.found, summary.within_10_mm) == (4, 3, 2)
    assert (summary.absent, summary.said_absent) == (2, 1)
    assert (summary.median_mm, summary.worst_mm) == (GOOD_MM, 40.0)
    assert summarise(Landmark.STERNUM_TIP, answers).present == 0
    assert math.isnan(summarise(Landmark.STERNUM_TIP, answers).median_mm)


@pytest.mark.parametrize(("shift_mm", "inside"), [(0.0, 1.0), (20.0, 0.6), (60.0, 0.0)])
def test_the_region_that_an_answer_places_holds_a_share_of_the_lungs(shift_mm: float, inside: float) -> None:
    grid = Grid((60, 40, 50), (10.0, 10.0, 10.0), (-245.0, -195.0, -295.0))
    lungs = np.zeros(grid.shape, dtype=np.bool_)
    lungs[25:30, 15:25, 20:30] = True  # ten voxels a side, five from feet to head
    scan = Case("lungs", Volume(np.zeros(grid.shape, dtype=np.int16), grid), {}, lungs)
    box = ((-100.0, -100.0, -55.0), (100.0, 100.0, 95.0))
    placed = answer(None, (0.0, 0.0, 5.0 + shift_mm))
    config = LungConfig(carina_box_mm=box, spacing_mm=0.5)
    assert region_recall(scan, [placed], config) == pytest.approx(inside)


def test_a_region_beside_the_scan_is_refused() -> None:
    scan = Case("lungs", case().volume, {}, np.ones(GRID.shape, dtype=np.bool_))
    with pytest.raises(LungsNotFoundError):
        region_recall(scan, [answer(None, (0.0, 0.0, 5000.0))], LungConfig())


def test_without_known_lungs_there_is_no_recall() -> None:
    assert region_recall(case(), [answer(CARINA_MM, CARINA_MM)], LungConfig()) is None


def test_the_time_of_each_scale_is_told() -> None:
    seconds = seconds_by_scale(phantom_cases(1), shipped())
    assert list(seconds) == ["rest", "12 mm", "6 mm", "3 mm"]
    assert all(spent > 0 for spent in seconds.values())


def test_a_slab_stays_where_it_was():
    part = slab(case().volume, 20, 30)
    assert part.hu[0, 0, 0] == 20
    assert np.allclose(part.grid.to_lps(np.zeros(3)), GRID.to_lps(np.array([20.0, 0.0, 0.0])))
    assert part.grid.shape[0] == part.hu.shape[0] == 10


def test_pieces_end_short_of_the_landmark_and_say_that_they_lack_it():
    pieces = list(pieces_without(case(), Landmark.CARINA))
    below, above = (piece.volume.grid.bounds_mm() for piece in pieces)
    assert len(pieces) == 2
    assert CARINA_MM[2] - GAP_MM - 9 < below[1][2] <= CARINA_MM[2] - GAP_MM + 3
    assert CARINA_MM[2] + GAP_MM - 3 <= above[0][2] < CARINA_MM[2] + GAP_MM + 9
    assert all(not piece.truth for piece in pieces)


def test_short_pieces_are_left_out():
    short = Case("short", slab(case().volume, 40, 75), {Landmark.CARINA: CARINA_MM})
    assert list(pieces_without(short, Landmark.CARINA)) == []


def test_marks_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    draw(case(), tmp_path / "marks.png", [answer(CARINA_MM, (90.0, 90.0, -60.0))])
    assert (tmp_path / "marks.png").stat().st_size > 1000


def shipped() -> LandmarkNetwork:
    return LandmarkNetwork.load(load_weights("landmarks"), torch.device("cpu"))


def test_the_shipped_agents_find_the_carina_of_phantoms_that_training_never_saw():
    network = shipped()
    errors = [
        found.error_mm
        for phantom in phantom_cases(3)
        for found in ask(phantom, network)
        if found.found.landmark is Landmark.CARINA
    ]
    assert all(error is not None and error <= GOOD_MM for error in errors), errors


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="needs LOBEWISE_DATA, the folder of public scans")
@pytest.mark.parametrize("name", ["case05", "lidc-1011", "lung-dx-a0001"])
def test_the_shipped_agents_find_the_carina_of_real_scans_that_training_never_saw(name):
    (real,) = (real for real in real_cases(Path(str(DATA))) if real.name == name)
    (error,) = (found.error_mm for found in ask(real, shipped()) if found.found.landmark is Landmark.CARINA)
    assert error is not None
    assert error <= GOOD_MM
