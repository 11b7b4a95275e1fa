"""What the ways to draw borders are compared by."""

import numpy as np
import pytest

from pipeline.geometry import Grid, Volume
from training.validation.fissure_borders import NOISE_HU, NOISE_MEAN_HU, WAYS, noise, table, table_of_noise, thickened
from training.validation.lungs import Case


@pytest.fixture
def case() -> Case:
    hu = np.arange(7, dtype=np.int16)[:, None, None] * np.ones((7, 2, 3), dtype=np.int16)
    lobes = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((7, 2, 3), dtype=np.uint8)
    return Case("ramp", Volume(hu, Grid(hu.shape, (1.5, 2.0, 2.0), (1.0, 2.0, 3.0))), {}, lobes=lobes)


def test_thick_slices_are_the_mean_of_thin_ones_and_lie_where_those_lay(case: Case) -> None:
    thick = thickened(case, 3)
    assert thick.volume.hu[:, 0, 0].tolist() == [1, 4]
    assert thick.volume.grid.spacing_mm == (4.5, 2.0, 2.0)
    middle = case.volume.grid.to_lps(np.array([[1.0, 0.0, 0.0], [4.0, 0.0, 0.0]]))
    assert np.allclose(thick.volume.grid.to_lps(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])), middle)
    assert thick.lobes is not None
    assert thick.lobes[:, 0, 0].tolist() == [1, 4]
    assert thickened(case, 1) is case


def test_noise_is_aerated_lung_of_the_wanted_grain() -> None:
    grain = noise((20, 60, 60), np.random.default_rng(0))
    assert grain.mean() == pytest.approx(NOISE_MEAN_HU, abs=1.0)
    assert grain.std() == pytest.approx(NOISE_HU, rel=0.03)


def test_a_table_has_a_column_a_way_and_the_mean_below() -> None:
    rows = [{"phantom 1": 0.9 + n / 100, "phantom 2": 0.8 + n / 100} for n in range(len(WAYS))]
    lines = table(rows, "{:.3f}", "lobes").splitlines()
    assert lines[0] == "| lobes | the network | walks alone | shapes alone | shapes, then walks |"
    assert lines[-1] == "| mean | 0.850 | 0.860 | 0.870 | 0.880 |"


def test_what_is_seen_in_noise_is_told_by_fissure() -> None:
    held = [{"left_oblique": float(n), "right_oblique": 1.0, "right_horizontal": 2.0} for n in range(5)]
    free = [{name: sd + 1.0 for name, sd in seen_sd.items()} for seen_sd in held]
    lines = table_of_noise(list(zip(held, free, strict=True))).splitlines()
    assert lines[2:4] == [
        "| left oblique | 5 | 2.0 | 3.8 | 4.0 |",
        "| left oblique, nothing drawn | 5 | 3.0 | 4.8 | 5.0 |",
    ]
    assert len(lines) == 8
