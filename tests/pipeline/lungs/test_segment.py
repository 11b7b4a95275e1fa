"""The lung stage: where it looks, what it cleans, and that labels come back where they belong."""

from itertools import cycle, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evaluation.overlap import dice
from pipeline.anatomy import Landmark, Lobe
from pipeline.errors import LungsNotFoundError
from pipeline.geometry import Grid, LandmarkPosition, Matrix, Triple, Volume
from pipeline.lungs.segment import Landmarks, clean_labels, prepare, roi_grid, segment_lungs
from pipeline.networks.di2in import CLASSES, Di2in, LungConfig, LungNetwork
from pipeline.networks.weights import ModelInfo, load_weights
from pipeline.phantom import PhantomRecipe, make_phantom
from pipeline.resampling import resample_labels
from training.validation.lungs import sides_are_right

Axes = tuple[int, int, int]
CONFIG = LungConfig(spacing_mm=4.0)
CARINA: Triple = (0.0, 10.0, -220.0)
CENTRES_MM = {
    Lobe.LEFT_UPPER: (70.0, 0.0, -180.0),
    Lobe.LEFT_LOWER: (70.0, 10.0, -280.0),
    Lobe.RIGHT_UPPER: (-70.0, 0.0, -165.0),
    Lobe.RIGHT_MIDDLE: (-60.0, -40.0, -240.0),
    Lobe.RIGHT_LOWER: (-70.0, 20.0, -285.0),
}
RADII_MM = (40.0, 36.0, 52.0)
MIDDLE_MM = tuple((min(values) + max(values)) / 2 for values in zip(*CENTRES_MM.values(), strict=True))
"""Of the box around all five, since they are of one size."""
SCAN = Grid((60, 60, 66), (5.0, 4.5, 4.0), (-132.0, -125.0, -380.0))


class KnowsThePainting(Di2in):
    """A network that is right about `painted`: what is dense belongs to the ellipsoid whose centre is nearest.

    It works in the region's voxels alone, from the middle of all that is dense.
    """

    def __init__(self) -> None:
        super().__init__(LungConfig(widths=(2, 2), detail_width=0))

    def backbone(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        coarse = nn.functional.avg_pool3d(self(image), 2)
        return coarse, [coarse]

    def forward(self, image: Tensor) -> Tensor:
        dense = image[0, 0] > -0.4
        index = torch.nonzero(torch.ones_like(dense)).float()
        where = torch.nonzero(dense).float() if dense.any() else index
        middle = (where.amin(dim=0) + where.amax(dim=0)) / 2
        from_middle_mm = (index - middle).flip(1) * CONFIG.spacing_mm
        logits = torch.full((CLASSES, dense.numel()), -10.0)
        for lobe, centre in CENTRES_MM.items():
            offset = from_middle_mm - torch.tensor(centre) + torch.tensor(MIDDLE_MM)
            logits[lobe] = -((offset / torch.tensor(RADII_MM)) ** 2).sum(dim=1).sqrt()
        logits[0] = torch.where(dense.flatten(), -10.0, 10.0)
        return (20 * logits).view(1, CLASSES, *dense.shape)


def reader() -> LungNetwork:
    return LungNetwork(ModelInfo("lungs", "0", "0" * 64), CONFIG, KnowsThePainting(), torch.device("cpu"))


def at(position: Triple | None, landmark: Landmark = Landmark.CARINA) -> Landmarks:
    return {landmark: LandmarkPosition(landmark, position, 1.0)}


def painted(grid: Grid) -> tuple[Volume, np.ndarray]:
    """Five dense ellipsoids in air, and their labels: where they overlap, the nearest centre's."""
    points = grid.to_lps(np.indices(grid.shape).reshape(3, -1).T.astype(np.float64))
    distances = [np.linalg.norm((points - np.array(centre)) / RADII_MM, axis=1) for centre in CENTRES_MM.values()]
    nearest = np.array(list(CENTRES_MM), dtype=np.uint8)[np.argmin(distances, axis=0)]
    labels = np.where(np.min(distances, axis=0) < 1, nearest, 0).astype(np.uint8).reshape(grid.shape)
    return Volume(np.where(labels > 0, 0, -1000).astype(np.int16), grid), labels


def oriented(grid: Grid, order: Axes, signs: Axes) -> Grid:
    """A grid over the same box whose array axes run along other axes of the patient."""
    columns_xyz = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        columns_xyz[axis, column] = sign
    lower, upper = grid.bounds_mm()
    spacing_xyz = np.array(grid.spacing_mm[::-1])[list(order)]
    size_xyz = np.array(grid.shape[::-1])[list(order)]
    inner = np.asarray(grid.spacing_mm[::-1]) / 2
    start = np.array([lower[a] + inner[a] if s > 0 else upper[a] - inner[a] for a, s in zip(order, signs, strict=True)])
    origin = np.zeros(3)
    origin[list(order)] = start
    direction: Matrix = tuple(tuple(float(v) for v in row) for row in columns_xyz)  # type: ignore[assignment]
    shape, spacing = tuple(int(n) for n in size_xyz[::-1]), tuple(float(s) for s in spacing_xyz[::-1])
    return Grid(shape, spacing, tuple(float(o) for o in origin), direction)  # type: ignore[arg-type]


def zip_orientations() -> list[tuple[Axes, Axes]]:
    """Each flip once, and each order of the axes at least once."""
    return list(zip(cycle(permutations((0, 1, 2))), product((1, -1), repeat=3), strict=False))


def test_the_region_is_the_box_around_the_carina_within_the_scan() -> None:
    roi = roi_grid(SCAN, at(CARINA), CONFIG)
    lower, upper = roi.bounds_mm()
    scan_lower, scan_upper = SCAN.bounds_mm()
    wanted_lower = np.maximum(np.array(CONFIG.carina_box_mm[0]) + CARINA, scan_lower)
    wanted_upper = np.minimum(np.array(CONFIG.carina_box_mm[1]) + CARINA, scan_upper)
    np.testing.assert_allclose(lower, wanted_lower)
    assert np.all(upper >= wanted_upper - 1e-6)
    assert np.all(upper < wanted_upper + CONFIG.stride * CONFIG.spacing_mm)


@given(st.tuples(*(st.integers(1, 90),) * 3), st.tuples(*(st.floats(0.6, 6.0),) * 3))
@settings(max_examples=30, deadline=None)
def test_every_edge_of_the_region_fits_the_network(shape: tuple[int, int, int], spacing: Triple) -> None:
    z, y, x = (-n * s / 2 for n, s in zip(shape, spacing, strict=True))
    roi = roi_grid(Grid(shape, spacing, (x, y, z)), at((0.0, 0.0, 0.0)), CONFIG)
    assert all(n >= 2 * CONFIG.stride and n % CONFIG.stride == 0 for n in roi.shape)


def test_without_a_carina_the_sternum_tip_places_the_region() -> None:
    tip = LandmarkPosition(Landmark.STERNUM_TIP, (0.0, -100.0, -330.0), 1.0)
    lost = LandmarkPosition(Landmark.CARINA, None, 1.0)
    roi = roi_grid(SCAN, {Landmark.CARINA: lost, Landmark.STERNUM_TIP: tip}, CONFIG)
    assert roi == roi_grid(SCAN, {Landmark.STERNUM_TIP: tip}, CONFIG)


def test_the_carina_goes_before_the_sternum_tip() -> None:
    both = {**at((0.0, -100.0, -330.0), Landmark.STERNUM_TIP), **at(CARINA)}
    assert roi_grid(SCAN, both, CONFIG) == roi_grid(SCAN, at(CARINA), CONFIG)


@pytest.mark.parametrize("landmarks", [{}, at(None)])
def test_without_any_landmark_there_are_no_lungs(landmarks: Landmarks) -> None:
    with pytest.raises(LungsNotFoundError, match="Neither"):
        roi_grid(SCAN, landmarks, CONFIG)


def test_a_landmark_far_outside_of_the_scan_is_told() -> None:
    with pytest.raises(LungsNotFoundError) as caught:
        roi_grid(SCAN, at((0.0, 0.0, 5000.0)), CONFIG)
    assert caught.value.evidence["landmark"] == "carina"


def test_what_lies_outside_of_the_scan_is_air() -> None:
    volume = Volume(np.full(SCAN.shape, 40, dtype=np.int16), SCAN)
    lower, upper = SCAN.bounds_mm()
    roi = Grid.axis_aligned((lower - 50).tolist(), (upper + 50).tolist(), (4.0, 4.0, 4.0))
    image = prepare(volume, roi, CONFIG)
    soft = (40 + 1024) * 2 / 1624 - 1
    assert image[0, 0, 0] == -1.0
    assert image[tuple(n // 2 for n in image.shape)] == pytest.approx(soft, abs=1e-3)
    assert np.unique(np.round(image, 3)).size <= 3


@pytest.mark.parametrize("spacing_mm", [(5.0, 1.0, 1.0), (0.8, 0.9, 0.7)])
def test_a_ball_stays_where_it_is_whatever_the_slices(spacing_mm: Triple) -> None:
    grid = Grid.axis_aligned((-40.0, -40.0, -40.0), (40.0, 40.0, 40.0), spacing_mm)
    points = grid.to_lps(np.indices(grid.shape).reshape(3, -1).T.astype(np.float64))
    ball = np.linalg.norm(points - (10.0, -5.0, 6.0), axis=1) < 15
    volume = Volume(np.where(ball, 40, -1000).astype(np.int16).reshape(grid.shape), grid)
    roi = Grid.axis_aligned((-40.0, -40.0, -40.0), (40.0, 40.0, 40.0), (2.0, 2.0, 2.0))
    bright = roi.to_lps(np.argwhere(prepare(volume, roi, LungConfig()) > -0.34).astype(np.float64))
    np.testing.assert_allclose(bright.mean(axis=0), (10.0, -5.0, 6.0), atol=0.8)
    assert len(bright) * 8 == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.1)


@pytest.mark.parametrize(("order", "signs"), zip_orientations())
def test_lobes_come_back_where_they_are_in_any_orientation(order: Axes, signs: Axes) -> None:
    volume, labels = painted(oriented(SCAN, order, signs))
    found = segment_lungs(volume, at(CARINA), reader())
    assert found.grid == volume.grid
    assert sides_are_right(found)
    assert min(dice(labels == lobe, found.of(lobe)) for lobe in Lobe) > 0.93


def test_progress_grows_to_one() -> None:
    shares: list[float] = []
    segment_lungs(painted(SCAN)[0], at(CARINA), reader(), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_a_scan_without_lungs_says_what_was_seen() -> None:
    volume = Volume(np.full(SCAN.shape, -1000, dtype=np.int16), SCAN)
    with pytest.raises(LungsNotFoundError) as caught:
        segment_lungs(volume, at(CARINA), reader())
    assert caught.value.evidence["lungs_ml"] == 0.0
    assert caught.value.evidence["searched_mm"] == [320.0, 320.0, 320.0]


def certain(labels: np.ndarray) -> np.ndarray:
    """Probabilities that leave no doubt; the second choice is the next label."""
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    doubt = np.eye(CLASSES, dtype=np.float32)[np.roll(np.arange(CLASSES), -1)][labels]
    return np.ascontiguousarray(np.moveaxis(0.9 * one_hot + 0.1 * doubt, -1, 0))


@pytest.fixture
def two_lungs() -> np.ndarray:
    labels = np.zeros((24, 20, 40), dtype=np.uint8)
    labels[2:12, 2:18, 24:38], labels[12:22, 2:18, 24:38] = Lobe.LEFT_LOWER, Lobe.LEFT_UPPER
    labels[2:12, 2:18, 2:16], labels[12:22, 2:18, 2:16] = Lobe.RIGHT_LOWER, Lobe.RIGHT_UPPER
    labels[10:14, 2:8, 2:16] = Lobe.RIGHT_MIDDLE
    return labels


def test_clean_labels_are_left_alone(two_lungs: np.ndarray) -> None:
    np.testing.assert_array_equal(clean_labels(certain(two_lungs), 2.0), two_lungs)


def test_an_island_goes_to_the_lobe_around_it(two_lungs: np.ndarray) -> None:
    wrong = two_lungs.copy()
    wrong[17:19, 10:12, 30:32] = Lobe.RIGHT_LOWER
    np.testing.assert_array_equal(clean_labels(certain(wrong), 2.0), two_lungs)


def test_a_speck_outside_of_the_lungs_is_dropped(two_lungs: np.ndarray) -> None:
    wrong = two_lungs.copy()
    wrong[0, 0, 19:21] = Lobe.RIGHT_UPPER
    np.testing.assert_array_equal(clean_labels(certain(wrong), 2.0), two_lungs)


def test_a_part_of_a_lung_cut_off_by_opacity_is_kept_but_not_what_lies_beyond_the_chest_wall(
    two_lungs: np.ndarray,
) -> None:
    cut = two_lungs.copy()
    cut[5:7, :, 24:38] = 0
    np.testing.assert_array_equal(clean_labels(certain(cut), 2.0) > 0, cut > 0)
    far = np.pad(two_lungs, [(0, 0), (0, 0), (0, 20)])
    beyond = far.copy()
    beyond[2:22, 2:18, 50:58] = Lobe.LEFT_UPPER
    np.testing.assert_array_equal(clean_labels(certain(beyond), 2.0), far)


def test_a_hole_is_filled_by_the_likeliest_lobe(two_lungs: np.ndarray) -> None:
    probabilities = certain(two_lungs)
    probabilities[:, 17:19, 10:12, 30:32] = 0.1
    probabilities[0, 17:19, 10:12, 30:32] = 0.4
    probabilities[Lobe.LEFT_UPPER, 17:19, 10:12, 30:32] = 0.3
    np.testing.assert_array_equal(clean_labels(probabilities, 2.0), two_lungs)


def test_nothing_stays_nothing() -> None:
    assert not clean_labels(certain(np.zeros((4, 4, 4), dtype=np.uint8)), 2.0).any()


@pytest.mark.slow
def test_the_shipped_network_finds_the_lobes_of_an_unseen_phantom() -> None:
    phantom = make_phantom(PhantomRecipe(seed=1_000_100, spacing_mm=(3.0, 2.0, 2.0)))
    network = LungNetwork.load(load_weights("lungs"), torch.device("cpu"))
    landmarks = {mark: LandmarkPosition(mark, xyz, 1.0) for mark, xyz in phantom.landmarks.items()}
    found = segment_lungs(phantom.volume, landmarks, network)
    truth = resample_labels(phantom.lobes.labels, phantom.volume.grid, found.grid)
    assert dice(truth > 0, found.lungs().mask) >= 0.95
    assert np.mean([dice(truth == lobe, found.of(lobe)) for lobe in Lobe]) >= 0.85
    assert sides_are_right(found)
