"""The published slices as cases, stacks and volumes; here a file of the same layout with nothing real in it."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.networks.di2in import LungConfig
from training.data import covid_slices
from training.data.covid_slices import as_hu, read_covid, read_stacks
from training.data.lung_batches import OPAQUE, UNKNOWN_LOBE
from training.data.lung_dataset import covid_region


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cases of 12 and 9 slices; a body with two lungs, the left with a dense lesion."""
    monkeypatch.setattr(covid_slices, "CASE_STARTS", (0, 12))
    ct = np.zeros((21, 64, 64), dtype=np.uint8)
    ct[:, 8:56, 4:60] = 220
    lungs, lesions = np.zeros(ct.shape, dtype=bool), np.zeros(ct.shape, dtype=bool)
    lungs[:, 16:48, 8:28] = lungs[:, 16:48, 36:56] = True
    lesions[2:8, 20:40, 40:50] = True
    ct[lungs], ct[lesions] = 60, 200
    (tmp_path / "covid-slices").mkdir()
    packed = {name: np.packbits(mask, axis=-1) for name, mask in (("lungs", lungs), ("lesions", lesions))}
    np.savez(tmp_path / "covid-slices" / "slices-0000-0788.npz", ct=ct, **packed)
    return tmp_path


def test_cases_are_cut_where_they_begin(data: Path) -> None:
    assert [(scan.case, len(scan.image)) for scan in read_covid(data)] == [(0, 12), (1, 9)]
    first = next(read_covid(data))
    assert first.lungs.sum() == 12 * 32 * 40
    assert first.lesions.sum() == 6 * 20 * 10


def test_a_stack_holds_every_third_slice_in_millimetres(data: Path) -> None:
    stacks = list(read_stacks(data))
    assert [(stack.case, len(stack.image)) for stack in stacks] == [(0, 4)] * 3 + [(1, 3)] * 3
    assert stacks[0].image.shape[1] == round(64 * covid_slices.PIXEL_MM)
    assert stacks[0].lungs.shape == stacks[0].image.shape


def test_grey_values_become_densities_near_the_truth(data: Path) -> None:
    hu = as_hu(np.array([0, 1, 60, 200, 255], dtype=np.uint8))
    assert hu[0] == hu[1] == -1024
    assert -900 < hu[2] < -780
    assert -300 < hu[3] < 0
    assert hu[4] == 150


@pytest.mark.parametrize("seed", range(3))
def test_a_region_has_unknown_lobes_and_marks_what_is_dense(data: Path, seed: int) -> None:
    hu, labels = covid_region(next(read_covid(data)), LungConfig(), np.random.default_rng(seed))
    assert hu.shape == labels.shape
    assert set(np.unique(labels)) == {0, UNKNOWN_LOBE, UNKNOWN_LOBE | OPAQUE}
    assert hu[labels == (UNKNOWN_LOBE | OPAQUE)].min() > -250
    where = np.argwhere(labels >= OPAQUE)[:, 2].mean()
    assert where > np.argwhere(labels > 0)[:, 2].mean()  # left stays left


def test_regions_of_one_case_differ_in_size(data: Path) -> None:
    shapes = {
        covid_region(next(read_covid(data)), LungConfig(), np.random.default_rng(seed))[0].shape for seed in range(4)
    }
    assert len(shapes) > 1
