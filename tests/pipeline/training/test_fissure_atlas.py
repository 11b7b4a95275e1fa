"""Lobes from visible fissures: sides, surfaces and the fit."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from lobewise.pipeline.anatomy import Lobe
from lobewise.pipeline.evaluation.overlap import dice
from lobewise.pipeline.training import fissure_atlas
from lobewise.pipeline.training.fissure_atlas import FISSURES, STANDARD_MM, FissureModel, draw_lobes, split_sides
from lobewise.pipeline.volume import Grid, Volume

GRID = Grid((106, 70, 112), (2.5, 2.5, 2.5), (-140.0, -88.0, -264.0))
NORMALS = {"left_oblique": (0.0, -0.7, 0.7), "right_oblique": (0.0, -0.7, 0.7), "right_horizontal": (0.0, -0.2, 0.98)}
CENTRES = dict.fromkeys(FISSURES, STANDARD_MM * (0.5, 0.5, 0.55))


def lungs() -> np.ndarray:
    """Two boxes with nothing between them."""
    mask = np.zeros(GRID.shape, dtype=np.bool_)
    mask[:, :, 64:], mask[:, :, :48] = True, True
    return mask


def person(rng: np.random.Generator, spread_mm: float = 10.0) -> dict[str, np.ndarray]:
    """Points on planes, each shifted along its normal."""
    points = {}
    for name in FISSURES:
        normal = np.array(NORMALS[name]) / np.linalg.norm(NORMALS[name])
        flat = rng.uniform(-0.5, 0.5, (60, 3)) * STANDARD_MM
        flat -= np.outer(flat @ normal, normal)
        points[name] = CENTRES[name] + flat + normal * rng.normal(0, spread_mm)
    return points


@pytest.fixture(scope="module")
def model() -> FissureModel:
    rng = np.random.default_rng(0)
    people = [person(rng) for _ in range(40)]
    return {name: fissure_atlas._learn([p[name] for p in people]) for name in FISSURES}


def test_the_model_knows_the_mean_plane_and_how_far_people_differ(model: FissureModel) -> None:
    for name, fissure in model.items():
        normal = np.array(NORMALS[name]) / np.linalg.norm(NORMALS[name])
        assert abs(fissure.axes[2] @ normal) > 0.97
        assert fissure.heights(CENTRES[name] + 30 * normal, fissure.mean) == pytest.approx(30, abs=6)
        assert 6 < np.sqrt(fissure.covariance[0, 0]) < 14


def test_points_of_the_surface_lie_on_it(model: FissureModel) -> None:
    fissure = model["left_oblique"]
    coefficients = fissure.mean + np.array([5.0, 0.1, -0.1, 1e-4, 0.0, 1e-4])
    np.testing.assert_allclose(fissure.heights(fissure.surface(coefficients), coefficients), 0.0, atol=1e-9)


def test_the_left_lung_is_the_one_of_greater_x() -> None:
    left, right = split_sides(lungs())
    assert np.nonzero(left)[2].min() == 64
    assert np.nonzero(right)[2].max() == 47


def test_lungs_that_touch_are_split_where_they_touch() -> None:
    mask = lungs()
    mask[50:54, 30:34, 48:64] = True
    left, right = split_sides(mask)
    np.testing.assert_array_equal(left | right, mask)
    assert not (left & right).any()
    assert abs(int(left.sum()) - int(right.sum())) < 200


def test_one_lung_cannot_be_split() -> None:
    mask = lungs()
    mask[:, :, :56] = False
    with pytest.raises(ValueError, match="told apart"):
        split_sides(mask)


def test_the_fit_follows_the_fissure_that_the_image_shows(model: FissureModel) -> None:
    """A bright sheet is drawn 15 mm beside the mean plane of each fissure; the lobes must meet there."""
    mask = lungs()
    hu = np.where(mask, -850.0, 40.0)
    truth = np.zeros(GRID.shape, dtype=np.uint8)
    heights = {}
    for name in FISSURES:
        side = split_sides(mask)[0 if name.startswith("left") else 1]
        fissure = model[name]
        moved = fissure.mean + np.array([15.0, 0, 0, 0, 0, 0])
        heights[name] = np.zeros(GRID.shape)
        heights[name][side] = fissure.heights(fissure_atlas._standard(np.argwhere(side), side), moved)
        hu[side & (np.abs(heights[name]) < 1.5)] = -700
    left, right = split_sides(mask)
    truth[left] = np.where(heights["left_oblique"][left] > 0, Lobe.LEFT_UPPER, Lobe.LEFT_LOWER)
    front = np.where(heights["right_horizontal"][right] > 0, Lobe.RIGHT_UPPER, Lobe.RIGHT_MIDDLE)
    truth[right] = np.where(heights["right_oblique"][right] > 0, front, Lobe.RIGHT_LOWER)
    noisy = hu + ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 30, hu.shape), 0.5)
    labels, scores = draw_lobes(Volume(noisy.astype(np.int16), GRID), mask, model)
    unfitted, _ = draw_lobes(Volume(np.where(mask, -850, 40).astype(np.int16), GRID), mask, model)
    left_upper = Lobe.LEFT_UPPER
    assert dice(labels == left_upper, truth == left_upper) > 0.95
    assert dice(labels == left_upper, truth == left_upper) > dice(unfitted == left_upper, truth == left_upper)
    assert np.mean([dice(labels == lobe, truth == lobe) for lobe in Lobe]) > 0.88
    assert all(score > 0 for score in scores.values())


@pytest.mark.data
def test_the_marked_points_of_people_give_plausible_lobes() -> None:
    folder = os.environ.get("LOBEWISE_DATA")
    if folder is None:
        pytest.skip("LOBEWISE_DATA, the folder of public scans, is not set")
    model = fissure_atlas.learn_fissures(Path(folder) / "fissures")
    labels, _ = draw_lobes(Volume(np.where(lungs(), -850, 40).astype(np.int16), GRID), lungs(), model)
    shares = np.bincount(labels.ravel(), minlength=6)[1:] / np.count_nonzero(lungs())
    for lobe, (least, most) in zip(Lobe, [(0.15, 0.35)] * 2 + [(0.12, 0.3), (0.03, 0.2), (0.15, 0.35)], strict=True):
        assert least < shares[lobe - 1] < most, lobe
