"""POST /v1/batches and what follows."""

from typing import Any

import httpx
import pytest

from .conftest import ALLOWED_SOURCE, Service, nifti, require_problem


def item(number: int, **options: Any) -> dict[str, Any]:
    return {"source": {"url": f"{ALLOWED_SOURCE}{number}.nii.gz"}, "client_reference": f"scan-{number}", **options}


def post(service: Service, items: list[Any], **headers: str) -> httpx.Response:
    return service.client.post("/v1/batches", json={"items": items}, headers=headers)


def uploaded(service: Service, scan: bytes = nifti()) -> str:
    upload = service.client.post("/v1/uploads", json={"size_bytes": len(scan)}).json()
    service.client.put(upload["parts"][0]["url"], content=scan)
    assert service.client.post(upload["links"]["complete"]).status_code == 200
    upload_id: str = upload["id"]
    return upload_id


def test_many_scans_become_as_many_jobs_of_low_priority(alone: Service) -> None:
    answer = post(alone, [item(n) for n in range(250)] + [item(250, priority="stat")])
    assert answer.status_code == 202
    batch = answer.json()
    assert answer.headers["location"] == batch["links"]["self"] == f"{alone.address}/v1/batches/{batch['id']}"
    assert batch["counts"]["queued"] == 251
    seen = list(batch["items"])
    while batch["next_cursor"]:
        batch = alone.client.get(batch["links"]["self"], params={"cursor": batch["next_cursor"]}).json()
        seen += batch["items"]
    assert [found["index"] for found in seen] == list(range(251))
    assert [found["job"]["client_reference"] for found in seen] == [f"scan-{n}" for n in range(251)]
    assert {found["job"]["priority"] for found in seen[:250]} == {"batch"}
    assert seen[250]["job"]["priority"] == "stat"
    assert alone.client.get(f"/v1/jobs/{seen[3]['job']['id']}").json()["status"] == "queued"
    assert 'lobewise_jobs_accepted_total{priority="batch"} 250.0' in alone.client.get("/metrics").text


def test_what_cannot_be_taken_is_refused_alone(alone: Service) -> None:
    scan = uploaded(alone)
    no_scan = uploaded(alone, b"%PDF-1.7 is no scan" * 50)
    items = [
        {"source": {"url": "https://other.example/1.nii"}},
        {"source": {"upload_id": scan}},
        {"source": {"upload_id": scan[:-1] + ("0" if scan[-1] != "0" else "1")}},
        {"source": {"upload_id": no_scan}},
        item(4, callback_url="https://other.example/"),
        item(5),
    ]
    batch = post(alone, items).json()
    errors = [found["error"] and found["error"]["type"].removeprefix("/problems/") for found in batch["items"]]
    assert errors == [
        "source-not-allowed", None, "upload-not-found", "unsupported-format", "callback-not-allowed", None,
    ]  # fmt: skip
    assert (batch["counts"]["queued"], batch["counts"]["refused"]) == (2, 4)
    taken = batch["items"][1]["job"]
    assert taken["input"]["size_bytes"] == len(nifti())
    alone.worker.succeed(taken["id"])
    later = alone.client.get(batch["links"]["self"]).json()
    assert (later["counts"]["succeeded"], later["counts"]["queued"]) == (1, 1)
    assert later["items"][1]["job"]["severity"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"items": []}, "/body/items"),
        ({"items": [{"source": {}}]}, "/body/items/0/source"),
        ({"items": [item(0), item(1, priority="urgent")]}, "/body/items/1/priority"),
        ({"items": [{"source": {"upload_id": 3}}]}, "/body/items/0/source/upload_id"),
        ({"items": [{"source": {"upload_id": "x", "url": "y"}}]}, "/body/items/0/source"),
        ({"items": [3]}, "/body/items/0"),
        ({"items": [item(n) for n in range(1001)]}, "/body/items"),
        ({}, "/body/items"),
    ],
)
def test_a_body_that_cannot_be_understood_makes_nothing(shared: Service, body: Any, pointer: str) -> None:
    before = shared.stored_files()
    problem = require_problem(shared.client.post("/v1/batches", json=body), 422, "invalid-parameters")
    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert shared.stored_files() == before


def test_other_bodies_are_refused_as_everywhere(shared: Service) -> None:
    require_problem(
        shared.client.post("/v1/batches", content=b"{", headers={"content-type": "application/json"}),
        400,
        "malformed-request",
    )
    require_problem(shared.client.post("/v1/batches", files={"file": b"x"}), 415, "unsupported-content-type")
    too_large = b" " * (5 << 20)
    require_problem(
        shared.client.post("/v1/batches", content=too_large, headers={"content-type": "application/json"}),
        413,
        "upload-too-large",
    )


def test_a_repeated_request_gets_the_same_batch(alone: Service) -> None:
    key = {"Idempotency-Key": "one"}
    first, again = post(alone, [item(1), item(2)], **key), post(alone, [item(1), item(2)], **key)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert len(alone.client.get("/v1/jobs").json()["items"]) == 2
    require_problem(post(alone, [item(1)], **key), 422, "idempotency-key-reused")


def test_a_batch_is_stopped_as_a_whole(alone: Service) -> None:
    batch = post(alone, [item(n) for n in range(5)]).json()
    alone.client.delete(f"/v1/jobs/{batch['items'][0]['job']['id']}")
    stopped = alone.client.post(batch["links"]["cancel"])
    assert stopped.status_code == 202
    counts = stopped.json()["counts"]
    assert (counts["cancelled"], counts["purged"]) == (4, 1)
    assert stopped.json()["items"][0]["job"] is None


def test_a_batch_that_is_not_there(shared: Service) -> None:
    for name in ("01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b77", "nonsense"):
        require_problem(shared.client.get(f"/v1/batches/{name}"), 404, "batch-not-found")
        require_problem(shared.client.post(f"/v1/batches/{name}/cancel"), 404, "batch-not-found")


# Lists


def test_batches_are_listed_newest_first_with_their_counts(alone: Service) -> None:
    batches = [post(alone, [item(n), {"source": {"url": "https://other.example/1.nii"}}]).json() for n in range(5)]
    alone.client.post(batches[3]["links"]["cancel"])
    alone.client.delete(f"/v1/jobs/{batches[4]['items'][0]['job']['id']}")
    found, address = [], "/v1/batches?limit=2"
    while address:
        answer = alone.client.get(address)
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["items"])
        address = answer.links.get("next", {}).get("url")
        assert (answer.json()["next_cursor"] is None) is (address is None)
    assert [len(page) for page in found] == [2, 2, 1]
    listed = [batch for page in found for batch in page]
    assert [batch["id"] for batch in listed] == [batch["id"] for batch in reversed(batches)]
    for batch in listed:
        whole = alone.client.get(batch["links"]["self"]).json()
        assert batch == {name: value for name, value in whole.items() if name not in ("items", "next_cursor")}
    assert [batch["counts"][name] for batch, name in zip(listed, ("purged", "cancelled", "queued"), strict=False)] == [
        1
    ] * 3
    assert {batch["counts"]["refused"] for batch in listed} == {1}

    times = {"created_after": batches[1]["created_at"], "created_before": batches[3]["created_at"]}
    narrowed = alone.client.get("/v1/batches", params={**times, "limit": 1}).json()
    rest = alone.client.get("/v1/batches", params={**times, "cursor": narrowed["next_cursor"]}).json()
    assert [batch["id"] for batch in narrowed["items"] + rest["items"]] == [batches[2]["id"], batches[1]["id"]]
    require_problem(
        alone.client.get("/v1/batches", params={"cursor": narrowed["next_cursor"]}), 422, "invalid-parameters"
    )


def test_a_list_of_batches_goes_on_while_others_come(alone: Service) -> None:
    old = [post(alone, [item(n)]).json()["id"] for n in range(4)]
    page = alone.client.get("/v1/batches?limit=2").json()
    post(alone, [item(9)])
    rest = alone.client.get("/v1/batches", params={"limit": 9, "cursor": page["next_cursor"]}).json()
    assert [batch["id"] for batch in page["items"] + rest["items"]] == old[::-1]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "cursor=20", "created_after=today", "status=queued"])
def test_a_wrong_parameter_of_the_list_is_pointed_at(shared: Service, query: str) -> None:
    problem = require_problem(shared.client.get(f"/v1/batches?{query}"), 422, "invalid-parameters")
    assert [error["pointer"] for error in problem["errors"]] == ["/query/" + query.partition("=")[0]]
