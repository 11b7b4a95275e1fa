"""Scenes of the landmark agents, what they see in them, and what they remember."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.anatomy import Landmark
from tests.support.tiny_trainings import LANDMARKS as RECIPE
from training.data.landmark_batches import LandmarkDataset, Replay, Scenes, SceneSampler, vary_intensity

CONFIG = RECIPE.config


def scenes_at(landmark, position, low=(0, 0, 0), high=(10, 10, 10)) -> Scenes:
    return Scenes(
        np.array([0]), np.array([low]), np.array([high]), np.array([landmark], dtype=float), np.array([position])
    )


def test_a_dataset_scan_keeps_its_landmark_in_mm_from_the_corner(landmark_dataset):
    scan = LandmarkDataset.read(landmark_dataset, CONFIG).training_scans[0]
    assert scan.name == "phantom-0-0"
    assert np.allclose(scan.landmarks_mm[Landmark.CARINA], (62.0, 72.0, 62.0))
    assert scan.shapes == ((10, 10, 10), (20, 20, 20))
    assert scan.levels[0].shape == (18, 18, 18)


def test_what_lies_beyond_the_crop_is_not_seen(landmark_dataset):
    sampler = SceneSampler(LandmarkDataset.read(landmark_dataset, CONFIG).training_scans, Landmark.CARINA, 0, RECIPE)
    (box,) = sampler.boxes(scenes_at((5, 5, 5), (5, 5, 5), low=(4, 0, 0), high=(10, 6, 10)))
    (whole,) = sampler.boxes(scenes_at((5, 5, 5), (5, 5, 5)))
    assert not box[:3].any()
    assert not box[:, 5:].any()
    assert np.array_equal(box[3:, :5], whole[3:, :5])
    assert whole[3:, :5].any()


@pytest.mark.parametrize("level", [0, 1])
def test_agents_are_placed_within_their_crop_and_some_landmarks_without(landmark_dataset, level):
    dataset = LandmarkDataset.read(landmark_dataset, CONFIG).training_scans
    scenes = SceneSampler(dataset, Landmark.CARINA, level, RECIPE).draw(300, np.random.default_rng(0))
    assert scenes.inside().all()
    assert (scenes.high - scenes.low).min() >= 1
    outside = ((scenes.landmark < scenes.low - 0.5) | (scenes.landmark > scenes.high - 0.5)).any(axis=1)
    assert 0.05 < outside.mean() < 0.6


def test_half_of_the_scenes_are_real(landmark_dataset):
    dataset = LandmarkDataset.read(landmark_dataset, CONFIG).training_scans
    scenes = SceneSampler(dataset, Landmark.CARINA, 0, RECIPE).draw(400, np.random.default_rng(0))
    real = np.array([dataset[scan].name.startswith("real") for scan in scenes.scan])
    assert 0.4 < real.mean() < 0.6


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


def test_no_scan_of_a_patient_for_validation_or_test_is_learned_from(landmark_dataset):
    dataset = LandmarkDataset.read(landmark_dataset, CONFIG)
    assert [scan.name for scan in dataset.validation_scans] == ["phantom-8-0"]
    assert {scan.name for scan in dataset.training_scans} == {
        *(f"phantom-{number}-0" for number in (0, 2, 4, 6)),
        *(f"real-{number}-0" for number in (1, 3, 5, 9)),
    }


def test_longer_runs_differ_in_their_steps_alone():
    longer = RECIPE.longer(3)
    assert (longer.warm_steps, longer.dqn_steps) == ((12, 12), (12, 12))
    assert replace(longer, warm_steps=RECIPE.warm_steps, dqn_steps=RECIPE.dqn_steps) == RECIPE
