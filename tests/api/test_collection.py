"""The Postman collection has every operation of the OpenAPI document; `make first-hour` runs it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app

FOLDER = Path(__file__).parents[2] / "clients" / "postman"


def requests_of(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in items:
        if "item" in item:
            yield from requests_of(item["item"])
        else:
            yield item


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    collection = json.loads((FOLDER / "lobewise.postman_collection.json").read_text(encoding="utf-8"))
    return list(requests_of(collection["item"]))


@pytest.fixture(scope="module")
def operations() -> dict[str, tuple[str, str]]:
    """Method and path of each."""
    paths = create_app().openapi()["paths"]
    return {
        operation["operationId"]: (method.upper(), path)
        for path, methods in paths.items()
        for method, operation in methods.items()
    }


def operation_of(request: dict[str, Any], operations: dict[str, tuple[str, str]]) -> str | None:
    """Which operation a request of the collection asks for; None where there is none at its address."""
    raw = request["url"]["raw"].removeprefix("{{base_url}}").partition("?")[0]
    if raw == "{{part_url}}":  # of an upload, whole, as the service gave it
        return "put_upload_part"
    path = re.sub(r"\{\{\w+\}\}", "x", raw)
    fitting = [
        (template.count("{"), name)
        for name, (method, template) in operations.items()
        if method == request["method"] and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
    ]
    return min(fitting)[1] if fitting else None


def test_every_operation_is_in_the_collection(
    requests: list[dict[str, Any]], operations: dict[str, tuple[str, str]]
) -> None:
    assert operations.keys() - {operation_of(item["request"], operations) for item in requests} == set()


def test_the_collection_asks_for_nothing_else(
    requests: list[dict[str, Any]], operations: dict[str, tuple[str, str]]
) -> None:
    strange = [item["name"] for item in requests if operation_of(item["request"], operations) is None]
    assert strange == ["OpenAPI document"]  # which does not describe itself


def test_every_request_says_what_it_is_for_and_tests_its_status(requests: list[dict[str, Any]]) -> None:
    names = [item["name"] for item in requests]
    assert len(set(names)) == len(names)  # a run goes back to a request by its name
    for item in requests:
        assert item["request"]["description"], item["name"]
        tests = "\n".join(line for event in item["event"] for line in event["script"]["exec"])
        assert "pm.response.to.have.status(" in tests or "pm.expect(pm.response.code)" in tests, item["name"]


def test_what_runs_it_is_pinned() -> None:
    package = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["dependencies"].values())
