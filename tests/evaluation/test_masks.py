"""A manifest of masks: what is worked out of it, and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from evaluation.errors import EvaluationError, ImageError, MismatchedGridError, TableError
from evaluation.masks import STRUCTURES, Overlap, compare_all, read_manifest
from pipeline.geometry import Grid
from pipeline.io.write import write_ct, write_mask
from pipeline.phantom import Phantom, PhantomRecipe, make_phantom

HEADER = "case,group,ct,true_lobes,true_lesions,predicted_lobes,predicted_lesions"
ROW = "a,covid,ct.nii.gz,lobes.nii.gz,lesions.nii.gz,lobes.nii.gz,found.nii.gz"


def quiet(_case: str, _done: float) -> None:
    pass


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(PhantomRecipe(seed=3, spacing_mm=(10.0, 9.0, 9.0), percent_opacity=20.0))


@pytest.fixture
def folder(tmp_path: Path, phantom: Phantom) -> Path:
    """A phantom whose prediction lacks the left half of the lesions."""
    found = phantom.lesions.mask & ~phantom.lobes.left()
    write_ct(tmp_path / "ct.nii.gz", phantom.volume)
    for name, mask in {"lobes": phantom.lobes.labels, "lesions": phantom.lesions.mask, "found": found}.items():
        write_mask(tmp_path / f"{name}.nii.gz", mask, phantom.volume.grid)
    (tmp_path / "manifest.csv").write_text(f"{HEADER}\n{ROW}\n")
    return tmp_path


def compared(folder: Path) -> tuple[object, Mapping[str, Overlap]]:
    result = compare_all(read_manifest(folder / "manifest.csv"), quiet)
    return result, {overlap.structure: overlap for overlap in result.overlaps}


def test_scores_are_those_of_the_severity_code(folder: Path, phantom: Phantom) -> None:
    result = compare_all(read_manifest(folder / "manifest.csv"), quiet)
    (truth,), (predicted,) = result.scores.truth, result.scores.predicted
    assert truth.percent_opacity == phantom.severity.percent_opacity
    assert truth.lung_high_opacity_score == phantom.severity.lung_high_opacity_score
    assert [lobe.severity_score for lobe in truth.lobes] == [lobe.severity_score for lobe in phantom.severity.lobes]
    assert 0 < predicted.percent_opacity < truth.percent_opacity
    assert result.scores.groups == ("covid",)


def test_each_structure_is_compared(folder: Path, phantom: Phantom) -> None:
    _, overlaps = compared(folder)
    assert tuple(overlaps) == STRUCTURES
    assert overlaps["lungs"].dice == overlaps["right_middle"].dice == 1.0
    assert overlaps["lungs"].hausdorff_95_mm == overlaps["lungs"].mean_surface_mm == 0.0
    left = np.count_nonzero(phantom.lesions.mask & phantom.lobes.left()) / np.count_nonzero(phantom.lesions.mask)
    assert overlaps["lesions"].dice == pytest.approx(2 * (1 - left) / (2 - left))
    assert overlaps["lesions"].hausdorff_95_mm > overlaps["lesions"].mean_surface_mm > 0


def test_what_one_side_lacks_has_no_distance_and_what_both_lack_no_dice(folder: Path, phantom: Phantom) -> None:
    nothing = np.zeros_like(phantom.lesions.mask)
    write_mask(folder / "found.nii.gz", nothing, phantom.volume.grid)
    _, overlaps = compared(folder)
    assert (overlaps["lesions"].dice, overlaps["lesions"].hausdorff_95_mm) == (0.0, None)
    write_mask(folder / "lesions.nii.gz", nothing, phantom.volume.grid)
    _, overlaps = compared(folder)
    assert (overlaps["lesions"].dice, overlaps["lesions"].is_true, overlaps["lesions"].is_predicted) == (
        None,
        False,
        False,
    )


def test_nrrd_and_metaimage_and_lungs_of_their_own_are_read(folder: Path, phantom: Phantom) -> None:
    half = (phantom.lobes.left()).astype(np.uint8)
    write_mask(folder / "left.nii.gz", half, phantom.volume.grid)
    sitk.WriteImage(sitk.ReadImage(str(folder / "left.nii.gz")), str(folder / "left.nrrd"))
    sitk.WriteImage(sitk.ReadImage(str(folder / "lesions.nii.gz")), str(folder / "lesions.mha"))
    row = ROW.replace("lesions.nii.gz", "lesions.mha")
    (folder / "manifest.csv").write_text(f"{HEADER},predicted_lungs\n{row},left.nrrd\n")
    _, overlaps = compared(folder)
    assert overlaps["lungs"].dice < 0.8
    assert overlaps["right_upper"].is_predicted is False


def test_a_grid_that_differs_by_rounding_is_the_same(folder: Path, phantom: Phantom) -> None:
    x, y, z = phantom.volume.grid.origin_mm
    write_mask(folder / "found.nii.gz", phantom.lesions.mask, replace(phantom.volume.grid, origin_mm=(x + 0.01, y, z)))
    _, overlaps = compared(folder)
    assert overlaps["lesions"].dice == 1.0


def test_a_mask_on_another_grid_is_refused(folder: Path, phantom: Phantom) -> None:
    grid = phantom.volume.grid
    z, y, x = grid.shape
    others = (
        (phantom.lesions.mask, Grid(grid.shape, grid.spacing_mm, (0.0, 0.0, 0.0))),
        (phantom.lesions.mask, Grid(grid.shape, (10.0, 9.0, 8.0), grid.origin_mm)),
        (phantom.lesions.mask[1:], Grid((z - 1, y, x), grid.spacing_mm, grid.origin_mm)),
    )
    for mask, other in others:
        write_mask(folder / "found.nii.gz", mask, other)
        with pytest.raises(MismatchedGridError, match=r"'a': found.nii.gz does not lie on the grid.*Resample"):
            compared(folder)


def test_what_is_no_mask_is_refused(folder: Path, phantom: Phantom) -> None:
    grid = phantom.volume.grid
    write_mask(folder / "lobes.nii.gz", phantom.lobes.labels * 10, grid)
    with pytest.raises(ImageError, match="values 0 to 50; a mask holds 0 to 5"):
        compared(folder)
    write_mask(folder / "lobes.nii.gz", phantom.lobes.labels * 0, grid)
    with pytest.raises(ImageError, match="true lungs are empty"):
        compared(folder)
    write_mask(folder / "lobes.nii.gz", phantom.lobes.labels, grid)
    write_ct(folder / "found.nii.gz", phantom.volume)
    with pytest.raises(ImageError, match=r"found\.nii\.gz holds values -10"):
        compared(folder)
    broken = np.where(phantom.lesions.mask, np.nan, 0).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(broken), str(folder / "found.nii.gz"))
    with pytest.raises(ImageError, match="NaN"):
        compared(folder)
    (folder / "found.nii.gz").write_bytes(b"%PDF-1.7")
    with pytest.raises(ImageError, match=r"found\.nii\.gz"):
        compared(folder)
    (folder / "found.nii.gz").unlink()
    with pytest.raises(ImageError, match="there is no file"):
        compared(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,ct\na,b\n", "true_lobes, true_lesions"),
        (f"{HEADER}\n{ROW}\n{ROW}\n", "stands already"),
        (f"{HEADER}\n{ROW.replace('covid', '')}\n", "group is empty"),
        (f"{HEADER}\n{ROW.replace('found.nii.gz', '')}\n", "predicted_lesions is empty"),
    ],
)
def test_a_bad_manifest_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(EvaluationError, match=said) as caught:
        read_manifest(tmp_path / "manifest.csv")
    assert isinstance(caught.value, TableError)
