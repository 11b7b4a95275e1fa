"""The order of the steps, and what ends them early. Whole scans are scored end to end, in tests/e2e."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import NotChestCTError
from pipeline.geometry import Finding, Scan, Volume
from pipeline.networks.weights import MODEL_NAMES, WeightsError
from pipeline.phantom import PhantomRecipe, make_phantom
from pipeline.quantify import STAGE_SHARES, Models, load_models, quantify


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models("cpu")


@pytest.fixture(scope="module")
def head() -> Scan:
    return Scan(make_phantom(PhantomRecipe(seed=5, spacing_mm=(6.0, 4.0, 4.0), fit="head")).volume)


class StopHereError(Exception):
    pass


def test_the_shipped_models_are_named_with_their_weights(models: Models) -> None:
    assert tuple(info.name for info in models.infos) == MODEL_NAMES
    assert all(len(info.sha256) == 64 and info.version for info in models.infos)
    assert str(models.device) == "cpu"


def test_missing_weights_are_a_fault_of_the_installation(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights for 'landmarks'"):
        load_models("cpu", tmp_path)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="abacus"):
        load_models("abacus")


def test_a_head_is_not_a_chest(models: Models, head: Scan) -> None:
    with pytest.raises(NotChestCTError, match="Neither the carina") as caught:
        quantify(head, models)
    assert caught.value.evidence["air_in_body_percent"] < 10  # type: ignore[operator]


def test_values_that_are_no_hounsfield_units_end_before_any_network(models: Models, head: Scan) -> None:
    shifted = Volume(head.volume.hu + np.int16(1024), head.volume.grid)
    with pytest.raises(NotChestCTError, match="not Hounsfield"):
        quantify(Scan(shifted), models)


def test_a_refusal_begins_with_what_is_known_and_keeps_every_finding(models: Models, head: Scan) -> None:
    known = Finding("orientation-assumed", "warning", "The file does not say how the patient lies in it.")
    wrong = Finding("anatomy-contradicts-header", "error", "What the header says is contradicted by the scan.")
    with pytest.raises(NotChestCTError, match="Neither the carina") as caught:
        quantify(Scan(head.volume, (known, wrong)), models)
    assert caught.value.detail.startswith("What the header says is contradicted by the scan. Seen were")
    assert "Also found: orientation-assumed." in caught.value.detail
    assert caught.value.evidence["findings"] == [
        {"code": finding.code, "severity": finding.severity, "message": finding.message} for finding in (known, wrong)
    ]


def test_whoever_watches_can_stop_the_work(models: Models, head: Scan) -> None:
    seen = []

    def stop(stage: str, done: float) -> None:
        seen.append((stage, done))
        raise StopHereError

    with pytest.raises(StopHereError):
        quantify(head, models, stop)
    assert seen == [("landmarks", 0.0)]


def test_stages_follow_each_other_without_gap() -> None:
    shares = list(STAGE_SHARES.values())
    assert shares[0][0] == 0.0
    assert shares[-1][1] == 1.0
    assert all(before[1] == after[0] for before, after in pairwise(shares))
