"""The OpenAPI document: valid, complete, and true."""

import re
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from .conftest import DOCUMENT, Service

OPERATIONS = [
    (f"{method} {path}", operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def test_the_document_is_valid() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    assert not [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()]


def test_operations_have_names_for_clients() -> None:
    names = {operation["operationId"] for _, operation in OPERATIONS}
    assert names == {
        "create_job", "list_jobs", "get_job", "watch_job", "cancel_job", "delete_job", "get_report", "get_mask",
        "head_mask", "get_mask_url", "create_upload", "get_upload", "put_upload_part", "complete_upload",
        "abort_upload", "get_callback", "redeliver_callback", "create_batch", "list_batches", "get_batch",
        "export_reports_csv", "export_reports_ndjson",
        "cancel_batch", "validate_scan", "get_inspection", "create_job_from_source", "validate_scan_from_source",
        "get_labels", "list_events", "get_batch_callback", "redeliver_batch_callback", "get_scan", "get_picture",
        "list_models", "get_quota", "get_health", "get_readiness", "get_metrics", "get_problem_type",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_an_operation_is_complete(name: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    assert all(parameter["description"] for parameter in operation.get("parameters", []))
    for status, answer in operation["responses"].items():
        assert answer["description"], status
        assert "X-Request-ID" in answer["headers"]
        assert all(header["description"] and "example" in header for header in answer["headers"].values())
        if int(status) >= 400:
            assert set(answer["content"]) == {"application/problem+json"}
    assert "500" in operation["responses"]


def examples() -> list[tuple[str, Any, dict[str, Any]]]:
    found = []
    for name, operation in OPERATIONS:
        bodies = [("request", operation["requestBody"])] if "requestBody" in operation else []
        for where, body in [*bodies, *operation["responses"].items()]:
            for media_type, content in body.get("content", {}).items():
                given = content.get("examples", {}).items()
                found += [(f"{name} {where} {key}", example["value"], content["schema"]) for key, example in given]
                if media_type.endswith("json"):
                    assert given, f"{name} {where} has no example"
    return found


@pytest.mark.parametrize(
    ("where", "value", "schema"), examples(), ids=lambda part: part if isinstance(part, str) else ""
)
def test_an_example_follows_its_schema(where: str, value: Any, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


@pytest.mark.parametrize(
    ("path", "name", "schema_name"),
    [("/v1/jobs/from-source", "job-ended", "JobEnded"), ("/v1/batches", "batch-ended", "BatchEnded")],
)
def test_the_message_to_a_receiver_is_described_as_a_callback(path: str, name: str, schema_name: str) -> None:
    told = DOCUMENT["paths"][path]["post"]["callbacks"]
    message = told[name]["{$request.body#/callback_url}"]["post"]
    assert {parameter["name"] for parameter in message["parameters"]} == {
        "webhook-id", "webhook-timestamp", "webhook-signature",
    }  # fmt: skip
    schema = message["requestBody"]["content"]["application/cloudevents+json"]["schema"]
    assert schema["$ref"] == f"#/components/schemas/{schema_name}"


def test_the_gateway_serves_it(shared: Service) -> None:
    assert shared.client.get("/openapi.json").json() == DOCUMENT


def test_the_page_that_shows_it_needs_nothing_from_elsewhere(shared: Service) -> None:
    page = shared.client.get("/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) >= 3
    for address in loaded:
        assert address.startswith("/docs-files/"), address
        assert shared.client.get(address).status_code == 200


def test_every_schema_is_used() -> None:
    text = str(DOCUMENT)
    for name in DOCUMENT["components"]["schemas"]:
        assert f"'#/components/schemas/{name}'" in text, name
