"""A succeeded job as FHIR R4 resources, for systems that take no DICOM: a Bundle of what the stored report says.

Built anew for each call: the resources have ids of their own, which are the same each time.
"""

import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from jobs import coding
from jobs.coding import Concept, Site
from jobs.models import DicomIdentity, PercentRange, Report

MEDIA_TYPE: Final = "application/fhir+json"

#: A FHIR resource, or a part of one.
Json = dict[str, Any]

_URI: Final = "urn:ietf:rfc:3986"
_DICOM_UID: Final = "urn:dicom:uid"
_CATEGORIES: Final = "http://terminology.hl7.org/CodeSystem/observation-category"
_SECTIONS: Final = "http://terminology.hl7.org/CodeSystem/v2-0074"


def bundle_of(report: Report, identity: DicomIdentity | None, finished_at: datetime) -> Json:
    """A collection of DiagnosticReport, Device and an Observation for each figure.

    The patient and the study are named by identifier alone, as far as the job knows them. All is preliminary, since
    nobody has verified it.

    Args:
        identity: of the scan; None where it was no DICOM.
    """
    common: Json = {"status": "preliminary"}
    if identity is not None and (number := identity.attributes.get("PatientID")):
        subject: Json = {"type": "Patient", "identifier": {"value": number}}
        if issuer := identity.attributes.get("IssuerOfPatientID"):
            subject["identifier"]["assigner"] = {"display": issuer}
        common["subject"] = subject
    study: list[Json] = []
    if identity is not None:
        uid = {"system": _DICOM_UID, "value": f"urn:oid:{identity.study_uid}"}
        study = [{"type": "ImagingStudy", "identifier": uid}]
    issued = finished_at.isoformat()
    device = _entry(report, "device", device_of(report))
    observations = []
    for name, what in figures_of(report):
        observation = {
            "resourceType": "Observation",
            **common,
            "category": [{"coding": [{"system": _CATEGORIES, "code": "imaging", "display": "Imaging"}]}],
            **what,
            "issued": issued,
            "device": {"reference": device["fullUrl"]},
        }
        if study:
            observation["derivedFrom"] = study
        observations.append(_entry(report, name, observation))
    summary: Json = {
        "resourceType": "DiagnosticReport",
        **common,
        "category": [{"coding": [{"system": _SECTIONS, "code": "RAD", "display": "Radiology"}]}],
        "code": _concept(coding.CT_OF_CHEST),
        "issued": issued,
        "result": [{"reference": entry["fullUrl"]} for entry in observations],
    }
    if study:
        summary["imagingStudy"] = study
        if number := identity.attributes.get("AccessionNumber") if identity else None:
            summary["basedOn"] = [{"type": "ServiceRequest", "identifier": {"value": number}}]
    return {
        "resourceType": "Bundle",
        "identifier": {"system": _URI, "value": f"urn:uuid:{report.job_id}"},
        "type": "collection",
        "timestamp": issued,
        "entry": [_entry(report, "report", summary), device, *observations],
    }


def device_of(report: Report) -> Json:
    weights = [
        {"text": f"weights {model.name} {model.version} sha256 {model.sha256}"} for model in report.provenance.models
    ]
    return {
        "resourceType": "Device",
        "manufacturer": "Lobewise",
        "deviceName": [{"name": "Lobewise", "type": "model-name"}],
        "version": [{"value": report.provenance.software}],
        **({"note": weights} if weights else {}),
    }


def figures_of(report: Report) -> Iterator[tuple[str, Json]]:
    """What each Observation says of itself, with a name for it."""
    severity, lungs, site = report.severity, report.lungs, coding.LUNGS
    threshold = _component(coding.THRESHOLD, coding.HIGH_OPACITY_HU, coding.HOUNSFIELD)
    yield "volume", _figure(coding.VOLUME, site, lungs.volume_ml, coding.MILLILITRE)
    yield "opacity", _figure(coding.OPACITY_VOLUME, site, lungs.opacity_ml, coding.MILLILITRE)
    yield (
        "high opacity",
        _figure(coding.HIGH_OPACITY_VOLUME, site, lungs.high_opacity_ml, coding.MILLILITRE, threshold),
    )
    yield from _shares("lungs", site, severity.percent_opacity, severity.percent_opacity_range, severity, threshold)
    yield "LSS", _figure(coding.LUNG_SEVERITY_SCORE, site, severity.lung_severity_score, coding.SCORE)
    yield "LHOS", _figure(coding.LUNG_HIGH_OPACITY_SCORE, site, severity.lung_high_opacity_score, coding.SCORE)
    for lobe in report.lobes:
        site, name = coding.LOBES[lobe.lobe], lobe.lobe
        yield f"{name} volume", _figure(coding.VOLUME, site, lobe.volume_ml, coding.MILLILITRE)
        yield from _shares(name, site, lobe.percent_opacity, lobe.percent_opacity_range, lobe, threshold)
        yield f"{name} SS", _figure(coding.LOBE_SEVERITY_SCORE, site, lobe.severity_score, coding.SCORE)
        yield f"{name} HOS", _figure(coding.LOBE_HIGH_OPACITY_SCORE, site, lobe.high_opacity_score, coding.SCORE)


def _shares(
    name: str, site: Site, opacity: float, between: PercentRange | None, scores: Any, threshold: Json
) -> Iterator[tuple[str, Json]]:
    ends = []
    if between is not None:
        ends.append(_component(coding.PERCENT_OPACITY_LOW, between.low, coding.PERCENT))
        ends.append(_component(coding.PERCENT_OPACITY_HIGH, between.high, coding.PERCENT))
    yield f"{name} PO", _figure(coding.PERCENT_OPACITY, site, opacity, coding.PERCENT, *ends)
    high = _figure(coding.PERCENT_HIGH_OPACITY, site, scores.percent_high_opacity, coding.PERCENT, threshold)
    yield f"{name} PHO", high


def _figure(what: Concept, site: Site, value: float, unit: Concept, *components: Json) -> Json:
    figure = {**_component(what, value, unit), "bodySite": _concept(site.precise or site.concept)}
    return {**figure, "component": list(components)} if components else figure


def _component(what: Concept, value: float, unit: Concept) -> Json:
    quantity = {"value": value, "unit": unit.meaning, "system": unit.system, "code": unit.code}
    return {"code": _concept(what), "valueQuantity": quantity}


def _concept(concept: Concept) -> Json:
    coded = {"system": concept.system, "code": concept.code, "display": concept.meaning}
    return {"coding": [coded], "text": concept.meaning}


def _entry(report: Report, name: str, resource: Json) -> Json:
    found = uuid.uuid5(uuid.UUID(report.job_id), name)
    return {"fullUrl": f"urn:uuid:{found}", "resource": {**resource, "id": str(found)}}
