"""The DICOM that a job gives back: whom the scan is of, the segmentation and the structured report."""

import logging
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.models import DicomIdentity, DicomInstance, DicomProduct, NoDicomReason, Report
from jobs.worker_api import NO_DICOM, DicomResult
from pipeline.geometry import GeometrySource
from pipeline.source_identity import SourceIdentity

if TYPE_CHECKING:  # it imports torch
    from pipeline.quantify import Quantification

log = logging.getLogger(__name__)


def make_products(
    result: "Quantification", report: Report, identity: SourceIdentity | None, folder: Path, name: str, *, wanted: bool
) -> DicomResult:
    """Write the segmentation and the report to `folder`, unless there is a reason not to.

    Args:
        identity: of the scan, as it may be kept.
        name: of the attempt.
        wanted: by the operator.

    What goes wrong is logged without its message, and is no reason to lose the scores.
    """
    source: GeometrySource | None = result.source
    if source is None or source.file_format != "DICOM":
        return NO_DICOM
    if identity is None:
        return DicomResult(absent=NoDicomReason.UIDS_MISSING)
    kept = DicomIdentity(
        study_uid=identity.study_uid,
        series_uid=identity.series_uid,
        frame_of_reference_uid=identity.frame_of_reference_uid,
        images=[
            DicomInstance(sop_class_uid=image.sop_class_uid, sop_instance_uid=image.sop_instance_uid, frame=image.frame)
            for image in identity.images
        ],
        attributes=dict(identity.attributes),
    )
    if not wanted:
        return DicomResult(kept, absent=NoDicomReason.SWITCHED_OFF)
    # They take a second to import, which a worker that gets no DICOM does not need.
    from worker.dicom_instance import Maker
    from worker.dicom_seg import write_seg
    from worker.dicom_sr import write_sr

    maker = Maker(name, identity, report.provenance.models)
    files = {product: folder / f"{product}.dcm" for product in DicomProduct}
    try:
        write_seg(files[DicomProduct.SEG], maker, result.lungs, result.lobes, result.lesions, result.high_opacity)
        write_sr(files[DicomProduct.SR], maker, report)
    except MemoryError:
        raise
    except Exception as fault:
        # The message may quote what names the patient, and so may a line of the traceback.
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(fault.__traceback__)]
        log.error("the DICOM products were not made", extra={"fault": type(fault).__name__, "at": frames[-4:]})
        return DicomResult(kept, absent=NoDicomReason.FAILED)
    return DicomResult(kept, files)
