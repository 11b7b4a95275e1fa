"""The checker sees each kind of break, and none where a document only grows."""

import copy
import json
from typing import Any

import pytest

from .breaking import FOLDER, breaks

RELEASED = json.loads((FOLDER / "released.json").read_text())


def without(*keys: str) -> Any:
    changed = copy.deepcopy(RELEASED)
    node = changed
    for key in keys[:-1]:
        node = node[key]
    del node[keys[-1]]
    return changed


def changed(value: Any, *keys: str) -> Any:
    document = copy.deepcopy(RELEASED)
    node = document
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return document


JOBS = ("paths", "/v1/jobs", "post")
SCHEMAS = ("components", "schemas")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (without(*JOBS), "POST /v1/jobs: gone"),
        (without(*JOBS, "responses", "202"), "POST /v1/jobs: 202 is gone"),
        (changed("submit", *JOBS, "operationId"), "POST /v1/jobs: operationId create_job is gone"),
        (without(*JOBS, "requestBody", "content", "application/json"), "POST /v1/jobs: body application/json is gone"),
        (changed([], *JOBS, "parameters"), "POST /v1/jobs: parameter Prefer is gone"),
        (
            changed(
                [{"in": "query", "name": "why", "required": True}],
                "paths",
                "/v1/jobs/{job_id}/cancel",
                "post",
                "parameters",
            ),
            "POST /v1/jobs/{job_id}/cancel: parameter why is required",
        ),
        (changed(["stat"], *SCHEMAS, "Priority", "enum"), "Priority: batch is gone"),
        (without(*SCHEMAS, "Job", "properties", "stage"), "Job.stage: gone"),
        (changed({"type": "string"}, *SCHEMAS, "Job", "properties", "attempt"), "Job.attempt: was integer, is string"),
        (changed(["size_bytes", "sha256"], *SCHEMAS, "UploadRequest", "required"), "UploadRequest.sha256: required"),
        (without("webhooks", "job-ended"), "webhook job-ended: gone"),
    ],
)
def test_a_break_is_seen(document: Any, says: str) -> None:
    assert says in list(breaks(RELEASED, document))


def test_what_only_grows_breaks_nothing() -> None:
    grown = changed({"type": "string"}, *SCHEMAS, "Job", "properties", "colour")
    grown["paths"]["/v1/colours"] = {"get": {}}
    assert list(breaks(RELEASED, grown)) == []
