"""What is said about scans and results, and when there is nothing to score."""

import numpy as np
import pytest

from pipeline.anatomy import Landmark, Lobe
from pipeline.errors import NotChestCTError
from pipeline.findings import findings_of_result, findings_of_scan, refusal
from pipeline.geometry import Finding, Grid, LandmarkPosition, LesionMask, LobeLabels, LungMask, Scan, Volume
from pipeline.intensities import LEARNED_NOISE_HU, histogram_evidence, noise_hu, require_hounsfield
from pipeline.severity import Severity, score_severity
from training.data.lesion_batches import MOST_NOISE_HU

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
SAGITTAL = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
"""The array's first axis runs from right to left, its second from feet to head."""


def codes(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.code for finding in findings]


def scan(grid: Grid) -> Volume:
    """Half air, half tissue."""
    hu = np.full(grid.shape, 40, dtype=np.int16)
    hu[:, : grid.shape[1] // 2] = -900
    return Volume(hu, grid)


def test_an_ordinary_scan_is_not_remarked_upon() -> None:
    assert findings_of_scan(scan(Grid((75, 80, 90), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0)))) == ()


@pytest.mark.parametrize(("thickness_mm", "expected"), [(4.0, []), (4.9, []), (5.0, ["thick-slices"])])
def test_slices_are_thick_from_five_millimetres_on(thickness_mm: float, expected: list[str]) -> None:
    assert codes(findings_of_scan(scan(Grid((75, 80, 90), (thickness_mm, 4.0, 4.0), (0.0, 0.0, 0.0))))) == expected


def test_voxels_longer_than_any_learned_from_are_named() -> None:
    findings = findings_of_scan(scan(Grid((40, 80, 90), (8.1, 4.0, 4.0), (0.0, 0.0, 0.0))))
    assert codes(findings) == ["thick-slices", "spacing-beyond-training"]


def noisy(noise: float, spacing_mm: float) -> Volume:
    grid = Grid((60, 80, 90), (spacing_mm, 4.0, 4.0), (0.0, 0.0, 0.0))
    clean = scan(grid)
    grain = np.random.default_rng(0).normal(0, noise, grid.shape)
    return Volume((clean.hu + grain).round().astype(np.int16), grid)


@pytest.mark.parametrize("noise", [10.0, 30.0, 60.0])
def test_noise_is_measured_in_soft_tissue(noise: float) -> None:
    assert noise_hu(noisy(noise, 4.5)) == pytest.approx(noise, rel=0.06)


def test_noise_beyond_what_was_learned_from_is_named() -> None:
    assert codes(findings_of_scan(noisy(60.0, 4.5))) == []
    assert codes(findings_of_scan(noisy(100.0, 4.5))) == ["noise-beyond-training"]


def test_noise_in_small_voxels_counts_as_the_networks_see_it() -> None:
    large = noisy(100.0, 4.5)
    small = Volume(np.tile(large.hu, (1, 4, 4)), Grid((60, 320, 360), (4.5, 0.8, 0.8), (0.0, 0.0, 0.0)))
    (finding,) = findings_of_scan(large)
    assert codes(findings_of_scan(small)) == ["noise-beyond-training"]
    shrunk = Volume(small.hu, Grid(small.hu.shape, (0.8, 0.8, 0.8), (0.0, 0.0, 0.0)))
    assert "noise-beyond-training" not in codes(findings_of_scan(shrunk))
    assert finding.evidence["learned_hu"] == LEARNED_NOISE_HU == pytest.approx(MOST_NOISE_HU, rel=0.05)


def test_slices_and_field_are_counted_along_the_patient_not_the_array() -> None:
    few = Grid((100, 10, 100), (3.0, 4.5, 3.0), (0.0, 0.0, 0.0), SAGITTAL)
    assert codes(findings_of_scan(scan(few))) == ["few-slices"]
    assert findings_of_scan(scan(few))[0].evidence == {"slices": 10}
    narrow = Grid((60, 100, 100), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0), SAGITTAL)
    assert codes(findings_of_scan(scan(narrow))) == ["small-field-of-view"]
    assert findings_of_scan(scan(narrow))[0].evidence == {"field_mm": 180.0}


@pytest.mark.parametrize(
    "values",
    [(0, 1024, 2048), (0, 30, 60), (-1000, -900, -800), (0, 128, 255)],
    ids=["offset by 1024", "no air", "no tissue", "eight bits"],
)
def test_values_that_are_no_hounsfield_units(values: tuple[int, ...]) -> None:
    hu = np.resize(np.array(values, dtype=np.int16), (40, 70, 70))
    volume = Volume(hu, Grid((40, 70, 70), (4.5, 4.5, 4.5), (0.0, 0.0, 0.0)))
    assert codes(findings_of_scan(volume)) == ["not-hounsfield"]
    with pytest.raises(NotChestCTError, match="not Hounsfield") as caught:
        require_hounsfield(volume)
    assert set(caught.value.evidence) >= {"hu_p01", "hu_median", "hu_p99", "air_percent", "tissue_percent"}


def test_hounsfield_units_pass(chest: Volume) -> None:
    require_hounsfield(chest)


def test_air_in_the_body_does_not_count_the_air_around_it() -> None:
    hu = np.full((4, 10, 10), -1000, dtype=np.int16)
    hu[:, :, 2:8] = 40
    hu[:, :, 4:7] = -800
    seen = histogram_evidence(Volume(hu, Grid((4, 10, 10), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))))
    assert seen["air_in_body_percent"] == 50.0
    assert seen["air_percent"] == 70.0


def landmarks(*, carina: bool, sternum_tip: bool) -> dict[Landmark, LandmarkPosition]:
    place = (0.0, 0.0, 0.0)
    return {
        Landmark.CARINA: LandmarkPosition(Landmark.CARINA, place if carina else None, 1.0),
        Landmark.STERNUM_TIP: LandmarkPosition(Landmark.STERNUM_TIP, place if sternum_tip else None, 1.0),
    }


def test_a_refusal_says_first_what_was_seen(chest: Volume) -> None:
    scan_of_chest = Scan(chest, (Finding("few-slices", "warning", "There are 5 slices."),))
    told = refusal(NotChestCTError("No carina.", evidence={"own": 1}), scan_of_chest)
    assert isinstance(told, NotChestCTError)
    assert told.detail.startswith("Seen were 280 x 220 x 288 mm, ")
    assert told.detail.endswith("no spine beside lungs. Also found: few-slices. No carina.")
    assert told.evidence["own"] == 1
    assert told.evidence["extent_mm"] == [280, 220, 288]
    assert told.evidence["air_in_body_percent"] > 1  # type: ignore[operator]
    assert [finding["code"] for finding in told.evidence["findings"]] == ["few-slices"]  # type: ignore[attr-defined]


def whole(lobes: LobeLabels, chest: Volume) -> Severity:
    return score_severity(chest, lobes.lungs(), lobes, LesionMask(np.zeros_like(chest.hu, dtype=bool), chest.grid))


def test_an_ordinary_result_is_not_remarked_upon(lobes: LobeLabels, chest: Volume) -> None:
    found = landmarks(carina=True, sternum_tip=False)
    assert findings_of_result(found, lobes.lungs(), whole(lobes, chest)) == ()


def test_the_fallback_landmark_is_named(lobes: LobeLabels, chest: Volume) -> None:
    found = landmarks(carina=False, sternum_tip=True)
    assert codes(findings_of_result(found, lobes.lungs(), whole(lobes, chest))) == ["carina-not-found"]


def test_a_look_at_the_whole_scan_is_named(lobes: LobeLabels, chest: Volume) -> None:
    found = landmarks(carina=False, sternum_tip=False)
    assert codes(findings_of_result(found, lobes.lungs(), whole(lobes, chest))) == ["landmarks-not-found"]


@pytest.mark.parametrize("face", [(0, 0), (0, -1), (1, 0), (1, -1), (2, 0), (2, -1)])
def test_lungs_that_reach_a_face_are_cut_off(face: tuple[int, int], lobes: LobeLabels, chest: Volume) -> None:
    mask = lobes.labels > 0
    np.moveaxis(mask, face[0], 0)[face[1], 5:15, 5:15] = True
    found = findings_of_result(
        landmarks(carina=True, sternum_tip=True), LungMask(mask, lobes.grid), whole(lobes, chest)
    )
    assert codes(found) == ["lungs-cut-off"]


def test_lungs_of_unusual_size_are_named(lobes: LobeLabels, chest: Volume) -> None:
    only_one = LobeLabels(np.where(lobes.labels == Lobe.LEFT_UPPER, lobes.labels, 0), lobes.grid)
    findings = findings_of_result(landmarks(carina=True, sternum_tip=True), only_one.lungs(), whole(only_one, chest))
    assert codes(findings) == ["unusual-lung-volume"]
