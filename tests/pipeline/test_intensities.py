"""Values that are no Hounsfield units: what is corrected, what is refused, and what is left as it is."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from pipeline.errors import NotChestCTError
from pipeline.geometry import Finding, Volume
from pipeline.intensities import intensity_findings, normalise, require_hounsfield
from pipeline.phantom import Phantom, PhantomRecipe, make_phantom
from pipeline.phantom.recipe import Tissue


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(PhantomRecipe(seed=8, spacing_mm=(4.0, 3.0, 3.0), noise_hu=15.0))


@pytest.fixture(scope="module")
def ct(phantom: Phantom) -> Volume:
    return phantom.volume


@pytest.fixture(scope="module")
def outside(phantom: Phantom) -> np.ndarray:
    return np.isin(phantom.tissues, (Tissue.OUTSIDE, Tissue.TABLE))


def like(ct: Volume, hu: np.ndarray) -> Volume:
    return Volume(np.clip(np.rint(hu), -1024, 32767).astype(np.int16), ct.grid)


def codes(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.code for finding in findings]


@pytest.mark.parametrize("seed", range(2))
def test_a_scan_in_hounsfield_units_comes_back_as_it_is(seed: int) -> None:
    volume = make_phantom(PhantomRecipe(seed=seed, spacing_mm=(6.0, 4.0, 4.0))).volume
    same, findings = normalise(volume)
    assert same is volume
    assert findings == ()
    assert set(codes(intensity_findings(volume))) <= {"noise-beyond-training"}


def test_an_added_1024_is_taken_off_to_the_bit(ct: Volume) -> None:
    corrected, findings = normalise(like(ct, ct.hu.astype(int) + 1024))
    np.testing.assert_array_equal(corrected.hu, ct.hu)
    assert codes(findings) == ["offset-corrected"]
    assert findings[0].severity == "warning"
    assert findings[0].evidence["offset_hu"] == 1024


@settings(max_examples=10, deadline=None)
@example(offset=835)  # lung lies where the air of a room would, had 1024 been added
@given(offset=st.integers(200, 3000).filter(lambda offset: abs(offset - 1024) > 15))
def test_any_other_offset_is_refused_and_never_guessed(offset: int, ct: Volume) -> None:
    shifted = like(ct, ct.hu.astype(int) + offset)
    same, findings = normalise(shifted)
    assert same is shifted
    assert findings == ()
    with pytest.raises(NotChestCTError, match="not Hounsfield"):
        require_hounsfield(shifted)


def test_a_refused_offset_names_the_missing_intercept(ct: Volume) -> None:
    with pytest.raises(NotChestCTError, match="rescale intercept"):
        require_hounsfield(like(ct, ct.hu.astype(int) + 1000))


@pytest.mark.parametrize("value", [0, -400, 255, 3000])
def test_a_constant_background_becomes_air_and_nothing_else_changes(
    value: int, ct: Volume, outside: np.ndarray
) -> None:
    masked = like(ct, np.where(outside, value, ct.hu))
    corrected, findings = normalise(masked)
    assert codes(findings) == ["background-filled"]
    assert findings[0].severity == "warning"
    assert findings[0].evidence["value_before"] == value
    assert (corrected.hu[outside] == -1000).all()
    changed = corrected.hu != masked.hu
    # Voxels of the skin that have the very value of the background and touch it go with it.
    assert np.count_nonzero(changed & ~outside) < 1e-3 * np.count_nonzero(~outside)
    assert (masked.hu[changed] == value).all()


@pytest.mark.parametrize("value", [-1024, -1000, -960])
def test_a_background_of_air_stays_as_it_is(value: int, ct: Volume, outside: np.ndarray) -> None:
    masked = like(ct, np.where(outside, value, ct.hu))
    assert normalise(masked)[0] is masked


def test_a_corner_within_the_patient_is_no_background(ct: Volume) -> None:
    z, y, x = (n // 3 for n in ct.hu.shape)
    within = Volume(np.ascontiguousarray(ct.hu[z:-z, y:-y, x:-x]), ct.grid)
    assert normalise(within)[0] is within


@pytest.mark.parametrize("rim", [-850, -300])
def test_lungs_cut_out_of_the_patient_are_an_error(rim: int, phantom: Phantom, ct: Volume) -> None:
    """Whether the mask ended within the lung or took a rim of chest wall along."""
    mask = phantom.lobes.labels > 0
    edge = mask & ~binary_erosion(mask)
    lungs = like(ct, np.where(edge, rim, np.where(mask, ct.hu, 0)))
    same, findings = normalise(lungs)
    assert same is lungs
    assert [(finding.code, finding.severity) for finding in findings] == [("background-not-air", "error")]


@pytest.mark.parametrize(("low", "high"), [(-1350, 150), (-1024, 0), (-900, 3000)])
def test_what_a_window_cut_off_is_named(low: int, high: int, ct: Volume) -> None:
    clipped = like(ct, np.clip(ct.hu, low, high))
    same, findings = normalise(clipped)
    assert same is clipped
    assert findings == ()
    assert "values-clipped" in codes(intensity_findings(clipped))


def test_a_range_that_the_networks_never_leave_is_not_remarked_upon(ct: Volume) -> None:
    assert codes(intensity_findings(like(ct, np.clip(ct.hu, -1000, 600)))) == []


def in_eight_bits(hu: np.ndarray, low: int, high: int) -> np.ndarray:
    return np.rint(np.clip((hu.astype(float) - low) / (high - low), 0, 1) * 255)


def test_eight_bits_brought_back_by_their_own_window_are_named(ct: Volume) -> None:
    back = like(ct, in_eight_bits(ct.hu, -1000, 400) / 255 * 1400 - 1000)
    require_hounsfield(back)
    assert "few-grey-levels" in codes(intensity_findings(back))


@pytest.mark.parametrize(
    "kind",
    ["soft-tissue window", "eight bits", "eight bits by another window", "inverted", "negative", "half the slope"],
)
def test_values_without_hounsfield_units_are_refused(kind: str, ct: Volume) -> None:
    hu = {
        "soft-tissue window": np.clip(ct.hu, -160, 240),
        "eight bits": in_eight_bits(ct.hu, -1350, 150),
        "eight bits by another window": in_eight_bits(ct.hu, -1350, 150) / 255 * 4095 - 1024,
        "inverted": ct.hu.max() - 1024 - ct.hu.astype(int),
        "negative": -ct.hu.astype(int),
        "half the slope": ct.hu / 2,
    }[kind]
    volume, findings = normalise(like(ct, hu))
    assert findings == ()
    with pytest.raises(NotChestCTError, match="not Hounsfield") as caught:
        require_hounsfield(volume)
    assert {"air_percent", "tissue_percent", "grey_levels", "hu_least"} <= caught.value.evidence.keys()
    assert codes(intensity_findings(volume)) == ["not-hounsfield"]
