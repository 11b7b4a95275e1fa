"""The walk and the agreement of walks, with a Q-function made by hand: step towards what is bright."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.anatomy import Landmark
from pipeline.geometry import Grid, Volume
from pipeline.landmarks import LandmarkNetwork, agree, build_levels, find_landmarks, halve, walk
from pipeline.networks.q_network import STEPS_ZYX, LandmarkConfig
from pipeline.networks.weights import ModelInfo

CONFIG = LandmarkConfig(scales_mm=(12.0, 6.0, 3.0), box=9)


class TowardsTheLight(nn.Module):
    """Values a step by how far it goes towards the brightness in the box; sees none: walks to the head."""

    def forward(self, boxes: Tensor) -> Tensor:
        edge = boxes.shape[-1]
        axis = torch.arange(edge, dtype=torch.float32) - edge // 2
        light = boxes.float() - 1e-6
        pull = torch.stack(
            [(light * axis.reshape([-1 if a == i else 1 for a in range(3)])).sum((1, 2, 3)) for i in range(3)], dim=1
        )
        pull = pull + torch.tensor([1e-3, 0.0, 0.0])
        return pull @ torch.from_numpy(STEPS_ZYX).float().T


class TowardsTheDim(TowardsTheLight):
    """Blind to what is bright."""

    def forward(self, boxes: Tensor) -> Tensor:
        return super().forward(torch.where(boxes < 150, boxes, 0))


def network_of(*landmarks: Landmark) -> LandmarkNetwork:
    agents = {mark: [TowardsTheLight() for _ in CONFIG.scales_mm] for mark in landmarks}
    return LandmarkNetwork(ModelInfo("landmarks", "0", "0"), CONFIG, agents, torch.device("cpu"))


def q_of(landmark: Landmark = Landmark.CARINA, level: int = 2):
    network = network_of(landmark)
    return lambda boxes: network.q_values(landmark, level, boxes)


def lit_volume(centre_mm, grid: Grid | None = None, radius_mm: float = 9.0) -> Volume:
    """Air with one bright ball."""
    grid = grid or Grid((60, 70, 80), (2.0, 2.0, 2.0), (10.0, -20.0, 30.0))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1).astype(np.float64)
    away = np.linalg.norm(grid.to_lps(index) - np.asarray(centre_mm), axis=-1)
    return Volume(np.where(away <= radius_mm, 400, -1000).astype(np.int16), grid)


def turned(grid: Grid, order: tuple[int, ...], flips: tuple[int, ...]) -> Grid:
    """The grid of the same voxels with the array's axes in another order and sense."""
    index = np.array([n - 1 if flip < 0 else 0 for n, flip in zip(grid.shape, flips, strict=True)], dtype=np.float64)
    direction_zyx = np.asarray(grid.direction)[:, ::-1] * np.array(flips)
    x, y, z = (float(v) for v in grid.to_lps(index))
    columns = direction_zyx[:, list(order)][:, ::-1]
    rows = tuple(tuple(float(v) for v in row) for row in columns)
    shape, spacing = ([values[i] for i in order] for values in (grid.shape, grid.spacing_mm))
    return Grid(tuple(shape), tuple(spacing), (x, y, z), rows)


def test_the_light_is_found_coarse_to_fine_within_a_voxel_of_the_finest_scale():
    centre = (101.0, 43.0, 77.0)
    found = find_landmarks(lit_volume(centre), network_of(Landmark.CARINA))[Landmark.CARINA]
    assert found.found
    assert np.linalg.norm(np.subtract(found.position_mm, centre)) <= 3.0
    assert found.confidence == 1.0


@settings(max_examples=12, deadline=None)
@given(order=st.sampled_from(list(permutations(range(3)))), flips=st.sampled_from(list(product((1, -1), repeat=3))))
def test_the_position_does_not_depend_on_the_order_and_sense_of_the_arrays_axes(order, flips):
    centre, network = (101.0, 43.0, 77.0), network_of(Landmark.CARINA)
    upright = lit_volume(centre)
    grid = turned(upright.grid, order, flips)
    other = find_landmarks(lit_volume(centre, grid), network)[Landmark.CARINA]
    same = find_landmarks(upright, network)[Landmark.CARINA]
    assert np.allclose(other.position_mm, same.position_mm, atol=1e-6)


def test_agents_that_see_nothing_walk_out_and_say_that_it_is_not_in_this_scan():
    grid = Grid((60, 70, 80), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    dark = Volume(np.full(grid.shape, -1000, dtype=np.int16), grid)
    absent = find_landmarks(dark, network_of(Landmark.STERNUM_TIP))[Landmark.STERNUM_TIP]
    assert not absent.found
    assert absent.position_mm is None
    assert absent.confidence == 1.0


def test_every_landmark_of_the_network_is_answered():
    answers = find_landmarks(lit_volume((101.0, 43.0, 77.0)), network_of(*Landmark))
    assert set(answers) == set(Landmark)
    assert all(answers[mark].landmark is mark for mark in Landmark)


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 5, 2), (1, 1, 1)])
def test_scans_smaller_than_a_step_are_walked_out_of(shape):
    grid = Grid(shape, (5.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    volume = Volume(np.full(shape, -1000, dtype=np.int16), grid)
    assert not find_landmarks(volume, network_of(Landmark.CARINA))[Landmark.CARINA].found


def test_a_walk_stops_in_the_cycle_and_returns_its_mean():
    level = build_levels(lit_volume((101.0, 43.0, 77.0)), CONFIG)[2]

    def to_and_fro(boxes):
        """Left from where the box's left edge is dark, right from where it is lit."""
        q = np.zeros((len(boxes), 6), dtype=np.float32)
        q[:, 4] = 1.0
        q[np.array([box.any() for box in boxes]), 5] = 2.0
        return q

    (end,) = walk(to_and_fro, level, [(14, 20, 5)])
    lit = [x for x in range(level.grid.shape[2]) if level.boxes(np.array([[14, 20, x]])).any()]
    assert end == (14.0, 20.0, lit[0] - 0.5)


def test_walks_that_meet_share_their_way_and_their_end():
    level = build_levels(lit_volume((101.0, 43.0, 77.0)), CONFIG)[1]
    asked = []

    def counted(boxes):
        asked.append(len(boxes))
        return q_of()(boxes)

    ends = walk(counted, level, [(14, 12, 15), (14, 12, 14), (14, 12, 14)])
    assert ends[1] == ends[2]
    assert sum(asked) < 3 * len(asked)


def test_a_start_outside_counts_as_left():
    level = build_levels(lit_volume((101.0, 43.0, 77.0)), CONFIG)[1]
    assert walk(q_of(), level, [(-1, 0, 0)]) == [None]


def test_half_of_the_walks_must_agree():
    near, far = (10.0, 10.0, 10.0), (30.0, 10.0, 10.0)
    majority = agree([near, near, None, far], 2.5)
    assert majority.index == near
    assert majority.share == 0.5
    minority = agree([near, None, None, far], 2.5)
    assert minority.index is None
    assert minority.share == 0.75


def test_the_agreed_position_is_the_mean_of_its_supporters_alone():
    consensus = agree([(10.0, 10.0, 10.0), (12.0, 10.0, 10.0), (40.0, 40.0, 40.0)], 2.5)
    assert consensus.index == (11.0, 10.0, 10.0)
    assert consensus.share == pytest.approx(2 / 3)


class TowardsTheHead(nn.Module):
    """Steps to the head while the box is dim, to the feet where it is bright: ends where brightness begins."""

    def forward(self, boxes: Tensor) -> Tensor:
        q = torch.zeros((len(boxes), 6))
        q[:, 0] = 1.0
        q[boxes.amax((1, 2, 3)) > 200, 1] = 2.0
        return q


@pytest.mark.parametrize(("gap_mm", "found"), [(30.0, True), (90.0, False)])
def test_a_finer_scale_may_correct_the_coarser_one_but_not_wander_off(gap_mm, found):
    """The coarse agent stops at the dim ball; the fine ones go on until they see the bright slab above it."""
    grid = Grid((110, 60, 60), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    dim = lit_volume((60.0, 60.0, 60.0), grid)
    hu = np.where(dim.hu > 0, -600, -1000).astype(np.int16)
    hu[30 + int(gap_mm / 2) + 12 :] = 400
    agents = {Landmark.CARINA: [TowardsTheDim(), TowardsTheHead(), TowardsTheHead()]}
    network = LandmarkNetwork(ModelInfo("landmarks", "0", "0"), CONFIG, agents, torch.device("cpu"))
    assert find_landmarks(Volume(hu, grid), network)[Landmark.CARINA].found is found


def test_halving_takes_means_and_counts_what_lies_outside_as_air():
    values = np.full((3, 2, 2), 100, dtype=np.uint8)
    assert halve(values).tolist() == [[[100]], [[50]]]


def test_the_levels_start_at_the_same_corner():
    grid = Grid((61, 71, 83), (2.0, 1.5, 1.5), (3.0, -20.0, 30.0))
    levels = build_levels(Volume(np.zeros(grid.shape, dtype=np.int16), grid), CONFIG)
    lowers = [level.grid.bounds_mm()[0] for level in levels]
    assert np.allclose(lowers, grid.bounds_mm()[0])
    assert [level.grid.spacing_mm[0] for level in levels] == list(CONFIG.scales_mm)


def test_thin_slices_keep_their_place_when_they_are_averaged_down():
    centre = (40.0, 41.0, 42.0)
    thin = Grid((200, 140, 140), (0.5, 0.6, 0.6), (0.0, 0.0, 0.0))
    level = build_levels(lit_volume(centre, thin), CONFIG)[2]
    margin = CONFIG.box // 2
    values = level.padded[margin:-margin, margin:-margin, margin:-margin].astype(float)
    index = np.array([(values * axis).sum() / values.sum() for axis in np.indices(values.shape)])
    assert np.allclose(level.grid.to_lps(index), centre, atol=0.5)


def test_boxes_are_centred_on_the_agent_and_empty_beyond_the_scan():
    grid = Grid((8, 8, 8), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    level = build_levels(Volume(np.full(grid.shape, 400, dtype=np.int16), grid), CONFIG)[2]
    (corner,) = level.boxes(np.array([[0, 0, 0]]))
    assert corner.shape == (9, 9, 9)
    assert corner[4, 4, 4] == 255
    assert not corner[:4].any()
    assert (corner[4:, 4:, 4:] == 255).all()
