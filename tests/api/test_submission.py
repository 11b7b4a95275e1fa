"""POST /v1/jobs and POST /v1/jobs/from-source."""

import hashlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .conftest import ALLOWED_SOURCE, MAX_UPLOAD_BYTES, Service, nifti, require_problem

BOUNDARY = "scan-boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, value: bytes, extra: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def connected(service: Service) -> socket.socket:
    url = service.client.base_url
    return socket.create_connection((url.host, url.port), timeout=20)


END = f"--{BOUNDARY}--\r\n".encode()


def test_an_upload_becomes_a_durable_job(shared: Service) -> None:
    scan = nifti(5000)
    answer = shared.client.post(
        "/v1/jobs", files={"file": ("MEIER^ANNA.nii", scan)}, data={"priority": "stat", "client_reference": "case 7"}
    )
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"{shared.address}/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert (job["status"], job["priority"], job["client_reference"]) == ("queued", "stat", "case 7")
    assert job["input"] == {"size_bytes": 5000, "sha256": hashlib.sha256(scan).hexdigest(), "source": None}
    assert job["links"]["self"] == answer.headers["location"]
    assert job["links"]["cancel"] == answer.headers["location"] + "/cancel"
    assert job["links"]["report"] is job["links"]["masks"] is None
    stored = [path.read_bytes() for path in shared.stored_files()]
    assert scan in stored
    assert not any(b"MEIER" in blob for blob in stored)


@pytest.mark.parametrize("file_first", [True, False])
@pytest.mark.parametrize("piece_bytes", [1, 7, 100_000])
def test_parts_come_in_any_order_and_in_any_pieces(shared: Service, file_first: bool, piece_bytes: int) -> None:
    scan = nifti(900) + b"\r\n--scan-boundar\r\n--"  # looks almost like the end
    parts = [part("file", scan, '; filename="x"'), part("priority", b"batch")]
    body = b"".join(parts if file_first else parts[::-1]) + END
    pieces = [body[i : i + piece_bytes] for i in range(0, len(body), piece_bytes)]
    answer = shared.client.post("/v1/jobs", content=iter(pieces), headers=FORM)
    assert answer.status_code == 202, answer.text
    assert answer.json()["priority"] == "batch"
    assert answer.json()["input"]["sha256"] == hashlib.sha256(scan).hexdigest()


@pytest.mark.parametrize(
    "head", [b"\x1f\x8b\x08", b"PK\x03\x04", b"NRRD0004\n", b"ObjectType = Image\n", b"NDims = 3\n"]
)
def test_each_format_is_known_by_its_first_bytes(shared: Service, head: bytes) -> None:
    assert shared.submit(head.ljust(800, b"\0"))


@pytest.mark.parametrize(
    ("scan", "says"),
    [
        (b"%PDF-1.7 and so on", "does not begin"),
        (b"\0" * 128 + b"DICM" + b"\0" * 900, "zip"),
        ((b"\x5c\x01\0\0".ljust(344, b"\0") + b"ni1\0").ljust(900, b"\0"), "without its pixels"),
    ],
    ids=["pdf", "single DICOM file", "detached header"],
)
def test_what_is_no_scan_is_refused(alone: Service, scan: bytes, says: str) -> None:
    answer = alone.client.post("/v1/jobs", files={"file": scan})
    assert says in require_problem(answer, 415, "unsupported-format")["detail"]
    assert not alone.stored_files()


def test_the_length_is_looked_at_before_the_body(alone: Service) -> None:
    head = f"Host: localhost\r\nContent-Type: {FORM['Content-Type']}\r\nContent-Length: {MAX_UPLOAD_BYTES * 3}"
    with connected(alone) as stream:
        stream.sendall(f"POST /v1/jobs HTTP/1.1\r\n{head}\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n{" not in answer:  # not a byte of the body was sent
            piece = stream.recv(100_000)
            assert piece, "closed without an answer"
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"/problems/upload-too-large" in answer
    assert not alone.stored_files()


def test_a_chunked_body_is_stopped_midway_and_leaves_nothing(alone: Service) -> None:
    def body() -> Iterator[bytes]:
        yield part("file", nifti(MAX_UPLOAD_BYTES))[:-2]
        yield b"x" * 70_000
        yield b"\r\n" + END

    answer = alone.client.post("/v1/jobs", content=body(), headers=FORM)
    require_problem(answer, 413, "upload-too-large")
    assert not alone.stored_files()
    assert alone.client.get("/v1/jobs").json()["items"] == []


def test_a_file_of_just_the_limit_is_taken(shared: Service) -> None:
    assert shared.submit(nifti(MAX_UPLOAD_BYTES))
    answer = shared.client.post("/v1/jobs", files={"file": nifti(MAX_UPLOAD_BYTES + 1)})
    assert require_problem(answer, 413, "upload-too-large")["evidence"] == {"limit_bytes": MAX_UPLOAD_BYTES}


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/octet-stream", "application/x-www-form-urlencoded"]
)
def test_other_content_types_are_refused(shared: Service, content_type: str) -> None:
    answer = shared.client.post("/v1/jobs", content=b"x", headers={"Content-Type": content_type})
    require_problem(answer, 415, "unsupported-content-type")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "multipart/form-data"}, END),
        (FORM, b"this is no form"),
        (FORM, part("file", nifti())),
        (FORM, b""),
        (FORM, f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nx\r\n".encode() + END),
        (FORM, part("a", b"1") * 9 + END),
        (FORM, b"".join(part(f"n{i}", b"1") for i in range(9)) + END),
        ({"Content-Type": "application/json"}, b'{"source": '),
        ({"Content-Type": "application/json"}, b"\xff"),
    ],
)
def test_a_body_that_cannot_be_read_is_400_or_names_what_is_wrong(alone: Service, headers: dict, body: bytes) -> None:
    answer = alone.client.post("/v1/jobs", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    require_problem(answer, *((400, "malformed-request") if answer.status_code == 400 else (422, "invalid-parameters")))
    assert not alone.stored_files()


@pytest.mark.parametrize(
    ("parts", "pointers"),
    [
        ([("priority", b"stat")], ["/body/file"]),
        ([("file", b"")], ["/body/file"]),
        ([("file", nifti()), ("priority", b"urgent")], ["/body/priority"]),
        (
            [("priority", b"urgent"), ("client_reference", b"x" * 129)],
            ["/body/file", "/body/priority", "/body/client_reference"],
        ),
        ([("file", nifti()), ("client_reference", b"x" * 2000)], ["/body/client_reference"]),
        ([("file", nifti()), ("client_reference", b"a\nb")], ["/body/client_reference"]),
        ([("file", nifti()), ("colour/tone", b"1")], ["/body/colour~1tone"]),
        ([("file", nifti()), ("file", nifti())], ["/body/file"]),
        ([("priority", b"stat"), ("priority", b"stat"), ("file", nifti())], ["/body/priority"]),
    ],
)
def test_a_wrong_part_is_pointed_at_and_nothing_is_kept(alone: Service, parts: list, pointers: list) -> None:
    body = b"".join(part(name, value) for name, value in parts) + END
    answer = alone.client.post("/v1/jobs", content=body, headers=FORM)
    problem = require_problem(answer, 422, "invalid-parameters")
    assert [error["pointer"] for error in problem["errors"]] == pointers
    assert not alone.stored_files()


def test_a_source_is_taken_if_the_operator_allows_it(shared: Service) -> None:
    source = {"url": ALLOWED_SOURCE + "1.nii.gz", "sha256": "0" * 64}
    answer = shared.client.post("/v1/jobs/from-source", json={"source": source, "priority": "batch"})
    assert answer.status_code == 202
    assert answer.json()["input"] == {"size_bytes": None, "sha256": None, "source": source}
    answer = shared.client.post("/v1/jobs/from-source", json={"source": {"url": "http://169.254.169.254/latest"}})
    require_problem(answer, 422, "source-not-allowed")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/body/source"),
        ([], "/body"),
        ({"source": {"url": ALLOWED_SOURCE, "sha256": "abc"}}, "/body/source/sha256"),
        ({"source": {"url": ALLOWED_SOURCE}, "priority": 3}, "/body/priority"),
        ({"source": {"url": ALLOWED_SOURCE, "a/b": 1}}, "/body/source/a~1b"),
    ],
)
def test_wrong_json_is_pointed_at(shared: Service, body: object, pointer: str) -> None:
    problem = require_problem(shared.client.post("/v1/jobs/from-source", json=body), 422, "invalid-parameters")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/validate"])
def test_json_where_a_form_belongs_is_taken_and_told_where_it_belongs(shared: Service, path: str) -> None:
    """Also where it is refused; what belongs there is told nothing."""
    bodies = ({"source": {"url": ALLOWED_SOURCE + "1.nii"}}, 202), ({"source": 3}, 422), ({"source": {"url": "x"}}, 422)
    for body, status in bodies:
        answer = shared.client.post(path, json=body)
        assert answer.status_code == status
        assert re.fullmatch(r"@\d{10}", answer.headers["deprecation"])
        assert answer.headers["link"] == f'<{shared.address}{path}/from-source>; rel="successor-version"'
    for answer in (
        shared.client.post(path, files={"file": nifti()}),
        shared.client.post(f"{path}/from-source", json=bodies[0][0]),
    ):
        assert answer.status_code == 202
        assert "deprecation" not in answer.headers
    assert answer.json()["task"] == ("score" if path == "/v1/jobs" else "validate")


def test_json_may_not_be_long(shared: Service) -> None:
    answer = shared.client.post("/v1/jobs/from-source", json={"source": {"url": "x" * 70_000}})
    require_problem(answer, 413, "upload-too-large")


# Idempotency


def send(service: Service, key: str, scan: bytes = nifti(), **options: str) -> httpx.Response:
    return service.client.post("/v1/jobs", files={"file": scan}, data=options, headers={"Idempotency-Key": key})


def test_a_repeated_request_gets_the_first_answer(alone: Service) -> None:
    first, again = send(alone, "k1", priority="stat"), send(alone, "k1", priority="stat")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert len(alone.client.get("/v1/jobs").json()["items"]) == 1
    assert len([path for path in alone.stored_files() if path.read_bytes() == nifti()]) == 1


@pytest.mark.parametrize(("scan", "options"), [(nifti(2001), {}), (nifti(), {"priority": "stat"})])
def test_the_key_of_another_request_is_refused(shared: Service, scan: bytes, options: dict) -> None:
    key = f"other-{len(scan)}-{len(options)}"
    send(shared, key)
    require_problem(send(shared, key, scan, **options), 422, "idempotency-key-reused")


def test_a_key_is_free_again_after_a_request_that_failed(shared: Service) -> None:
    require_problem(send(shared, "freed", b"no scan"), 415, "unsupported-format")
    answer = send(shared, "freed")
    assert answer.status_code == 202
    assert "idempotent-replayed" not in answer.headers


def test_a_key_in_flight_is_409_and_then_replays(alone: Service) -> None:
    go_on = threading.Event()

    def body() -> Iterator[bytes]:
        yield part("file", nifti())[:1000]
        go_on.wait(20)
        yield part("file", nifti())[1000:] + END

    def post(content: object) -> httpx.Response:
        headers = {**FORM, "Idempotency-Key": "flight"}
        return httpx.post(f"{alone.address}/v1/jobs", content=content, headers=headers, timeout=30)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, body())
        while not any("idempotency" in path.parts for path in alone.stored_files()):
            time.sleep(0.01)
        second = post(part("file", nifti()) + END)
        go_on.set()
    require_problem(second, 409, "idempotency-in-flight")
    assert first.result().status_code == 202
    assert post(part("file", nifti()) + END).json()["id"] == first.result().json()["id"]


def test_the_key_of_a_deleted_job_is_410(shared: Service) -> None:
    job_id = send(shared, "purged").json()["id"]
    shared.client.delete(f"/v1/jobs/{job_id}")
    require_problem(send(shared, "purged"), 410, "job-purged")


@pytest.mark.parametrize("key", ["x" * 129, "two words"])
def test_a_malformed_key_is_pointed_at(shared: Service, key: str) -> None:
    problem = require_problem(send(shared, key), 422, "invalid-parameters")
    assert [error["pointer"] for error in problem["errors"]] == ["/header/Idempotency-Key"]


# Prefer


def test_prefer_wait_answers_200_once_the_job_is_finished(shared: Service) -> None:
    def work() -> None:
        while not (jobs := shared.jobs.service.list(limit=1).items) or jobs[0].client_reference != "awaited":
            pass
        shared.worker.succeed(jobs[0].id)

    worker = threading.Thread(target=work)
    worker.start()
    answer = shared.client.post(
        "/v1/jobs",
        files={"file": nifti()},
        data={"client_reference": "awaited"},
        headers={"Prefer": "respond-async, wait=20"},
    )
    worker.join()
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.json()["status"] == "succeeded"
    assert answer.json()["severity"]["percent_opacity"] == 12.3
    assert "retry-after" not in answer.headers


def test_prefer_wait_answers_202_when_the_time_is_over(shared: Service) -> None:
    answer = shared.client.post("/v1/jobs", files={"file": nifti()}, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=1")


@pytest.mark.parametrize("prefer", ["wait=soon", "wait", "handling=lenient", "await=9"])
def test_preferences_that_are_not_understood_are_ignored(shared: Service, prefer: str) -> None:
    answer = shared.client.post("/v1/jobs", files={"file": nifti()}, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


# Connections that break


def test_a_connection_that_breaks_leaves_nothing(alone: Service) -> None:
    head = (
        f"Host: localhost\r\nContent-Type: {FORM['Content-Type']}\r\nContent-Length: 900000\r\nIdempotency-Key: broken"
    )
    with connected(alone) as stream:
        stream.sendall(f"POST /v1/jobs HTTP/1.1\r\n{head}\r\n\r\n".encode() + part("file", nifti(100_000)))
    answer = send(alone, "broken")
    while answer.status_code == 409:
        answer = send(alone, "broken")
    assert answer.status_code == 202
    assert len([path for path in alone.stored_files() if path.name == "input"]) == 1
