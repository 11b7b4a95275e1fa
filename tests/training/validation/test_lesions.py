"""The tables that model cards quote."""

import torch

from pipeline.lesions import LesionNetwork
from pipeline.networks.weights import load_weights
from training.validation.lesions import LesionResult, evaluate_phantoms, means, table

SICK = LesionResult("covid-2-0", 0.7, 0.3, 30.0, 32.0)
CLEAR = LesionResult("clean-case05-0", 0.0, 0.0, 0.4, 0.0)


def test_a_clear_lung_has_no_dice_but_a_percentage() -> None:
    rows = table([SICK, CLEAR]).splitlines()
    assert rows[2] == "| covid-2-0 | 0.700 | 0.300 | 30.00 | 32.00 |"
    assert rows[3] == "| clean-case05-0 | - | - | 0.40 | 0.00 |"


def test_means_are_by_kind_and_count_clear_lungs_in_the_error_alone() -> None:
    lines = means([SICK, CLEAR]).splitlines()
    assert lines[0] == "clean: mean error 0.40 points of PO over 1 volumes"
    assert lines[1] == "covid: Dice 0.700, baseline 0.300, mean error 2.00 points of PO over 1 volumes"


def test_the_shipped_network_finds_the_lesions_of_a_phantom_that_no_training_saw() -> None:
    (result,) = evaluate_phantoms(1, LesionNetwork.load(load_weights("lesions"), torch.device("cpu")))
    assert result.true_percent > 1
    assert result.dice > 0.8 > result.baseline_dice
