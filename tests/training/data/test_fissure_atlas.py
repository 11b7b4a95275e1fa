"""The shape model of the fissures, and lobes for masks of lungs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from evaluation.overlap import dice
from pipeline.anatomy import FISSURES, Lobe
from pipeline.geometry import Grid, Volume
from pipeline.lungs import fissure_model
from pipeline.lungs.fissure_model import STANDARD_MM, FissureModel, LungBox
from training.data import fissure_atlas
from training.data.fissure_atlas import draw_lobes, learn_fissure, split_sides

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
    return {name: learn_fissure([p[name] for p in people]) for name in FISSURES}


def test_the_model_knows_the_mean_plane_and_how_far_people_differ(model: FissureModel) -> None:
    for name, fissure in model.items():
        normal = np.array(NORMALS[name]) / np.linalg.norm(NORMALS[name])
        assert abs(fissure.axes[2] @ normal) > 0.97
        assert fissure.heights(CENTRES[name] + 30 * normal, fissure.mean) == pytest.approx(30, abs=6)
        assert 6 < np.sqrt(fissure.covariance[0, 0]) < 14


def test_the_left_lung_is_the_one_of_greater_x() -> None:
    left, right = split_sides(lungs(), GRID)
    assert np.nonzero(left)[2].min() == 64
    assert np.nonzero(right)[2].max() == 47


def test_left_is_the_patients_left_however_the_scan_lies() -> None:
    turned = Grid(GRID.shape, GRID.spacing_mm, (140.0, 88.0, -264.0), ((-1.0, 0, 0), (0, -1.0, 0), (0, 0, 1.0)))
    left, right = split_sides(lungs(), turned)
    assert np.nonzero(left)[2].max() == 47
    assert np.nonzero(right)[2].min() == 64


def test_lungs_that_touch_are_split_where_they_touch() -> None:
    mask = lungs()
    mask[50:54, 30:34, 48:64] = True
    left, right = split_sides(mask, GRID)
    np.testing.assert_array_equal(left | right, mask)
    assert not (left & right).any()
    assert abs(int(left.sum()) - int(right.sum())) < 200


def test_one_lung_cannot_be_split() -> None:
    mask = lungs()
    mask[:, :, :56] = False
    with pytest.raises(ValueError, match="told apart"):
        split_sides(mask, GRID)


def test_lobes_of_a_mask_follow_the_fissures_that_the_image_shows(model: FissureModel) -> None:
    """A bright sheet is drawn 15 mm beside the mean plane of the left fissure; the lobes must meet there."""
    mask = lungs()
    left, _ = split_sides(mask, GRID)
    fissure, box = model["left_oblique"], LungBox.of(left, GRID)
    heights = np.zeros(GRID.shape)
    moved = fissure.mean + np.array([15.0, 0, 0, 0, 0, 0])
    heights[left] = fissure.heights(box.to_standard(GRID.to_lps(np.argwhere(left).astype(np.float64))), moved)
    hu = np.where(mask, -850.0, 40.0)
    hu[left & (np.abs(heights) < 1.5)] = -700
    hu += ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 30, hu.shape), 0.5)
    labels, seen_sd = draw_lobes(Volume(hu.astype(np.int16), GRID), mask, model)
    assert dice(labels == Lobe.LEFT_UPPER, left & (heights > 0)) > 0.97
    assert seen_sd["left_oblique"] > 3 * max(seen_sd["right_oblique"], seen_sd["right_horizontal"])
    np.testing.assert_array_equal(labels > 0, mask)


def test_what_is_written_is_what_is_read(model: FissureModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fissure_model.json"
    fissure_atlas.write_shapes(model, path)
    monkeypatch.setattr(fissure_model, "files", lambda _: tmp_path)
    read = fissure_model.read_shapes.__wrapped__()
    for name, fissure in model.items():
        for key, value in vars(fissure).items():
            np.testing.assert_allclose(getattr(read[name], key), value, rtol=1e-5, atol=1e-9)


@pytest.mark.data
def test_the_shipped_model_is_that_of_the_public_fissures(tmp_path: Path) -> None:
    folder = os.environ.get("LOBEWISE_DATA")
    if folder is None:
        pytest.skip("LOBEWISE_DATA, the folder of public scans, is not set")
    fissure_atlas.main([str(Path(folder) / "fissures"), str(tmp_path / "shapes.json")])
    shipped = Path(fissure_model.__file__).with_name("fissure_model.json")
    ours, theirs = (json.loads(path.read_text())["fissures"] for path in (tmp_path / "shapes.json", shipped))
    for name in FISSURES:
        for key, values in ours[name].items():
            np.testing.assert_allclose(values, theirs[name][key], rtol=1e-3, atol=1e-4)


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
