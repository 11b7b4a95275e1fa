"""What generated clients send by mistake: each is pointed at, with a sentence that says what to send."""

from typing import Any

import httpx
import pytest

from .conftest import ALLOWED_SOURCE, Service, nifti, require_problem

SOURCE = {"url": ALLOWED_SOURCE + "1.nii"}
FROM_SOURCE = "/v1/jobs/from-source"


def require_sentence(answer: httpx.Response, pointer: str, says: str) -> None:
    problem = require_problem(answer, 422, "invalid-parameters")
    assert [(error["pointer"], error["detail"]) for error in problem["errors"]] == [(pointer, says)]
    assert "deprecation" not in answer.headers


@pytest.mark.parametrize(
    ("body", "pointer", "says"),
    [
        (
            {"source": SOURCE, "priority": "STAT"},
            "/body/priority",
            'send one of stat, routine, batch; "STAT" differs in case or blanks only',
        ),
        ({"source": SOURCE, "priority": "urgent"}, "/body/priority", "send one of stat, routine, batch"),
        ({"source": SOURCE, "priority": 3}, "/body/priority", "send one of stat, routine, batch"),
        ({"source": SOURCE, "priority": None}, "/body/priority", "send one of stat, routine, batch"),
        ({"source": SOURCE, "priority": ["stat"]}, "/body/priority", "send one of stat, routine, batch"),
        ({"source": SOURCE, "Priority": "stat"}, "/body/Priority", "leave it out, there is no such field"),
        (
            {"source": SOURCE, "client_reference": ""},
            "/body/client_reference",
            "leave it out, or send a text that is not empty",
        ),
        (
            {"source": SOURCE, "client_reference": "4711\u202e0001"},
            "/body/client_reference",
            r"send a text of the form ^[^\x00-\x1f\x7f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*$",
        ),
        ({"source": SOURCE, "client_reference": 7}, "/body/client_reference", "send a text, not a number"),
        ({"source": {"url": ""}}, "/body/source/url", "leave it out, or send a text that is not empty"),
        ({"source": {"url": [SOURCE["url"]]}}, "/body/source/url", "send a text, not an array"),
        ({"source": SOURCE["url"]}, "/body/source", "send an object, not a text"),
        ({"source": {"url": None}}, "/body/source", "send either `url` or `upload_id`"),
        ({"source": {**SOURCE, "upload_id": "x"}}, "/body/source", "send either `url` or `upload_id`"),
        (
            {"source": {"upload_id": "x", "sha256": "0" * 64}},
            "/body/source",
            "`sha256` belongs to `url`: send it when the upload is created",
        ),
        (
            {"source": {**SOURCE, "sha256": "abc"}},
            "/body/source/sha256",
            "send a text of the form ^[0-9A-Fa-f]{64}$",
        ),
        (
            {"source": SOURCE, "file": "XAEAAA=="},
            "/body/file",
            "leave it out: a file goes to POST /v1/jobs or POST /v1/validate, as multipart/form-data",
        ),
        ([], "/body", "send an object, not an array"),
        ({}, "/body/source", "send it, it is required"),
    ],
)
def test_json_is_told_what_to_send(shared: Service, body: Any, pointer: str, says: str) -> None:
    require_sentence(shared.client.post(FROM_SOURCE, json=body), pointer, says)


@pytest.mark.parametrize(
    ("fields", "pointer", "says"),
    [
        (
            {"priority": "Batch"},
            "/body/priority",
            'send one of stat, routine, batch; "Batch" differs in case or blanks only',
        ),
        (
            {"source": '{"url": "https://pacs.example/ct/1.nii"}'},
            "/body/source",
            "leave it out: an address or an upload goes to POST /v1/jobs/from-source or "
            "POST /v1/validate/from-source, as JSON",
        ),
        ({"client_reference": "x" * 129}, "/body/client_reference", "send at most 128 characters"),
        ({"body": "{}"}, "/body/body", "leave it out, there is no such field"),
    ],
)
def test_a_form_is_told_what_to_send(shared: Service, fields: dict[str, str], pointer: str, says: str) -> None:
    answer = shared.client.post("/v1/jobs", files={"file": nifti()}, data=fields)
    require_sentence(answer, pointer, says)


@pytest.mark.parametrize(
    ("path", "body", "pointer", "says"),
    [
        ("/v1/batches", {"items": SOURCE}, "/body/items", "send an array, not an object"),
        ("/v1/batches", {"items": [SOURCE["url"]]}, "/body/items/0", "send an object, not a text"),
        ("/v1/uploads", {"size_bytes": "many"}, "/body/size_bytes", "send a whole number"),
        ("/v1/uploads", {"size_bytes": 0}, "/body/size_bytes", "send a number of at least 1"),
    ],
)
def test_other_bodies_are_told_what_to_send(shared: Service, path: str, body: Any, pointer: str, says: str) -> None:
    require_sentence(shared.client.post(path, json=body), pointer, says)


def test_a_query_is_told_what_to_send(shared: Service) -> None:
    for query, pointer, says in (
        (
            "status=QUEUED",
            "/query/status/0",
            'send one of queued, running, succeeded, failed, cancelled; "QUEUED" differs in case or blanks only',
        ),
        ("limit=many", "/query/limit", "send a whole number"),
        ("limit=201", "/query/limit", "send a number of at most 200"),
        ("colour=red", "/query/colour", "leave it out, there is no such field"),
    ):
        require_sentence(shared.client.get(f"/v1/jobs?{query}"), pointer, says)


@pytest.mark.parametrize("path", ["/v1/jobs/from-source", "/v1/validate/from-source"])
def test_a_file_where_json_belongs_is_told_where_it_belongs(shared: Service, path: str) -> None:
    answer = shared.client.post(path, files={"file": nifti()})
    problem = require_problem(answer, 415, "unsupported-content-type")
    (error,) = problem["errors"]
    assert error["pointer"] == "/header/Content-Type"
    form = path.removesuffix("/from-source")
    assert error["detail"] == f"send application/json; a file goes to {form}, as multipart/form-data"
