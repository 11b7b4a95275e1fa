"""All reports in one answer: whole, readable by other programs, and seen to be cut where it is."""

import csv
import io
import json

import httpx
import pytest

from jobs.errors import StorageUnavailableError
from jobs.models import MaskName
from jobs.service import READ_TOGETHER, JobService

from .conftest import Service, require_problem

PATHS = ["/v1/reports.csv", "/v1/reports.ndjson"]


def rows(answer: httpx.Response) -> list[dict[str, str]]:
    """Of both forms, by column or member."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("text/csv"):
        return list(csv.DictReader(io.StringIO(answer.text, newline=""), strict=True))
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_table_has_a_row_a_job_with_all_scores(alone: Service) -> None:
    job_id = alone.succeeded(12.3, client_reference='one, "two"; ä', priority="stat")
    alone.submit()
    answer = alone.client.get("/v1/reports.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="lobewise-reports.csv"'
    assert answer.content.endswith(b"\r\n")
    assert answer.content.count(b"\n") == 2
    (row,) = rows(answer)
    report = alone.client.get(f"/v1/jobs/{job_id}/report").json()
    job = alone.client.get(f"/v1/jobs/{job_id}").json()
    assert row["job_id"] == job_id
    assert row["client_reference"] == 'one, "two"; ä'
    assert row["priority"] == "stat"
    assert row["created_at"] == job["created_at"]
    assert row["finished_at"] == job["finished_at"]
    for name in ("percent_opacity", "percent_high_opacity", "lung_severity_score", "lung_high_opacity_score"):
        assert float(row[name]) == report["severity"][name]
    assert float(row["percent_opacity_low"]) == report["severity"]["percent_opacity_range"]["low"]
    assert float(row["lungs_volume_ml"]) == report["lungs"]["volume_ml"]
    for lobe in report["lobes"]:
        for name in ("volume_ml", "percent_opacity", "percent_high_opacity", "severity_score", "high_opacity_score"):
            assert float(row[f"{lobe['lobe']}_{name}"]) == lobe[name]
    assert row["findings"] == "thick-slices;lobe-score-unsure"
    assert row["models"] == "landmarks=1;lungs=1;lesions=1"
    assert row["input_sha256"] == report["provenance"]["input_sha256"]
    assert len(row) == 54


def test_a_line_of_json_has_the_report_as_it_is_answered_alone(alone: Service) -> None:
    job_id = alone.succeeded(client_reference="=1+1")
    answer = alone.client.get("/v1/reports.ndjson")
    assert answer.headers["content-type"] == "application/x-ndjson"
    (line,) = rows(answer)
    job = alone.client.get(f"/v1/jobs/{job_id}").json()
    assert line == {
        "job_id": job_id,
        "client_reference": "=1+1",
        "created_at": job["created_at"],
        "finished_at": job["finished_at"],
        "report": alone.client.get(f"/v1/jobs/{job_id}/report").json(),
    }
    assert set(line["report"]["masks"]) == set(MaskName)


def test_filters_are_those_of_the_list_and_scans_that_were_validated_have_no_report(alone: Service) -> None:
    for name, priority in [("mine", "stat"), ("yours", "stat"), ("mine", "batch")]:
        alone.succeeded(client_reference=name, priority=priority)
    last = alone.client.get("/v1/jobs?limit=1").json()["items"][0]["created_at"]
    for path in PATHS:
        found = [
            len(rows(alone.client.get(path, params=query)))
            for query in (
                {},
                {"client_reference": "mine"},
                {"client_reference": "mine", "priority": "stat"},
                {"created_after": last},
                {"created_before": last},
                {"limit": 2},
            )
        ]
        assert found == [3, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_no_reference_becomes_a_formula(alone: Service, value: str) -> None:
    alone.succeeded(client_reference=value)
    (row,) = rows(alone.client.get("/v1/reports.csv"))
    assert row["client_reference"] == "'" + value


@pytest.mark.parametrize("path", PATHS)
def test_an_export_is_whole_over_many_pages_oldest_first_and_goes_on_after_a_job(alone: Service, path: str) -> None:
    job_ids = [alone.succeeded() for _ in range(2 * READ_TOGETHER + 3)]
    alone.jobs.service.purge(job_ids.pop(4))
    assert [row["job_id"] for row in rows(alone.client.get(path))] == job_ids
    assert [row["job_id"] for row in rows(alone.client.get(path, params={"after": job_ids[50]}))] == job_ids[51:]
    assert rows(alone.client.get(path, params={"after": job_ids[-1]})) == []


@pytest.mark.parametrize("path", PATHS)
def test_an_export_that_cannot_go_on_is_not_taken_for_a_whole_one(
    alone: Service, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_ids = [alone.succeeded() for _ in range(3 * READ_TOGETHER)]
    real, broken = JobService.report, job_ids[-1]

    def report(service: JobService, job_id: str) -> object:
        if job_id == broken:
            raise StorageUnavailableError("gone")
        return real(service, job_id)

    monkeypatch.setattr(JobService, "report", report)
    with pytest.raises(httpx.RemoteProtocolError):
        alone.client.get(path)
    monkeypatch.undo()
    rest = rows(alone.client.get(path, params={"after": job_ids[2 * READ_TOGETHER - 1]}))
    assert [row["job_id"] for row in rest] == job_ids[2 * READ_TOGETHER :]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_wrong_from_the_start_is_a_problem(alone: Service, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = require_problem(alone.client.get(path, params={"after": "job"}), 422, "invalid-parameters")
    assert [error["pointer"] for error in problem["errors"]] == ["/query/after"]
    require_problem(alone.client.get(path, params={"status": "failed"}), 422, "invalid-parameters")
    alone.succeeded()

    def report(_service: JobService, _job_id: str) -> object:
        raise StorageUnavailableError("gone")

    monkeypatch.setattr(JobService, "report", report)
    require_problem(alone.client.get(path), 503, "storage-unavailable")
