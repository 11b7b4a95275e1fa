"""Which field of a header wins (docs/geometry.md), with nibabel and ITK as judges of where scan and mask are shown."""

import gzip
import itertools
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.testing import assert_allclose

from pipeline.errors import DamagedFileError, PipelineError, UnsupportedFormatError
from pipeline.geometry import Finding, Scan
from pipeline.io.formats.content import HEAD_BYTES, Content, identify
from pipeline.io.formats.images import read_image
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.write import write_mask

LIMITS = SizeLimits(max_voxels=10**6, max_bytes=10**7, max_files=10)
SIZES = (6, 5, 4)
VALUES = np.arange(120, dtype="<i2").reshape(SIZES[::-1]) - 60
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])

Affine = Sequence[Sequence[float]]
SFORM: Affine = ((-2, 0, 0, 40), (0, -2, 0, 50), (0, 0, 3, 60))
QFORM_ELSEWHERE = (0.0, 0.0, 1.0, 10.0, 20.0, 30.0)
QFORM_AS_SFORM = (0.0, 0.0, 1.0, 40.0, 50.0, 60.0)


def nifti(
    codes: tuple[int, int] = (0, 1),
    *,
    pixdim: Sequence[float] = (1, 2, 2, 3),
    quaternion: Sequence[float] = QFORM_ELSEWHERE,
    sform: Affine = SFORM,
    units: int = 2,
    scaling: tuple[float, float] = (1, 0),
    vox_offset: float = 352,
) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *SIZES, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, *pixdim, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, vox_offset)
    struct.pack_into("<2f", header, 112, *scaling)
    header[123] = units
    struct.pack_into("<hh", header, 252, *codes)
    struct.pack_into("<6f", header, 256, *quaternion)
    struct.pack_into("<12f", header, 280, *np.asarray(sform, dtype=float).ravel())
    header[344:348] = b"n+1\0"
    return bytes(header) + VALUES.tobytes()


def nrrd(*lines: str, sizes: str = "6 5 4", space: str | None = "left-posterior-superior") -> bytes:
    first = [] if space is None else [f"space: {space}"]
    header = ["NRRD0004", "type: short", f"dimension: {len(sizes.split())}", *first, f"sizes: {sizes}"]
    return "\n".join([*header, *lines, "endian: little", "encoding: raw", "", ""]).encode() + VALUES.tobytes()


def metaimage(*lines: str, sizes: str = "6 5 4") -> bytes:
    header = ["ObjectType = Image", f"NDims = {len(sizes.split())}", "BinaryData = True", *lines]
    end = [f"DimSize = {sizes}", "ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]
    return "\n".join([*header, *end]).encode() + VALUES.tobytes()


def written(folder: Path, content: bytes) -> Path:
    suffix = {Content.NRRD: "nrrd", Content.METAIMAGE: "mha", Content.NIFTI_GZ: "nii.gz"}
    path = folder / f"scan.{suffix.get(identify(content[:HEAD_BYTES]), 'nii')}"
    path.write_bytes(content)
    return path


def read(path: Path) -> Scan:
    work = path.parent / "work"
    work.mkdir(exist_ok=True)
    scan = read_image(path, identify(path.read_bytes()[:HEAD_BYTES]), work, LIMITS)
    np.testing.assert_array_equal(scan.volume.hu, VALUES)
    return scan


def masked(path: Path, scan: Scan) -> Path:
    mask = path.parent / "mask.nii.gz"
    write_mask(mask, scan.volume.hu > 0, scan.volume.grid, scan.source)
    return mask


def codes_of(scan: Scan) -> list[tuple[str, str]]:
    return [(finding.code, finding.severity) for finding in scan.findings]


def finding(scan: Scan, code: str) -> Finding:
    return next(f for f in scan.findings if f.code == code)


def affine_of(scan: Scan) -> np.ndarray:
    """Index x, y, z to RAS, as nibabel says it."""
    steps = RAS_TO_LPS @ scan.volume.grid.index_to_lps_matrix[:, ::-1]
    return np.column_stack([steps, RAS_TO_LPS @ np.asarray(scan.volume.grid.origin_mm)])


def shown_by_itk(path: Path) -> np.ndarray | None:
    """Direction, spacing and origin in one row; None of what ITK does not read."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    axes = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (axes, axes))[:3, :3]
    return np.concatenate([direction.ravel(), image.GetSpacing()[:3], image.GetOrigin()[:3]])


def assert_shown_alike(path: Path, mask: Path) -> None:
    if path.suffix != ".nrrd" and path.suffix != ".mha":
        assert_allclose(nibabel.load(mask).affine, nibabel.load(path).affine, atol=1e-5)
    scan_shown = shown_by_itk(path)
    if scan_shown is not None:
        assert_allclose(shown_by_itk(mask), scan_shown, atol=1e-4)


# NIfTI


@pytest.mark.parametrize("codes", itertools.product(range(6), repeat=2))
def test_the_sform_wins_and_every_viewer_shows_the_mask_on_the_scan(codes: tuple[int, int], tmp_path: Path) -> None:
    path = written(tmp_path, nifti(codes))
    scan = read(path)
    qform_code, sform_code = codes
    assert scan.source is not None
    assert scan.source.used == (("sform",) if sform_code else ("qform", "pixdim") if qform_code else ("pixdim",))
    if any(codes):
        assert_allclose(affine_of(scan), nibabel.load(path).affine[:3], atol=1e-5)
    assert_shown_alike(path, masked(path, scan))
    differ = [("geometry-fields-differ", "warning")] if all(codes) else []
    assert codes_of(scan) == (differ if any(codes) else [("orientation-assumed", "warning")])


def test_two_forms_that_agree_are_no_finding(tmp_path: Path) -> None:
    scan = read(written(tmp_path, nifti((1, 2), quaternion=QFORM_AS_SFORM)))
    assert scan.findings == ()
    assert scan.source is not None
    assert scan.source.ignored == {"qform": "agrees with the sform", "pixdim": "agrees with the sform"}


def test_forms_that_exchange_sides_are_an_error(tmp_path: Path) -> None:
    scan = read(written(tmp_path, nifti((1, 1), quaternion=(0, 0, 0, 40, 50, 60))))
    assert codes_of(scan) == [("geometry-fields-differ", "error")]
    assert "exchanges sides" in scan.findings[0].message


@pytest.mark.parametrize("pixdim", [(1, 2, 2, 5), (-1, -2, 2, 3), (1, 0, 2, 3), (1, float("nan"), 2, 3)])
def test_lengths_are_those_of_the_sforms_columns(pixdim: Sequence[float], tmp_path: Path) -> None:
    path = written(tmp_path, nifti((0, 1), pixdim=pixdim))
    scan = read(path)
    assert scan.volume.grid.spacing_mm == (3.0, 2.0, 2.0)
    agrees = [abs(v) for v in pixdim[1:]] == [2, 2, 3]
    assert codes_of(scan) == ([] if agrees else [("geometry-fields-differ", "warning")])
    assert_shown_alike(path, masked(path, scan))


@pytest.mark.parametrize("codes", [(1, 0), (0, 0)])
@pytest.mark.parametrize("length", [-2.0, 0.0, float("nan")])
def test_a_length_of_no_voxel_is_refused_where_it_is_needed(
    codes: tuple[int, int], length: float, tmp_path: Path
) -> None:
    with pytest.raises(DamagedFileError, match=r"pixdim\[1\] is (-2|0|nan)") as refused:
        read(written(tmp_path, nifti(codes, pixdim=(1, length, 2, 3))))
    assert refused.value.evidence["field"] == "pixdim[1]"


@pytest.mark.parametrize(("units", "mm"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (10, 1.0)])
@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (1, 1)])
def test_units_are_converted(units: int, mm: float, codes: tuple[int, int], tmp_path: Path) -> None:
    sform = np.asarray(SFORM) / mm
    quaternion = (*QFORM_AS_SFORM[:3], *(v / mm for v in QFORM_AS_SFORM[3:]))
    pixdim = (1, 2 / mm, 2 / mm, 3 / mm)
    path = written(tmp_path, nifti(codes, units=units, sform=sform.tolist(), quaternion=quaternion, pixdim=pixdim))
    scan = read(path)
    assert_allclose(affine_of(scan), SFORM, rtol=1e-5, atol=1e-4)
    assert scan.findings == ()
    assert_shown_alike(path, masked(path, scan))


def test_a_unit_that_is_no_length_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match="xyzt_units says a unit of length of 5"):
        read(written(tmp_path, nifti(units=5)))


def test_micrometres_that_were_meant_as_millimetres_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"the sform in micrometres: no CT has voxels of 0\.002"):
        read(written(tmp_path, nifti(units=3)))


@pytest.mark.parametrize("degrees", [0.0001, 0.017, 0.3])
@pytest.mark.parametrize("codes", [(0, 1), (1, 1), (1, 2)])
def test_nearly_right_angles_are_straightened(degrees: float, codes: tuple[int, int], tmp_path: Path) -> None:
    lean = 3 * float(np.tan(np.radians(degrees)))
    path = written(tmp_path, nifti(codes, sform=((-2, 0, 0, 40), (0, -2, lean, 50), (0, 0, 3, 60))))
    scan = read(path)
    axes = np.asarray(scan.volume.grid.direction)
    assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    mask = masked(path, scan)
    assert_shown_alike(path, mask)
    assert_allclose(affine_of(scan), nibabel.load(mask).affine[:3], atol=4 * degrees / 57 * 3 + 1e-4)
    if degrees > 0.01 and codes == (0, 1):
        # ITK reads no such scan; it does read the mask.
        assert shown_by_itk(path) is None
        shown = shown_by_itk(mask)
        assert shown is not None
        assert_allclose(shown[9:12], (2, 2, 3), atol=1e-4)
        assert_allclose(shown[12:], scan.volume.grid.origin_mm, atol=1e-3)
    straightened = [f for f in scan.findings if f.code == "axes-straightened"]
    assert len(straightened) == (degrees > 0.05)


def test_a_tilted_gantry_is_refused_by_its_angle(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match=r"the sform: the axes are 7\.59 degrees from right angles"):
        read(written(tmp_path, nifti(sform=((-2, 0, 0, 40), (0, -2, 0.4, 50), (0, 0, 3, 60)))))


@pytest.mark.parametrize(
    "sform",
    [
        ((0, 0, 0, 0),) * 3,
        ((-2, -2, 0, 0), (0, 0, 0, 0), (0, 0, 3, 0)),
        ((float("nan"), 0, 0, 0), (0, 2, 0, 0), (0,) * 4),
    ],
    ids=["zeros", "singular", "no number"],
)
def test_an_sform_without_a_volume_gives_way_to_the_qform_or_is_refused(sform: Affine, tmp_path: Path) -> None:
    scan = read(written(tmp_path, nifti((1, 1), sform=sform)))
    assert codes_of(scan) == [("geometry-fields-differ", "error")]
    assert scan.volume.grid.origin_mm == (-10.0, -20.0, 30.0)
    with pytest.raises(DamagedFileError, match="the sform"):
        read(written(tmp_path, nifti((0, 1), sform=sform)))


def test_a_quaternion_longer_than_one_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    long = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    with pytest.raises(DamagedFileError, match="quatern_b, quatern_c and quatern_d are 1, 1 and 1"):
        read(written(tmp_path, nifti((1, 0), quaternion=long)))
    assert codes_of(read(written(tmp_path, nifti((1, 1), quaternion=long)))) == [("geometry-fields-differ", "warning")]


@pytest.mark.parametrize(("field", "code"), [("qform_code", (7, 1)), ("sform_code", (1, -1))])
def test_a_code_that_is_not_defined_is_refused(field: str, code: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=field):
        read(written(tmp_path, nifti(code)))


@pytest.mark.parametrize(
    ("scaling", "field"),
    [((2.0, float("nan")), "scl_inter"), ((float("nan"), 0.0), "scl_slope"), ((float("inf"), 0.0), "scl_slope")],
)
def test_a_scaling_that_is_no_number_is_refused_by_name(
    scaling: tuple[float, float], field: str, tmp_path: Path
) -> None:
    with pytest.raises(DamagedFileError, match=f"{field} is (nan|inf)") as refused:
        read(written(tmp_path, nifti(scaling=scaling)))
    assert refused.value.evidence["field"] == field


@pytest.mark.parametrize("vox_offset", [0.0, 348.0, 351.0, 352.5, -352.0, float("nan"), 1e9])
def test_pixels_that_begin_within_the_header_are_refused(vox_offset: float, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="vox_offset"):
        read(written(tmp_path, nifti(vox_offset=vox_offset)))


@pytest.mark.parametrize("members", [1, 2, 7])
@pytest.mark.parametrize("after", [b"", bytes(100), b"trailing"], ids=["nothing", "zeros", "words"])
def test_gzip_members_follow_each_other_and_what_follows_them_is_left(
    members: int, after: bytes, tmp_path: Path
) -> None:
    parts = np.array_split(np.frombuffer(nifti(), np.uint8), members)
    path = written(tmp_path, b"".join(gzip.compress(part.tobytes()) for part in parts) + after)
    scan = read(path)
    if after != b"trailing":  # which nibabel refuses, and gzip passes over with a warning
        assert_shown_alike(path, masked(path, scan))


def test_an_empty_first_member_hides_nothing(tmp_path: Path) -> None:
    read(written(tmp_path, gzip.compress(b"") + gzip.compress(nifti())))


def test_a_second_member_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    content = nifti()
    with pytest.raises(DamagedFileError, match="cut short"):
        read(written(tmp_path, gzip.compress(content[:400]) + gzip.compress(content[400:])[:-9]))


def test_more_pixels_than_the_header_says_are_refused_packed_or_not(tmp_path: Path) -> None:
    content = nifti() + bytes(100_000)
    for packed in (content, gzip.compress(content)):
        with pytest.raises(DamagedFileError, match="more than its header says"):
            read(written(tmp_path, packed))


# NRRD

DIRECTIONS = "space directions: (2,0,0) (0,2,0) (0,0,3)"
ORIGIN = "space origin: (10,20,30)"
NRRD_READ = {
    "LPS": nrrd(DIRECTIONS, ORIGIN),
    "RAS": nrrd(DIRECTIONS, ORIGIN, space="right-anterior-superior"),
    "LAS": nrrd(DIRECTIONS, ORIGIN, space="LAS"),
    "permuted": nrrd("space directions: (0,0,2) (2,0,0) (0,3,0)", ORIGIN),
    "oblique": nrrd(
        "space directions: (1.6,1.2,0) (-1.2,1.6,0) (0,0,3)", ORIGIN, "measurement frame: (1,0,0) (0,1,0) (0,0,1)"
    ),
    "left-handed": nrrd("space directions: (2,0,0) (0,2,0) (0,0,-3)", ORIGIN),
    "one channel first": nrrd("space directions: none (2,0,0) (0,2,0) (0,0,3)", ORIGIN, sizes="1 6 5 4"),
    "one volume last": nrrd("space directions: (2,0,0) (0,2,0) (0,0,3) none", ORIGIN, sizes="6 5 4 1"),
    "millimetres": nrrd(DIRECTIONS, ORIGIN, 'space units: "mm" "mm" "mm"'),
}


@pytest.mark.parametrize("name", NRRD_READ)
def test_nrrd_lies_where_itk_shows_it(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, NRRD_READ[name])
    scan = read(path)
    assert scan.findings == ()
    grid, shown = scan.volume.grid, shown_by_itk(path)
    if "one" not in name:  # of which ITK makes vectors, or nothing
        assert shown is not None
        assert_allclose([*np.ravel(grid.direction), *grid.spacing_mm[::-1], *grid.origin_mm], shown, atol=1e-6)
        assert_shown_alike(path, masked(path, scan))


def test_nrrd_sides_that_teem_does_not_know_are_converted_too(tmp_path: Path) -> None:
    scan = read(written(tmp_path, nrrd(DIRECTIONS, ORIGIN, space="right-posterior-inferior")))
    assert scan.volume.grid.origin_mm == (-10.0, 20.0, -30.0)


@pytest.mark.parametrize(("unit", "mm"), [("cm", 10.0), ("m", 1000.0), ("um", 0.001), ("in", 25.4), ("", 1.0)])
def test_nrrd_units_are_converted_which_itk_does_not_do(unit: str, mm: float, tmp_path: Path) -> None:
    units = f'space units: "{unit}" "{unit}" "{unit}"'
    vectors = " ".join(f"({a / mm},{b / mm},{c / mm})" for a, b, c in ((2, 0, 0), (0, 2, 0), (0, 0, 3)))
    scan = read(written(tmp_path, nrrd(f"space directions: {vectors}", units)))
    assert_allclose(scan.volume.grid.spacing_mm, (3, 2, 2))


@pytest.mark.parametrize(
    ("lines", "kind", "words"),
    [
        ((DIRECTIONS, 'space units: "furlong" "mm" "mm"'), UnsupportedFormatError, "space units says 'furlong'"),
        ((), DamagedFileError, "neither space directions nor spacings"),
        (("spacings: nan 2 3",), DamagedFileError, "neither space directions nor spacings"),
        (("spacings: 2 2",), DamagedFileError, "spacings is '2 2'"),
        (("spacings: 0 2 3",), DamagedFileError, "spacings: no CT has voxels of 0 x 2 x 3"),
        (("spacings: 2 2 three",), DamagedFileError, "spacings is '2 2 three'"),
        (("space directions: (2,0,0) (0,2,0)",), DamagedFileError, "space directions has 2 entries for 3 sizes"),
        (("space directions: (2,0) (0,2) (0,3)",), UnsupportedFormatError, "vectors of three numbers"),
        (("space directions: (2,0,0) (2,0,0) (0,0,3)",), DamagedFileError, "two of the axes run along each other"),
        (("space directions: (nan,0,0) (0,2,0) (0,0,3)",), DamagedFileError, "holds what is no number"),
        ((DIRECTIONS, "space origin: (1e9,0,0)"), DamagedFileError, "1e\\+09 mm from the origin"),
    ],
)
def test_nrrd_geometry_that_is_none_is_refused_by_its_field(
    lines: Sequence[str], kind: type[PipelineError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        read(written(tmp_path, nrrd(*lines)))


def test_nrrd_directions_win_against_spacings(tmp_path: Path) -> None:
    scan = read(written(tmp_path, nrrd(DIRECTIONS, "spacings: 2 2 5")))
    assert scan.volume.grid.spacing_mm == (3.0, 2.0, 2.0)
    assert finding(scan, "geometry-fields-differ").evidence["ignored"] == "spacings"
    assert read(written(tmp_path, nrrd(DIRECTIONS, "spacings: nan nan nan"))).findings == ()


@pytest.mark.parametrize("space", [None, "scanner-xyz", "left-posterior-superior"])
def test_nrrd_with_spacings_alone_says_that_sides_are_assumed(space: str | None, tmp_path: Path) -> None:
    path = written(tmp_path, nrrd("spacings: 2 2 3", space=space))
    scan = read(path)
    assert codes_of(scan) == [("orientation-assumed", "warning")]
    assert scan.volume.grid.spacing_mm == (3.0, 2.0, 2.0)
    if space != "scanner-xyz":  # which ITK does not read without directions
        assert_shown_alike(path, masked(path, scan))


def test_several_volumes_in_an_nrrd_are_refused(tmp_path: Path) -> None:
    content = nrrd("space directions: (2,0,0) (0,2,0) (0,0,3) none", sizes="6 5 2 2")
    with pytest.raises(UnsupportedFormatError, match=r"several volumes or channels \(6 x 5 x 2 x 2\)"):
        read(written(tmp_path, content))


# MetaImage

MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1"
OFFSET = "Offset = 10 20 30"
SPACING = "ElementSpacing = 2 2 3"
META_READ = {
    "plain": metaimage(MATRIX, OFFSET, SPACING),
    "oblique": metaimage("TransformMatrix = 0.8 0.6 0 -0.6 0.8 0 0 0 1", OFFSET, SPACING),
    "permuted": metaimage("TransformMatrix = 0 0 1 1 0 0 0 1 0", OFFSET, SPACING),
    "rotation and position": metaimage("Rotation = 0 1 0 -1 0 0 0 0 1", "Position = 10 20 30", SPACING),
    "orientation and origin": metaimage("Orientation = 1 0 0 0 -1 0 0 0 -1", "Origin = 10 20 30", SPACING),
    "four axes": metaimage(
        "TransformMatrix = 0 1 0 0 -1 0 0 0 0 0 1 0 0 0 0 1",
        "Offset = 10 20 30 0",
        "ElementSpacing = 2 2 3 1",
        sizes="6 5 4 1",
    ),
    "element size too": metaimage(MATRIX, OFFSET, SPACING, "ElementSize = 2 2 3"),
}


@pytest.mark.parametrize("name", META_READ)
def test_metaimage_lies_where_itk_shows_it(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, META_READ[name])
    scan = read(path)
    assert scan.findings == ()
    grid, shown = scan.volume.grid, shown_by_itk(path)
    assert shown is not None
    assert_allclose([*np.ravel(grid.direction), *grid.spacing_mm[::-1], *grid.origin_mm], shown, atol=1e-6)
    assert_shown_alike(path, masked(path, scan))


def test_element_size_says_the_spacing_where_nothing_else_does(tmp_path: Path) -> None:
    scan = read(written(tmp_path, metaimage(MATRIX, OFFSET, "ElementSize = 2 2 3")))
    assert scan.volume.grid.spacing_mm == (3.0, 2.0, 2.0)
    assert scan.source is not None
    assert "ElementSize" in scan.source.used


def test_element_spacing_wins_against_element_size(tmp_path: Path) -> None:
    scan = read(written(tmp_path, metaimage(MATRIX, SPACING, "ElementSize = 2 2 5")))
    assert scan.volume.grid.spacing_mm == (3.0, 2.0, 2.0)
    assert finding(scan, "geometry-fields-differ").evidence["ignored"] == "ElementSize"


@pytest.mark.parametrize(
    ("lines", "kind", "words"),
    [
        ((MATRIX,), DamagedFileError, "neither ElementSpacing nor ElementSize"),
        ((MATRIX, "ElementSpacing = 2 -2 3"), DamagedFileError, "ElementSpacing is '2 -2 3'"),
        ((MATRIX, "ElementSpacing = 2 0 3"), DamagedFileError, "ElementSpacing is '2 0 3'"),
        ((MATRIX, "ElementSpacing = 2 2"), DamagedFileError, "ElementSpacing holds 2 numbers; 3 are wanted"),
        (("TransformMatrix = 1 0 0 1 0 0 0 0 1", SPACING), DamagedFileError, "two of the axes run along each other"),
        (("TransformMatrix = 1 0 0 0 1 0.1 0 0 1", SPACING), UnsupportedFormatError, "degrees from right angles"),
        ((MATRIX, SPACING, "DistanceUnits = furlong"), UnsupportedFormatError, "DistanceUnits is 'furlong'"),
        ((MATRIX, SPACING, "Offset = 1 2 nan"), DamagedFileError, "holds what is no number"),
    ],
)
def test_metaimage_geometry_that_is_none_is_refused_by_its_field(
    lines: Sequence[str], kind: type[PipelineError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        read(written(tmp_path, metaimage(*lines)))


@pytest.mark.parametrize(
    "lines",
    [
        (MATRIX, "Orientation = 0 1 0 1 0 0 0 0 1", OFFSET, SPACING),
        (MATRIX, OFFSET, "Position = 1 2 3", SPACING),
        (MATRIX, OFFSET, "Origin = 1 2 3", SPACING),
        (MATRIX, "Position = 10 20 30", "Origin = 1 2 3", SPACING),
        ("Rotation = 1 0 0 0 1 0 0 0 1", "Orientation = 0 1 0 1 0 0 0 0 1", OFFSET, SPACING),
    ],
)
def test_of_two_names_of_one_field_the_one_that_itk_takes_wins(lines: Sequence[str], tmp_path: Path) -> None:
    path = written(tmp_path, metaimage(*lines))
    scan = read(path)
    assert codes_of(scan) == [("geometry-fields-differ", "warning")]
    assert_shown_alike(path, masked(path, scan))


def test_centimetres_of_a_metaimage_are_converted(tmp_path: Path) -> None:
    scan = read(written(tmp_path, metaimage(MATRIX, "ElementSpacing = 0.2 0.2 0.3", "DistanceUnits = cm")))
    assert_allclose(scan.volume.grid.spacing_mm, (3, 2, 2))


def test_a_metaimage_without_a_matrix_says_that_sides_are_assumed(tmp_path: Path) -> None:
    assert codes_of(read(written(tmp_path, metaimage(SPACING)))) == [("orientation-assumed", "warning")]


def test_a_zlib_stream_is_read_to_its_end(tmp_path: Path) -> None:
    plain = metaimage(MATRIX, SPACING, "CompressedData = True")
    header = plain[: -VALUES.nbytes]
    read(written(tmp_path, header + zlib.compress(VALUES.tobytes()) + b"trailing"))
    with pytest.raises(DamagedFileError, match="cut short"):
        read(written(tmp_path, header + zlib.compress(VALUES.tobytes())[:-5]))


def test_what_a_header_says_is_told_although_the_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="fewer pixels") as refused:
        read(written(tmp_path, nifti((1, 2))[:-1]))
    assert [f["code"] for f in refused.value.evidence["findings"]] == ["geometry-fields-differ"]  # type: ignore[attr-defined]
