"""The scan and the pictures of a result."""

import base64
import hashlib
from pathlib import Path

import pytest

from api import examples
from jobs.models import ImageName, MaskName

from .conftest import Service, image_bytes, require_problem, running_service

PICTURES = ("axial", "coronal", "sagittal", "glass")


@pytest.fixture(scope="module")
def job_id(shared: Service) -> str:
    return shared.succeeded()


def test_the_scan_comes_whole_or_coarse_with_its_digest(shared: Service, job_id: str) -> None:
    for query, name in (("", "scan"), ("?size=full", "scan"), ("?size=preview", "preview")):
        answer = shared.client.get(f"/v1/jobs/{job_id}/scan{query}")
        expected = image_bytes(ImageName(name))
        assert (answer.status_code, answer.content) == (200, expected)
        digest = base64.b64encode(hashlib.sha256(expected).digest()).decode()
        assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}.nii.gz"'
        assert answer.headers["cache-control"] == "no-store"
        known = {"If-None-Match": answer.headers["etag"]}
        assert shared.client.get(f"/v1/jobs/{job_id}/scan{query}", headers=known).status_code == 304
    part = shared.client.get(f"/v1/jobs/{job_id}/scan", headers={"Range": "bytes=3-9"})
    assert (part.status_code, part.content) == (206, image_bytes(ImageName.SCAN)[3:10])
    require_problem(shared.client.get(f"/v1/jobs/{job_id}/scan?size=huge"), 422, "invalid-parameters")


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_shown_as_pictures(shared: Service, job_id: str, name: str) -> None:
    answer = shared.client.get(f"/v1/jobs/{job_id}/pictures/{name}.png")
    assert (answer.status_code, answer.content) == (200, image_bytes(ImageName(name)))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == f'inline; filename="{name}.png"'
    known = {"If-None-Match": answer.headers["etag"]}
    assert shared.client.get(f"/v1/jobs/{job_id}/pictures/{name}.png", headers=known).status_code == 304


@pytest.mark.parametrize("below", ["scan", "pictures/axial.png"])
def test_they_are_409_until_the_job_has_succeeded(shared: Service, below: str) -> None:
    require_problem(shared.client.get(f"/v1/jobs/{shared.submit()}/{below}"), 409, "wrong-state")


@pytest.mark.parametrize("below", ["pictures/heart.png", "pictures/scan.png", "pictures/axial.jpg"])
def test_there_are_no_others(shared: Service, job_id: str, below: str) -> None:
    require_problem(shared.client.get(f"/v1/jobs/{job_id}/{below}"), 404, "not-found")


def test_a_job_of_a_version_without_images_has_none(shared: Service) -> None:
    job_id = shared.submit()
    (path := shared.worker.folder / job_id).write_bytes(b"a mask")
    report = examples.REPORT.model_copy(update={"job_id": job_id})
    with shared.jobs.worker.claim(job_id, "test") as lease:
        shared.jobs.worker.succeed(lease, report, dict.fromkeys(MaskName, path))
    for below, image in (("scan", "scan"), ("scan?size=preview", "preview"), ("pictures/glass.png", "glass")):
        problem = require_problem(shared.client.get(f"/v1/jobs/{job_id}/{below}"), 404, "image-not-kept")
        assert problem["evidence"] == {"image": image}


@pytest.mark.parametrize(("keeps", "shown"), [("preview", {"preview", *PICTURES}), ("none", set())])
def test_an_operator_shows_fewer(tmp_path: Path, keeps: str, shown: set[str]) -> None:
    """Also of jobs whose worker stored them all."""
    with running_service(tmp_path, keep_images=keeps) as service:
        job_id = service.succeeded()
        for name in ImageName:
            below = {"scan": "scan", "preview": "scan?size=preview"}.get(name, f"pictures/{name}.png")
            answer = service.client.get(f"/v1/jobs/{job_id}/{below}")
            assert answer.status_code == (200 if name in shown else 404)


def test_they_are_deleted_with_the_job(shared: Service) -> None:
    before = shared.stored_files()
    job_id = shared.succeeded()
    assert sum("images" in path.parts for path in shared.stored_files() - before) == len(ImageName)
    shared.client.delete(f"/v1/jobs/{job_id}").raise_for_status()
    assert not [path for path in shared.stored_files() - before if "images" in path.parts]
    require_problem(shared.client.get(f"/v1/jobs/{job_id}/scan"), 410, "job-purged")
