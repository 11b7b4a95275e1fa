"""The masks of a scan as a DICOM Segmentation, plane by plane on the images that the scan was made of."""

from pathlib import Path
from typing import Any, Final

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription, SegmentsOverlapValues
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from jobs import coding
from jobs.coding import Concept, Site
from jobs.models import MaskName
from jobs.version import __version__
from pipeline.geometry import LesionMask, LobeLabels, LungMask
from pipeline.labels import LABELS, Label
from worker.dicom_instance import MANUFACTURER, Maker, code_item, dicom_code, quiet

SERIES_NUMBER: Final = 9500
DESCRIPTION: Final = "Lobewise lungs, lobes, opacities"

#: By number of the segment, from 1: what it is, and where.
SEGMENTS: Final[tuple[tuple[Label, Concept, Site], ...]] = (
    (LABELS[MaskName.LUNGS][0], coding.ANATOMICAL_STRUCTURE, coding.LUNGS),
    *((label, coding.ANATOMICAL_STRUCTURE, coding.LOBES[label.name]) for label in LABELS[MaskName.LOBES]),
    (LABELS[MaskName.LESIONS][0], coding.ABNORMAL_STRUCTURE, coding.LUNGS),
    (LABELS[MaskName.HIGH_OPACITY][0], coding.ABNORMAL_STRUCTURE, coding.LUNGS),
)
#: By the label's name.
NUMBERS: Final = {label.name: number for number, (label, _, _) in enumerate(SEGMENTS, 1)}
_FINDINGS: Final = {"lesions": coding.OPACITY, "high_opacity": coding.HIGH_OPACITY}


def write_seg(
    path: Path, maker: Maker, lungs: LungMask, lobes: LobeLabels, lesions: LesionMask, high_opacity: LesionMask
) -> None:
    """Write eight binary segments, which overlap: lungs, five lobes, lesions, high opacity.

    Frames without a voxel are left out, as viewers expect; a segment may have none at all.
    """
    masks = (lungs.mask, *(lobes.labels == label.number for label in LABELS[MaskName.LOBES]))
    masks += (lesions.mask, high_opacity.mask)
    bits = np.zeros(lungs.grid.shape, np.uint8)
    for bit, mask in enumerate(masks):
        bits |= mask.astype(np.uint8) << bit
    with quiet():
        instance = _OfBits(
            source_images=maker.planes(lungs.grid),
            pixel_array=bits,
            segmentation_type="BINARY",
            segment_descriptions=[_described(maker, number) for number in range(1, len(SEGMENTS) + 1)],
            content_label="LOBEWISE",
            content_description=DESCRIPTION,
            **maker.of_device(SERIES_NUMBER, "seg"),
        )
    _point_at_sources(instance, maker)
    maker.write(instance, DESCRIPTION, path)


class _OfBits(Segmentation):
    """Takes an array in which each segment is a bit.

    highdicom takes overlapping segments as an array of their own each, and sums these up: 16 bytes for a voxel in place
    of one, gigabytes for a long scan.
    """

    @classmethod
    def _check_and_cast_pixel_array(cls, pixel_array: Any, *_: Any, **__: Any) -> tuple[Any, SegmentsOverlapValues]:
        return pixel_array, SegmentsOverlapValues.YES

    @staticmethod
    def _get_segment_pixel_array(pixel_array: Any, segment_number: int, *_: Any, **__: Any) -> Any:
        return (pixel_array >> (segment_number - 1)) & 1


def _described(maker: Maker, number: int) -> SegmentDescription:
    label, category, site = SEGMENTS[number - 1]
    finding = _FINDINGS.get(label.name)
    described = SegmentDescription(
        segment_number=number,
        segment_label=label.display_name,
        segmented_property_category=dicom_code(category),
        segmented_property_type=dicom_code(finding or site.concept),
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=MANUFACTURER,
            family=codes.cid7162.ArtificialIntelligence,
            version=__version__,
            source=MANUFACTURER,
            parameters={f"{model.name} {model.version} sha256": model.sha256 for model in maker.models},
        ),
        tracking_id=label.name,
        tracking_uid=maker.uid(f"tracking {label.name}"),
        anatomic_regions=None if finding is None else [dicom_code(site.concept)],
        display_color=CIELabColor.from_rgb(*label.rgb),
    )
    if site.side is not None:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            code_item(site.side)
        ]
    return described


def _point_at_sources(instance: Dataset, maker: Maker) -> None:
    """Put the images that the scan was made of in the place of those that stood for its planes."""
    for frame in instance.PerFrameFunctionalGroupsSequence:
        derivation = frame.DerivationImageSequence[0]
        derivation.SourceImageSequence = [
            source for placeholder in derivation.SourceImageSequence for source in maker.sources_of(placeholder)
        ]
    series = instance.ReferencedSeriesSequence[0]
    series.ReferencedInstanceSequence = []
    for uid, sop_class in maker.instances.items():
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, uid
        series.ReferencedInstanceSequence.append(reference)
