"""How an answer is compared with a phantom's truth."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.anatomy import Landmark
from pipeline.geometry import LandmarkPosition, LesionMask
from pipeline.phantom import Phantom, PhantomRecipe, make_phantom
from pipeline.quantify import Quantification
from pipeline.severity import opacity_range
from training.validation.end_to_end import PhantomResult, compare, compare_clear, summarise

PERFECT = PhantomResult(1, 1.0, 1.0, 1.0, 0.0, 10.0, 10.0, 5, 5, 9.0, 12.0, 5, 5, 5)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(PhantomRecipe(seed=3, spacing_mm=(10.0, 9.0, 9.0), percent_opacity=20.0))


def answer(phantom: Phantom, carina_off_mm: float | None = 0.0) -> Quantification:
    """The truth as an answer, its carina some way off or not found."""
    x, y, z = phantom.landmarks[Landmark.CARINA]
    position = None if carina_off_mm is None else (x, y, z + carina_off_mm)
    return Quantification(
        lungs=phantom.lobes.lungs(),
        lobes=phantom.lobes,
        lesions=phantom.lesions,
        high_opacity=phantom.consolidation,
        severity=phantom.severity,
        opacity_range=opacity_range(phantom.lobes, phantom.lesions, phantom.lesions),
        landmarks=(LandmarkPosition(Landmark.CARINA, position, 1.0),),
        findings=(),
        seconds={},
        models=(),
        device="cpu",
    )


def test_the_truth_is_a_perfect_answer(phantom: Phantom) -> None:
    result = compare(3, phantom, answer(phantom))
    assert (result.lungs_dice, result.lobes_dice, result.lesions_dice, result.carina_error_mm) == (1, 1, 1, 0)
    assert result.percent_opacity == result.true_percent_opacity
    assert (result.lobes_in_range, result.lobe_scores_right, result.lobe_scores_in_range) == (5, 5, 5)


def test_the_carina_error_is_a_distance(phantom: Phantom) -> None:
    assert compare(3, phantom, answer(phantom, carina_off_mm=7.0)).carina_error_mm == pytest.approx(7.0)
    assert compare(3, phantom, answer(phantom, carina_off_mm=None)).carina_error_mm is None


def test_missed_lesions_cost_their_dice(phantom: Phantom) -> None:
    nothing = LesionMask(np.zeros_like(phantom.lesions.mask), phantom.lesions.grid)
    assert compare(3, phantom, replace(answer(phantom), lesions=nothing)).lesions_dice == 0.0


def test_a_carina_that_was_not_found_counts_as_missed() -> None:
    results = [PERFECT, replace(PERFECT, carina_error_mm=None), replace(PERFECT, carina_error_mm=10.5)]
    assert summarise(results)["carina_within_10_mm"] == pytest.approx(1 / 3)


def test_healthy_phantoms_do_not_count_for_the_dice_of_lesions() -> None:
    results = [replace(PERFECT, lesions_dice=0.8), replace(PERFECT, lesions_dice=None, percent_opacity=13.0)]
    summary = summarise(results)
    assert summary["lesions_dice_mean"] == pytest.approx(0.8)
    assert summary["percent_opacity_error_worst"] == pytest.approx(3.0)


def test_a_range_holds_the_truth_give_or_take_half_a_point() -> None:
    results = [PERFECT, replace(PERFECT, percent_opacity_low=10.4), replace(PERFECT, percent_opacity_low=10.6)]
    summary = summarise(results)
    assert summary["percent_opacity_in_range"] == pytest.approx(2 / 3)
    assert summary["percent_opacity_range_width_mean"] == pytest.approx((3.0 + 1.6 + 1.4) / 3)


def test_a_range_beside_the_truth_of_every_affected_lobe_is_told(phantom: Phantom) -> None:
    nothing = LesionMask(np.zeros_like(phantom.lesions.mask), phantom.lesions.grid)
    blind = replace(answer(phantom), opacity_range=opacity_range(phantom.lobes, nothing, nothing))
    result = compare(3, phantom, blind)
    affected = sum(lobe.percent_opacity > 0.5 for lobe in phantom.severity.lobes)
    assert affected > 0
    assert result.lobes_in_range == 5 - affected
    assert result.lobe_scores_right == 5


def test_what_is_called_opacity_in_a_clear_chest_is_told_apart_by_where_it_lies(phantom: Phantom) -> None:
    found = answer(phantom)
    true_lungs = found.lungs.mask & ~phantom.consolidation.mask
    result = compare_clear("clear", true_lungs, found)
    beside = np.count_nonzero(phantom.consolidation.mask) / np.count_nonzero(true_lungs)
    assert result.percent_opacity == found.severity.percent_opacity
    assert result.invented_percent == pytest.approx(100 * beside)
    assert result.invented_opacity_share == 1.0
    inside = np.count_nonzero(found.lesions.mask & true_lungs) / np.count_nonzero(true_lungs)
    assert inside > 0
    assert result.inside_percent == pytest.approx(100 * inside)


def test_exact_lungs_invent_nothing(phantom: Phantom) -> None:
    result = compare_clear("clear", phantom.lobes.lungs().mask, answer(phantom))
    assert (result.lungs_dice, result.invented_percent, result.invented_opacity_share) == (1.0, 0.0, 0.0)
