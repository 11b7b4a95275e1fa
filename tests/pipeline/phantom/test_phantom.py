"""The phantom is where it says it is, whatever the grid, and its truth is exact."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pipeline.anatomy import LEFT_LOBES, Landmark, Lobe
from pipeline.geometry import Matrix
from pipeline.phantom import Phantom, PhantomRecipe, Tissue, make_phantom
from pipeline.severity import score_severity

COARSE = (8.0, 7.0, 7.0)


def orientations() -> list[Matrix]:
    """All 8 ways to flip the axes of the patient, and all 6 to order them."""
    signs = list(product((1, -1), repeat=3))
    orders = list(permutations(range(3)))
    chosen = [(orders[0], flips) for flips in signs] + list(zip(orders[1:], signs[1:], strict=False))
    unit = np.eye(3)
    return [tuple(tuple(float(v) for v in row) for row in (unit[:, list(order)] * flips)) for order, flips in chosen]


def centre_mm(phantom: Phantom, lobe: Lobe) -> np.ndarray:
    return phantom.lobes.grid.to_lps(np.argwhere(phantom.lobes.of(lobe)).mean(axis=0))


@pytest.fixture(scope="module")
def patient() -> Phantom:
    return make_phantom(PhantomRecipe(seed=3, spacing_mm=(4.0, 3.0, 3.0), percent_opacity=20))


@pytest.fixture(scope="module")
def cohort() -> list[Phantom]:
    return [make_phantom(PhantomRecipe(seed=seed, spacing_mm=COARSE)) for seed in range(8)]


def test_same_recipe_gives_the_same_voxels() -> None:
    recipe = PhantomRecipe(seed=5, spacing_mm=COARSE)
    first, second = make_phantom(recipe), make_phantom(recipe)
    assert np.array_equal(first.volume.hu, second.volume.hu)
    assert np.array_equal(first.lesions.mask, second.lesions.mask)


def test_other_seeds_give_other_patients(cohort: list[Phantom]) -> None:
    volumes = [phantom.severity.volume_ml for phantom in cohort]
    assert len({round(volume) for volume in volumes}) == len(cohort)


@pytest.mark.parametrize("direction", orientations())
def test_lobes_are_where_they_are_in_people_in_every_orientation(direction: Matrix) -> None:
    phantom = make_phantom(PhantomRecipe(seed=3, spacing_mm=(12.0, 11.0, 10.0), direction=direction))
    x, y, z = np.array([centre_mm(phantom, lobe) for lobe in Lobe]).T
    left = [lobe in LEFT_LOBES for lobe in Lobe]
    assert np.array_equal(x > 0, left)
    assert z[Lobe.LEFT_UPPER - 1] > z[Lobe.LEFT_LOWER - 1]
    assert z[Lobe.RIGHT_UPPER - 1] > z[Lobe.RIGHT_MIDDLE - 1]
    assert y[Lobe.RIGHT_LOWER - 1] > y[Lobe.RIGHT_MIDDLE - 1]


def test_heart_lies_to_the_left_and_liver_below_the_right_lung(patient: Phantom) -> None:
    heart = patient.volume.grid.to_lps(np.argwhere(patient.tissues == Tissue.HEART).mean(axis=0))
    assert heart[0] > 5
    lowest = {side: _lowest_dome_mm(patient, side) for side in (-1, 1)}
    assert lowest[-1] > lowest[1]  # the right dome stands higher


def _lowest_dome_mm(phantom: Phantom, side: int) -> float:
    """z of the lung's base in the middle of one side."""
    grid = phantom.volume.grid
    index = np.round(grid.to_index(np.array([side * 60.0, 0.0, 0.0]))).astype(int)
    column = np.flatnonzero(phantom.lobes.labels[:, index[1], index[2]])
    return float(grid.to_lps(np.array([column[0], index[1], index[2]], dtype=np.float64))[2])


def test_spacing_changes_the_scan_and_not_the_patient(patient: Phantom) -> None:
    finer = make_phantom(PhantomRecipe(seed=3, spacing_mm=(3.0, 4.0, 2.5), percent_opacity=20))
    for thick, thin in zip(patient.severity.lobes, finer.severity.lobes, strict=True):
        assert thin.volume_ml == pytest.approx(thick.volume_ml, rel=0.02)
    assert finer.severity.percent_opacity == pytest.approx(patient.severity.percent_opacity, abs=0.3)
    assert finer.landmarks == patient.landmarks


def test_an_oblique_scan_shows_the_same_patient(patient: Phantom) -> None:
    tilt = Rotation.from_euler("xyz", (12, -9, 15), degrees=True).as_matrix()
    direction: Matrix = tuple(tuple(float(v) for v in row) for row in tilt)
    oblique = make_phantom(PhantomRecipe(seed=3, spacing_mm=(4.0, 3.0, 3.0), direction=direction, percent_opacity=20))
    for straight, turned in zip(patient.severity.lobes, oblique.severity.lobes, strict=True):
        assert turned.volume_ml == pytest.approx(straight.volume_ml, rel=0.03)
        moved = centre_mm(oblique, turned.lobe) - centre_mm(patient, turned.lobe)
        assert np.linalg.norm(moved) < 2
    assert oblique.landmarks == patient.landmarks


def test_high_opacity_is_never_more_than_opacity(cohort: list[Phantom]) -> None:
    for phantom in cohort:
        assert phantom.severity.percent_high_opacity <= phantom.severity.percent_opacity
        assert not (phantom.consolidation.mask & ~phantom.lesions.mask).any()


def test_scores_are_those_of_the_masks(patient: Phantom) -> None:
    lobes = patient.lobes
    assert patient.severity == score_severity(patient.volume, lobes.lungs(), lobes, patient.lesions)


@pytest.mark.parametrize("percent", [2.0, 20.0, 55.0])
def test_opacity_is_as_asked(percent: float) -> None:
    phantom = make_phantom(PhantomRecipe(seed=9, spacing_mm=(6.0, 4.0, 4.0), percent_opacity=percent))
    assert phantom.severity.percent_opacity == pytest.approx(percent, abs=1.0)
    assert not (phantom.lesions.mask & (phantom.lobes.labels == 0)).any()


def test_healthy_lungs_have_no_lesion() -> None:
    phantom = make_phantom(PhantomRecipe(seed=9, spacing_mm=COARSE, percent_opacity=0))
    assert not phantom.lesions.mask.any()
    assert phantom.severity.lung_severity_score == 0


def test_consolidation_is_denser_than_ground_glass_and_touches_the_pleura() -> None:
    recipe = PhantomRecipe(
        seed=4, spacing_mm=(4.0, 3.0, 3.0), percent_opacity=30, consolidation_fraction=0.5, noise_hu=5
    )
    phantom = make_phantom(recipe)
    dense, glass = phantom.consolidation.mask, phantom.lesions.mask & ~phantom.consolidation.mask
    assert np.median(phantom.volume.hu[dense]) > -150
    assert -750 < np.median(phantom.volume.hu[glass]) < -350
    rim = phantom.lobes.lungs().mask & ~ndimage.binary_erosion(phantom.lobes.lungs().mask)
    assert (rim & dense).any()


def test_lungs_and_lobes_have_the_volumes_of_adults(cohort: list[Phantom]) -> None:
    for phantom in cohort:
        assert 1800 < phantom.severity.volume_ml < 8000
        shares = {lobe.lobe: lobe.volume_ml / phantom.severity.volume_ml for lobe in phantom.severity.lobes}
        assert min(shares, key=lambda lobe: shares[lobe]) is Lobe.RIGHT_MIDDLE or shares[Lobe.RIGHT_MIDDLE] < 0.2
        assert all(0.04 < share < 0.4 for share in shares.values())


def test_a_cohort_holds_the_healthy_and_the_sick(cohort: list[Phantom]) -> None:
    opacities = [phantom.severity.percent_opacity for phantom in cohort]
    assert min(opacities) == 0.0
    assert max(opacities) > 10.0


def test_fissures_are_brighter_than_the_lung_beside_them() -> None:
    recipe = PhantomRecipe(seed=3, spacing_mm=(3.0, 1.5, 1.5), percent_opacity=0, noise_hu=1)
    phantom = make_phantom(recipe)
    labels = phantom.lobes.labels
    border = (labels == Lobe.LEFT_UPPER) & (np.roll(labels, 1, axis=0) == Lobe.LEFT_LOWER)
    beside = np.roll(border, 4, axis=0) & (labels == Lobe.LEFT_UPPER)
    assert np.median(phantom.volume.hu[border]) > np.median(phantom.volume.hu[beside]) + 20


def test_carina_lies_just_below_air_and_the_tip_at_the_end_of_bone(patient: Phantom) -> None:
    grid = patient.volume.grid
    above = np.array(patient.landmarks[Landmark.CARINA]) + np.array([0.0, 0.0, 22.0])
    index = tuple(np.round(grid.to_index(above)).astype(int))
    assert patient.tissues[index] == Tissue.AIRWAY
    tip = np.array(patient.landmarks[Landmark.STERNUM_TIP])
    bones = grid.to_lps(np.argwhere(patient.tissues == Tissue.BONE).astype(np.float64))
    assert np.linalg.norm(bones - tip, axis=1).min() < 8


@pytest.mark.parametrize("fit", ["abdomen", "head"])
def test_abdomen_and_head_hold_neither_lungs_nor_landmarks(fit: str) -> None:
    phantom = make_phantom(PhantomRecipe(seed=2, spacing_mm=COARSE, fit=fit))
    assert not phantom.lobes.labels.any()
    assert not phantom.lesions.mask.any()
    assert phantom.landmarks == {}
    assert (phantom.volume.hu > 0).mean() > 0.05


def test_cropped_chests_hold_lungs_but_not_the_carina() -> None:
    for fit in ("upper-chest", "lower-chest"):
        phantom = make_phantom(PhantomRecipe(seed=2, spacing_mm=COARSE, fit=fit))
        assert phantom.lobes.labels.any()
        assert Landmark.CARINA not in phantom.landmarks


def test_values_are_hounsfield_units_a_scanner_stores(cohort: list[Phantom]) -> None:
    for phantom in cohort:
        assert phantom.volume.hu.min() >= -1024
        assert phantom.volume.hu.max() <= 3071
        assert -910 < np.median(phantom.volume.hu[phantom.lobes.lungs().mask & ~phantom.lesions.mask]) < -700
