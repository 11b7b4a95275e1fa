"""A client that openapi-python-client makes from the document drives a live service."""

import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from .conftest import DOCUMENT, Service, mask_bytes, nifti

PACKAGE = "lobewise_generated_client"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_text(json.dumps(DOCUMENT))
    (folder / "config.yml").write_text(
        f"package_name_override: {PACKAGE}\nproject_name_override: client\npost_hooks: []\n"
        # The generator knows neither lines of JSON nor these files: they are bytes to it.
        "content_type_overrides:\n"
        + "".join(
            f"  {kind}: application/octet-stream\n"
            for kind in ("application/x-ndjson", "application/dicom", "image/png")
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--config", "config.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout.upper() + done.stderr.upper(), done.stdout + done.stderr
    sys.path.insert(0, str(folder / "client"))
    try:
        yield importlib.import_module(PACKAGE)
    finally:
        sys.path.remove(str(folder / "client"))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE}.{name}")


def test_it_drives_submit_poll_report_and_masks(generated: ModuleType, shared: Service) -> None:
    models, types = module("models"), module("types")
    api = {name: module(f"api.{name}") for name in ("jobs.create_job", "jobs.get_job", "jobs.list_jobs")}
    client = generated.Client(base_url=shared.address)

    upload = models.UploadSubmission(
        file=types.File(payload=io.BytesIO(nifti(4000)), file_name="scan.nii"),
        priority=models.Priority.STAT,
        client_reference="generated",
    )
    job = api["jobs.create_job"].sync(client=client, body=upload, idempotency_key="generated-1")
    assert isinstance(job, models.Job)
    assert (job.status, job.client_reference) == (models.JobStatus.QUEUED, "generated")
    assert job.input_.size_bytes == 4000

    shared.worker.succeed(job.id)
    job = api["jobs.get_job"].sync(job.id, client=client)
    assert job.status == models.JobStatus.SUCCEEDED
    assert job.severity.lung_severity_score == 5
    assert job.finished_at is not None

    report = module("api.results.get_report").sync(job.id, client=client)
    assert isinstance(report, models.Report)
    assert [lobe.label for lobe in report.lobes] == [1, 2, 3, 4, 5]
    for name in models.MaskName:
        mask = module("api.results.get_mask").sync(job.id, name, client=client)
        assert mask.payload.read() == mask_bytes(name.value)
    wanted = {"created_after": job.created_at, "client_reference": "generated", "status": [models.JobStatus.SUCCEEDED]}
    page = api["jobs.list_jobs"].sync(client=client, limit=1, sort=models.ListJobsSort.SEVERITY, **wanted)
    assert [found.id for found in page.items] == [job.id]

    table = module("api.results.export_reports_csv").sync(client=client, client_reference="generated")
    assert table.count("\r\n") == 2
    lines = module("api.results.export_reports_ndjson").sync(client=client, client_reference="generated")
    exported = models.ExportedReport.from_dict(json.loads(lines.payload.read()))
    assert exported.report == report


def test_it_knows_problems(generated: ModuleType, shared: Service) -> None:
    models = module("models")
    client = generated.Client(base_url=shared.address)
    problem = module("api.jobs.get_job").sync("unknown", client=client)
    assert isinstance(problem, models.Problem)
    assert (problem.status, problem.type_) == (404, "/problems/job-not-found")
    job_id = shared.submit()
    answer = module("api.results.get_report").sync_detailed(job_id, client=client)
    assert (answer.status_code, answer.parsed.evidence["status"]) == (409, "queued")
    cancelled = module("api.jobs.cancel_job").sync(job_id, client=client)
    assert cancelled.status == models.JobStatus.CANCELLED
    assert module("api.jobs.delete_job").sync_detailed(job_id, client=client).status_code == 204


def test_it_sends_sources(generated: ModuleType, shared: Service) -> None:
    models = module("models")
    source = models.Source(url="https://elsewhere.example/1.nii")
    problem = module("api.jobs.create_job_from_source").sync(
        client=generated.Client(base_url=shared.address), body=models.SourceSubmission(source=source)
    )
    assert problem.type_ == "/problems/source-not-allowed"
