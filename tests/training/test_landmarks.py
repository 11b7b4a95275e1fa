"""Rewards and returns against closed forms, the scenes, and a run that is stopped and goes on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.anatomy import Landmark
from pipeline.geometry import Grid, Volume
from pipeline.landmarks import LandmarkNetwork, find_landmarks
from pipeline.networks.q_network import STEPS_ZYX, LandmarkConfig
from pipeline.networks.weights import load_weights
from training import landmarks as training
from training.data.landmark_dataset import write_scan
from training.landmarks import (
    AgentRun,
    LandmarkDataset,
    LandmarkRecipe,
    Nets,
    Replay,
    Scenes,
    SceneSampler,
    closed_form_q,
    export,
    greedy_return,
    rewards,
    td_targets,
    train,
    vary_intensity,
)
from training.loop import ProcessGroup, read_log

CPU = torch.device("cpu")
ALONE = ProcessGroup(CPU)
CONFIG = LandmarkConfig(scales_mm=(12.0, 6.0), box=9, widths=(2, 4, 4), hidden=8)
RECIPE = LandmarkRecipe(
    config=CONFIG,
    batch=8,
    warm_steps=(4, 4),
    dqn_steps=(4, 4),
    walkers=4,
    walk_steps=(3, 3),
    replay=32,
    replay_first=16,
    target_every=2,
    far_share=(0.5, 0.5),
    near_voxels=(3.0, 3.0),
    save_every=2,
)
GRID = Grid((30, 30, 30), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    """Ten scans of noise, the landmarks inside of most and above the last."""
    folder = tmp_path_factory.mktemp("dataset")
    for number in range(10):
        hu = np.random.default_rng(number).integers(-1000, 400, GRID.shape).astype(np.int16)
        z = 60.0 if number < 9 else 150.0
        marks = {Landmark.CARINA: (60.0, 70.0, z), Landmark.STERNUM_TIP: (60.0, 20.0, z)}
        write_scan(folder / f"{'real' if number % 2 else 'phantom'}-{number}-0.npz", Volume(hu, GRID), marks, CONFIG)
    aside = {"validation": ["phantom-8"], "validation_volumes": ["phantom-8-0"], "test": ["7"]}
    (folder / "splits.json").write_text(json.dumps({"landmarks": aside}))
    return folder


def scenes_at(landmark, position, low=(0, 0, 0), high=(10, 10, 10)) -> Scenes:
    return Scenes(
        np.array([0]), np.array([low]), np.array([high]), np.array([landmark], dtype=float), np.array([position])
    )


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


def test_a_dataset_scan_keeps_its_landmark_in_mm_from_the_corner(dataset_folder):
    scan = LandmarkDataset.read(dataset_folder, CONFIG).training_scans[0]
    assert scan.name == "phantom-0-0"
    assert np.allclose(scan.landmarks_mm[Landmark.CARINA], (62.0, 72.0, 62.0))
    assert scan.shapes == ((10, 10, 10), (20, 20, 20))
    assert scan.levels[0].shape == (18, 18, 18)


def test_what_lies_beyond_the_crop_is_not_seen(dataset_folder):
    sampler = SceneSampler(LandmarkDataset.read(dataset_folder, CONFIG).training_scans, Landmark.CARINA, 0, RECIPE)
    (box,) = sampler.boxes(scenes_at((5, 5, 5), (5, 5, 5), low=(4, 0, 0), high=(10, 6, 10)))
    (whole,) = sampler.boxes(scenes_at((5, 5, 5), (5, 5, 5)))
    assert not box[:3].any()
    assert not box[:, 5:].any()
    assert np.array_equal(box[3:, :5], whole[3:, :5])
    assert whole[3:, :5].any()


@pytest.mark.parametrize("level", [0, 1])
def test_agents_are_placed_within_their_crop_and_some_landmarks_without(dataset_folder, level):
    dataset = LandmarkDataset.read(dataset_folder, CONFIG).training_scans
    scenes = SceneSampler(dataset, Landmark.CARINA, level, RECIPE).draw(300, np.random.default_rng(0))
    assert scenes.inside().all()
    assert (scenes.high - scenes.low).min() >= 1
    outside = ((scenes.landmark < scenes.low - 0.5) | (scenes.landmark > scenes.high - 0.5)).any(axis=1)
    assert 0.05 < outside.mean() < 0.6


def test_half_of_the_scenes_are_real(dataset_folder):
    dataset = LandmarkDataset.read(dataset_folder, CONFIG).training_scans
    scenes = SceneSampler(dataset, Landmark.CARINA, 0, RECIPE).draw(400, np.random.default_rng(0))
    real = np.array([dataset[scan].name.startswith("real") for scan in scenes.scan])
    assert 0.4 < real.mean() < 0.6


def test_leaving_the_crop_is_worth_the_rest_of_the_way_in_closed_form(dataset_folder):
    sampler = SceneSampler(LandmarkDataset.read(dataset_folder, CONFIG).training_scans, Landmark.CARINA, 0, RECIPE)
    nets = Nets.new(RECIPE, CPU)
    scenes = scenes_at((14.0, 5.0, 5.0), (9, 5, 5))
    assert td_targets(scenes, np.array([0]), sampler, nets, 0.9) == pytest.approx(
        closed_form_q(scenes.offsets(), 0.9)[:, 0]
    )


def test_inside_the_network_chooses_the_next_step_and_the_target_network_values_it(dataset_folder):
    sampler = SceneSampler(LandmarkDataset.read(dataset_folder, CONFIG).training_scans, Landmark.CARINA, 0, RECIPE)
    nets = Nets.new(RECIPE, CPU)
    for net, favourite in ((nets.network, 2), (nets.target, 3)):
        for parameter in net.parameters():
            torch.nn.init.zeros_(parameter)
        net.head[-1].bias.data[1 + favourite] = 6.0
    got = td_targets(scenes_at((5.0, 5.0, 5.0), (5, 5, 4)), np.array([4]), sampler, nets, 0.9)
    assert got == pytest.approx(1.0 + 0.9 * -1.0)


def test_the_replay_overwrites_the_oldest():
    replay, rng = Replay(4), np.random.default_rng(0)
    for z in range(6):
        replay.add(scenes_at((5.5, 5, 5), (z, 5, 5)), np.array([z]))
    scenes, actions = replay.sample(200, rng)
    assert len(replay) == 4
    assert set(actions.tolist()) == {2, 3, 4, 5}
    assert np.array_equal(scenes.position[:, 0], actions)
    assert (scenes.landmark == (5.5, 5, 5)).all()


def test_air_stays_air_when_intensities_vary():
    boxes = np.zeros((2, 3, 3, 3), dtype=np.uint8)
    boxes[:, 1] = 100
    varied = vary_intensity(boxes, np.random.default_rng(0))
    assert not varied[:, 0].any()
    assert (varied[:, 1] > 50).all()
    assert not np.array_equal(varied, boxes)


class KilledError(Exception):
    pass


def test_no_scan_of_a_patient_for_validation_or_test_is_learned_from(dataset_folder):
    dataset = LandmarkDataset.read(dataset_folder, CONFIG)
    assert [scan.name for scan in dataset.validation_scans] == ["phantom-8-0"]
    assert {scan.name for scan in dataset.training_scans} == {
        *(f"phantom-{number}-0" for number in (0, 2, 4, 6)),
        *(f"real-{number}-0" for number in (1, 3, 5, 9)),
    }


def test_a_stopped_run_goes_on_to_the_very_same_weights(dataset_folder, tmp_path, monkeypatch):
    dataset = LandmarkDataset.read(dataset_folder, CONFIG)
    train(RECIPE, dataset, tmp_path / "whole", ALONE)
    saved, save = [], AgentRun.save

    def save_and_die(run):
        save(run)
        saved.append(run.step)
        if len(saved) == 6:
            raise KilledError

    monkeypatch.setattr(AgentRun, "save", save_and_die)
    with pytest.raises(KilledError):
        train(RECIPE, dataset, tmp_path / "stopped", ALONE)
    train(RECIPE, dataset, tmp_path / "stopped", ALONE)
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.pt"))
    assert len(names) == 4
    for name in names:
        whole, stopped = (torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "stopped"))
        assert all(torch.equal(whole[key], stopped[key]) for key in whole), name
    assert not list((tmp_path / "stopped").glob("*.checkpoint"))


def test_two_processes_share_the_networks_and_train_the_same_ones_as_one(dataset_folder, tmp_path):
    dataset = LandmarkDataset.read(dataset_folder, CONFIG)
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


def test_the_weights_of_the_best_validation_are_kept(dataset_folder, tmp_path, monkeypatch):
    verdicts = iter([0.2, 0.9, 0.5, 0.4])
    seen = {}

    def validate(network, sampler):
        seen[len(seen)] = {name: value.clone() for name, value in network.state_dict().items()}
        return training.Validation(0.0, next(verdicts), np.zeros((1, 1, 3), dtype=np.uint8))

    monkeypatch.setattr(training, "validate", validate)
    run = AgentRun.begin(RECIPE, LandmarkDataset.read(dataset_folder, CONFIG), tmp_path, Landmark.CARINA, 0, 0, CPU)
    run.finish()
    kept = torch.load(tmp_path / "carina-0.pt", weights_only=True)
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())


def test_a_run_logs_and_exports_agents_that_answer_for_both_landmarks(dataset_folder, tmp_path):
    train(RECIPE, LandmarkDataset.read(dataset_folder, CONFIG), tmp_path, ALONE)
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


def test_longer_runs_differ_in_their_steps_alone():
    longer = RECIPE.longer(3)
    assert (longer.warm_steps, longer.dqn_steps) == ((12, 12), (12, 12))
    assert replace(longer, warm_steps=RECIPE.warm_steps, dqn_steps=RECIPE.dqn_steps) == RECIPE
