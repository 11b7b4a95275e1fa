"""What is said about single lobes."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.anatomy import Lobe
from pipeline.findings import SEEN_SD, USUAL_PERCENT, findings_of_lobes
from pipeline.geometry import Finding, Grid, LesionMask, LobeLabels, Volume
from pipeline.severity import opacity_range, score_severity

LENGTH = 1000
GRID = Grid((7, 3, LENGTH), (10.0, 10.0, 1.0), (0.0, 0.0, 0.0))
"""Lobes lie in rows along x, away from the faces; of each lobe as many voxels as is usual."""


def usual_lobes() -> LobeLabels:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    for lobe in Lobe:
        labels[lobe, 1, 1 : 1 + round(10 * USUAL_PERCENT[lobe])] = lobe
    return LobeLabels(labels, GRID)


def first_percent(lobes: LobeLabels, lobe: Lobe, percent: float) -> LesionMask:
    mask = np.zeros(GRID.shape, dtype=np.bool_)
    where = np.argwhere(lobes.of(lobe))
    mask[tuple(where[: round(len(where) * percent / 100)].T)] = True
    return LesionMask(mask, GRID)


def findings(lobes: LobeLabels, certain: LesionMask | None = None, possible: LesionMask | None = None) -> list[Finding]:
    none = LesionMask(np.zeros(GRID.shape, dtype=np.bool_), GRID)
    volume = Volume(np.full(GRID.shape, -850, dtype=np.int16), GRID)
    severity = score_severity(volume, lobes.lungs(), lobes, none)
    return list(findings_of_lobes(lobes, severity, opacity_range(lobes, certain or none, possible or none)))


def test_lobes_of_usual_size_without_doubt_are_not_remarked_upon() -> None:
    assert findings(usual_lobes()) == []


@pytest.mark.parametrize("lobe", Lobe)
def test_a_lobe_without_voxels_was_not_found(lobe: Lobe) -> None:
    lobes = usual_lobes()
    lobes.labels[lobes.of(lobe)] = 0
    assert [(found.code, found.lobe) for found in findings(lobes)] == [("lobe-not-found", lobe)]


def test_a_lobe_of_less_than_half_its_usual_share_is_small() -> None:
    lobes = usual_lobes()
    kept = round(4 * USUAL_PERCENT[Lobe.RIGHT_LOWER])
    lobes.labels[Lobe.RIGHT_LOWER, 1, 1 + kept :] = 0
    (found,) = findings(lobes)
    assert (found.code, found.lobe) == ("lobe-small", Lobe.RIGHT_LOWER)
    assert found.evidence["percent_of_lungs"] == pytest.approx(100 * kept / (lobes.labels > 0).sum(), abs=0.01)


@pytest.mark.parametrize("face", [0, -1])
def test_a_lobe_that_reaches_a_face_is_cut_off(face: int) -> None:
    lobes = usual_lobes()
    lobes.labels[:, :, face] = np.where(np.arange(7)[:, None] >= 2, Lobe.LEFT_LOWER, 0)  # 15 voxels of 1 cm2
    truncation = [found for found in findings(lobes) if found.code == "lobe-cut-off"]
    assert [(found.lobe, found.evidence["lobe_on_face_cm2"]) for found in truncation] == [(Lobe.LEFT_LOWER, 15.0)]


@pytest.mark.parametrize(
    ("certain", "possible", "code"),
    [(11, 20, None), (20, 30, "lobe-score-unsure"), (0, 2, "lobe-score-unsure"), (5, 20, "lobe-opacity-unsure")],
)
def test_a_lobe_is_unsure_where_scores_differ_or_the_range_is_wide(
    certain: float, possible: float, code: str | None
) -> None:
    lobes, lobe = usual_lobes(), Lobe.LEFT_UPPER
    found = findings(lobes, first_percent(lobes, lobe, certain), first_percent(lobes, lobe, possible))
    assert [(finding.code, finding.lobe) for finding in found] == ([(code, lobe)] if code else [])


def test_fissures_that_nobody_tells_of_are_not_remarked_upon() -> None:
    assert usual_lobes().fissures_sd is None
    assert findings(usual_lobes()) == []


@pytest.mark.parametrize(
    ("seen_sd", "unseen"),
    [
        ({"left_oblique": 9.0, "right_oblique": 12.0, "right_horizontal": SEEN_SD}, []),
        ({"left_oblique": 9.0, "right_oblique": SEEN_SD - 0.1, "right_horizontal": 5.6}, ["right_oblique"]),
        ({"left_oblique": 9.0}, ["right_oblique", "right_horizontal"]),
        ({}, ["left_oblique", "right_oblique", "right_horizontal"]),
    ],
    ids=["all seen", "one as faint as noise", "right lung not looked at", "thick slices"],
)
def test_fissures_that_are_not_seen_are_named(seen_sd: dict[str, float], unseen: list[str]) -> None:
    found = findings(replace(usual_lobes(), fissures_sd=seen_sd))
    assert [finding.code for finding in found] == ["fissures-unseen"] * bool(unseen)
    for finding in found:
        assert finding.evidence["fissures"] == unseen
        assert all(name.replace("_", " ") in finding.message for name in unseen)
