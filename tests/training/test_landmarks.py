"""Rewards and returns against closed forms, targets, and what a run writes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.anatomy import Landmark
from pipeline.geometry import Volume
from pipeline.landmarks import LandmarkNetwork, find_landmarks
from pipeline.networks.q_network import STEPS_ZYX, LandmarkConfig, QNetwork
from pipeline.networks.weights import load_weights
from tests.support.tiny_trainings import ALONE, CPU, GRID
from tests.support.tiny_trainings import LANDMARKS as RECIPE
from training import landmarks as training
from training.data.landmark_batches import LandmarkDataset, LandmarkRecipe, Scenes, SceneSampler
from training.data.landmark_dataset import write_scan
from training.landmarks import AgentTraining, closed_form_q, export, greedy_return, rewards, td_targets, train
from training.loop import ProcessGroup, Validation, read_log

CONFIG = RECIPE.config


def scene_at(landmark, position) -> Scenes:
    return Scenes(*(np.array([values]) for values in (0, (0, 0, 0), (10, 10, 10), landmark, position)))


def test_the_reward_is_the_gain_in_euclidean_distance():
    offsets = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    moves = np.array([[0, 1, 0], [1, 0, 0]])
    assert np.allclose(rewards(offsets, moves), [5 - np.sqrt(18), -1])


@pytest.mark.parametrize("distance", [0, 1, 2, 7])
def test_the_return_of_a_straight_walk_is_a_geometric_series_and_the_oscillation_at_its_end(distance):
    gamma = 0.9
    walk = (1 - gamma**distance) / (1 - gamma)
    to_and_fro = -(gamma**distance) / (1 + gamma)
    got = greedy_return(np.array([[0.0, 0.0, float(distance)]]), gamma)
    assert got == pytest.approx(walk + to_and_fro, abs=2e-3)


def test_the_closed_form_is_what_value_iteration_finds():
    gamma, reach = 0.8, 8
    axis = np.arange(-reach, reach + 1)
    offsets = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).astype(float)
    distance = np.linalg.norm(offsets, axis=-1)
    values = np.zeros(distance.shape)
    for _ in range(60):
        options = []
        for step in STEPS_ZYX:
            shift, axes = tuple(step), (0, 1, 2)
            after_value, after_distance = (np.roll(a, shift, axes) for a in (values, distance))
            options.append(distance - after_distance + gamma * after_value)
        core = np.max(options, axis=0)
        values[1:-1, 1:-1, 1:-1] = core[1:-1, 1:-1, 1:-1]
    near = (np.abs(offsets) <= 3).all(axis=-1)
    expected = np.stack(options, axis=-1)[near]
    assert np.allclose(closed_form_q(offsets[near], gamma), expected, atol=0.02)


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_the_best_step_shortens_the_longest_coordinate(offset):
    values = closed_form_q(np.array([offset]), 0.9)[0]
    best = STEPS_ZYX[values.argmax()]
    longest = np.abs(offset).max()
    if longest > 1:
        assert np.dot(best, offset) == pytest.approx(longest, abs=0.05)


def test_stepping_away_is_worth_less_than_stepping_closer():
    values = closed_form_q(np.array([[5.0, 0.0, 0.0]]), 0.9)[0]
    assert values[0] == values.max()
    assert values[1] == values.min()


def test_leaving_the_crop_is_worth_the_rest_of_the_way_in_closed_form(landmark_dataset):
    sampler = SceneSampler(LandmarkDataset.read(landmark_dataset, CONFIG).training_scans, Landmark.CARINA, 0, RECIPE)
    network, scenes = QNetwork(CONFIG), scene_at((14.0, 5.0, 5.0), (9, 5, 5))
    found = td_targets(scenes, np.array([0]), sampler, network, network, 0.9)
    assert found == pytest.approx(closed_form_q(scenes.offsets(), 0.9)[:, 0])


def test_inside_the_network_chooses_the_next_step_and_the_target_network_values_it(landmark_dataset):
    sampler = SceneSampler(LandmarkDataset.read(landmark_dataset, CONFIG).training_scans, Landmark.CARINA, 0, RECIPE)
    network, target = QNetwork(CONFIG), QNetwork(CONFIG)
    for net, favourite in ((network, 2), (target, 3)):
        for parameter in net.parameters():
            torch.nn.init.zeros_(parameter)
        net.head[-1].bias.data[1 + favourite] = 6.0
    got = td_targets(scene_at((5.0, 5.0, 5.0), (5, 5, 4)), np.array([4]), sampler, network, target, 0.9)
    assert got == pytest.approx(1.0 + 0.9 * -1.0)


def test_two_processes_share_the_networks_and_train_the_same_ones_as_one(landmark_dataset, tmp_path):
    dataset = LandmarkDataset.read(landmark_dataset, CONFIG)
    train(RECIPE, dataset, tmp_path / "alone", ALONE)
    for rank in (0, 1):
        with pytest.raises(ValueError, match="process group"):  # at the end they would wait for each other
            train(RECIPE, dataset, tmp_path / "shared", ProcessGroup(CPU, rank, size=2))
        assert len(list((tmp_path / "shared").glob("*.pt"))) == 2 * (rank + 1)
    for path in (tmp_path / "alone").glob("*.pt"):
        alone, shared = (
            torch.load(folder / path.name, weights_only=True) for folder in (path.parent, tmp_path / "shared")
        )
        assert all(torch.equal(alone[key], shared[key]) for key in alone), path.name


def test_the_weights_of_the_best_validation_are_kept(landmark_dataset, tmp_path, monkeypatch):
    scores, seen = iter([0.2, 0.9, 0.5, 0.4]), []

    def greedy_walks(network, sampler):
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return Validation(next(scores), {})

    monkeypatch.setattr(training, "greedy_walks", greedy_walks)
    AgentTraining(LandmarkDataset.read(landmark_dataset, CONFIG), tmp_path, RECIPE, Landmark.CARINA, 0, CPU).run()
    kept = torch.load(tmp_path / "carina-0.pt", weights_only=True)
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())


def test_a_run_logs_and_exports_agents_that_answer_for_both_landmarks(landmark_dataset, tmp_path):
    train(RECIPE, LandmarkDataset.read(landmark_dataset, CONFIG), tmp_path, ALONE)
    for mark in Landmark:
        for level in (0, 1):
            rows = read_log(tmp_path / f"{mark.value}-{level}.csv")
            assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
            assert all(0 <= float(row["right_share"]) <= 1 for row in rows)
    export(RECIPE, tmp_path, tmp_path / "landmarks.safetensors", "1")
    weights = load_weights("landmarks", tmp_path)
    assert weights.recipe == json.loads(json.dumps(training.asdict(RECIPE)))
    volume = Volume(np.full(GRID.shape, -1000, dtype=np.int16), GRID)
    assert set(find_landmarks(volume, LandmarkNetwork.load(weights, CPU))) == set(Landmark)


def test_training_learns_the_way_to_a_bright_spot(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Landmark", [Landmark.CARINA])  # one agent is enough to see
    recipe = LandmarkRecipe(
        config=LandmarkConfig(scales_mm=(8.0,), box=9, widths=(8, 8, 8), hidden=32),
        batch=32,
        warm_steps=(400,),
        dqn_steps=(100,),
        learning_rates=(5e-3, 3e-4),
        walkers=8,
        walk_steps=(10,),
        far_share=(0.0,),
        near_voxels=(3.0,),
        cut_shares=(0.0, 0.0, 0.0),
        save_every=100,
    )
    (tmp_path / "dataset").mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        spot = rng.integers(6, 24, 3)
        hu = np.full(GRID.shape, -900, dtype=np.int16)
        hu[tuple(slice(i - 2, i + 3) for i in spot)] = 400
        z, y, x = (float(i) * 4.0 for i in spot)
        marks = dict.fromkeys(Landmark, (x, y, z))
        write_scan(tmp_path / "dataset" / f"real-{number:02}-0.npz", Volume(hu, GRID), marks, recipe.config)
    aside = {"validation": ["09", "19"], "validation_volumes": ["real-09-0", "real-19-0"]}
    (tmp_path / "dataset" / "splits.json").write_text(json.dumps({"landmarks": aside}))
    train(recipe, LandmarkDataset.read(tmp_path / "dataset", recipe.config), tmp_path / "run", ALONE)
    rows = read_log(tmp_path / "run" / "carina-0.csv")
    first, last = rows[0], rows[4]
    assert float(first["right_share"]) < 0.3
    assert float(last["right_share"]) >= 0.6
