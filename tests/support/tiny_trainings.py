"""The three trainings at their smallest: recipes, and datasets of a few volumes."""

import json
from pathlib import Path

import numpy as np
import torch

from pipeline.anatomy import Landmark
from pipeline.geometry import Grid, Volume
from pipeline.networks.dense_unet import DenseUNetConfig
from pipeline.networks.di2in import LungConfig
from pipeline.networks.q_network import LandmarkConfig
from training.data.landmark_batches import LandmarkRecipe
from training.data.landmark_dataset import write_scan
from training.data.lesion_batches import LesionRecipe
from training.data.lung_batches import LungRecipe
from training.loop import ProcessGroup

CPU = torch.device("cpu")
ALONE = ProcessGroup(CPU)
GRID = Grid((30, 30, 30), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
LANDMARKS = LandmarkRecipe(
    config=LandmarkConfig(scales_mm=(12.0, 6.0), box=9, widths=(2, 4, 4), hidden=8),
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
LUNG_CONFIG = LungConfig(widths=(4, 6, 8), detail_width=4)
LUNGS = LungRecipe(
    trunk_steps=6,
    detail_steps=2,
    learning_rate=0.01,
    warmup_steps=1,
    crop=(24, 24, 32),
    whole_share=0.3,
    detail_crop=(16, 16, 16),
    level_weights=(1.0, 0.5),
    bfloat16=False,
)
LESIONS = LesionRecipe(
    steps=4,
    crop=(16, 32, 32),
    validate_every=2,
    bfloat16=False,
    network=DenseUNetConfig(stem=4, growth=4, layers=1, widths=(4, 4, 4, 4, 4)),
)


def five_lobes() -> np.ndarray:
    labels = np.zeros((24, 24, 32), dtype=np.uint8)
    labels[2:12, 2:22, 18:30], labels[12:22, 2:22, 18:30] = 2, 1
    labels[2:12, 2:22, 2:14], labels[12:22, 2:22, 2:14], labels[8:14, 2:10, 2:14] = 5, 3, 4
    return labels


def write_landmark_dataset(folder: Path) -> Path:
    """Ten scans of noise, the landmarks inside of most and above the last."""
    for number in range(10):
        hu = np.random.default_rng(number).integers(-1000, 400, GRID.shape).astype(np.int16)
        z = 60.0 if number < 9 else 150.0
        marks = {Landmark.CARINA: (60.0, 70.0, z), Landmark.STERNUM_TIP: (60.0, 20.0, z)}
        name = f"{'real' if number % 2 else 'phantom'}-{number}-0.npz"
        write_scan(folder / name, Volume(hu, GRID), marks, LANDMARKS.config)
    aside = {"validation": ["phantom-8"], "validation_volumes": ["phantom-8-0"], "test": ["7"]}
    (folder / "splits.json").write_text(json.dumps({"landmarks": aside}))
    return folder


def write_lung_dataset(folder: Path) -> Path:
    """Five lobes of five shades, for training, validation and test."""
    rng, labels = np.random.default_rng(0), five_lobes()
    for name in ("case01-000", "case02-000", "phantom-0007", "phantom-0000", "case05-000"):
        image = np.where(labels > 0, 20 * labels, 180) + rng.integers(0, 8, labels.shape)
        np.savez(folder / f"{name}.npz", image=image.astype(np.uint8), labels=labels)
    return folder


def write_lesion_dataset(folder: Path) -> Path:
    """Bright balls in dark lungs, for every kind and for the patients kept aside."""
    rng = np.random.default_rng(0)
    names = ["covid-0-0", "covid-4-0", "covid-2-0", "grown-case01-0", "grown-case04-1", "clean-case04-0", "phantom-2-0"]
    for name in names:
        lungs, lesions = np.zeros((2, 16, 48, 48), dtype=np.bool_)
        lungs[2:14, 4:44, 4:44] = True
        lesions[4:12, 10:30, 10:30] = not name.startswith("clean")
        image = (60 + 90 * lesions + rng.integers(0, 20, lungs.shape)).astype(np.uint8)
        np.savez(folder / f"{name}.npz", image=image, lungs=lungs, lesions=lesions)
    return folder
