"""bfloat16 beside float32, on a small network."""

import pytest
import torch

from pipeline.networks.dense_unet import DenseUNet, DenseUNetConfig
from training.validation.bf16_benchmark import LUNG_CROP, compare, lung_batch


def test_both_precisions_answer_and_learn_alike() -> None:
    torch.manual_seed(0)
    network = DenseUNet(DenseUNetConfig(stem=4, growth=4, layers=1, widths=(4, 4, 6, 6, 8)))
    found = compare("small", network, torch.rand(1, 3, 16, 32, 32), repeats=1)
    assert 0 < found.largest_difference < 0.1
    assert found.gradients_cosine == pytest.approx(1.0, abs=0.02)
    assert found.answers > 0
    assert found.gradients > 0


def test_the_lung_network_is_shown_a_chest_of_the_size_it_learns_on() -> None:
    batch = lung_batch()
    assert batch.shape == (1, 1, *LUNG_CROP)
    assert -1.0 == batch.min() < batch.mean() < batch.max() <= 1.0
