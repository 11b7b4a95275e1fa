"""A job as FHIR, judged by the models of fhir.resources."""

import json
from pathlib import Path
from typing import Any

from fhir.resources.R4B.bundle import Bundle

from api import examples
from api.fhir import bundle_of
from jobs import coding
from jobs.models import MaskName
from jobs.worker_api import NO_DICOM

from .conftest import Service, require_problem

REPORT = examples.REPORT


def resources(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [e["resource"] for e in bundle["entry"] if e["resource"]["resourceType"] == kind]


def figures(bundle: dict[str, Any]) -> dict[tuple[str, str], tuple[float, str]]:
    """Value and unit by code and site."""
    return {
        (o["code"]["coding"][0]["code"], o["bodySite"]["coding"][0]["code"]): (
            o["valueQuantity"]["value"],
            o["valueQuantity"]["code"],
        )
        for o in resources(bundle, "Observation")
    }


def test_every_figure_of_the_report_is_an_observation_of_its_site(shared: Service) -> None:
    job_id = shared.succeeded()
    answer = shared.client.get(f"/v1/jobs/{job_id}/fhir")
    assert answer.headers["content-type"].startswith("application/fhir+json")
    bundle = json.loads(answer.content)
    Bundle.model_validate(bundle)
    severity, lungs = REPORT.severity, REPORT.lungs
    wanted = {
        ("118565006", "39607008"): (lungs.volume_ml, "mL"),
        ("OV", "39607008"): (lungs.opacity_ml, "mL"),
        ("HOV", "39607008"): (lungs.high_opacity_ml, "mL"),
        ("PO", "39607008"): (severity.percent_opacity, "%"),
        ("PHO", "39607008"): (severity.percent_high_opacity, "%"),
        ("LSS", "39607008"): (severity.lung_severity_score, "{score}"),
        ("LHOS", "39607008"): (severity.lung_high_opacity_score, "{score}"),
    }
    sites = ("44714003", "41224006", "42400003", "72481006", "266005")
    for lobe, site in zip(REPORT.lobes, sites, strict=True):
        wanted |= {
            ("118565006", site): (lobe.volume_ml, "mL"),
            ("PO", site): (lobe.percent_opacity, "%"),
            ("PHO", site): (lobe.percent_high_opacity, "%"),
            ("LOBE-SS", site): (lobe.severity_score, "{score}"),
            ("LOBE-HOS", site): (lobe.high_opacity_score, "{score}"),
        }
    assert figures(bundle) == wanted
    (report,) = resources(bundle, "DiagnosticReport")
    assert len(report["result"]) == len(wanted)
    assert {r["reference"] for r in report["result"]} <= {e["fullUrl"] for e in bundle["entry"]}
    assert report["subject"]["identifier"] == {"value": "4711"}
    study = {"system": "urn:dicom:uid", "value": f"urn:oid:{examples.IDENTITY.study_uid}"}
    assert report["imagingStudy"][0]["identifier"] == study
    (device,) = resources(bundle, "Device")
    assert [m.sha256 in note["text"] for m, note in zip(REPORT.provenance.models, device["note"], strict=True)]
    assert "covid" not in answer.text.lower()
    again = shared.client.get(f"/v1/jobs/{job_id}/fhir", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_ranges_and_threshold_are_components(shared: Service) -> None:
    bundle = shared.client.get(f"/v1/jobs/{shared.succeeded()}/fhir").json()
    parts = {
        component["code"]["coding"][0]["code"]: component["valueQuantity"]["value"]
        for o in resources(bundle, "Observation")
        if o["bodySite"]["coding"][0]["code"] == "39607008"
        for component in o.get("component", [])
    }
    between = REPORT.severity.percent_opacity_range
    assert between is not None
    assert parts == {"PO-LOW": between.low, "PO-HIGH": between.high, "HO-THRESHOLD": -200}


def test_a_scan_that_was_no_dicom_has_no_patient_and_no_study(shared: Service) -> None:
    job_id = shared.submit()
    (path := shared.worker.folder / job_id).write_bytes(b"a mask")
    report = REPORT.model_copy(update={"job_id": job_id, "dicom": {}})
    with shared.jobs.worker.claim(job_id, "test") as lease:
        shared.jobs.worker.succeed(lease, report, dict.fromkeys(MaskName, path), dicom=NO_DICOM)
    bundle = shared.client.get(f"/v1/jobs/{job_id}/fhir").json()
    Bundle.model_validate(bundle)
    assert not [key for key in ("subject", "imagingStudy", "derivedFrom") if f'"{key}"' in json.dumps(bundle)]


def test_it_is_409_until_the_job_has_succeeded(shared: Service) -> None:
    require_problem(shared.client.get(f"/v1/jobs/{shared.submit()}/fhir"), 409, "wrong-state")


def test_the_private_codes_are_those_that_the_page_publishes() -> None:
    root = Path(__file__).parents[2]

    page = (root / "docs/dicom.md").read_text()
    assert coding.SCHEME_UID in page
    for concept in coding.PRIVATE:
        assert f"| `{concept.code}` | {concept.meaning} | {concept.definition} |" in page


def test_an_example_is_what_is_made_of_the_examples() -> None:
    assert bundle_of(REPORT, examples.IDENTITY, examples.FINISHED_AT)["entry"]
