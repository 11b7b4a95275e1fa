"""The report's figures as a DICOM Comprehensive 3D SR after TID 1500, with references to segmentation and source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from highdicom.sr import (
    AlgorithmIdentification,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from jobs import coding
from jobs.coding import Concept, Site
from jobs.models import PercentRange, Report
from jobs.version import __version__
from worker.dicom_instance import MANUFACTURER, Maker, dicom_code, quiet
from worker.dicom_seg import NUMBERS

SERIES_NUMBER: Final = 9501
DESCRIPTION: Final = "Lobewise severity of lung opacities"

Figure = tuple[Concept, float, Concept]


def write_sr(path: Path, maker: Maker, report: Report) -> None:
    """Write the report as a final, unverified SR: one group for the lungs, each lobe, the lesions and high opacity."""
    severity, lungs = report.severity, report.lungs
    algorithm = AlgorithmIdentification(
        name=MANUFACTURER,
        version=__version__,
        family=codes.cid7162.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
        parameters=[
            f"high opacity threshold = {coding.HIGH_OPACITY_HU} {coding.HOUNSFIELD.code}",
            *(f"weights {model.name} {model.version} sha256 = {model.sha256}" for model in maker.models),
        ],
    )
    groups: list[tuple[str, Concept, Site, Sequence[Figure]]] = [
        (
            "lungs",
            coding.LUNG,
            coding.LUNGS,
            [
                (coding.VOLUME, lungs.volume_ml, coding.MILLILITRE),
                *_percentages(severity.percent_opacity, severity.percent_opacity_range, severity.percent_high_opacity),
                (coding.LUNG_SEVERITY_SCORE, severity.lung_severity_score, coding.SCORE),
                (coding.LUNG_HIGH_OPACITY_SCORE, severity.lung_high_opacity_score, coding.SCORE),
            ],
        )
    ]
    for lobe in report.lobes:
        site = coding.LOBES[lobe.lobe]
        figures = [
            (coding.VOLUME, lobe.volume_ml, coding.MILLILITRE),
            *_percentages(lobe.percent_opacity, lobe.percent_opacity_range, lobe.percent_high_opacity),
            (coding.LOBE_SEVERITY_SCORE, lobe.severity_score, coding.SCORE),
            (coding.LOBE_HIGH_OPACITY_SCORE, lobe.high_opacity_score, coding.SCORE),
        ]
        groups.append((lobe.lobe, site.concept, site, figures))
    opacity = [(coding.VOLUME, lungs.opacity_ml, coding.MILLILITRE)]
    high_opacity = [
        (coding.VOLUME, lungs.high_opacity_ml, coding.MILLILITRE),
        (coding.THRESHOLD, coding.HIGH_OPACITY_HU, coding.HOUNSFIELD),
    ]
    groups.append(("lesions", coding.OPACITY, coding.LUNGS, opacity))
    groups.append(("high_opacity", coding.HIGH_OPACITY, coding.LUNGS, high_opacity))
    with quiet():
        content = MeasurementReport(
            observation_context=ObservationContext(
                observer_device_context=ObserverContext(
                    observer_type=codes.DCM.Device,
                    observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                        uid=maker.device_uid,
                        name=MANUFACTURER,
                        manufacturer_name=MANUFACTURER,
                        model_name=MANUFACTURER,
                        serial_number=maker.weights_digest[:16],
                    ),
                )
            ),
            procedure_reported=dicom_code(coding.CT_OF_CHEST),
            imaging_measurements=[_group(maker, algorithm, *group) for group in groups],
            title=codes.DCM.ImagingMeasurementReport,
        )
        evidence = [maker.nameless(sop_class, uid) for uid, sop_class in maker.instances.items()]
        segmentation = maker.nameless(SegmentationStorage, maker.uid("seg"))
        segmentation.SeriesInstanceUID = maker.uid("seg series")
        instance = Comprehensive3DSR(
            evidence=[*evidence, segmentation],
            content=content,
            is_complete=True,
            is_final=True,
            **maker.of_device(SERIES_NUMBER, "sr"),
        )
    maker.write(instance, DESCRIPTION, path)


def _percentages(opacity: float, between: PercentRange | None, high_opacity: float) -> list[Figure]:
    figures = [(coding.PERCENT_OPACITY, opacity, coding.PERCENT)]
    if between is not None:
        figures.append((coding.PERCENT_OPACITY_LOW, between.low, coding.PERCENT))
        figures.append((coding.PERCENT_OPACITY_HIGH, between.high, coding.PERCENT))
    return [*figures, (coding.PERCENT_HIGH_OPACITY, high_opacity, coding.PERCENT)]


def _group(
    maker: Maker,
    algorithm: AlgorithmIdentification,
    name: str,
    finding: Concept,
    site: Site,
    figures: Sequence[Figure],
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    side = None if site.side is None else dicom_code(site.side)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        # The same as those of the segment.
        tracking_identifier=TrackingIdentifier(uid=maker.uid(f"tracking {name}"), identifier=name),
        referenced_segment=ReferencedSegment(
            sop_class_uid=SegmentationStorage,
            sop_instance_uid=maker.uid("seg"),
            segment_number=NUMBERS[name],
            source_series=SourceSeriesForSegmentation(maker.identity.series_uid),
        ),
        finding_type=dicom_code(finding),
        finding_sites=[FindingSite(dicom_code(site.concept), laterality=side)],
        algorithm_id=algorithm,
        measurements=[
            Measurement(name=dicom_code(what), value=value, unit=dicom_code(unit)) for what, value, unit in figures
        ],
    )
