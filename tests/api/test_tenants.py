"""Another tenant's ids: every call that names one answers as to an id that never was, by word and by work.

`LOBEWISE_TEST_TENANT_CALLS` is the number of generated calls; `make test-tenants` makes 10 000.
"""

import copy
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import obstore
import pytest
import redis
import schemathesis
from hypothesis import HealthCheck, settings
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from api.app import create_app
from jobs import states
from jobs.access.caller import Caller, Role
from jobs.bootstrap import Connection, connect
from jobs.settings import ApiSettings, JobsSettings
from jobs.states import UrlSignature

from .conftest import ALLOWED_SOURCE, DOCUMENT, Worker, nifti, require_problem, serving

CALLS = int(os.environ.get("LOBEWISE_TEST_TENANT_CALLS", "72"))
CANARY = "canary-of-left"
IN_PATH = {"job_id", "batch_id", "upload_id"}
#: Every other place of a request that can name something of a tenant's.
ELSEWHERE = {"cursor", "after", "Last-Event-ID", "Idempotency-Key", "upload_id"}
OPERATIONS = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


class AsTenant:
    """The caller is of the tenant that a header names: innermost, whatever access made of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = dict(scope.get("headers", ())).get(b"x-test-tenant")
        if named is not None:
            scope["state"]["caller"] = Caller(named.decode(), "somebody", frozenset(Role))
        await self._app(scope, receive, send)


@dataclass
class Two:
    """A gateway with a tenant that has something of everything, and another that has a little."""

    jobs: Connection
    anonymous: httpx.Client
    left: httpx.Client
    right: httpx.Client
    job_ids: dict[str, str]
    batch_id: str
    upload_ids: dict[str, str]
    cursors: dict[str, str]

    @property
    def ids(self) -> list[str]:
        return [*self.job_ids.values(), self.batch_id, *self.upload_ids.values()]


def submit(client: httpx.Client, **options: str) -> str:
    answer = client.post("/v1/jobs", files={"file": ("scan.nii", nifti())}, data=options)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def upload(client: httpx.Client, *, is_complete: bool) -> str:
    made = client.post("/v1/uploads", json={"size_bytes": 2000}).json()
    if is_complete:
        assert client.put(made["parts"][0]["url"], content=nifti()).status_code == 204
        assert client.post(f"/v1/uploads/{made['id']}/complete").status_code == 200
    upload_id: str = made["id"]
    return upload_id


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("tenants")
    jobs = connect(
        JobsSettings(
            data_dir=folder, source_allowlist=(ALLOWED_SOURCE,), callback_allowlist=("https://example.org/",),
            reap_seconds=3600, max_upload_bytes=1 << 20,
            audit="off",  # it writes together what several calls did, which would count for whichever comes then
        )
    )  # fmt: skip
    jobs.reconciler.reconcile()
    app = create_app(ApiSettings(max_wait_seconds=0, stream_seconds=0.2), jobs)
    app.user_middleware.append(Middleware(AsTenant))
    with (
        serving(app) as address,
        httpx.Client(base_url=address, timeout=30) as anonymous,
        httpx.Client(base_url=address, timeout=30, headers={"x-test-tenant": "left"}) as left,
        httpx.Client(base_url=address, timeout=30, headers={"x-test-tenant": "right"}) as right,
    ):
        about = {"client_reference": CANARY, "callback_url": f"https://example.org/?{CANARY}"}
        worker = Worker(_Side(jobs), folder)  # type: ignore[arg-type]
        ids = {name: submit(left, **about) for name in ("queued", "succeeded", "failed", "cancelled", "purged")}
        worker.succeed(ids["succeeded"])
        worker.fail(ids["failed"])
        left.post(f"/v1/jobs/{ids['cancelled']}/cancel").raise_for_status()
        left.delete(f"/v1/jobs/{ids['purged']}").raise_for_status()
        items = [{"source": {"url": ALLOWED_SOURCE + str(n)}, "client_reference": CANARY} for n in range(3)]
        batch = left.post("/v1/batches", json={"items": items, "callback_url": about["callback_url"]}).json()
        ids["of the batch"] = batch["items"][0]["job"]["id"]
        uploads = {"open": upload(left, is_complete=False), "complete": upload(left, is_complete=True)}
        for operation_id, check in OTHER_CALLS.items():
            if check is check_submission:
                of_submission(left, operation_id, CANARY + operation_id).raise_for_status()
        jobs.worker.workers.announce("one", 3600)
        for _ in range(3):
            submit(right)
        cursors = {
            "list_jobs": left.get("/v1/jobs", params={"limit": 2}).json()["next_cursor"],
            "list_batches": left.get("/v1/jobs", params={"limit": 1}).json()["next_cursor"],
            "list_events": left.get("/v1/events", params={"limit": 1}).json()["next_cursor"],
        }
        yield Two(jobs, anonymous, left, right, ids, batch["id"], uploads, cursors)
    jobs.close()


@dataclass
class _Side:
    """The worker's side of the tenant's jobs."""

    jobs: Connection

    @property
    def worker(self) -> Any:
        return self.jobs.tenants.of("left").worker


def named_by(operation: dict[str, Any]) -> set[str]:
    """Where an operation can name something of a tenant's."""
    found = {p["name"] for p in operation.get("parameters", []) if p["name"] in IN_PATH | ELSEWHERE}
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if body.get("$ref", "").endswith(("SourceSubmission", "BatchSubmission")):
        found.add("upload_id")
    return found


def call(client: httpx.Client, operation_id: str, ids: dict[str, str], **more: Any) -> httpx.Response:
    method, path, _ = OPERATIONS[operation_id]
    name = "axial" if operation_id == "get_picture" else "lungs"
    whole = path.format(**{"name": name, "product": "seg", "number": 1, "slug": "x", **ids})
    if operation_id == "put_upload_part":
        more |= {"params": {"expires": 4_000_000_000, "signature": "0" * 64}, "content": nifti()}
    return client.request(method, whole, **more)


def told(answer: httpx.Response, *named: str) -> tuple[int, str, dict[str, str]]:
    """All that a client can tell of an answer, but for the ids that it sent itself and those of this one request."""
    text = answer.text
    for id_ in named:
        text = text.replace(id_, "the id")
    skipped = {"x-request-id", "date", "traceresponse"}
    return answer.status_code, text, {k: v for k, v in answer.headers.items() if k not in skipped}


ID_CALLS = [
    (operation_id, kind)
    for operation_id, (_, _, operation) in OPERATIONS.items()
    for kind in sorted(named_by(operation) & IN_PATH)
    if "{" + kind + "}" in OPERATIONS[operation_id][1]
]


@pytest.mark.parametrize(("operation_id", "kind"), ID_CALLS)
def test_an_id_of_anothers_is_one_that_never_was(two: Two, operation_id: str, kind: str) -> None:
    unknown = states.new_id()
    expected = told(call(two.right, operation_id, {kind: unknown}), unknown)
    if operation_id == "put_upload_part":
        assert expected[0] == 403, "it is refused by its signature, before anybody looks for the upload"
    elif not operation_id.startswith("head_"):
        assert expected[0] == 404
        assert json.loads(expected[1])["type"].endswith("-not-found")
    # Each kind of id, also where it names another kind of thing.
    for id_ in two.ids:
        assert told(call(two.right, operation_id, {kind: id_}), id_) == expected, id_


def test_every_operation_that_names_something_is_walked() -> None:
    walked = {operation_id for operation_id, _ in ID_CALLS} | set(OTHER_CALLS)
    assert {operation_id for operation_id, (*_, operation) in OPERATIONS.items() if named_by(operation)} == walked
    # A parameter that nobody thought of here, but whose name is like those that were.
    names = {p["name"] for *_, operation in OPERATIONS.values() for p in operation.get("parameters", [])}
    assert {name for name in names if name.lower().endswith(("id", "cursor", "key", "after"))} - {
        "created_after"
    } <= IN_PATH | ELSEWHERE


def of_submission(client: httpx.Client, operation_id: str, key: str) -> httpx.Response:
    _, path, operation = OPERATIONS[operation_id]
    headers = {"Idempotency-Key": key}
    if "multipart/form-data" in operation["requestBody"]["content"]:
        return client.post(path, files={"file": ("scan.nii", nifti())}, headers=headers)
    source = {"source": {"url": ALLOWED_SOURCE + "1"}}
    return client.post(path, json={"items": [source]} if "batches" in path else source, headers=headers)


def check_submission(two: Two, operation_id: str) -> None:
    """The key that the other used makes a job of one's own; the other's upload is not there."""
    first = of_submission(two.right, operation_id, CANARY + operation_id)
    assert first.status_code == 202, first.text
    assert "idempotent-replayed" not in first.headers
    assert two.left.get(httpx.URL(first.headers["location"]).path).status_code == 404
    if "upload_id" not in named_by(OPERATIONS[operation_id][2]):
        return
    _, path, _ = OPERATIONS[operation_id]
    answers = []
    for upload_id in (states.new_id(), *two.upload_ids.values()):
        source = {"source": {"upload_id": upload_id}}
        answer = two.right.post(path, json={"items": [source]} if "batches" in path else source)
        if "batches" in path:
            answers.append(json.dumps(answer.json()["items"]).replace(upload_id, "the id"))
        else:
            require_problem(answer, 404, "upload-not-found")
            answers.append(answer.text.replace(upload_id, "the id"))
    assert len(set(answers)) == 1
    assert two.left.get(f"/v1/uploads/{two.upload_ids['complete']}").status_code == 200


def check_list(two: Two, operation_id: str) -> None:
    """A cursor is a place in an order, and leads through one's own things whosever it was."""
    _, path, _ = OPERATIONS[operation_id]
    answer = two.right.get(path, params={"cursor": two.cursors[operation_id]})
    assert answer.status_code == 200
    assert not [id_ for id_ in two.ids if id_ in answer.text]


def check_batch_page(two: Two, operation_id: str) -> None:
    assert call(two.right, operation_id, {"batch_id": two.batch_id}, params={"cursor": "1"}).status_code == 404


def check_feed(two: Two, operation_id: str) -> None:
    made_up = "0123456789abcdef" + "." + two.cursors["list_events"].partition(".")[2]
    answers = [two.right.get("/v1/events", params={"cursor": c}) for c in (made_up, two.cursors["list_events"])]
    require_problem(answers[1], 410, "cursor-expired")
    assert told(answers[0]) == told(answers[1])


def check_export(two: Two, operation_id: str) -> None:
    _, path, _ = OPERATIONS[operation_id]
    own = submit(two.right)
    before = two.right.get(path, params={"after": states.first_id(0)})
    answer = two.right.get(path, params={"after": two.job_ids["succeeded"]})
    assert answer.status_code == 200
    assert not [id_ for id_ in (*two.ids, own) if id_ in before.text + answer.text]


def check_watch(two: Two, operation_id: str) -> None:
    own = submit(two.right)
    with two.left.stream("GET", f"/v1/jobs/{two.job_ids['succeeded']}/events") as stream:
        event_id = next(line for line in stream.iter_lines() if line.startswith("id: ")).removeprefix("id: ")
    with two.right.stream("GET", f"/v1/jobs/{own}/events", headers={"Last-Event-ID": event_id}) as stream:
        data = next(line for line in stream.iter_lines() if line.startswith("data: ")).removeprefix("data: ")
    assert json.loads(data)["id"] == own
    assert call(two.right, operation_id, {"job_id": two.job_ids["queued"]}).status_code == 404


OTHER_CALLS: dict[str, Callable[[Two, str], None]] = {
    "create_job": check_submission,
    "create_job_from_source": check_submission,
    "validate_scan": check_submission,
    "validate_scan_from_source": check_submission,
    "create_batch": check_submission,
    "list_jobs": check_list,
    "list_batches": check_list,
    "get_batch": check_batch_page,
    "list_events": check_feed,
    "export_reports_csv": check_export,
    "export_reports_ndjson": check_export,
    "watch_job": check_watch,
}


@pytest.mark.parametrize("operation_id", OTHER_CALLS)
def test_what_another_was_given_leads_to_nothing_of_its_own(two: Two, operation_id: str) -> None:
    OTHER_CALLS[operation_id](two, operation_id)


@pytest.mark.parametrize(("operation_id", "kind"), ID_CALLS)
def test_it_costs_what_an_id_costs_that_never_was(
    two: Two, operation_id: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: who can tell how much is done for an id could tell that it is somebody's."""
    asked: Counter[str] = Counter()

    def counting(name: str) -> None:
        real = getattr(obstore, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            asked[f"store.{name}"] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(obstore, name, counted)

    for name in ("get", "put", "head", "list", "list_with_delimiter", "copy", "delete", "open_writer"):
        counting(name)

    with redis.Redis.from_url(two.jobs.settings.redis_url or "", decode_responses=True) as server:

        def work(id_: str) -> dict[str, int]:
            asked.clear()
            before = server.info("commandstats")
            call(two.right, operation_id, {kind: id_})
            after = server.info("commandstats")
            known = {name: stats["calls"] - before.get(name, {"calls": 0})["calls"] for name, stats in after.items()}
            return {name: n for name, n in {**known, **asked}.items() if n and name != "cmdstat_info"}

        # The gateway looks at its keys from time to time: what is done each time is the call's.
        def least(id_: str) -> dict[str, int]:
            found = [work(id_) for _ in range(3)]
            return {name: n for name in found[0] if (n := min(one.get(name, 0) for one in found))}

        least(states.new_id())  # connections are made, and scripts known, from here on
        expected = least(states.new_id())
        for id_ in two.ids:
            assert least(id_) == expected, id_
    if operation_id != "put_upload_part":
        assert expected, "something was counted"


def test_the_address_of_a_part_is_good_for_whoever_has_it_and_for_nothing_else(two: Two) -> None:
    part = two.left.post("/v1/uploads", json={"size_bytes": 2000}).json()["parts"][0]["url"]
    url = httpx.URL(part)
    assert url.params["tenant"] == "left"
    for changed in (
        url.copy_set_param("tenant", "right"),
        url.copy_set_param("tenant", "nobody"),
        url.copy_remove_param("tenant"),
    ):
        require_problem(two.anonymous.put(changed, content=nifti()), 403, "url-not-valid")
    require_problem(two.right.put(url, content=nifti()), 403, "url-not-valid")
    assert two.jobs.tenants.opened("nobody") is None
    assert two.anonymous.put(url, content=nifti()).status_code == 204


# A campaign: generated calls of `right`, aimed at what `left` has.

_document = copy.deepcopy(DOCUMENT)
_stream = _document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
_stream["schema"] = {"type": "string"}
document = schemathesis.openapi.from_dict(_document)
TALLY: Counter[str] = Counter()
_turn = itertools.count()


def aim(case: schemathesis.Case, two: Two) -> set[str]:
    """Put something of `left`'s wherever the case names anything; what was put there."""
    turn = next(_turn)
    pick = two.ids[turn % len(two.ids)]
    for name in IN_PATH & set(case.path_parameters or {}):
        case.path_parameters[name] = pick
    if case.operation.path == "/v1/uploads/{upload_id}/parts/{number}" and turn % 2:
        upload_id = two.upload_ids["open"]
        signed = two.jobs.tenants.of("left").service.uploads.get(upload_id).parts[0].url
        assert isinstance(signed, UrlSignature)
        case.path_parameters |= {"upload_id": upload_id, "number": 1}
        case.query.update(expires=signed.expires, signature=signed.signature, tenant="left")
    if turn % 2:
        given = {"cursor": [*two.cursors.values()][turn % len(two.cursors)], "after": pick}
        offered = {parameter.name for parameter in case.operation.query}
        case.query.update({name: value for name, value in given.items() if name in offered})
    if isinstance(case.body, dict) and isinstance(case.body.get("source"), dict):
        case.body["source"] = {"upload_id": two.upload_ids["complete"]}
    if isinstance(case.body, dict) and isinstance(case.body.get("file"), bytes):
        case.body["file"] = nifti() + case.body["file"]
    return {pick, *two.upload_ids.values()}


@document.parametrize()
@settings(
    max_examples=max(CALLS // len(OPERATIONS), 1),
    deadline=None,
    derandomize="LOBEWISE_TEST_TENANT_CALLS" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
def test_generated_calls_read_nothing_of_anothers(case: schemathesis.Case, two: Two) -> None:
    sent = aim(case, two)
    answer = case.call(base_url=str(two.right.base_url), headers={"x-test-tenant": "right"})
    TALLY["calls"] += 1
    TALLY[str(answer.status_code)] += 1
    assert answer.status_code < 500
    seen = answer.text + str(answer.headers)
    if CANARY not in str(case.query) + str(case.headers):
        assert CANARY not in seen
    assert not [id_ for id_ in two.ids if id_ in seen and id_ not in sent]
    if "{job_id}" in case.operation.path or "{batch_id}" in case.operation.path or "{upload_id}" in case.operation.path:
        assert answer.status_code >= 400


def test_after_all_of_them_the_other_has_what_it_had(two: Two) -> None:
    """Last, since it looks at what the calls before it did."""
    statuses = {name: two.left.get(f"/v1/jobs/{id_}") for name, id_ in two.job_ids.items()}
    assert statuses["purged"].status_code == 410
    for name in ("queued", "succeeded", "failed", "cancelled"):
        assert statuses[name].json()["status"] == name
    assert two.left.get(f"/v1/batches/{two.batch_id}").json()["counts"]["queued"] == 3
    assert two.left.get(f"/v1/uploads/{two.upload_ids['open']}").json()["status"] == "open"
    assert two.left.get(f"/v1/uploads/{two.upload_ids['complete']}").json()["status"] == "complete"
    assert len(two.left.get("/v1/jobs", params={"limit": 200}).json()["items"]) == 4 + 3 + 5
    print(f"{TALLY['calls']} generated calls: {dict(TALLY)}")
