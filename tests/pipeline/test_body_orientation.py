"""How the patient lies by what a scan shows: phantoms in all ways that a file can turn or mirror them."""

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.body_orientation import BodyOrientation, body_orientation, orientation_findings
from pipeline.findings import findings_of_scan
from pipeline.geometry import Finding, Volume
from pipeline.phantom import PhantomRecipe, make_phantom

FLIPS = list(product((False, True), repeat=3))


@cache
def phantom(seed: int = 8, **recipe: object) -> Volume:
    return make_phantom(PhantomRecipe(seed=seed, spacing_mm=(4.0, 4.0, 4.0), **recipe)).volume  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def upright() -> Volume:
    return phantom()


def turned(volume: Volume, flips: tuple[bool, bool, bool]) -> Volume:
    """Slices, rows and columns in reverse order under the header that they had."""
    z, y, x = (slice(None, None, -1 if flip else 1) for flip in flips)
    return Volume(np.ascontiguousarray(volume.hu[z, y, x]), volume.grid)


def seen(volume: Volume) -> BodyOrientation:
    found = body_orientation(volume)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_no_phantom_that_lies_as_its_header_says_is_contradicted(seed: int) -> None:
    assert orientation_findings(phantom(seed), is_assumed=False) == ()


def test_every_sign_is_positive_where_the_header_is_right(upright: Volume) -> None:
    found = seen(upright)
    assert found.is_confirmed
    assert all(value > 0 for value in found.signs.values())


@pytest.mark.parametrize("flips", FLIPS[1:])
def test_reversed_axes_are_named(flips: tuple[bool, bool, bool], upright: Volume) -> None:
    (finding,) = orientation_findings(turned(upright, flips), is_assumed=False)
    assert finding.code == "anatomy-contradicts-header"
    named = [name for name, flip in zip(("head-feet", "front-back", "left-right"), flips, strict=True) if flip]
    assert finding.evidence["contradicted"] == named
    assert finding.severity == "error"


def test_organs_that_only_seem_to_lie_on_the_other_side_are_a_warning() -> None:
    """In this phantom the heart alone tells its sides."""
    (finding,) = orientation_findings(turned(phantom(3), (False, False, True)), is_assumed=False)
    assert finding.severity == "warning"
    assert "the heart lies on the other side" in finding.message


@settings(max_examples=6, deadline=None)
@given(flips=st.sampled_from(FLIPS), seed=st.sampled_from((0, 4)))
def test_a_reversed_axis_changes_the_sign_of_its_own_numbers_alone(flips: tuple[bool, bool, bool], seed: int) -> None:
    volume = phantom(seed)
    before, after = seen(volume), seen(turned(volume, flips))
    head, back, left = (-1.0 if flip else 1.0 for flip in flips)
    assert after.back == pytest.approx(back * before.back, abs=0.06)
    assert before.head is not None
    assert before.left is not None
    assert after.head == pytest.approx(head * before.head, abs=0.15)
    assert after.left == pytest.approx(left * before.left, abs=0.4)


def test_a_rule_of_the_array_does_not_matter_where_the_header_says_so(upright: Volume) -> None:
    """The same patient, stored from head to feet and from left to right, with a header that says so."""
    direction = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
    assert seen(phantom(direction=direction)).is_confirmed


def test_dicom_order_under_a_ras_affine_is_an_error_that_says_so(upright: Volume) -> None:
    (finding,) = orientation_findings(turned(upright, (False, True, True)), is_assumed=False)
    assert finding.severity == "error"
    assert "the spine lies in front" in finding.message
    assert "DICOM order (LPS)" in finding.message


def test_mirrored_organs_may_be_the_patients_own(upright: Volume) -> None:
    (finding,) = orientation_findings(turned(upright, (False, False, True)), is_assumed=False)
    assert "the heart" in finding.message
    assert "situs inversus" in finding.message
    assert "exchanges left and right" in finding.message


@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_exchanged_axes_are_an_error(axes: tuple[int, int, int], upright: Volume) -> None:
    hu = np.ascontiguousarray(np.transpose(upright.hu, axes))
    volume = Volume(hu, replace(upright.grid, shape=hu.shape))
    (finding,) = orientation_findings(volume, is_assumed=False)
    assert (finding.severity, finding.evidence["contradicted"]) == ("error", ["axes"])


@pytest.mark.parametrize("fit", ["head", "abdomen"])
def test_what_shows_no_lungs_says_nothing(fit: str) -> None:
    assert body_orientation(phantom(3, fit=fit)) is None


@pytest.mark.parametrize("fit", ["upper-chest", "lower-chest"])
def test_lungs_that_the_scan_cuts_through_do_not_say_which_end_is_the_head(fit: str) -> None:
    found = seen(phantom(21, fit=fit))
    assert (found.head, found.left) == (None, None)
    assert found.back > 0


def test_a_mirror_image_whose_sides_nobody_can_see_is_an_error() -> None:
    (finding,) = orientation_findings(turned(phantom(21, fit="lower-chest"), (False, True, False)), is_assumed=False)
    assert finding.severity == "error"
    assert "the sides are in doubt" in finding.message


def test_an_assumed_orientation_is_confirmed_or_contradicted(upright: Volume) -> None:
    assumed = Finding("orientation-assumed", "warning", "The file does not say how the patient lies in it.")
    assert "anatomy-confirms-orientation" in [finding.code for finding in findings_of_scan(upright, (assumed,))]
    assert "anatomy-confirms-orientation" not in [finding.code for finding in findings_of_scan(upright)]
    contradicted = findings_of_scan(turned(upright, (False, True, True)), (assumed,))
    (finding,) = [finding for finding in contradicted if finding.code == "anatomy-contradicts-header"]
    assert finding.message.startswith("The file does not say how the patient lies")
