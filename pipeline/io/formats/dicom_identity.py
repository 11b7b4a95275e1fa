"""Whom and what the stack that is scored is of, from its first slice's header and the UIDs of all."""

from collections.abc import Sequence

import pydicom

from pipeline.io.formats.dicom_grid import SliceGrid
from pipeline.io.formats.dicom_headers import Slice
from pipeline.io.formats.dicom_tags import FAULTS
from pipeline.io.formats.gate import HeaderBudget, HeaderFile
from pipeline.source_identity import ATTRIBUTES, SourceIdentity, SourceImage, SourcePlane, is_uid, shown_value


def identity_of(slices: Sequence[Slice], on: SliceGrid) -> SourceIdentity | None:
    """Of the slices of a stack on its grid; None where a UID is missing without which nothing can point at them."""
    first = slices[0]
    named = (
        first.study,
        first.series,
        first.frame_of_reference,
        *(uid for s in slices for uid in (s.sop_class, s.uid)),
    )
    if not all(map(is_uid, named)):
        return None
    planes = []
    for below, weight in zip(on.lower, on.weight, strict=True):
        near = (below, below + 1) if weight else (below,)
        lower, upper = slices[near[0]].position_mm, slices[near[-1]].position_mm
        x, y, z = ((1 - weight) * a + weight * b for a, b in zip(lower, upper, strict=True))
        planes.append(SourcePlane((x, y, z), near))
    return SourceIdentity(
        study_uid=first.study,
        series_uid=first.series,
        frame_of_reference_uid=first.frame_of_reference,
        orientation=first.rows_and_columns,
        pixel_spacing_mm=first.spacing_mm,
        images=tuple(SourceImage(s.sop_class, s.uid, s.frame + 1 if s.pixels.frames > 1 else None) for s in slices),
        planes=tuple(planes),
        attributes=attributes_of(first),
    )


def attributes_of(first: Slice) -> dict[str, str]:
    """Of patient and study. A series is of one patient, or was refused before."""
    with HeaderFile(first.pixels.path, HeaderBudget()) as file:
        try:
            wanted: list[str | int] = [*ATTRIBUTES]
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)  # type: ignore[arg-type]
        except FAULTS:  # the texts alone, since what places the slice was read before
            return {}
        found = {}
        for keyword in ATTRIBUTES:
            try:
                value = header.get(keyword)
                found[keyword] = "" if value is None else shown_value(keyword, str(value))
            except FAULTS:  # bytes that are of no character set
                found[keyword] = ""
    return {keyword: value for keyword, value in found.items() if value}
