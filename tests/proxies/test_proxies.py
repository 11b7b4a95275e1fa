"""What clients see through nginx and HAProxy: links, uploads, events, problems, masks; and what strangers cannot do."""

import hashlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from api import examples
from jobs.models import MaskName, Stage
from tests.api.conftest import Service, mask_bytes, nifti, require_problem
from tests.api.test_events import Watcher
from tests.support.processes import until

from .conftest import MAX_UPLOAD_BYTES, PUBLIC, RECEIVER, STRANGER, Certificate, Proxied, gateway, proxying

pytestmark = pytest.mark.timeout(120)

#: What a client may write to be believed.
LIES = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "ftp",
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Prefix": "/evil",
    "Forwarded": 'for=6.6.6.6;host=evil.example;proto=http, for="[::6]";host=evil.example',
}
#: Every way in which a proxy may hand over a body and its answer.
WAYS = {
    "nginx": {},
    "nginx, by HTTP/1.0": {
        "proxy_http_version 1.1": "proxy_http_version 1.0",
        "keepalive 32;": "",
        'proxy_set_header Connection "";': "proxy_set_header Connection close;",
    },
    "nginx, the body first": {"proxy_request_buffering off": "proxy_request_buffering on"},
    "haproxy": {},
    "haproxy, the body first": {"    default_backend": "    option http-buffer-request\n    default_backend"},
}


@pytest.fixture(scope="module", params=WAYS)
def way(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[Proxied]:
    """A gateway of little patience behind each of these."""
    name, folder = request.param.partition(",")[0], tmp_path_factory.mktemp("way")
    with (
        gateway(name, folder / "service", idle_seconds=1.0) as service,
        proxying(name, service, certificate, folder, WAYS[request.param]) as proxied,
    ):
        yield proxied


def submit(proxied: Proxied, scan: bytes = nifti(), headers: dict[str, str] | None = None, **options: str) -> str:
    answer = proxied.client.post("/lobewise/v1/jobs", files={"file": scan}, data=options, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def addresses_in(value: object) -> set[str]:
    """Every string of an answer that is an address."""
    if isinstance(value, dict | list):
        return set().union(*map(addresses_in, value.values() if isinstance(value, dict) else value))
    return {value} if isinstance(value, str) and re.match(r"https?:|/", value) else set()


def test_every_link_leads_back_through_the_proxy(proxied: Proxied) -> None:
    answer = proxied.client.post("/lobewise/v1/jobs", files={"file": nifti()})
    job_id = answer.json()["id"]
    assert answer.headers["location"] == f"{PUBLIC}/v1/jobs/{job_id}"
    proxied.service.worker.succeed(job_id)
    job = proxied.client.get(proxied.path_of(answer.headers["location"])).json()
    report = proxied.client.get(proxied.path_of(job["links"]["report"])).json()
    for link in addresses_in([job["links"], report["masks"]]):
        with proxied.client.stream("GET", proxied.path_of(link)) as followed:
            assert followed.status_code == 200
    submit(proxied)
    page = proxied.client.get("/lobewise/v1/jobs", params={"limit": 1})
    assert proxied.client.get(proxied.path_of(page.links["next"]["url"])).json()["items"]


def test_a_scan_in_parts_goes_through_the_proxy(proxied: Proxied) -> None:
    scan = nifti(6 << 20, b"p")
    announced = {"size_bytes": len(scan), "sha256": hashlib.sha256(scan).hexdigest()}
    upload = proxied.client.post("/lobewise/v1/uploads", json=announced).json()
    sent = 0
    for part in upload["parts"]:
        piece = scan[sent : sent + part["size_bytes"]]
        sent += len(piece)
        assert proxied.client.put(proxied.path_of(part["url"]), content=piece).status_code == 204
    assert proxied.client.post(proxied.path_of(upload["links"]["complete"])).json()["sha256"] == announced["sha256"]


def test_the_documentation_and_all_that_it_loads_are_below_the_prefix(proxied: Proxied) -> None:
    page = proxied.client.get("/lobewise/docs")
    wanted = re.findall(r"""(?:href|src|url)\s*[=:]\s*["']([^"']+)""", page.text)
    assert len(wanted) >= 4
    for address in wanted:
        assert proxied.client.get(urljoin("/lobewise/docs", address)).status_code == 200, address
    server = proxied.client.get("/lobewise/openapi.json").json()["servers"][0]["url"]
    assert server == "/lobewise"
    assert proxied.client.get(f"{server}/v1/jobs").status_code == 200


def test_a_problem_arrives_whole_and_its_type_leads_to_its_page(proxied: Proxied) -> None:
    body = require_problem(proxied.client.get("/lobewise/v1/jobs/nobody"), 404, "job-not-found")
    assert body["instance"] == "/lobewise/v1/jobs/nobody"
    assert "<h1>" in proxied.client.get(body["type"]).text
    refused = proxied.client.request("PATCH", "/lobewise/v1/jobs")
    require_problem(refused, 405, "method-not-allowed")


@pytest.mark.parametrize("path", ["/lobewise/metrics", "/lobewise/readyz", "/lobewise/healthz", "/v1/jobs", "/metrics"])
def test_what_is_not_for_clients_is_not_passed_on(proxied: Proxied, path: str) -> None:
    answer = proxied.client.get(path)
    assert answer.status_code == 404
    assert answer.headers.get("content-type") != "application/problem+json"  # the proxy's own


@pytest.mark.parametrize("host", [None, "evil.example"])
def test_what_a_client_claims_poisons_no_link_and_no_callback(proxied: Proxied, host: str | None) -> None:
    lies = LIES | ({"Host": host} if host else {})
    job_id = submit(proxied, headers=lies, callback_url=RECEIVER)
    job = proxied.client.get(f"/lobewise/v1/jobs/{job_id}", headers=lies).json()
    assert all(link.startswith(f"{PUBLIC}/") for link in addresses_in(job["links"]))
    proxied.service.worker.succeed(job_id)
    callbacks = proxied.service.jobs.service.callbacks
    delivery = callbacks.next_delivery(job_id) if job_id in callbacks.take_due(100) else None
    assert delivery is not None
    assert delivery.record.address == f"{PUBLIC}/v1/jobs/{job_id}"


def test_a_stranger_who_reaches_the_gateway_itself_is_not_believed(proxied: Proxied) -> None:
    direct = httpx.HTTPTransport(local_address=STRANGER)
    with httpx.Client(base_url=proxied.service.address, transport=direct, headers=LIES) as client:
        answer = client.post("/v1/jobs", files={"file": nifti()})
        assert answer.headers["location"].startswith(f"{proxied.service.address}/v1/jobs/")
        assert client.get("/evil/v1/jobs").status_code == 404
        assert client.get("/openapi.json").json().get("servers") in (None, [{"url": "/"}])
        assert "evil" not in client.get("/docs").text


def test_events_arrive_while_the_job_goes_on(way: Proxied) -> None:
    job_id = submit(way)
    with way.client.stream("GET", f"/lobewise/v1/jobs/{job_id}/events") as answer:
        watcher = Watcher(answer)
        watcher.until(1)
        with way.service.jobs.worker.claim(job_id, "test") as lease:
            watcher.until(2)
            began = time.monotonic()
            lease.report(Stage.LUNGS, 0.5)
            watcher.until(3)
            # Buffered, it would come with the end of the stream.
            assert time.monotonic() - began < 2
            comments = watcher.comments
            assert until(lambda: watcher.comments >= comments + 2, 5)
            way.service.jobs.worker.fail(lease, examples.FAILURE)
        assert watcher.to_the_end()[-1] == "failed"
        assert watcher.jobs()[-1]["links"]["self"] == f"{PUBLIC}/v1/jobs/{job_id}"  # type: ignore[index]


def test_a_large_scan_arrives_as_it_was_sent(way: Proxied) -> None:
    scan = nifti(32 << 20, b"s")
    job_id = submit(way, scan)
    job = way.client.get(f"/lobewise/v1/jobs/{job_id}").json()
    assert job["input"]["size_bytes"] == len(scan)
    assert job["input"]["sha256"] == hashlib.sha256(scan).hexdigest()


def test_too_large_a_scan_is_a_problem_of_the_gateway(way: Proxied) -> None:
    answer = way.client.post("/lobewise/v1/jobs", files={"file": nifti(MAX_UPLOAD_BYTES + (1 << 20))})
    require_problem(answer, 413, "upload-too-large")


def test_a_scan_of_unknown_length_that_grows_too_large_is_the_same_problem(way: Proxied) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + nifti()
    pieces = (head, *[bytes(1 << 20)] * (MAX_UPLOAD_BYTES >> 20), b"more" * 100_000, b"\r\n--b--\r\n")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = way.client.post("/lobewise/v1/jobs", content=iter(pieces), headers=headers)
    require_problem(answer, 413, "upload-too-large")


def test_what_is_no_scan_is_refused_while_it_is_still_sent(way: Proxied) -> None:
    answer = way.client.post("/lobewise/v1/jobs", files={"file": b"no scan" * (2 << 20)})
    require_problem(answer, 415, "unsupported-format")
    # And the connection, if it is kept, is at the beginning of a request again.
    assert way.client.get("/lobewise/v1/jobs").status_code == 200


def test_a_client_that_goes_away_half_way_leaves_nothing(way: Proxied, certificate: Certificate) -> None:
    jobs_before, files_before = way.client.get("/lobewise/v1/jobs").json(), way.service.stored_files()
    with connected(way, certificate) as connection:
        connection.sendall(_request(8 << 20) + bytes(2 << 20))
        # A proxy that holds the body back has shown nothing of it to the gateway.
        until(lambda: way.service.stored_files() != files_before, 0.5)
    assert until(lambda: way.service.stored_files() == files_before, 10)
    assert way.client.get("/lobewise/v1/jobs").json() == jobs_before


def test_a_client_that_falls_silent_is_told_so(way: Proxied, certificate: Certificate) -> None:
    before = way.service.stored_files()
    with connected(way, certificate) as connection:
        connection.sendall(_request(8 << 20) + bytes(1 << 20))
        connection.settimeout(3)
        try:
            answer = connection.recv(4096)
        except TimeoutError:
            # Held back by the proxy, whose own patience is longer: the gateway knows nothing of it.
            assert way.service.stored_files() == before
            return
    assert until(lambda: way.service.stored_files() == before, 10)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_masks_keep_their_digests_ranges_and_tags(way: Proxied) -> None:
    job_id, whole = submit(way), mask_bytes(MaskName.LOBES)
    way.service.worker.succeed(job_id)
    mask = f"/lobewise/v1/jobs/{job_id}/masks/lobes"
    answer = way.client.get(mask, headers={"Accept-Encoding": "gzip"})
    assert (answer.content, "content-encoding" in answer.headers) == (whole, False)
    assert {"etag", "repr-digest", "last-modified"} <= set(answer.headers)
    part = way.client.get(mask, headers={"Range": "bytes=10-19", "If-Range": answer.headers["etag"]})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert way.client.get(mask, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    head = way.client.head(mask)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole)))
    require_problem(way.client.get(mask, headers={"Range": "bytes=999999-"}), 416, "range-not-satisfiable")


def test_a_call_may_wait_for_its_scan(way: Proxied) -> None:
    ended = threading.Thread(target=_succeed_next, args=(way.service,))
    ended.start()
    answer = way.client.post("/lobewise/v1/jobs", files={"file": nifti()}, headers={"Prefer": "wait=20"})
    ended.join()
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=20")


@pytest.mark.parametrize("connection", [b"", b"Connection: keep-alive\r\n"])
def test_a_client_of_http_1_0_gets_no_chunks_and_a_closed_connection(proxied: Proxied, connection: bytes) -> None:
    """Without a proxy: those that speak it hide what they got."""
    service = proxied.service
    job_id = service.succeeded()
    for path, is_stream in ((f"/v1/jobs/{job_id}/events", True), (f"/v1/jobs/{job_id}/report", False)):
        with socket.create_connection((urlsplit(service.address).hostname, urlsplit(service.address).port)) as plain:
            plain.sendall(b"GET " + path.encode() + b" HTTP/1.0\r\n" + connection + b"\r\n")
            head, _, body = b"".join(iter(lambda: plain.recv(65536), b"")).partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0]
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head.lower()
        assert body.startswith(b"retry: 3000\n\n" if is_stream else b"{")
        assert body.endswith(b"\n\n" if is_stream else b"}")
        assert (b"content-length" in head.lower()) is not is_stream


@pytest.mark.parametrize(("name", "status"), [("nginx", 502), ("haproxy", 503)])
def test_a_gateway_that_is_gone_is_the_proxy_s_answer_and_no_problem(
    tmp_path: Path, certificate: Certificate, name: str, status: int
) -> None:
    """So a client that knows problems must know other answers too (docs/deployment.md)."""
    with ExitStack() as proxies:
        with gateway(name, tmp_path / "service") as service:
            proxied = proxies.enter_context(proxying(name, service, certificate, tmp_path))
            job_id = submit(proxied)
        answer = proxied.client.get(f"/lobewise/v1/jobs/{job_id}")
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html")


def test_an_answer_that_is_cut_is_not_taken_for_a_whole_one(tmp_path: Path, certificate: Certificate) -> None:
    with (
        gateway("nginx", tmp_path / "service") as service,
        proxying("nginx", service, certificate, tmp_path) as proxied,
    ):
        job_id = submit(proxied)
        with proxied.client.stream("GET", f"/lobewise/v1/jobs/{job_id}/events") as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("retry:")
            proxied.process.kill()
            with pytest.raises(httpx.TransportError):
                list(lines)
        assert service.client.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"


def connected(proxied: Proxied, certificate: Certificate) -> ssl.SSLSocket:
    url = proxied.client.base_url
    plain = socket.create_connection((url.host, url.port))
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # cut, not closed
    return certificate.trusting().wrap_socket(plain, server_hostname=url.host)


def _request(length_bytes: int) -> bytes:
    lines = ["POST /lobewise/v1/jobs HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=b"]
    lines += [f"Content-Length: {length_bytes}", "", "--b", 'Content-Disposition: form-data; name="file"', "", ""]
    return "\r\n".join(lines).encode() + nifti()


def _succeed_next(service: Service) -> None:
    known = {job["id"] for job in service.client.get("/v1/jobs").json()["items"]}
    new: list[str] = []

    def is_there() -> bool:
        new[:] = [job["id"] for job in service.client.get("/v1/jobs").json()["items"] if job["id"] not in known]
        return bool(new)

    assert until(is_there, 10)
    service.worker.succeed(new[0])
