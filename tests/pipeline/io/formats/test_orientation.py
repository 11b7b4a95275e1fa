"""Left and right, front and back, upper and lower are where they are, however a file orders its axes."""

import gzip
import struct
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.anatomy import LEFT_LOBES, Lobe
from pipeline.geometry import Grid, LesionMask, LobeLabels, Volume, to_sitk
from pipeline.io.formats.scan import leave_hounsfield
from pipeline.io.read import read_ct
from pipeline.io.write import write_mask
from pipeline.phantom import Phantom, PhantomRecipe, make_phantom
from pipeline.severity import score_severity

Orientation = tuple[tuple[int, int, int], tuple[int, int, int]]
ORIENTATIONS: list[Orientation] = [
    (order, signs) for order in permutations((0, 1, 2)) for signs in product((1, -1), repeat=3)
]
NAMES = [
    "".join(f"{'+-'[s < 0]}{'zyx'[a]}" for a, s in zip(order, signs, strict=True)) for order, signs in ORIENTATIONS
]
every_orientation = pytest.mark.parametrize("orientation", ORIENTATIONS, ids=NAMES)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """A thorax that no turn and no mirror maps onto itself."""
    return make_phantom(PhantomRecipe(seed=3, spacing_mm=(9.0, 6.0, 5.0), percent_opacity=15.0))


@pytest.fixture
def chest(phantom: Phantom) -> Volume:
    return phantom.volume


@pytest.fixture
def lobes(phantom: Phantom) -> LobeLabels:
    return phantom.lobes


def turned(array: np.ndarray, grid: Grid, orientation: Orientation) -> tuple[np.ndarray, Grid]:
    """The same patient with the array's axes in another order and direction."""
    order, signs = orientation
    flipped = tuple(slice(None, None, sign) for sign in signs)
    first = [0 if sign > 0 else grid.shape[axis] - 1 for axis, sign in zip(order, signs, strict=True)]
    corner = np.zeros(3)
    corner[list(order)] = first
    x, y, z = (float(v) for v in grid.to_lps(corner))
    columns = np.asarray(grid.direction)[:, ::-1][:, list(order)] * np.array(signs)
    rows = [(float(a), float(b), float(c)) for a, b, c in columns[:, ::-1]]
    moved = np.ascontiguousarray(array.transpose(order)[flipped])
    spacing = (grid.spacing_mm[order[0]], grid.spacing_mm[order[1]], grid.spacing_mm[order[2]])
    i, j, k = moved.shape
    return moved, Grid((i, j, k), spacing, (x, y, z), (rows[0], rows[1], rows[2]))


def values_at(array: np.ndarray, grid: Grid, points: np.ndarray) -> np.ndarray:
    index = np.rint(grid.to_index(points)).astype(int)
    return np.asarray(array[tuple(index.T)])


def write_nifti_by_hand(path: Path, array: np.ndarray, grid: Grid) -> None:
    """A NIfTI-1 whose sform is written from its definition: RAS millimetres, x fastest."""
    to_ras = np.diag([-1.0, -1.0, 1.0])
    affine = np.hstack([to_ras @ grid.index_to_lps_matrix[:, ::-1], (to_ras @ np.array(grid.origin_mm))[:, None]])
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *array.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, *grid.spacing_mm[::-1], 0, 0, 0, 0)
    struct.pack_into("<fff", header, 108, 352, 1, 0)
    struct.pack_into("<B", header, 123, 2)
    struct.pack_into("<hh", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, *affine.ravel())
    header[344:348] = b"n+1\0"
    path.write_bytes(gzip.compress(bytes(header) + array.astype("<i2").tobytes(), 1))


def write_by_itk(image_io: str) -> Callable[[Path, np.ndarray, Grid], None]:
    def write(path: Path, array: np.ndarray, grid: Grid) -> None:
        sitk.WriteImage(to_sitk(array, grid), str(path), useCompression=True, imageIO=image_io)

    return write


WRITERS = {
    "nii.gz": write_nifti_by_hand,
    "nii": write_by_itk("NiftiImageIO"),
    "nrrd": write_by_itk("NrrdImageIO"),
    "mha": write_by_itk("MetaImageIO"),
}


@every_orientation
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_lobe_is_found_where_it_is(
    orientation: Orientation,
    suffix: str,
    chest: Volume,
    lobes: LobeLabels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hu, grid = turned(chest.hu, chest.grid, orientation)
    path = tmp_path / f"scan.{suffix}"
    WRITERS[suffix](path, hu, grid)

    read, read_grid = read_in_this_process(path, tmp_path / "work", monkeypatch)

    points = chest.grid.to_lps(np.argwhere(lobes.labels > 0).astype(np.float64))
    np.testing.assert_array_equal(values_at(read, read_grid, points), values_at(chest.hu, chest.grid, points))
    np.testing.assert_array_equal(read, hu)
    np.testing.assert_allclose(read_grid.direction, grid.direction, atol=1e-6)
    np.testing.assert_allclose(read_grid.origin_mm, grid.origin_mm, atol=1e-3)
    np.testing.assert_allclose(read_grid.spacing_mm, grid.spacing_mm, rtol=1e-6)


@every_orientation
def test_dicom_slices_along_any_axis_end_up_where_they_lie(
    orientation: Orientation,
    phantom: Phantom,
    write_series: Callable[..., list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coarse = thinned(phantom.volume)  # writing slices takes most of the time
    write_series(Volume(*turned(coarse.hu, coarse.grid, orientation)), tmp_path / "series")

    read, read_grid = read_in_this_process(tmp_path / "series", tmp_path / "work", monkeypatch)

    points = coarse.grid.to_lps(np.argwhere(coarse.hu > -2000).astype(np.float64))
    np.testing.assert_array_equal(values_at(read, read_grid, points), coarse.hu.ravel())
    assert np.linalg.det(np.asarray(read_grid.direction)) == pytest.approx(1)


def thinned(volume: Volume) -> Volume:
    (z, y, x), strides = volume.grid.spacing_mm, (2, 3, 3)
    hu = np.ascontiguousarray(volume.hu[tuple(slice(None, None, stride) for stride in strides)])
    i, j, k = hu.shape
    return Volume(hu, Grid((i, j, k), (2 * z, 3 * y, 3 * x), volume.grid.origin_mm, volume.grid.direction))


@every_orientation
def test_masks_come_back_on_the_grid_they_were_made_on(
    orientation: Orientation, lobes: LobeLabels, tmp_path: Path
) -> None:
    labels, grid = turned(lobes.labels, lobes.grid, orientation)
    write_mask(tmp_path / "lobes.nii.gz", labels, grid)

    image = sitk.ReadImage(str(tmp_path / "lobes.nii.gz"))

    assert image.GetSize() == grid.shape[::-1]
    np.testing.assert_allclose(image.GetSpacing(), grid.spacing_mm[::-1], atol=1e-4)
    np.testing.assert_allclose(image.GetOrigin(), grid.origin_mm, atol=1e-4)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), grid.direction, atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels)
    centres = {lobe: centre_through_itk(image, lobe) for lobe in Lobe}
    for lobe, (x, _, _) in centres.items():
        assert (x > centres_of_the_chest(lobes)[0]) == (lobe in LEFT_LOBES)
    assert centres[Lobe.LEFT_UPPER][2] > centres[Lobe.LEFT_LOWER][2]
    assert centres[Lobe.RIGHT_UPPER][2] > centres[Lobe.RIGHT_MIDDLE][2]
    assert centres[Lobe.RIGHT_UPPER][2] > centres[Lobe.RIGHT_LOWER][2]
    assert centres[Lobe.RIGHT_MIDDLE][1] < centres[Lobe.RIGHT_LOWER][1]


def centre_through_itk(image: sitk.Image, lobe: Lobe) -> tuple[float, float, float]:
    """LPS: left, back and head are positive."""
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(image)
    x, y, z = shapes.GetCentroid(int(lobe))
    return x, y, z


def centres_of_the_chest(lobes: LobeLabels) -> np.ndarray:
    return lobes.grid.to_lps(np.argwhere(lobes.labels > 0).astype(np.float64).mean(axis=0))


@every_orientation
def test_severity_of_the_same_patient_is_the_same(orientation: Orientation, phantom: Phantom) -> None:
    chest, lobes = phantom.volume, phantom.lobes
    lesion = phantom.lesions.mask
    upright = phantom.severity

    hu, grid = turned(chest.hu, chest.grid, orientation)
    turned_lobes = LobeLabels(turned(lobes.labels, lobes.grid, orientation)[0], grid)
    turned_lesion = LesionMask(turned(lesion, lobes.grid, orientation)[0], grid)
    severity = score_severity(Volume(hu, grid), turned_lobes.lungs(), turned_lobes, turned_lesion)

    assert severity.percent_opacity == upright.percent_opacity > 10
    assert severity.lung_severity_score == upright.lung_severity_score > 0
    assert [s.percent_high_opacity for s in severity.lobes] == [s.percent_high_opacity for s in upright.lobes]


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_oblique_left_handed_scan_passes_through_the_child_and_back(
    suffix: str, chest: Volume, tmp_path: Path
) -> None:
    a, b = np.radians(12), np.radians(-7)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    turn[:, 0] *= -1
    rows = [(float(x), float(y), float(z)) for x, y, z in turn]
    grid = Grid(chest.grid.shape, (4.5, 0.9, 0.8), (12.3, -45.6, 789.0), (rows[0], rows[1], rows[2]))
    path = tmp_path / "upload"
    WRITERS[suffix](tmp_path / f"scan.{suffix}", chest.hu, grid)
    (tmp_path / f"scan.{suffix}").rename(path)

    scan = read_ct(path)
    write_mask(tmp_path / "mask.nii.gz", scan.volume.hu > -500, scan.volume.grid)

    image = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), chest.hu > -500)
    np.testing.assert_allclose(image.GetOrigin(), grid.origin_mm, atol=1e-4)
    np.testing.assert_allclose(image.GetSpacing(), grid.spacing_mm[::-1], atol=1e-4)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), turn, atol=1e-4)


def read_in_this_process(path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, Grid]:
    """What the child runs, without the child: 240 of them would take minutes."""
    work.mkdir()
    monkeypatch.chdir(work)
    answer = leave_hounsfield(str(path), max_voxels=10**6, max_bytes=10**7, max_files=1000)
    values = answer["grid"]
    hu = np.fromfile(work / "hu.raw", np.int16).reshape(values["shape"])
    grid = Grid(hu.shape, *(tuple(values[name]) for name in ("spacing_mm", "origin_mm", "direction")))
    return hu, grid
