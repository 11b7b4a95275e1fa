"""A simulated cohort: what is in it, what its files say, and how it goes on after a stop."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.errors import OtherCohortError
from evaluation.masks import compare_all, read_manifest
from evaluation.scores import Metric, read_pairs
from pipeline.errors import LungsNotFoundError
from pipeline.geometry import LesionMask, LobeLabels, Scan
from pipeline.quantify import Quantification
from pipeline.severity import high_opacity_of, opacity_range, score_severity
from training.validation.simulated_cohort import (
    LABEL,
    Case,
    CohortRecipe,
    Line,
    in_this_process,
    main,
    plan,
    run_cohort,
)

RECIPE = CohortRecipe(first_seed=2_000_000, spacing_mm=(12.0, 10.0, 10.0), weights_sha256={})


def thresholds(scan: Scan) -> Quantification:
    """Quarters of what is dark take the place of lobes, and what is less dark there that of lesions."""
    grid, dark = scan.volume.grid, (scan.volume.hu > -980) & (scan.volume.hu < -300)
    columns = np.broadcast_to(np.arange(grid.shape[2]), grid.shape)
    lobes = LobeLabels(np.where(dark, 1 + columns % 5, 0).astype(np.uint8), grid)
    lesions = LesionMask(dark & (scan.volume.hu > -650), grid)
    return Quantification(
        lungs=lobes.lungs(),
        lobes=lobes,
        lesions=lesions,
        high_opacity=LesionMask(high_opacity_of(scan.volume, lesions.mask), grid),
        severity=score_severity(scan.volume, lobes.lungs(), lobes, lesions),
        opacity_range=opacity_range(lobes, lesions, lesions),
        landmarks=(),
        findings=(),
        seconds={"lungs": 1.0},
        models=(),
        device="cpu",
    )


def refuse(_scan: Scan) -> Quantification:
    raise LungsNotFoundError("none")


def counting(seen: list[str], quantifier: object = thresholds) -> object:
    """Runs the cases and notes which."""

    def run(cases: Sequence[Case]) -> Iterator[Line]:
        seen.extend(case.name for case in cases)
        yield from in_this_process(quantifier)(cases)  # type: ignore[arg-type]

    return run


def test_a_plan_alternates_and_grows_without_moving_anyone() -> None:
    small, large = plan(2, 1, RECIPE), plan(4, 6, RECIPE)
    assert [case.is_control for case in small] == [False, True, False]
    assert set(small) <= set(large)
    assert len({case.seed for case in large}) == 10
    assert sum(case.is_control for case in large) == 6


def test_covid_like_cases_have_opacity_and_controls_have_none() -> None:
    cases = plan(60, 60, RECIPE)
    opacities = [case.recipe.percent_opacity for case in cases if not case.is_control]
    assert min(opacities) >= 1
    assert max(opacities) <= 60
    assert np.median(opacities) < 15
    assert {case.recipe.percent_opacity for case in cases if case.is_control} == {0.0}


def test_the_files_can_be_evaluated(tmp_path: Path) -> None:
    lines = run_cohort(tmp_path, RECIPE, plan(1, 1, RECIPE), in_this_process(thresholds, tmp_path / "masks"))
    paired = read_pairs(tmp_path / "truth.csv", tmp_path / "predicted.csv")
    assert paired.cases == ("simulated-2000000", "simulated-2000001")
    assert paired.groups == ("covid-like", "control")
    truth, predicted = paired.values(Metric.PO)
    assert truth[0] > 0.9
    assert truth[1] == 0
    assert predicted[0] > 0
    assert all(line["label"] == LABEL == "simulated cohort" for line in lines)
    assert 0 < lines[0]["dice"]["lungs"] < 1
    assert json.loads((tmp_path / "cohort.json").read_text())["label"] == LABEL


def test_kept_masks_give_the_same_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_device: str, _weights: object) -> object:
        return type("NoModels", (), {"infos": ()})()

    monkeypatch.setattr("training.validation.simulated_cohort.load_models", load)
    monkeypatch.setattr("training.validation.simulated_cohort.quantify", lambda scan, _models: thresholds(scan))
    main([str(tmp_path), "--covid", "1", "--controls", "0", "--spacing", "12", "10", "10", "--masks"])
    compared = compare_all(read_manifest(tmp_path / "manifest.csv"), lambda _case, _done: None)
    paired = read_pairs(tmp_path / "truth.csv", tmp_path / "predicted.csv")
    for metric in Metric:
        for masks, scores in zip(compared.scores.values(metric), paired.values(metric), strict=True):
            assert masks == pytest.approx(scores, abs=1e-5)


def test_done_cases_are_not_done_again(tmp_path: Path) -> None:
    seen: list[str] = []
    run_cohort(tmp_path, RECIPE, plan(1, 1, RECIPE), counting(seen))
    run_cohort(tmp_path, RECIPE, plan(2, 1, RECIPE), counting(seen))
    assert seen == ["simulated-2000000", "simulated-2000001", "simulated-2000002"]
    assert len((tmp_path / "cases.jsonl").read_text().splitlines()) == 3
    assert len(read_pairs(tmp_path / "truth.csv", tmp_path / "predicted.csv")) == 3


def test_a_line_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    run_cohort(tmp_path, RECIPE, plan(1, 1, RECIPE), in_this_process(thresholds))
    whole = (tmp_path / "cases.jsonl").read_bytes()
    (tmp_path / "cases.jsonl").write_bytes(whole[:-30])
    seen: list[str] = []
    run_cohort(tmp_path, RECIPE, plan(1, 1, RECIPE), counting(seen))
    assert seen == ["simulated-2000001"]
    assert (tmp_path / "cases.jsonl").read_bytes() == whole


def test_what_was_done_before_a_fault_is_kept(tmp_path: Path) -> None:
    def run(cases: Sequence[Case]) -> Iterator[Line]:
        yield from in_this_process(thresholds)(cases[:1])
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        run_cohort(tmp_path, RECIPE, plan(2, 0, RECIPE), run)
    assert len((tmp_path / "cases.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "other",
    [
        replace(RECIPE, spacing_mm=(2.0, 1.0, 1.0)),
        replace(RECIPE, weights_sha256={"lungs": "00"}),
        replace(RECIPE, first_seed=3),
    ],
)
def test_cohorts_are_never_mixed(other: CohortRecipe, tmp_path: Path) -> None:
    run_cohort(tmp_path, RECIPE, (), in_this_process(thresholds))
    with pytest.raises(OtherCohortError, match="Give another folder"):
        run_cohort(tmp_path, other, (), in_this_process(thresholds))


def test_a_refused_scan_is_kept_and_left_out_of_the_comparison(tmp_path: Path) -> None:
    lines = run_cohort(tmp_path, RECIPE, plan(1, 0, RECIPE), in_this_process(refuse))
    assert lines[0]["refused"] == {"code": "lungs-not-found", "detail": "none"}
    assert (tmp_path / "refused.csv").read_text().splitlines()[1] == "simulated-2000000,covid-like,lungs-not-found"
    assert len((tmp_path / "truth.csv").read_text().splitlines()) == 1
