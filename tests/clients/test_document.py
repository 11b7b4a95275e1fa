"""What generators of clients stumbled over stays out of the document."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.service import document


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return document()


def parameters(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in made["paths"].values():
        for operation in path.values():
            yield from operation.get("parameters", ())


def test_no_parameter_is_null(made: dict[str, Any]) -> None:
    assert [parameter["name"] for parameter in parameters(made) if "null" in str(parameter["schema"])] == []


def test_counts_of_bytes_have_64_bits(made: dict[str, Any]) -> None:
    found = {
        f"{schema}.{name}": field
        for schema, content in made["components"]["schemas"].items()
        for name, field in content.get("properties", {}).items()
        if name.endswith("_bytes")
    }
    assert "InputInfo.size_bytes" in found
    assert [name for name, field in found.items() if "int64" not in str(field)] == []


def test_larger_numbers_than_32_bits_say_so(made: dict[str, Any]) -> None:
    large = [one["schema"] for one in parameters(made) if one["schema"].get("maximum", 0) > 1 << 31]
    assert {schema["format"] for schema in large} == {"int64"}


def test_a_file_has_no_length_of_text(made: dict[str, Any]) -> None:
    assert "minLength" not in made["components"]["schemas"]["UploadSubmission"]["properties"]["file"]


def test_orders_of_lists_have_names(made: dict[str, Any]) -> None:
    (sort,) = (one["schema"] for one in made["paths"]["/v1/jobs"]["get"]["parameters"] if one["name"] == "sort")
    assert len(sort["x-enum-varnames"]) == len(sort["enum"])
