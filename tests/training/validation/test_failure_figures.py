"""Pictures of the worst cases."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.anatomy import Landmark, Lobe
from pipeline.geometry import LandmarkPosition, LesionMask, LobeLabels
from pipeline.phantom import Phantom, PhantomRecipe, make_phantom
from pipeline.quantify import Models, Quantification
from pipeline.severity import opacity_range
from training.validation import failure_figures
from training.validation.end_to_end import compare
from training.validation.failure_figures import Answer, draw_carinas, draw_masks, lesions_of, lobes_of, worst

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(PhantomRecipe(seed=3, spacing_mm=(10.0, 9.0, 9.0), percent_opacity=20.0))


def answer(phantom: Phantom, seed: int, carina_mm: tuple[float, float, float] | None, shift: int = 1) -> Answer:
    """The truth, its labels and lesions moved by some slices, its carina somewhere."""
    lobes = LobeLabels(np.roll(phantom.lobes.labels, shift, axis=0), phantom.lobes.grid)
    lesions = LesionMask(np.roll(phantom.lesions.mask, shift, axis=0), phantom.lesions.grid)
    found = Quantification(
        lungs=lobes.lungs(),
        lobes=lobes,
        lesions=lesions,
        high_opacity=phantom.consolidation,
        severity=phantom.severity,
        opacity_range=opacity_range(lobes, lesions, lesions),
        landmarks=(LandmarkPosition(Landmark.CARINA, carina_mm, 1.0),),
        findings=(),
        seconds={},
        models=(),
        device="cpu",
    )
    return Answer(phantom, found, compare(seed, phantom, found))


def test_the_worst_come_first(phantom: Phantom) -> None:
    result = answer(phantom, 1, None).result
    results = [replace(result, seed=seed, lungs_dice=dice) for seed, dice in ((1, 0.9), (2, 0.7), (3, 0.8))]
    assert worst(results, lambda r: -r.lungs_dice) == [2, 3]


def test_lung_in_a_wrong_lobe_counts_as_missed(phantom: Phantom) -> None:
    case = answer(phantom, 1, None, shift=0)
    case.found.lobes.labels[case.found.lobes.of(Lobe.LEFT_UPPER)] = Lobe.LEFT_LOWER
    pair, _ = lobes_of(case)
    np.testing.assert_array_equal(pair.truth & ~pair.predicted, phantom.lobes.of(Lobe.LEFT_UPPER))


def test_titles_say_how_wrong_it_is(phantom: Phantom) -> None:
    case = answer(phantom, 1, None)
    assert f"Dice {case.result.lesions_dice:.3f}" in lesions_of(case)[1]
    assert lesions_of(replace(case, result=replace(case.result, lesions_dice=None)))[1].startswith("lesions, no true")


@pytest.mark.parametrize("found", [True, False])
def test_pictures_are_drawn_whatever_was_found(phantom: Phantom, tmp_path: Path, *, found: bool) -> None:
    carina = phantom.landmarks[Landmark.CARINA] if found else None
    case = answer(phantom, 1, carina, shift=0 if found else 2)
    draw_carinas(tmp_path / "carinas.png", [case])
    draw_masks(tmp_path / "masks.png", [(case, *lesions_of(case)), (case, *lobes_of(case))])
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in ("carinas.png", "masks.png"))


def test_every_network_gets_its_picture(phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def fake(_models: object, seed: int) -> Answer:
        made.append(seed)
        return answer(phantom, seed, phantom.landmarks[Landmark.CARINA], shift=seed % 3)

    monkeypatch.setattr(failure_figures, "answer", fake)
    monkeypatch.setattr(
        failure_figures, "evaluate_phantoms", lambda models, count: [fake(models, n).result for n in range(count)]
    )
    failure_figures.draw_failures(Models.__new__(Models), 3, tmp_path)  # the fake asks nothing of the models
    assert {path.name for path in tmp_path.iterdir()} == {
        f"failures-{network}.png" for network in ("landmarks", "lungs", "lesions")
    }
    assert len(made) <= 6
