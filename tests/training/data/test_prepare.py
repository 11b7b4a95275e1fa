"""A cohort of one's own: refused where a network would learn nonsense from it, prepared where it would not."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.anatomy import Landmark
from pipeline.geometry import Grid, Matrix, Volume
from pipeline.io.write import write_ct, write_mask
from pipeline.networks.q_network import LandmarkConfig
from training.data.cohort import CohortError, Row, read_manifest
from training.data.landmark_batches import LandmarkDataset
from training.data.lesion_batches import read_example, read_examples
from training.data.lung_batches import UNKNOWN_LOBE, LungDataset, LungRecipe, read_volume
from training.data.prepare import prepare_cohort, split_of
from training.data.splits import Stage, patient_of, read_split

FLIPPED: Matrix = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
GRID = Grid((30, 60, 80), (5.0, 4.0, 4.0), (160.0, 120.0, 0.0), FLIPPED)


def write_patient(folder: Path, name: str, *, lesions: bool = True, mirrored: bool = False) -> dict[str, str]:
    """Two box lungs of one lobe each, a lesion in the right one; x leads to the right."""
    lobes = np.zeros(GRID.shape, np.uint8)
    lobes[4:26, 10:50, 8:36], lobes[4:26, 10:50, 44:72] = 2, 5
    drawn = np.zeros(GRID.shape, bool)
    drawn[8:16, 20:40, 50:65] = lesions
    hu = np.where(drawn, -500, np.where(lobes > 0, -850, 40)).astype(np.int16)
    write_ct(folder / f"{name}_ct.nii.gz", Volume(hu, GRID))
    write_mask(
        folder / f"{name}_lobes.nii.gz", np.where(lobes > 0, 7 - lobes, 0).astype(np.uint8) if mirrored else lobes, GRID
    )
    write_mask(folder / f"{name}_lungs.nii.gz", lobes > 0, GRID)
    write_mask(folder / f"{name}_lesions.nii.gz", drawn, GRID)
    return {kind: f"{name}_{kind}.nii.gz" for kind in ("ct", "lobes", "lungs", "lesions")}


def manifest(folder: Path, lines: list[str], header: str = "patient,ct,lungs,lobes,lesions") -> Path:
    path = folder / "cohort.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_lesions_are_prepared_at_their_grid_and_one_patient_is_kept_for_validation(tmp_path: Path) -> None:
    files = [write_patient(tmp_path, name, lesions=name != "healthy") for name in ("a", "healthy")]
    lines = [f"{p},{f['ct']},{f['lungs']},,{f['lesions']}" for p, f in zip(("A-1", "healthy"), files, strict=True)]
    rows = read_manifest(manifest(tmp_path, lines))
    seen: list[float] = []
    written = prepare_cohort(rows, Stage.LESIONS, tmp_path / "dataset", progress=seen.append)
    assert len(written) == 2
    assert seen == [0.5, 1.0]
    split = read_split(tmp_path / "dataset", Stage.LESIONS)
    validation_scans = [read_example(path) for path in split.validation_paths(tmp_path / "dataset")]
    learning = read_examples(tmp_path / "dataset", split.is_training)
    assert len(validation_scans) == len(learning) == 1
    sick = next(example for example in validation_scans + learning if example.lesions.any())
    assert sick.kind == "cohort"
    assert sick.lesions.sum() * 3 == pytest.approx(8 * 20 * 15 * 5 * 4 * 4, rel=0.1)
    assert np.median(sick.image[sick.lesions]) == pytest.approx((-500 + 1350) / 1500 * 255, abs=3)


def test_lobes_are_prepared_as_they_are_and_lungs_as_lung_of_unknown_lobe(tmp_path: Path) -> None:
    files = write_patient(tmp_path, "a")
    lines = [f"one,{files['ct']},,{files['lobes']},", f"two,{files['ct']},{files['lungs']},,"]
    rows = read_manifest(manifest(tmp_path, lines))
    first, second = prepare_cohort(rows, Stage.LUNGS, tmp_path / "dataset", copies=1)
    assert set(np.unique(read_volume(first)[1])) == {0, 2, 5}
    assert set(np.unique(read_volume(second)[1])) == {0, 6}


@pytest.mark.parametrize(
    ("slices_mm", "drawn"), [(3.0, {0, 1, 2, 3, 4, 5}), (4.0, {0, UNKNOWN_LOBE})], ids=["thin slices", "thick slices"]
)
def test_lobes_are_drawn_into_lungs_where_that_is_asked_for(tmp_path: Path, slices_mm: float, drawn: set[int]) -> None:
    """The left lobes on the patient's left, though x leads to the right in this scan."""
    grid = Grid((60, 40, 70), (slices_mm, 3.4, 3.4), (120.0, 70.0, 0.0), FLIPPED)
    lungs = np.zeros(grid.shape, dtype=np.bool_)
    lungs[4:56, 5:35, 6:30], lungs[4:56, 5:35, 40:64] = True, True
    write_ct(tmp_path / "ct.nii.gz", Volume(np.where(lungs, -850, 40).astype(np.int16), grid))
    write_mask(tmp_path / "lungs.nii.gz", lungs, grid)
    rows = read_manifest(manifest(tmp_path, ["one,ct.nii.gz,lungs.nii.gz,,"]))
    (path,) = prepare_cohort(rows, Stage.LUNGS, tmp_path / "dataset", copies=1, draw_lobes=True)
    labels = read_volume(path)[1]
    assert set(np.unique(labels)) == drawn
    if 1 in drawn:
        left, right = (np.argwhere(np.isin(labels, side))[:, 2].mean() for side in ((1, 2), (3, 4, 5)))
        assert left > right


def test_lungs_that_the_scan_cuts_off_stay_lung_of_unknown_lobe(tmp_path: Path) -> None:
    grid = Grid((60, 40, 70), (3.0, 3.4, 3.4), (120.0, 70.0, 0.0), FLIPPED)
    lungs = np.zeros(grid.shape, dtype=np.bool_)
    lungs[:50, 5:35, 6:30], lungs[:50, 5:35, 40:64] = True, True
    write_ct(tmp_path / "ct.nii.gz", Volume(np.where(lungs, -850, 40).astype(np.int16), grid))
    write_mask(tmp_path / "lungs.nii.gz", lungs, grid)
    rows = read_manifest(manifest(tmp_path, ["one,ct.nii.gz,lungs.nii.gz,,"]))
    (path,) = prepare_cohort(rows, Stage.LUNGS, tmp_path / "dataset", copies=1, draw_lobes=True)
    assert set(np.unique(read_volume(path)[1])) == {0, UNKNOWN_LOBE}


def test_one_lung_alone_stays_lung_of_unknown_lobe(tmp_path: Path) -> None:
    grid = Grid((60, 40, 70), (3.0, 3.4, 3.4), (120.0, 70.0, 0.0), FLIPPED)
    lungs = np.zeros(grid.shape, dtype=np.bool_)
    lungs[4:56, 5:35, 6:30] = True
    write_ct(tmp_path / "ct.nii.gz", Volume(np.where(lungs, -850, 40).astype(np.int16), grid))
    write_mask(tmp_path / "lungs.nii.gz", lungs, grid)
    rows = read_manifest(manifest(tmp_path, ["one,ct.nii.gz,lungs.nii.gz,,"]))
    (path,) = prepare_cohort(rows, Stage.LUNGS, tmp_path / "dataset", copies=1, draw_lobes=True)
    assert set(np.unique(read_volume(path)[1])) == {0, UNKNOWN_LOBE}


def test_what_is_prepared_stays(tmp_path: Path) -> None:
    files = write_patient(tmp_path, "a")
    rows = read_manifest(manifest(tmp_path, [f"one,{files['ct']},{files['lungs']},,{files['lesions']}"]))
    (path,) = prepare_cohort(rows, Stage.LESIONS, tmp_path / "dataset")
    before = path.stat().st_mtime_ns
    assert prepare_cohort(rows, Stage.LESIONS, tmp_path / "dataset") == [path]
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("one,nowhere.nii.gz,a_lungs.nii.gz,,", "nowhere"),
        ("one,a_ct.nii.gz,,,", "lungs or lobes"),
        (",a_ct.nii.gz,a_lungs.nii.gz,,", "patient"),
    ],
)
def test_a_manifest_that_lacks_something_says_where(tmp_path: Path, line: str, says: str) -> None:
    write_patient(tmp_path, "a")
    with pytest.raises(CohortError, match=says) as caught:
        read_manifest(manifest(tmp_path, [line]))
    assert "line 2" in str(caught.value)


def test_a_manifest_without_its_columns_or_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="column ct"):
        read_manifest(manifest(tmp_path, ["x"], header="patient"))
    with pytest.raises(CohortError, match="no scan"):
        read_manifest(manifest(tmp_path, []))


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        (",a_lobes.nii.gz,", "left lobes lie on the right"),
        ("a_ct.nii.gz,,", "no mask"),
        ("a_wall.nii.gz,,", "HU"),
        ("a_nothing.nii.gz,,", "empty"),
    ],
)
def test_masks_that_do_not_fit_their_scan_are_refused(tmp_path: Path, masks: str, says: str) -> None:
    write_patient(tmp_path, "a", mirrored=True)
    wall = np.zeros(GRID.shape, bool)
    wall[:, :8] = True
    write_mask(tmp_path / "a_wall.nii.gz", wall, GRID)
    write_mask(tmp_path / "a_nothing.nii.gz", np.zeros(GRID.shape, bool), GRID)
    rows = read_manifest(manifest(tmp_path, [f"one,a_ct.nii.gz,{masks}"]))
    with pytest.raises(CohortError, match=says):
        prepare_cohort(rows, Stage.LUNGS, tmp_path / "dataset")


def test_a_tenth_of_the_patients_validates_and_none_of_them_trains() -> None:
    rows = [Row(f"patient {n // 2}", n % 2, Path("ct"), Path("lungs"), None, Path("lesions")) for n in range(80)]
    split = split_of(rows, Stage.LESIONS)["lesions"]
    assert len(split["validation"]) == 4
    assert len(split["validation_volumes"]) == 8
    assert all(name.split("-")[1] in split["validation"] for name in split["validation_volumes"])
    assert json.dumps(split) == json.dumps(split_of(rows[::-1], Stage.LESIONS)["lesions"])


def test_two_patients_never_share_a_file_name() -> None:
    slugs = {Row(name, 0, Path("ct")).slug for name in ("a-1", "a1", "a_1", "A1")}
    assert len(slugs) == 4
    assert all(slug.isalnum() for slug in slugs)


def test_lungs_are_prepared_in_deformed_copies_and_for_validation_only_as_they_are(tmp_path: Path) -> None:
    files = write_patient(tmp_path, "a")
    rows = read_manifest(manifest(tmp_path, [f"{name},{files['ct']},,{files['lobes']}," for name in ("one", "two")]))
    written = prepare_cohort(rows, Stage.LUNGS, tmp_path / "dataset", copies=3)
    dataset = LungDataset(tmp_path / "dataset", LungRecipe())
    (validate,) = dataset.validation_paths()
    learned = [path for path in written if path != validate]
    assert len(learned) == 3
    assert {patient_of(path) for path in learned} == {"one", "two"} - {patient_of(validate)}
    volumes_ml = []
    for path in learned:
        image, labels = read_volume(path)
        assert set(np.unique(labels)) == {0, 2, 5}
        lung, wall = (image[where].mean() for where in (labels > 0, labels == 0))
        assert lung < wall, "what is called lung is still dark in the copies"
        volumes_ml.append(np.count_nonzero(labels) * 0.008)
    assert len({round(volume) for volume in volumes_ml}) == 3


MARKED = "patient,ct,carina_x_mm,carina_y_mm,carina_z_mm,sternum_tip_x_mm,sternum_tip_y_mm,sternum_tip_z_mm"


def test_marks_become_scans_whose_deformed_copies_carry_them_along(tmp_path: Path) -> None:
    files = write_patient(tmp_path, "a")
    lines = [f"{name},{files['ct']},0,20,100,0,-60,40" for name in ("one", "two")]
    rows = read_manifest(manifest(tmp_path, lines, MARKED))
    assert rows[0].landmarks_mm == {Landmark.CARINA: (0, 20, 100), Landmark.STERNUM_TIP: (0, -60, 40)}
    written = prepare_cohort(rows, Stage.LANDMARKS, tmp_path / "dataset", copies=4)
    dataset = LandmarkDataset.read(tmp_path / "dataset", LandmarkConfig())
    assert (len(dataset.training_scans), len(dataset.validation_scans), len(written)) == (4, 1, 5)
    carinas = {tuple(scan.landmarks_mm[Landmark.CARINA].round(1)) for scan in dataset.training_scans}
    assert len(carinas) == 4
    for scan in dataset.training_scans:
        z, y, _ = scan.landmarks_mm[Landmark.CARINA] - scan.landmarks_mm[Landmark.STERNUM_TIP]
        assert (z, y) == (pytest.approx(60, abs=30), pytest.approx(80, abs=30))


@pytest.mark.parametrize(
    ("marks", "says"),
    [
        ("0,20,100,0,-60,160", "behind or above"),
        ("0,20,100,0,60,40", "behind or above"),
        ("80,10,70,,,", "in the air"),
    ],
)
def test_marks_that_cannot_be_are_refused(tmp_path: Path, marks: str, says: str) -> None:
    files = write_patient(tmp_path, "a")
    volume = Volume(np.full(GRID.shape, -1000, dtype=np.int16), GRID)
    write_ct(tmp_path / "air.nii.gz", volume)
    ct = "air.nii.gz" if "air" in says else files["ct"]
    rows = read_manifest(manifest(tmp_path, [f"one,{ct},{marks}"], MARKED))
    with pytest.raises(CohortError, match=says):
        prepare_cohort(rows, Stage.LANDMARKS, tmp_path / "dataset")


def test_a_landmark_of_two_numbers_is_refused_with_its_line(tmp_path: Path) -> None:
    files = write_patient(tmp_path, "a")
    with pytest.raises(CohortError, match=r"line 2: carina needs three numbers"):
        read_manifest(manifest(tmp_path, [f"one,{files['ct']},1,2,,,,"], MARKED))


def test_lesions_that_lie_beside_the_lungs_are_refused(tmp_path: Path) -> None:
    files = write_patient(tmp_path, "a")
    beside = np.zeros(GRID.shape, bool)
    beside[:4] = True
    write_mask(tmp_path / "beside.nii.gz", beside, GRID)
    rows = read_manifest(manifest(tmp_path, [f"one,{files['ct']},{files['lungs']},,beside.nii.gz"]))
    with pytest.raises(CohortError, match="0 % of its lesions"):
        prepare_cohort(rows, Stage.LESIONS, tmp_path / "dataset")
