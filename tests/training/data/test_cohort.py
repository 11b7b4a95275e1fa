"""A cohort is found by the names of its files, or by its manifest."""

from pathlib import Path

import pytest

from training.data.cohort import CohortError, Row, read_cohort


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_beside_each_other_are_told_apart_by_their_names(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b_2_ct.nii.gz",
        "b_2_lobes.nrrd",
        "a.1_ct.mha",
        "a.1_lungs.nii",
        "a.1_lesions.nii.gz",
        "README.md",
        "ct.txt",
    )
    assert read_cohort(tmp_path) == [
        Row("a.1", 0, tmp_path / "a.1_ct.mha", tmp_path / "a.1_lungs.nii", None, tmp_path / "a.1_lesions.nii.gz"),
        Row("b_2", 0, tmp_path / "b_2_ct.nii.gz", None, tmp_path / "b_2_lobes.nrrd"),
    ]


def test_a_folder_for_each_patient_may_hold_dicom(tmp_path: Path) -> None:
    touch(tmp_path, "p1/ct/1.dcm", "p1/lungs.nii.gz", "p1/report.pdf", "p2/ct.zip", "p2/lungs.nii.gz", "other/x.nii.gz")
    rows = read_cohort(tmp_path)
    assert [(row.patient, row.ct.relative_to(tmp_path).as_posix()) for row in rows] == [
        ("p1", "p1/ct"),
        ("p2", "p2/ct.zip"),
    ]


def test_the_manifest_of_a_folder_goes_before_its_names(tmp_path: Path) -> None:
    touch(tmp_path, "a_ct.nii.gz", "a_lungs.nii.gz", "b_ct.nii.gz")
    (tmp_path / "manifest.csv").write_text("patient,ct,lungs\nsomebody,a_ct.nii.gz,a_lungs.nii.gz\n")
    assert read_cohort(tmp_path) == read_cohort(tmp_path / "manifest.csv")
    assert [row.patient for row in read_cohort(tmp_path)] == ["somebody"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a_lungs.nii.gz",), "a: no ct beside its lungs"),
        (("a_ct.nii.gz", "a_lesions.nii.gz"), "a: no lungs or lobes"),
        (("a_ct.nii.gz", "a_ct.mha", "a_lungs.nii.gz"), "a: both a_ct.mha and a_ct.nii.gz"),
        (("notes.txt", "scan.nii.gz"), "manifest.csv nor files like NAME_ct.nii.gz"),
    ],
    ids=["no ct", "no lungs", "twice", "nothing"],
)
def test_a_folder_that_lacks_something_says_what(tmp_path: Path, names: tuple[str, ...], says: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(CohortError, match=says):
        read_cohort(tmp_path)
