"""Who belongs to whom, and who is kept aside."""

from pathlib import Path

import pytest

from training.data.splits import Stage, patient_of, read_split


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("covid-2-0", "covid-2"),
        ("covid4-000", "covid4"),
        ("grown-case05-3", "case05"),
        ("clean-case05-0", "case05"),
        ("case05-012", "case05"),
        ("real-case05-07", "case05"),
        ("case-anna-0-03", "anna"),
        ("real-anna-0-03", "anna"),
        ("cohort-anna-0", "anna"),
        ("phantom-7-0", "phantom-7"),
        ("phantom-0012", "phantom-0012"),
        ("phantom-0012-upper-chest-3", "phantom-0012"),
    ],
)
def test_what_was_made_from_a_patient_belongs_to_that_patient(name: str, patient: str) -> None:
    assert patient_of(Path(f"{name}.npz")) == patient


@pytest.mark.parametrize("stage", list(Stage))
def test_the_public_split_keeps_the_test_case_aside_and_nobody_does_two_things(stage: Stage, tmp_path: Path) -> None:
    split = read_split(tmp_path, stage)
    assert "case05" in split.test
    assert not set(split.validation) & set(split.test)
    assert {patient_of(Path(f"{name}.npz")) for name in split.validation_volumes} == set(split.validation)


def test_a_dataset_of_another_stage_keeps_nobody_aside(tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text('{"lesions": {"validation": ["anna"], "validation_volumes": [], "test": []}}')
    assert read_split(tmp_path, Stage.LESIONS).validation == ("anna",)
    assert read_split(tmp_path, Stage.LUNGS).is_training(Path("case-anna-0-00.npz"))
