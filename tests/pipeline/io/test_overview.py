"""The overview shows the patient as radiologists look at one."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pipeline.anatomy import Lobe
from pipeline.geometry import LesionMask, LobeLabels, Volume
from pipeline.io.overview import LESION_RGB, LOBE_RGB, draw_overview, draw_pictures


def drawn(path: Path, chest: Volume, lobes: LobeLabels, lesion: np.ndarray) -> np.ndarray:
    draw_overview(path, chest, lobes, LesionMask(lesion, lobes.grid))
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def where(picture: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the pixels of one colour."""
    return np.argwhere(np.all(picture == rgb, axis=-1))


def test_right_is_left_and_the_head_is_up(chest: Volume, lobes: LobeLabels, tmp_path: Path) -> None:
    picture = drawn(tmp_path / "x.png", chest, lobes, np.zeros(chest.hu.shape, dtype=bool))
    coronal = picture[:, :280]
    right, left = (where(coronal, LOBE_RGB[lobe]) for lobe in (Lobe.RIGHT_UPPER, Lobe.LEFT_UPPER))
    lower = where(coronal, LOBE_RGB[Lobe.LEFT_LOWER])
    assert right[:, 1].mean() < 140 < left[:, 1].mean()
    assert left[:, 0].mean() < lower[:, 0].mean()


def test_opacities_are_red_where_they_are(chest: Volume, lobes: LobeLabels, tmp_path: Path) -> None:
    lesion = lobes.labels == Lobe.LEFT_LOWER
    picture = drawn(tmp_path / "x.png", chest, lobes, lesion).astype(int)
    reddish = np.argwhere((picture[..., 0] - picture[..., 2] > 80) & (picture[..., 1] < 120))
    coronal = reddish[reddish[:, 1] < 280]
    assert len(coronal) > 1000
    assert coronal[:, 1].min() > 140
    assert LESION_RGB[0] > LESION_RGB[2]


def test_a_scan_without_lungs_is_drawn_too(chest: Volume, lobes: LobeLabels, tmp_path: Path) -> None:
    nothing = LobeLabels(np.zeros_like(lobes.labels), lobes.grid)
    picture = drawn(tmp_path / "x.png", chest, nothing, np.zeros(chest.hu.shape, dtype=bool))
    assert picture.shape[2] == 3
    assert picture.std() > 10


def test_each_picture_has_the_lesion_on_the_side_of_the_patient(
    chest: Volume, lobes: LobeLabels, tmp_path: Path
) -> None:
    """Opacity in the right upper lobe alone: on the left of what is seen from the front, and up."""
    lesion = LesionMask(lobes.labels == Lobe.RIGHT_UPPER, lobes.grid)
    pictures = {
        name: np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))).astype(int)
        for name, path in draw_pictures(tmp_path, chest, lobes, lesion).items()
    }
    assert set(pictures) == {"axial", "coronal", "sagittal", "glass"}
    for name in ("axial", "coronal", "glass"):
        picture = pictures[name]
        red = np.argwhere((picture[..., 0] - picture[..., 2] > 80) & (picture[..., 1] < 120))
        assert len(red) > 500, name
        assert red[:, 1].max() < picture.shape[1] / 2, name
        if name != "axial":
            assert red[:, 0].mean() < picture.shape[0] / 2, name
    assert pictures["glass"].shape == pictures["coronal"].shape
    front, back = (where(pictures["sagittal"], LOBE_RGB[lobe]) for lobe in (Lobe.RIGHT_UPPER, Lobe.RIGHT_LOWER))
    assert front[:, 1].mean() < back[:, 1].mean()
