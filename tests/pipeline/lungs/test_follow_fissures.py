"""Borders come to the fissures that a scan shows, by shapes first and by sheets then."""

import numpy as np

from pipeline.geometry import Grid, Volume, resample_labels
from pipeline.lungs.fissure_model import FISSURES
from pipeline.lungs.fissure_refinement import THICKEST_SLICES_MM, follow_fissures
from pipeline.phantom import PhantomRecipe, make_phantom


def test_thick_slices_move_nothing() -> None:
    phantom = make_phantom(PhantomRecipe(seed=900_101, spacing_mm=(THICKEST_SLICES_MM + 0.5, 2.0, 2.0)))
    roi = phantom.volume.grid.covering((2.0, 2.0, 2.0))
    labels = np.roll(resample_labels(phantom.lobes.labels, phantom.volume.grid, roi), 4, axis=0)
    found, seen_sd = follow_fissures(phantom.volume, roi, labels)
    np.testing.assert_array_equal(found, labels)
    assert seen_sd == {}


def test_no_lungs_are_no_fault() -> None:
    grid = Grid((10, 10, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    nothing = np.zeros(grid.shape, dtype=np.uint8)
    found, seen_sd = follow_fissures(Volume(np.full(grid.shape, -850, np.int16), grid), grid, nothing)
    assert not found.any()
    assert seen_sd == {}


def test_a_phantoms_lobes_get_nearer_to_the_truth() -> None:
    phantom = make_phantom(PhantomRecipe(seed=900_100, spacing_mm=(2.0, 2.0, 2.0)))
    roi = phantom.volume.grid.covering((2.0, 2.0, 2.0))
    truth = resample_labels(phantom.lobes.labels, phantom.volume.grid, roi)
    shifted = np.roll(truth, 3, axis=0)
    wrong = np.where((shifted > 0) & (truth > 0) & ((shifted > 2) == (truth > 2)), shifted, truth)
    found, seen_sd = follow_fissures(phantom.volume, roi, wrong)
    assert set(seen_sd) == set(FISSURES)
    assert (found != truth).sum() < 0.6 * (wrong != truth).sum()
