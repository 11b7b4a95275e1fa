"""NIfTI-1 and NIfTI-2 headers.

Which field wins where several place the voxels: the sform when its code is above 0, else the qform when its code is,
else the spacing alone (nifti1.h, methods 3, 2 and 1; nibabel and dcm2niix agree, ITK prefers the qform to an sform of
a code other than 1).
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.errors import DamagedFileError, UnsupportedFormatError
from pipeline.geometry import Finding, GeometrySource, Grid, NiftiGeometry
from pipeline.io.formats.image_header import (
    LARGEST_SIZE,
    ImageHeader,
    orientation_assumed,
    placements_differ,
    require_volume,
    spacings_differ,
)
from pipeline.io.formats.placement import StoredPlacement

_TYPES: Final = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_Layout = Mapping[str, tuple[int, str]]
_NIFTI_1: Final[_Layout] = {
    "dim": (40, "8h"),
    "datatype": (70, "h"),
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "scaling": (112, "2f"),
    "xyzt_units": (123, "B"),
    "codes": (252, "2h"),
    "quaternion": (256, "6f"),
    "affine": (280, "12f"),
}
_NIFTI_2: Final[_Layout] = {
    "dim": (16, "8q"),
    "datatype": (12, "h"),
    "pixdim": (104, "8d"),
    "vox_offset": (168, "q"),
    "scaling": (176, "2d"),
    "xyzt_units": (500, "i"),
    "codes": (344, "2i"),
    "quaternion": (352, "6d"),
    "affine": (400, "12d"),
}
#: Size of the header, layout of its fields, and the first offset that pixels may have.
_VERSIONS: Final = ((348, _NIFTI_1, 352, "NIfTI-1"), (540, _NIFTI_2, 544, "NIfTI-2"))

#: Pixels further back than this hide more than extensions.
_LARGEST_OFFSET: Final = 1 << 20

#: The low three bits of xyzt_units; 0 is unknown, which everybody reads as millimetres.
_MM_PER_UNIT: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNIT_NAMES: Final = {0: "", 1: " in metres", 2: "", 3: " in micrometres"}

#: NIFTI_XFORM_TEMPLATE_OTHER.
_LAST_CODE: Final = 5

_RAS_TO_LPS: Final = np.diag([-1.0, -1.0, 1.0])

#: b, c and d are of a unit quaternion; more than rounding makes their squares add up to more than 1.
_LONGER_QUATERNION: Final = 2e-4

#: As in the C library of NIfTI.
_ZERO_QUATERNION: Final = 1e-7


def parse_nifti(head: bytes) -> ImageHeader:
    """A single-file NIfTI-1 or NIfTI-2 header, of either byte order.

    Raises:
        DamagedFileError, UnsupportedFormatError: with the field's name, what it holds and what is wanted.
    """
    kinds = ((order, *version) for order in "<>" for version in _VERSIONS)
    for order, size, layout, first_data_at, name in kinds:  # noqa: B007 (they are used after the loop)
        if len(head) >= size and struct.unpack_from(f"{order}i", head)[0] == size:
            break
    else:
        raise DamagedFileError(
            "The NIfTI header is damaged or cut short: sizeof_hdr is neither 348 nor 540. Send the file again."
        )
    fields = {name: struct.unpack_from(order + code, head, at) for name, (at, code) in layout.items()}
    axes, data_at = fields["dim"][0], fields["vox_offset"][0]
    if not 1 <= axes <= 7:
        raise DamagedFileError(f"The NIfTI header is damaged: dim[0] is {axes}; 1 to 7 axes are possible.")
    if not first_data_at <= data_at <= _LARGEST_OFFSET or data_at != int(data_at):
        raise DamagedFileError(
            f"The NIfTI header is damaged: vox_offset is {data_at:g}; pixels begin at {first_data_at} at the earliest.",
            evidence={"field": "vox_offset", "value": str(data_at), "least": first_data_at},
        )
    if fields["datatype"][0] not in _TYPES:
        raise UnsupportedFormatError(
            f"The NIfTI file holds colours or complex numbers (datatype {fields['datatype'][0]}), not a CT. "
            "Send the CT itself, an integer or a float a voxel."
        )
    sizes = fields["dim"][1 : axes + 1]
    if max(sizes) > LARGEST_SIZE:
        raise DamagedFileError(
            f"The NIfTI header is damaged: dim is {' x '.join(map(str, sizes))}; at most {LARGEST_SIZE} is possible.",
            evidence={"field": "dim"},
        )
    require_volume(sizes)
    slope, intercept, scaling_findings = _scaling(fields["scaling"])
    x, y, z = sizes[:3]
    placement, source, findings = _placement(fields, (x, y, z), name)
    return ImageHeader(
        sizes=(x, y, z),
        dtype=np.dtype(order + _TYPES[fields["datatype"][0]]),
        data_at=int(data_at),
        placement=placement,
        source=source,
        findings=(*findings, *scaling_findings),
        slope=slope,
        intercept=intercept,
    )


def _scaling(stored: tuple[float, float]) -> tuple[float, float, tuple[Finding, ...]]:
    slope, intercept = stored
    # A slope of 0 says that there is no scaling, whatever the intercept (nifti1.h); ITK adds the intercept.
    if slope == 0:
        if intercept == 0:
            return 1.0, 0.0, ()
        message = f"scl_slope is 0, which says that values are not scaled: scl_inter ({intercept:g}) was ignored."
        return 1.0, 0.0, (Finding("scaling-ignored", "warning", message, {"scl_inter": str(intercept)}),)
    for field, value in (("scl_slope", slope), ("scl_inter", intercept)):
        if not math.isfinite(value):
            raise DamagedFileError(
                f"{field} is {value}: without it the values are no Hounsfield units. Write a number, or scl_slope 0 "
                "where values are not scaled.",
                evidence={"field": field, "value": str(value)},
            )
    return float(slope), float(intercept), ()


def _placement(
    fields: Mapping[str, tuple[Any, ...]], sizes: tuple[int, int, int], file_format: str
) -> tuple[StoredPlacement, GeometrySource, tuple[Finding, ...]]:
    """The placement that wins, what it is made of, and what contradicts it."""
    unit = fields["xyzt_units"][0] & 7
    if unit not in _MM_PER_UNIT:
        raise UnsupportedFormatError(
            f"xyzt_units says a unit of length of {unit}; 1 (metre), 2 (millimetre) and 3 (micrometre) are known.",
            evidence={"field": "xyzt_units", "value": unit},
        )
    mm, in_units = _MM_PER_UNIT[unit], _UNIT_NAMES[unit]
    for field, code in zip(("qform_code", "sform_code"), fields["codes"], strict=True):
        if not 0 <= code <= _LAST_CODE:
            raise DamagedFileError(
                f"{field} is {code}; 0 to {_LAST_CODE} are defined.", evidence={"field": field, "value": code}
            )
    qform_code, sform_code = fields["codes"]
    sform = _sform(fields["affine"], mm, f"the sform{in_units}") if sform_code > 0 else None
    qform = _qform(fields, mm, f"the qform{in_units}") if qform_code > 0 else None
    findings: list[Finding | None] = []
    ignored: dict[str, str] = {}
    if sform is not None and qform is not None and not _has_volume(sform) and _has_volume(qform):
        message = f"The sform (code {sform_code}) spans no volume: the qform was used."
        findings.append(Finding("geometry-fields-differ", "error", message, {"used": "qform", "ignored": "sform"}))
        ignored["sform"] = "spans no volume"
        sform = None
    used: tuple[str, ...]
    if sform is not None:
        chosen, used = sform, ("sform",)
        if qform is not None:
            findings.append(placements_differ(sform, qform, sizes))
            ignored["qform"] = findings[-1].message if findings[-1] else "agrees with the sform"
        findings.append(spacings_differ(sform, "pixdim", [abs(v) * mm for v in fields["pixdim"][1:4]]))
        ignored["pixdim"] = findings[-1].message if findings[-1] else "agrees with the sform"
    elif qform is not None:
        _require_spacing(fields["pixdim"], in_units)
        qfac = fields["pixdim"][0]
        if not (qfac >= 0 or qfac == -1):  # the C library turns the axis for any number below 0, nibabel for -1 alone
            raise DamagedFileError(
                f"pixdim[0] is {qfac:g}: -1 turns the third axis of the qform round, 1 does not.",
                evidence={"field": "pixdim[0]", "value": str(qfac)},
            )
        if np.isnan(qform.steps_mm).any():
            b, c, d = fields["quaternion"][:3]
            raise DamagedFileError(
                f"quatern_b, quatern_c and quatern_d are {b:g}, {c:g} and {d:g}: together they are no longer than 1. "
                "Write a unit quaternion, or an sform with its code.",
                evidence={"field": "quatern_b, quatern_c, quatern_d"},
            )
        chosen, used = qform, ("qform", "pixdim")
    else:
        # ITK's default, in which the array's axes are the patient's left, back and head; nibabel's has another origin.
        _require_spacing(fields["pixdim"], in_units)
        steps = np.diag(np.asarray(fields["pixdim"][1:4], dtype=np.float64) * mm)
        chosen, used = StoredPlacement(steps, np.zeros(3), f"pixdim{in_units}"), ("pixdim",)
        findings.append(orientation_assumed("sform_code and qform_code are 0"))
    stored = NiftiGeometry(
        pixdim=tuple(float(v) for v in fields["pixdim"][:4]),
        xyzt_units=int(fields["xyzt_units"][0]) & 0xFF,
        codes=(int(qform_code), int(sform_code)),
        quaternion=tuple(float(v) for v in fields["quaternion"]),
        affine=tuple(float(v) for v in fields["affine"]),
    )
    source = GeometrySource(file_format, used, ignored, stored)
    return chosen, source, tuple(finding for finding in findings if finding is not None)


def _sform(affine: tuple[float, ...], mm: float, name: str) -> StoredPlacement:
    ras = np.asarray(affine, dtype=np.float64).reshape(3, 4) * mm
    with np.errstate(invalid="ignore"):  # what is no number is found by whoever uses the placement
        return StoredPlacement(_RAS_TO_LPS @ ras[:, :3], _RAS_TO_LPS @ ras[:, 3], name)


def _qform(fields: Mapping[str, tuple[Any, ...]], mm: float, name: str) -> StoredPlacement:
    """Method 2 of nifti1.h; pixdim[0] below 0 turns the third axis round. No numbers where the quaternion is none."""
    b, c, d, *offset = (float(v) for v in fields["quaternion"])
    a_squared = 1.0 - (b * b + c * c + d * d)
    if a_squared >= -_LONGER_QUATERNION:
        # Half a turn has an `a` of 0, which the rounding of b, c and d to 32 bits must not make a small one.
        a = math.sqrt(a_squared) if a_squared >= _ZERO_QUATERNION else 0.0
        rotation = Rotation.from_quat([b, c, d, a]).as_matrix()
    else:
        rotation = np.full((3, 3), np.nan)
    qfac, *spacing = fields["pixdim"][:4]
    scale = np.asarray(spacing, dtype=np.float64) * [1.0, 1.0, -1.0 if qfac < 0 else 1.0] * mm
    with np.errstate(invalid="ignore"):
        return StoredPlacement(_RAS_TO_LPS @ (rotation * scale), _RAS_TO_LPS @ np.asarray(offset) * mm, name)


def _has_volume(placement: StoredPlacement) -> bool:
    lengths = np.linalg.norm(placement.steps_mm, axis=0)
    if not np.all(np.isfinite(lengths)) or lengths.min() <= 0:
        return False
    return bool(abs(np.linalg.det(placement.steps_mm / lengths)) > 1e-3)


def _require_spacing(pixdim: tuple[float, ...], in_units: str) -> None:
    """Readers disagree about what a spacing of 0 or less means: nibabel mirrors the axis, the C library takes 1 mm."""
    for axis in (1, 2, 3):
        if not pixdim[axis] > 0:
            raise DamagedFileError(
                f"pixdim[{axis}] is {pixdim[axis]:g}{in_units}: the length of a voxel is above 0. Write it, or an "
                "sform with its code.",
                evidence={"field": f"pixdim[{axis}]", "value": str(pixdim[axis])},
            )


def nifti_1_fields(stored: NiftiGeometry) -> Iterator[tuple[int, bytes]]:
    """Where the fields stand in a little-endian NIfTI-1 header, and their bytes there."""
    for name, value in asdict(stored).items():
        offset, code = _NIFTI_1[name]
        with np.errstate(over="ignore"):  # of NIfTI-2's 64 bits, in a field that nobody can have used
            yield offset, np.atleast_1d(value).astype({"f": "<f4", "h": "<i2", "B": "u1"}[code[-1]]).tobytes()


def readable_by_all(stored: NiftiGeometry, grid: Grid) -> NiftiGeometry:
    """The same fields, with a qform where there is none: ITK and 3D Slicer read no sform without right angles."""
    if stored.codes[0] > 0 or stored.codes[1] <= 0:
        return stored
    mm = _MM_PER_UNIT[stored.xyzt_units & 7]
    axes = _RAS_TO_LPS @ np.asarray(grid.direction)
    qfac = 1.0 if np.linalg.det(axes) > 0 else -1.0
    b, c, d, a = Rotation.from_matrix(axes * [1.0, 1.0, qfac]).as_quat()
    turned = (b, c, d) if a >= 0 else (-b, -c, -d)
    offset = _RAS_TO_LPS @ np.asarray(grid.origin_mm) / mm
    return NiftiGeometry(
        pixdim=(qfac, *(v / mm for v in grid.spacing_mm[::-1])),
        xyzt_units=stored.xyzt_units,
        codes=(stored.codes[1], stored.codes[1]),
        quaternion=(*(float(v) for v in turned), *(float(v) for v in offset)),
        affine=stored.affine,
    )
