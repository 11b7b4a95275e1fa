"""DICOM: which of the slices make the scan, where they lie, and what is wrong with how they lie.

Slices are ordered by their position along their normal, never by number or name. What cannot be placed on a regular
grid is stacked with the mean distance and reported: a skewed stack (tilted gantry) keeps its voxels' volume, so
percentages hold; missing or uneven slices make them approximate.

Of the headers only the tags below are read. None that names a patient is among them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
import SimpleITK as sitk
from jaxtyping import Float64
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from pipeline.errors import DamagedFileError, NotChestCTError, UnsupportedFormatError
from pipeline.geometry import Finding, Grid, Scan, Triple, Volume
from pipeline.io.formats.archive import Member
from pipeline.io.formats.limits import SizeLimits
from pipeline.io.formats.voxels import to_hounsfield

TAGS: Final = (
    "SOPClassUID",
    "Modality",
    "ImageType",
    "SeriesInstanceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "ContrastBolusAgent",
    "ContrastBolusRoute",
    "LossyImageCompression",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)

#: Direction cosines of parallel slices differ by less.
SAME_DIRECTION: Final = 0.01

SAME_POSITION_MM: Final = 0.01

#: A stack leaning less than this is straight.
TILT_DEGREES: Final = 0.5


@dataclass(frozen=True)
class Slice:
    """One slice, as its header describes it.

    Attributes:
        frame: index within a multi-frame file; 0 in all others.
        position_mm: LPS (x, y, z) of the first pixel's centre.
        rows_and_columns: direction cosines along a row, then along a column.
        spacing_mm: between rows, between columns.
        shape: rows, columns.
    """

    path: Path
    frame: int
    series: str
    series_number: int
    acquisition: int
    instance: int
    position_mm: Triple
    rows_and_columns: tuple[float, ...]
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    is_contrasted: bool
    is_lossy: bool

    @property
    def normal(self) -> Float64[np.ndarray, "3"]:
        return np.cross(self.rows_and_columns[:3], self.rows_and_columns[3:])

    def lies_like(self, other: "Slice") -> bool:
        """Whether both can belong to one stack."""
        differences = np.subtract(self.rows_and_columns, other.rows_and_columns)
        return (
            self.series == other.series
            and self.shape == other.shape
            and bool(np.allclose(self.spacing_mm, other.spacing_mm, rtol=1e-3))
            and bool(np.all(np.abs(differences) < SAME_DIRECTION))
        )


def read_series(members: Iterable[Member], folder: Path, limits: SizeLimits) -> Scan:
    """The largest CT stack among `members`, which are copied to `folder` as far as needed.

    Raises:
        NotChestCTError: images, but of another modality.
        UnsupportedFormatError: no stack of CT slices.
        DamagedFileError: a slice's header or pixels cannot be read.
    """
    paths = (member.as_file(folder / f"{number:06d}.dcm") for number, member in enumerate(members))
    images = [(path, header) for path in paths if (header := _header(path)) is not None]
    if not images:
        raise UnsupportedFormatError("The DICOM files hold no images.")
    headers = [(path, header) for path, header in images if header.get("Modality") == "CT"]
    if not headers:
        seen = sorted({str(header.get("Modality", "unknown"))[:16] for _, header in images})
        raise NotChestCTError(f"The DICOM images are {', '.join(seen)}, not CT.", evidence={"modalities": seen})
    localizers = [header for _, header in headers if _is_localizer(header)]
    slices = [s for path, header in headers if not _is_localizer(header) for s in _slices(path, header)]
    stacks = sorted(_stacks(slices), key=lambda stack: (-len(stack), stack[0].series_number, stack[0].series))
    if not stacks:
        raise UnsupportedFormatError("The DICOM files hold no CT slices that say where they lie.")
    chosen, set_aside = _without_duplicates(stacks[0])
    if len(chosen) < 2:
        raise UnsupportedFormatError("The DICOM files hold a single slice; send the whole series in one zip.")
    limits.check_voxels((*chosen[0].shape[::-1], len(chosen)))
    grid, findings = place(chosen)
    noticed: list[Finding] = []
    if localizers:
        message = f"{len(localizers)} localizer images were left out."
        noticed.append(Finding("localizer-dropped", "info", message, {"images": len(localizers)}))
    if len(stacks) > 1:
        counts = [{"series_number": stack[0].series_number, "slices": len(stack)} for stack in stacks[:20]]
        message = (
            f"There are {len(stacks)} series; the one with most slices was scored: number {counts[0]['series_number']}."
        )
        noticed.append(Finding("several-series", "warning", message, {"chosen": counts[0], "others": counts[1:]}))
    everything_seen = (
        *noticed,
        *set_aside,
        *findings,
        *_content_findings(chosen[0]),
    )
    hu = np.empty((len(chosen), *chosen[0].shape), dtype=np.int16)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    opened: tuple[Path, np.ndarray] | None = None
    for index, wanted in enumerate(chosen):
        if opened is None or opened[0] != wanted.path:
            # All frames of the file, rescaled by GDCM.
            count = len(chosen)
            reader.SetFileName(str(wanted.path))
            try:
                frames = np.asarray(sitk.GetArrayFromImage(reader.Execute()))
            except RuntimeError as error:
                raise DamagedFileError(f"The pixels of a slice (of {count}) cannot be decoded.") from error
            frames = frames.reshape(-1, *frames.shape[-2:]) if frames.ndim in (2, 3) else frames
            if frames.shape[1:] != wanted.shape or len(frames) <= wanted.frame:
                raise DamagedFileError(f"A slice (of {count}) does not hold the pixels its header says.")
            opened = (wanted.path, frames)
        hu[index] = to_hounsfield(opened[1][wanted.frame : wanted.frame + 1])[0][0]
    return Scan(Volume(hu, grid), everything_seen)


# Headers


def _header(path: Path) -> Dataset | None:
    """The tags above; None of a file that is no image."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(TAGS))
    except (InvalidDicomError, EOFError, ValueError, NotImplementedError, KeyError, AttributeError) as error:
        raise DamagedFileError("A DICOM file is damaged: its header cannot be read.") from error
    return header if header.get("Rows") and header.get("Columns") else None


def _is_localizer(header: Dataset) -> bool:
    return "LOCALIZER" in (str(word).upper() for word in header.get("ImageType") or ())


def _slices(path: Path, header: Dataset) -> Iterator[Slice]:
    """One per frame; none of what is no plain slice with a place (dose reports, screen shots)."""
    if header.get("SamplesPerPixel", 1) != 1:
        return
    for frame, geometry in enumerate(_frames(header)):
        if all(tag in geometry for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")):
            yield _slice(path, frame, header, geometry)


def _frames(header: Dataset) -> list[dict[str, Any]]:
    """What places each frame: tags of the file itself, or of an enhanced CT's functional groups."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        wanted = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        return (
            [{tag: header[tag].value for tag in wanted if header.get(tag)}]
            if int(header.get("NumberOfFrames") or 1) == 1
            else []
        )
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    return [{**_group(shared[0]), **_group(frame)} for frame in per_frame]


def _group(groups: Dataset) -> dict[str, Any]:
    places = (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    )
    found = ((tag, groups[sequence][0].get(tag)) for sequence, tag in places if groups.get(sequence))
    return {tag: value for tag, value in found if value}


def _slice(path: Path, frame: int, header: Dataset, geometry: dict[str, Any]) -> Slice:
    try:
        x, y, z = _floats(geometry["ImagePositionPatient"], 3)
        between_rows, between_columns = _floats(geometry["PixelSpacing"], 2)
        # Unit vectors at right angles; stored cosines are rounded to a few digits.
        values = geometry["ImageOrientationPatient"]
        pair = np.asarray(_floats(values, 6)).reshape(2, 3)
        lengths = np.linalg.norm(pair, axis=1)
        if np.any(np.abs(lengths - 1) > SAME_DIRECTION) or abs(pair[0] @ pair[1]) > SAME_DIRECTION:
            raise ValueError("rows and columns are not at right angles")
        row = pair[0] / lengths[0]
        column = pair[1] - (pair[1] @ row) * row
        directions = (*(float(v) for v in row), *(float(v) for v in column / np.linalg.norm(column)))
        return Slice(
            path=path,
            frame=frame,
            series=str(header.get("SeriesInstanceUID", "")),
            series_number=int(header.get("SeriesNumber") or 0),
            acquisition=int(header.get("AcquisitionNumber") or 0),
            instance=int(header.get("InstanceNumber") or 0),
            position_mm=(x, y, z),
            rows_and_columns=directions,
            spacing_mm=(between_rows, between_columns),
            shape=(int(header.Rows), int(header.Columns)),
            is_contrasted=bool(header.get("ContrastBolusAgent") or header.get("ContrastBolusRoute")),
            is_lossy=str(header.get("LossyImageCompression", "")) == "01",
        )
    except (ValueError, TypeError) as error:
        raise DamagedFileError("A DICOM file is damaged: its geometry cannot be read.") from error


def _floats(values: Iterable[Any], count: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) != count or not np.all(np.isfinite(numbers)):
        raise ValueError("wrong number of values")
    return numbers


# Stacks


def _stacks(slices: Iterable[Slice]) -> list[list[Slice]]:
    """Slices of one series that are parallel, of one size and of one spacing."""
    stacks: list[list[Slice]] = []
    for candidate in slices:
        home = next((stack for stack in stacks if stack[0].lies_like(candidate)), None)
        if home is None:
            stacks.append([candidate])
        else:
            home.append(candidate)
    return stacks


def _without_duplicates(stack: Sequence[Slice]) -> tuple[list[Slice], tuple[Finding, ...]]:
    """One slice per position, in order along the normal.

    Where positions repeat, the stack may hold several acquisitions: the largest is taken. What still repeats is left
    out, the first instance stays.
    """
    ordered = _in_order(stack)
    if not any(_coincide(a, b) for a, b in pairwise(ordered)):
        return ordered, ()
    by_number = sorted(stack, key=lambda s: s.acquisition)
    acquisitions = [list(group) for _, group in groupby(by_number, key=lambda s: s.acquisition)]
    largest = _in_order(max(acquisitions, key=len))
    first_of_each = [largest[0], *(b for a, b in pairwise(largest) if not _coincide(a, b))]
    message = f"{len(ordered)} slices share {len(first_of_each)} positions; one slice of each position was read."
    evidence = {"slices": len(ordered), "positions": len(first_of_each), "acquisitions": len(acquisitions)}
    return first_of_each, (Finding("duplicate-positions", "warning", message, evidence),)


def _in_order(stack: Sequence[Slice]) -> list[Slice]:
    normal = stack[0].normal
    return sorted(stack, key=lambda s: (round(float(np.dot(s.position_mm, normal)), 3), s.instance, s.frame))


def _coincide(a: Slice, b: Slice) -> bool:
    return abs(float(np.dot(np.subtract(b.position_mm, a.position_mm), a.normal))) < SAME_POSITION_MM


def place(stack: Sequence[Slice]) -> tuple[Grid, tuple[Finding, ...]]:
    """The regular grid that an ordered stack is closest to, and how far it is from it."""
    first = stack[0]
    row, column, normal = np.array(first.rows_and_columns[:3]), np.array(first.rows_and_columns[3:]), first.normal
    positions = np.array([s.position_mm for s in stack])
    steps_mm = np.diff(positions @ normal)
    # The mean of all steps that jump over no slice; the median says which do. Positions are often rounded to a tenth:
    # then no single step is the distance, the median least of all.
    median_mm = float(np.median(steps_mm))
    single = steps_mm[steps_mm < 1.5 * median_mm]
    distance_mm = median_mm if np.ptp(single) < 1e-3 else float(np.mean(single))
    axes = np.stack([row, column, normal], axis=1)
    x, y, z = (tuple(float(v) for v in axis) for axis in axes)
    grid = Grid(
        shape=(len(stack), *first.shape),
        spacing_mm=(distance_mm, *first.spacing_mm),
        origin_mm=first.position_mm,
        direction=((x[0], x[1], x[2]), (y[0], y[1], y[2]), (z[0], z[1], z[2])),
    )
    multiples = np.maximum(np.rint(steps_mm / distance_mm), 1)
    missing = int(np.sum(multiples - 1))
    off_mm = float(np.max(np.abs(steps_mm - multiples * distance_mm)))
    findings = []
    if missing:
        share = missing / (len(steps_mm) + 1 + missing)
        message = f"{missing} slices are missing between the first and the last: the others were stacked."
        evidence: dict[str, object] = {"missing": missing, "gaps": int(np.sum(multiples > 1))}
        findings.append(Finding("missing-slices", "error" if share > 0.1 else "warning", message, evidence))
    if off_mm > max(0.1, 0.05 * distance_mm):
        extremes = {"smallest_mm": steps_mm.min(), "mean_mm": distance_mm, "largest_mm": steps_mm.max()}
        message = "The slices are unevenly spaced: they were stacked with the mean distance."
        rounded = {name: round(float(value), 3) for name, value in extremes.items()}
        findings.append(Finding("uneven-spacing", "warning", message, rounded))
    # A tilted gantry shears the stack: each slice lies a little to the side of the one before.
    way = positions[-1] - positions[0]
    along = abs(float(way @ normal))
    across = float(np.linalg.norm(way - (way @ normal) * normal))
    degrees = float(np.degrees(np.arctan2(across, along)))
    if degrees >= TILT_DEGREES:
        message = f"The stack leans by {degrees:.1f} degrees (tilted gantry): it was read as if it stood straight."
        findings.append(Finding("gantry-tilt", "warning", message, {"degrees": round(degrees, 2)}))
    return grid, tuple(findings)


def _content_findings(first: Slice) -> tuple[Finding, ...]:
    findings = []
    if first.is_contrasted:
        message = "The header says that contrast was given: vessels are brighter, high opacity may be overestimated."
        findings.append(Finding("intravenous-contrast", "info", message))
    if first.is_lossy:
        findings.append(Finding("lossy-compression", "info", "The pixels have been compressed with loss."))
    return tuple(findings)


# Pixels
