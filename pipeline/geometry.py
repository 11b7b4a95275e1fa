"""A CT and its masks, each tied to the grid that places it in the patient.

Arrays are z-y-x. What belongs to an array (shape, spacing) is z-y-x too; what belongs to the patient
(points, origin, direction) is LPS millimetres, x-y-z: x grows to the patient's left, y to the back, z to the head.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import edt
import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float32, Float64, Int16, Shaped, UInt8

from pipeline.anatomy import LEFT_LOBES, Landmark, Lobe
from pipeline.source_identity import SourceIdentity

Triple = tuple[float, float, float]
Matrix = tuple[Triple, Triple, Triple]
#: An LPS position, x-y-z.
Point = Sequence[float] | Float64[np.ndarray, "3"]

Slices = tuple[slice, slice, slice]

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an array lie in the patient.

    Attributes:
        shape: voxels, z-y-x.
        spacing_mm: distance of neighbouring voxels, z-y-x.
        origin_mm: LPS position (x, y, z) of the centre of voxel [0, 0, 0].
        direction: 3 x 3, rows are LPS x, y, z; columns are the unit vectors along the array's x, y and z axis
            (ITK's convention).
    """

    shape: tuple[int, int, int]
    spacing_mm: Triple
    origin_mm: Triple
    direction: Matrix = IDENTITY

    @classmethod
    def axis_aligned(cls, lower_mm: Point, upper_mm: Point, spacing_mm: Triple) -> "Grid":
        """The grid with identity direction that covers the LPS box from `lower_mm` to `upper_mm` (x, y, z)."""
        spacing_xyz = np.asarray(spacing_mm[::-1], dtype=np.float64)
        extent = np.asarray(upper_mm, dtype=np.float64) - np.asarray(lower_mm, dtype=np.float64)
        size = np.maximum(np.ceil(extent / spacing_xyz - 1e-6).astype(int), 1)
        x, y, z = (float(v) for v in np.asarray(lower_mm, dtype=np.float64) + spacing_xyz / 2)
        return cls((int(size[2]), int(size[1]), int(size[0])), spacing_mm, (x, y, z))

    def covering(self, spacing_mm: Triple) -> "Grid":
        """The grid with identity direction and another spacing that covers all voxels of this one."""
        lower, upper = self.bounds_mm()
        return Grid.axis_aligned(lower.tolist(), upper.tolist(), spacing_mm)

    def not_finer_than(self, spacing_mm: float) -> "Grid":
        """The same box along the same axes, those with finer voxels than `spacing_mm` (all axes) brought to it."""
        own_mm = np.asarray(self.spacing_mm)
        new_mm = np.maximum(own_mm, spacing_mm)
        z, y, x = np.maximum(np.ceil(np.asarray(self.shape) * own_mm / new_mm - 1e-6).astype(int), 1)
        a, b, c = self.to_lps((new_mm / own_mm - 1.0) / 2)
        spacing = (float(new_mm[0]), float(new_mm[1]), float(new_mm[2]))
        return Grid((int(z), int(y), int(x)), spacing, (float(a), float(b), float(c)), self.direction)

    @cached_property
    def index_to_lps_matrix(self) -> Float64[np.ndarray, "3 3"]:
        """Maps an index step (z, y, x) to an LPS step (x, y, z) in mm."""
        columns_xyz = np.asarray(self.direction) * np.asarray(self.spacing_mm[::-1])
        return np.ascontiguousarray(columns_xyz[:, ::-1])

    @property
    def axes(self) -> str:
        """Where the array's x, y and z axis lead, to the nearest: one each of L/R, P/A, S/I."""
        letters = []
        for column in np.asarray(self.direction).T:
            way = int(np.argmax(np.abs(column)))
            letters.append(("RL", "AP", "IS")[way][int(column[way] > 0)])
        return "".join(letters)

    @property
    def voxel_volume_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def size_mm(self) -> Triple:
        """Edge lengths of the grid, z-y-x, voxels counted whole."""
        z, y, x = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return z, y, x

    def to_lps(self, index_zyx: Float64[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
        """LPS positions (x, y, z) of indices (z, y, x); fractions are allowed."""
        return np.asarray(index_zyx @ self.index_to_lps_matrix.T + np.asarray(self.origin_mm))

    def to_index(self, position_mm: Float64[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
        """Fractional indices (z, y, x) of LPS positions (x, y, z)."""
        return np.asarray((position_mm - np.asarray(self.origin_mm)) @ np.linalg.inv(self.index_to_lps_matrix).T)

    def bounds_mm(self) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
        """The smallest LPS box (lower, upper) that holds every voxel whole."""
        edges = [(-0.5, n - 0.5) for n in self.shape]
        corners = self.to_lps(np.array([(z, y, x) for z in edges[0] for y in edges[1] for x in edges[2]]))
        return corners.min(axis=0), corners.max(axis=0)

    def contains(self, position_mm: Point) -> bool:
        """Whether an LPS point lies within the voxels."""
        index = self.to_index(np.asarray(position_mm, dtype=np.float64))
        return bool(np.all(index >= -0.5) and np.all(index <= np.asarray(self.shape) - 0.5))


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT in Hounsfield units on its grid."""

    hu: Int16[np.ndarray, "z y x"]
    grid: Grid


@dataclass(frozen=True, eq=False)
class LungMask:
    """Both lungs, lesions included, effusion not."""

    mask: Bool[np.ndarray, "z y x"]
    grid: Grid

    def volume_ml(self) -> float:
        return int(np.count_nonzero(self.mask)) * self.grid.voxel_volume_ml


@dataclass(frozen=True, eq=False)
class LobeLabels:
    """Each voxel's lobe: 0 outside the lungs, else the value of `Lobe`.

    Attributes:
        fissures_sd: how surely each fissure was seen, in standard deviations above chance; without those that were not
            looked for. None where whoever drew the lobes does not tell.
    """

    labels: UInt8[np.ndarray, "z y x"]
    grid: Grid
    fissures_sd: Mapping[str, float] | None = None

    def lungs(self) -> LungMask:
        """The union of the lobes."""
        return LungMask(self.labels > 0, self.grid)

    def of(self, lobe: Lobe) -> Bool[np.ndarray, "z y x"]:
        return np.asarray(self.labels == lobe)

    def left(self) -> Bool[np.ndarray, "z y x"]:
        return np.isin(self.labels, LEFT_LOBES)


@dataclass(frozen=True, eq=False)
class LesionMask:
    """Ground glass, crazy paving and consolidation: one class, as in the paper."""

    mask: Bool[np.ndarray, "z y x"]
    grid: Grid


@dataclass(frozen=True)
class Finding:
    """Something about the scan or the result that a reader should know; data, never a silent repair.

    Attributes:
        code: stable slug, such as `thick-slices`.
        severity: `info`, `warning` or `error`.
        message: one sentence for people.
        evidence: the numbers behind it.
        lobe: the one that it is about; None where it is about the scan or the result as a whole.
    """

    code: str
    severity: str
    message: str
    evidence: Mapping[str, object] = field(default_factory=dict)
    lobe: Lobe | None = None


def as_evidence(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Findings as a problem's evidence holds them."""
    return [{"code": f.code, "severity": f.severity, "message": f.message} for f in findings]


@dataclass(frozen=True)
class NiftiGeometry:
    """The fields of a NIfTI header that place its voxels, as they are stored (RAS, x-y-z).

    A mask that carries the same fields lies on its scan in every viewer, whichever of the fields that viewer believes.

    Attributes:
        pixdim: qfac, then the spacing along x, y, z, in the units of `xyzt_units`.
        codes: `qform_code`, `sform_code`.
        quaternion: b, c, d, then the offset.
        affine: `srow_x`, `srow_y`, `srow_z`.
    """

    pixdim: tuple[float, ...]
    xyzt_units: int
    codes: tuple[int, int]
    quaternion: tuple[float, ...]
    affine: tuple[float, ...]


@dataclass(frozen=True)
class GeometrySource:
    """Which fields of a file say where its voxels lie.

    Attributes:
        file_format: `NIfTI-1`, `NIfTI-2`, `NRRD`, `MetaImage` or `DICOM`.
        used: the fields that the grid was made of.
        ignored: fields that are there and were not used, each with the reason.
        nifti: what a mask's header has to repeat; None where the input is no NIfTI.
    """

    file_format: str
    used: tuple[str, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    nifti: NiftiGeometry | None = None


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT as it was read, with what was noticed on the way.

    Attributes:
        source: None of a scan that was never a file.
        identity: whom and what it is of; None of what is no DICOM, or of DICOM without the UIDs that it must have.
    """

    volume: Volume
    findings: tuple[Finding, ...] = ()
    source: GeometrySource | None = None
    identity: SourceIdentity | None = None


@dataclass(frozen=True)
class LandmarkPosition:
    """Where a landmark is, or that it is not in this scan.

    Attributes:
        position_mm: LPS (x, y, z); None when the landmark is not in this scan.
        confidence: share of the walks that support this answer, 0 to 1; of all scales the least.
    """

    landmark: Landmark
    position_mm: Triple | None
    confidence: float

    @property
    def found(self) -> bool:
        return self.position_mm is not None


def to_sitk(array: Shaped[np.ndarray, "z y x"], grid: Grid) -> sitk.Image:
    """The array as an ITK image placed by `grid`."""
    image = sitk.GetImageFromArray(array.astype(np.uint8) if array.dtype == np.bool_ else array)
    image.SetSpacing([float(s) for s in grid.spacing_mm[::-1]])
    image.SetOrigin([float(o) for o in grid.origin_mm])
    image.SetDirection([float(v) for row in grid.direction for v in row])
    return image


def grid_of(image: sitk.Image) -> Grid:
    """The grid of a three-dimensional ITK image."""
    x, y, z = image.GetSize()
    sx, sy, sz = image.GetSpacing()
    ox, oy, oz = image.GetOrigin()
    d = image.GetDirection()
    return Grid((z, y, x), (sz, sy, sx), (ox, oy, oz), ((d[0], d[1], d[2]), (d[3], d[4], d[5]), (d[6], d[7], d[8])))


def index_box(grid: Grid, low: np.ndarray, high: np.ndarray, target: Grid, *, spare: int) -> Slices:
    """Slices of `target` that hold the voxels `low` to `high` (z, y, x) of `grid`, whatever the directions."""
    ends = np.stack([low - 0.5, high + 0.5])
    corners = np.array([(ends[i, 0], ends[j, 1], ends[k, 2]) for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    index = target.to_index(grid.to_lps(corners))
    begin = np.clip(np.floor(index.min(axis=0)).astype(int) - spare, 0, np.asarray(target.shape) - 1)
    end = np.clip(np.ceil(index.max(axis=0)).astype(int) + spare + 1, begin + 1, target.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(begin, end, strict=True))
    return z, y, x


def part_of(grid: Grid, slices: Slices) -> Grid:
    """The grid of a part of an array."""
    z, y, x = slices
    origin = grid.to_lps(np.array([z.start, y.start, x.start], dtype=np.float64))
    shape = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
    return Grid(shape, grid.spacing_mm, (float(origin[0]), float(origin[1]), float(origin[2])), grid.direction)


def distance_to_mm(mask: Bool[np.ndarray, "z y x"], spacing_mm: Triple) -> Float32[np.ndarray, "z y x"]:
    """How far each voxel is from the nearest one of `mask`; infinite where it is empty.

    On one thread: a worker uses no more of a machine than it was given.
    """
    return np.asarray(edt.edt(~mask, anisotropy=spacing_mm, black_border=False, parallel=1))


def area_on_faces_cm2(mask: Bool[np.ndarray, "z y x"], grid: Grid) -> float:
    """The largest area that the mask has on one of the six faces of the scan."""
    areas_cm2 = [grid.voxel_volume_ml * 10 / spacing_mm for spacing_mm in grid.spacing_mm]
    return max(
        int(np.count_nonzero(np.take(mask, index, axis=axis))) * areas_cm2[axis]
        for axis in range(3)
        for index in (0, -1)
    )
