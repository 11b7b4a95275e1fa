"""Every real patient is marked by a network that never saw it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit

from training import lesions as training
from training.data.covid_slices import CASE_STARTS
from training.validation import lesion_folds
from training.validation.lesion_folds import (
    FOLDS,
    LEVELS,
    PROBABILITIES,
    By,
    Marked,
    chosen_by_others,
    main,
    own_level,
    summary,
)
from training.validation.lesions import LesionResult

RECIPE = {
    "steps": 2,
    "crop": [16, 32, 32],
    "validate_every": 2,
    "bfloat16": False,
    "kinds": {"covid": 1.0},
    "network": {"stem": 4, "growth": 4, "layers": 1, "widths": [4, 4, 4, 4, 4]},
}


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    folder = tmp_path / "bank"
    folder.mkdir()
    lungs = np.zeros((16, 48, 48), dtype=np.bool_)
    lungs[2:14, 4:44, 4:44] = True
    lesions = np.zeros_like(lungs)
    lesions[4:12, 10:30, 10:30] = True
    for name in ("covid-0-0", "covid-0-1", "covid-1-0", "covid-2-0", "grown-case05-0"):
        np.savez(folder / f"{name}.npz", image=np.uint8(60 + 90 * lesions), lungs=lungs, lesions=lesions)
    return folder


def test_the_folds_hold_each_case_once() -> None:
    assert sorted(case for fold in FOLDS for case in fold) == list(range(len(CASE_STARTS)))


def test_no_patient_is_marked_by_what_it_taught(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And all runs begin with the same weights; a second call finds them done."""
    recipe = json.dumps(RECIPE)
    training.main([str(bank), str(tmp_path / "pre"), "--recipe", recipe, "--device", "cpu"])
    capsys.readouterr()
    taught: list[set[str]] = []
    read = training.read_examples

    def note(folder: Path, teaches: object) -> list[object]:
        examples = read(folder, teaches)  # type: ignore[arg-type]
        taught.append({example.name for example in examples})
        return list(examples)

    monkeypatch.setattr(training, "read_examples", note)
    start = str(tmp_path / "pre" / "last.pt")
    arguments = [str(bank), str(tmp_path / "out"), "--start", start, "--recipe", recipe, "--device", "cpu"]
    main([*arguments, "--folds", "[[0], [1, 2]]"])
    assert taught == [{"covid-1-0", "covid-2-0"}, {"covid-0-0", "covid-0-1"}]
    shown = capsys.readouterr().out
    assert all(f"| {name} |" in shown for name in ("covid-0-0", "covid-0-1", "covid-1-0", "covid-2-0"))
    assert "case05" not in shown
    main([*arguments, "--folds", "[[0], [1, 2]]"])
    assert capsys.readouterr().out == shown
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"fold-0", "fold-1-2"}


def test_the_mean_is_over_patients_not_volumes() -> None:
    results = [
        LesionResult("covid-0-0", 0.2, 0.1, 10.0, 20.0),
        LesionResult("covid-0-1", 0.4, 0.1, 12.0, 22.0),
        LesionResult("covid-3-0", 0.9, 0.3, 2.0, 2.0),
    ]
    assert summary(results).splitlines() == [
        "| case | 0 | 3 | mean |",
        "|---|---|---|---|",
        "| Dice | 0.30 | 0.90 | 0.60 |",
        "| baseline | 0.10 | 0.30 | 0.20 |",
        "| percent found | 11.0 | 2.0 | 6.5 |",
        "| percent true | 21.0 | 2.0 | 11.5 |",
    ]


def test_the_command_asks_for_where_to_begin(bank: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        lesion_folds.main([str(bank), str(tmp_path / "out")])


def by(case: int, ways: Sequence[tuple[float, ...]], dices: dict[tuple[float, ...], float]) -> By:
    """A Dice of 0 wherever nothing else is said."""
    return {way: LesionResult(f"covid-{case}-0", dices.get(way, 0.0), 0.1, 1.0, 1.0) for way in ways}


def marked(case: int, by_probability: dict[float, float], by_level: dict[tuple[float, ...], float]) -> Marked:
    probabilities = by(case, [(p,) for p in PROBABILITIES], {(p,): dice for p, dice in by_probability.items()})
    return Marked(probabilities[0.5,], probabilities, by(case, LEVELS, by_level))


def test_no_fold_chooses_for_itself() -> None:
    folds = [
        [marked(0, {0.5: 0.9, 0.1: 0.2}, {(0.6, 1.0): 0.2})],
        [marked(1, {0.5: 0.1, 0.1: 0.8}, {(0.6, 1.0): 0.9, (0.7, 2.0): 0.4})],
        [marked(2, {0.5: 0.3, 0.1: 0.7}, {(0.6, 1.0): 0.1, (0.7, 2.0): 0.8})],
    ]
    chosen = chosen_by_others(folds, lambda volume: volume.from_probability)
    assert [result.dice for result in chosen] == [0.2, 0.1, 0.3]
    chosen = chosen_by_others(folds, lambda volume: volume.from_own_level)
    assert [result.dice for result in chosen] == [0.0, 0.4, 0.1]


LUNGS = np.ones((100, 20, 20), dtype=np.bool_)


def seen_with(healthy: float, lesion: float, percent: int) -> np.ndarray:
    """So many slices of the hundred are seen as a lesion."""
    logits = np.full(LUNGS.shape, healthy, dtype=np.float32)
    logits[:percent] = lesion
    return np.asarray(expit(logits), dtype=np.float32)


@pytest.mark.parametrize("share", [0.6, 0.8])
@pytest.mark.parametrize("lowering", [0.0, 3.0])
@pytest.mark.parametrize("surer", [0.0, 4.0])
def test_a_patients_own_level_parts_what_is_seen_as_two_kinds(share: float, lowering: float, surer: float) -> None:
    """However sure the network is of either."""
    level = own_level(seen_with(surer - 6.0, surer - 1.0, 1), LUNGS, share, lowering)
    assert logit(level) == pytest.approx(surer - 6.0 + 5.0 * share, abs=0.01)


def test_a_patients_own_level_is_lower_where_the_disease_is_wide() -> None:
    level = own_level(seen_with(-6.0, -1.0, 20), LUNGS, 0.8, 2.0)
    assert logit(level) == pytest.approx(-6.0 + 5.0 * 0.8 - 2.0 * np.log(20 / 5), abs=0.01)


def test_lungs_seen_as_one_kind_have_a_level_too() -> None:
    assert own_level(seen_with(-4.0, 8.0, 1), LUNGS & (np.arange(100) > 0)[:, None, None], 0.6, 0.0) == pytest.approx(
        expit(-4.0), rel=0.01
    )
    assert own_level(np.ones(LUNGS.shape, dtype=np.float32), LUNGS, 0.6, 0.0) == 0.5
