"""Small series that hypothesis makes up, each with a truth: reading finds it, says what it doubts, or refuses in type.

Never may it be silently wrong. `LOBEWISE_TEST_FILES` sets how many series there are; 10000 are thorough.
"""

import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.errors import PipelineError
from pipeline.geometry import Scan
from pipeline.io.formats.archive import members_of_zip, open_zip
from pipeline.io.formats.dicom import read_series
from pipeline.io.formats.limits import SizeLimits

EXAMPLES = int(os.environ.get("LOBEWISE_TEST_FILES", "200"))
LIMITS = SizeLimits(max_voxels=10**6, max_bytes=10**8, max_files=500)
ROWS, COLUMNS = 4, 5

#: Each tells volumes apart by itself: a tag, or the order in which slices were made.
KEYS = (
    "TemporalPositionIdentifier",
    "ConvolutionKernel",
    "KVP",
    "AcquisitionNumber",
    "InstanceNumber",
    "AcquisitionTime",
)

#: Faults of single slices, which have to be refused or told.
FAULTS = ("half the pixels", "slope 0", "slope NaN", "type US", "no position", "no rescale", "other patient", "colours")


@dataclass(frozen=True)
class StoredForm:
    """How a slice's values are stored."""

    bits: int
    is_signed: bool
    slope: int
    intercept: int

    def of(self, hu: np.ndarray) -> bytes:
        stored = (hu - self.intercept) // self.slope
        return (stored & ((1 << self.bits) - 1)).astype("<u2").tobytes()


#: Each holds every value from -1000 to 998.
FORMS = (
    StoredForm(16, False, 1, -1024),
    StoredForm(16, True, 1, 0),
    StoredForm(12, False, 1, -1024),
    StoredForm(12, True, 1, 0),
    StoredForm(13, False, 2, -4000),
    StoredForm(16, True, 2, 100),
)


@dataclass(frozen=True)
class World:
    """What is written, and what is true.

    Attributes:
        volumes: HU of each; the first is the one to be read, all cover the same.
        key: what tells them apart.
        missing: slices of the first volume that are not written.
        copies: slices of the first volume that are written twice.
        fault: what is wrong with slice 1 of the first volume.
        order: of the files.
    """

    volumes: tuple[np.ndarray, ...]
    step_mm: float
    shift_mm: float
    z_mm: float
    is_reversed: bool
    key: str
    forms: tuple[StoredForm, ...]
    is_enhanced: bool
    is_implicit: bool
    missing: frozenset[int]
    copies: frozenset[int]
    fault: str
    order: int
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.volumes[0])

    @property
    def is_harmed(self) -> bool:
        """Whether the fault is in what is written."""
        nowhere = self.is_enhanced and self.fault in ("no rescale", "other patient", "colours")
        # Beside slices that name no patient, one that does may be of the same.
        nowhere |= self.fault == "other patient" and "PatientID" in self.extra
        of_a_slice = not (self.is_enhanced and self.fault == "half the pixels")
        return bool(self.fault) and not nowhere and not (of_a_slice and 1 in self.missing)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(3, 9))
    how_many = draw(st.sampled_from((1, 1, 1, 2, 3)))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    volumes = tuple(rng.integers(-500, 500, (count, ROWS, COLUMNS)) * 2 for _ in range(how_many))
    step_mm = draw(st.sampled_from((0.6, 1.0, 1.25, 3.0, 5.0, 7.5)))
    is_enhanced = draw(st.booleans())
    inner = st.integers(1, count - 2)
    return World(
        volumes,
        step_mm,
        draw(st.sampled_from((0.0, step_mm / 2, step_mm / 3))),
        draw(st.sampled_from((0.0, -1234.5, 77.25))),
        draw(st.booleans()),
        draw(st.sampled_from(KEYS)),
        tuple(draw(st.lists(st.sampled_from(FORMS), min_size=count, max_size=count))),
        is_enhanced,
        draw(st.booleans()),
        draw(st.frozensets(inner, max_size=3)) if count > 5 and draw(st.booleans()) else frozenset(),
        frozenset() if is_enhanced else draw(st.frozensets(st.integers(0, count - 1), max_size=2)),
        draw(st.sampled_from(("", "", "", *FAULTS))),
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from(({}, {"SeriesNumber": ""}, {"AcquisitionNumber": "abc"}, {"PatientID": ""}))),
    )


def position(world: World, volume: int, index: int) -> list[float]:
    along = world.z_mm + index * world.step_mm + (world.shift_mm if volume else 0.0)
    return [0.0, 0.0, round(along, 4)]


def apart(world: World, volume: int) -> dict[str, object]:
    values: dict[str, object] = {
        "TemporalPositionIdentifier": volume + 1,
        "ConvolutionKernel": f"B{volume}0f",
        "KVP": 80 + 20 * volume,
        "AcquisitionNumber": volume + 1,
        "AcquisitionTime": f"10{volume}000",
    }
    return {world.key: values[world.key]} if world.key in values else {}


def files(world: World) -> list[bytes]:
    """In an order that says nothing."""
    written = [_enhanced(world)] if world.is_enhanced else list(_slices(world))
    rng = np.random.default_rng(world.order)
    return [written[i] for i in rng.permutation(len(written))]


def _slices(world: World) -> list[bytes]:
    written = []
    for volume, hu in enumerate(world.volumes):
        numbers = list(range(world.count))[:: -1 if world.is_reversed else 1]
        for index in range(world.count):
            if volume == 0 and index in world.missing:
                continue
            form = world.forms[index] if volume == 0 else FORMS[0]
            header = _header(CTImageStorage, world, f"1.2.{volume}.{index}")
            header.ImagePositionPatient = position(world, volume, index)
            header.InstanceNumber = volume * world.count + numbers[index] + 1
            header.ImageOrientationPatient, header.PixelSpacing = [1, 0, 0, 0, 1, 0], [2, 2]
            header.RescaleSlope, header.RescaleIntercept = form.slope, form.intercept
            header.BitsStored, header.HighBit = form.bits, form.bits - 1
            header.PixelRepresentation, header.PixelData = int(form.is_signed), form.of(hu[index])
            for name, value in apart(world, volume).items():
                setattr(header, name, value)
            if volume == 0 and index == 1:
                _break(header, world.fault)
            content = _bytes(header)
            written += [content] * (2 if volume == 0 and index in world.copies else 1)
    return written


def _enhanced(world: World) -> bytes:
    """All volumes as frames of one file, each with its own rescale."""
    header = _header(EnhancedCTImageStorage, world, "1.2.9")
    frames, pixels = [], b""
    for volume, hu in enumerate(world.volumes):
        for index in range(world.count):
            if volume == 0 and index in world.missing:
                continue
            form = StoredForm(16, False, world.forms[index].slope, -4000 - 2 * index - volume * 2)
            frame, plane, rescale, content = Dataset(), Dataset(), Dataset(), Dataset()
            plane.ImagePositionPatient = position(world, volume, index)
            rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = form.slope, form.intercept, "HU"
            content.TemporalPositionIndex = volume + 1
            if volume == 0 and index == 1:
                _break(rescale, world.fault if "slope" in world.fault or world.fault == "type US" else "")
                if world.fault == "no position":
                    del plane.ImagePositionPatient
            frame.PlanePositionSequence, frame.FrameContentSequence = Sequence([plane]), Sequence([content])
            frame.PixelValueTransformationSequence = Sequence([rescale])
            frames.append(frame)
            pixels += form.of(hu[index])
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], [2, 2]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    header.PerFrameFunctionalGroupsSequence = Sequence(frames)
    header.NumberOfFrames, header.PixelData = len(frames), pixels
    header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 15, 0
    if world.fault == "half the pixels":
        header.PixelData = pixels[: len(pixels) // 2]
    return _bytes(header)


def _header(kind: str, world: World, uid: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if world.is_implicit else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, uid
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = kind, uid, "CT"
    header.PatientID, header.SeriesInstanceUID = "P", "1.2.3"
    header.Rows, header.Columns, header.SamplesPerPixel, header.BitsAllocated = ROWS, COLUMNS, 1, 16
    header.PhotometricInterpretation = "MONOCHROME2"
    for name, value in world.extra.items():
        if name != world.key:
            header[name] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(name), "LO" if name == "PatientID" else "IS", len(value), value.encode(), 0,
                world.is_implicit, True,
            )  # fmt: skip
    return header


def _break(header: Any, fault: str) -> None:
    match fault:
        case "half the pixels":
            header.PixelData = header.PixelData[: ROWS * COLUMNS]
        case "slope 0":
            header.RescaleSlope = 0
        case "slope NaN":
            header.RescaleSlope = "NaN"
        case "type US":
            header.RescaleType = "US"
        case "no position":
            del header.ImagePositionPatient
        case "no rescale":
            del header.RescaleSlope, header.RescaleIntercept
        case "other patient":
            header.PatientID = "Q"
        case "colours":
            header.SamplesPerPixel, header.PhotometricInterpretation = 3, "RGB"


def _bytes(header: FileDataset) -> bytes:
    out = io.BytesIO()
    header["PixelData"].VR = "OW"
    header.save_as(out, enforce_file_format=True)
    return out.getvalue()


def read(contents: list[bytes]) -> Scan:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "upload")
        with zipfile.ZipFile(path, "w") as archive:
            for index, content in enumerate(contents):
                archive.writestr(f"CT 12:30/{index}", content)
        with open_zip(path, LIMITS) as archive:
            return read_series(members_of_zip(archive, LIMITS), Path(name), LIMITS)


def refused(contents: list[bytes], world: World) -> Scan | None:
    """The scan; None where it was refused with good reason."""
    try:
        return read(contents)
    except PipelineError as error:
        event(f"refused: {type(error).__name__}")
        # What has no fault and one volume, or volumes that a tag tells apart, is read.
        if world.is_harmed or (len(world.volumes) > 1 and (world.missing or world.key == "InstanceNumber")):
            return None
        raise


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="LOBEWISE_TEST_FILES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(worlds())
def test_what_is_read_is_the_truth_or_told_or_refused(world: World) -> None:
    scan = refused(files(world), world)
    if scan is None:
        return
    codes = {finding.code for finding in scan.findings}
    event(f"read: {', '.join(sorted(codes)) or 'nothing to say'}")
    hu, grid = scan.volume.hu, scan.volume.grid
    unharmed = not world.is_harmed
    if len(world.volumes) > 1:
        assert codes & {"several-volumes", "missing-slices", "uneven-spacing"}, codes
    if world.copies - world.missing and len(world.volumes) == 1 and unharmed:
        assert "duplicate-positions" in codes
    if not unharmed:
        # Another volume was read, or what is left of this one, or stored values for Hounsfield units.
        assert codes & {"several-volumes", "missing-slices", "rescale-missing", "images-left-out", "uneven-spacing"}
        return
    for volume in range(len(world.volumes)):
        if _is_volume(world, volume, scan):
            event(f"it is volume {volume + 1} of {len(world.volumes)}")
            assert grid.spacing_mm[1:] == (2.0, 2.0)
            return
    # Mixed, or only a part: then it must be said.
    event("it is no volume")
    assert codes & {"several-volumes", "missing-slices", "uneven-spacing"}, (codes, hu[:, 0, 0], grid)
    assert len(world.volumes) > 1 or world.missing, (codes, hu[:, 0, 0])


def _is_volume(world: World, volume: int, scan: Scan) -> bool:
    """Whether the scan is that volume, its missing slices interpolated between their neighbours."""
    hu, grid = scan.volume.hu.astype(int), scan.volume.grid
    truth = world.volumes[volume].astype(float)
    if volume == 0 and world.missing == set(range(1, world.count, 2)) and world.count % 2:
        # Every second slice is missing: what is left is even, and nobody can tell.
        return bool(np.array_equal(hu, truth[::2]) and abs(grid.spacing_mm[0] - 2 * world.step_mm) < 1e-3)
    if hu.shape != truth.shape or abs(grid.spacing_mm[0] - world.step_mm) > 1e-3:
        return False
    if not np.allclose(grid.origin_mm, position(world, volume, 0), atol=1e-3):
        return False
    if volume == 0:
        there = [index for index in range(world.count) if index not in world.missing]
        for index in world.missing:
            below, above = max(i for i in there if i < index), min(i for i in there if i > index)
            share = (index - below) / (above - below)
            truth[index] = (1 - share) * truth[below] + share * truth[above]
    return bool(np.abs(hu - truth).max() <= 0.5 + 1e-6)
