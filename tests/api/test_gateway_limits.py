"""What a stranger may ask of a gateway, asked over raw sockets of a real process with small limits.

The gateway takes 127.0.0.1 for its proxy, so the strangers come from 127.0.0.2 and the like (Linux).
"""

import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import nifti
from tests.support.processes import answers, free_ports, running, until

MIB = 1 << 20
STRANGER, OTHER = "127.0.0.2", "127.0.0.3"
HEAD_SECONDS, IDLE_SECONDS, CROWDED_SECONDS = 1.0, 2.0, 0.5
LIMITS = {
    "MAX_HEADER_BYTES": 16 << 10,
    "MAX_HEADERS": 40,
    "MAX_URL_BYTES": 2000,
    "HEAD_SECONDS": HEAD_SECONDS,
    "IDLE_SECONDS": IDLE_SECONDS,
    "LEAST_BYTES_PER_SECOND": 1000,
    "CROWDED_SECONDS": CROWDED_SECONDS,
    "MAX_CONNECTIONS": 200,
    "MAX_CONNECTIONS_PER_CLIENT": 150,
    "MAX_UPLOADS": 128,
    "MAX_UPLOADS_PER_CLIENT": 128,
    "MAX_STREAMS_PER_CLIENT": 2,
    "MAX_WAITING_PER_CLIENT": 1,
}
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
UPLOAD = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b'Content-Length: 100000\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    (port,), folder = free_ports(1), tmp_path_factory.mktemp("gateway")
    environment = {f"LOBEWISE_API_{name}": str(value) for name, value in LIMITS.items()}
    environment |= {"LOBEWISE_DATA_DIR": str(folder / "data"), "LOBEWISE_API_PORT": str(port)}
    with running([sys.executable, "-P", "-m", "api"], environment, folder / "log"):
        assert until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), 60), (folder / "log").read_text()
        yield port


@pytest.fixture
def connect(port: int) -> Iterator[Callable[..., socket.socket]]:
    with ExitStack() as stack:

        def connect(source: str = STRANGER) -> socket.socket:
            made = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))
            return stack.enter_context(made)

        yield connect


def read(connection: socket.socket) -> bytes:
    """All until the server ends the connection."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def problem_in(answer: bytes, status: int) -> dict:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"application/problem+json" in head
    assert b"connection: close" in head.lower()
    problem: dict = json.loads(body)
    assert problem["status"] == status
    return problem


def seconds_of_polls(port: int, until_set: threading.Event) -> list[float]:
    taken = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        while not until_set.is_set() or len(taken) < 20:
            began = time.perf_counter()
            assert client.get("/v1/jobs?limit=1").status_code == 200
            taken.append(time.perf_counter() - began)
    return taken


def polled(port: int, while_done: Callable[[], object]) -> list[float]:
    done, taken = threading.Event(), list[float]()
    poller = threading.Thread(target=lambda: taken.extend(seconds_of_polls(port, done)))
    poller.start()
    try:
        while_done()
    finally:
        done.set()
        poller.join()
    return taken


def test_a_header_without_end_is_refused_early_while_others_are_answered(
    port: int, connect: Callable[..., socket.socket]
) -> None:
    alone = polled(port, lambda: time.sleep(0.5))
    sent = 0

    def send_for_ever() -> None:
        nonlocal sent
        connection = connect()
        connection.sendall(GET + b"X-Long: ")
        try:
            for _ in range(200):
                connection.sendall(b"a" * MIB)
                sent += MIB
        except OSError:  # the gateway has ended it
            return

    beside = polled(port, send_for_ever)
    print(f"taken of 200 MiB: {sent / MIB:.0f} MiB; polls {statistics.median(beside) / statistics.median(alone):.2f}x")
    # What the sockets of both sides hold, and what was dropped so that the answer is heard.
    assert sent < 20 * MIB
    assert max(beside) < 1.0
    connection = connect()
    connection.sendall(GET + b"X-Long: " + b"a" * (32 << 10))
    evidence = problem_in(read(connection), 431)["evidence"]
    assert evidence == {"limit_bytes": LIMITS["MAX_HEADER_BYTES"]}


@pytest.mark.parametrize(
    ("request_head", "status", "slug"),
    [
        (GET + b"".join(b"X-%d: a\r\n" % n for n in range(60)) + b"\r\n", 431, "headers-too-large"),
        (GET + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 1000) for n in range(30)) + b"\r\n", 431, "headers-too-large"),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "url-too-long"),
        (b"GET /" + b"a" * (64 << 10), 414, "url-too-long"),
        (b"\r\n" * (16 << 10), 431, "headers-too-large"),
        (b"no HTTP\r\n\r\n", 400, "malformed-request"),
        (b"\x16\x03\x01\x00\x05", 400, "malformed-request"),
        # Behind a request that is well: what follows the last chunk of a body.
        (
            b"POST /v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX-Trailer: " + b"a" * (512 << 10),
            431,
            "headers-too-large",
        ),
    ],
)
def test_a_head_beyond_a_limit_is_answered_with_a_problem(
    connect: Callable[..., socket.socket], request_head: bytes, status: int, slug: str
) -> None:
    connection = connect()
    connection.sendall(request_head)
    answer = read(connection)
    assert problem_in(answer, status)["type"] == f"/problems/{slug}"
    for header in (b"X-Content-Type-Options: nosniff", b"X-Request-ID: ", b"Cache-Control: no-store"):
        assert header in answer


def test_what_is_within_the_limits_is_answered(connect: Callable[..., socket.socket]) -> None:
    headers = b"".join(b"X-%d: %s\r\n" % (n, b"a" * 400) for n in range(35))
    connection = connect()
    for _ in range(3):  # each request of a connection is counted alone
        connection.sendall(GET + headers + b"\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            piece = connection.recv(65536)
            assert piece, answer
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("begun", [b"", b"GET /", GET + b"X", GET + b"\r\n"])
def test_unfinished_heads_end_in_time(connect: Callable[..., socket.socket], begun: bytes) -> None:
    """Also those of a connection that is used again, and where a byte comes again and again."""
    connection, drips = connect(), threading.Event()
    if begun.endswith(b"\r\n\r\n"):
        connection.sendall(begun)
        assert b"200 OK" in connection.recv(65536)
        begun = b"\r\n"
    began = time.monotonic()
    connection.sendall(begun)

    def drip() -> None:
        while not drips.wait(0.1):
            try:
                connection.sendall(b"\n" if begun == b"\r\n" else b"a")
            except OSError:
                return

    if begun and begun != b"\r\n":
        threading.Thread(target=drip).start()
    answer = read(connection)
    drips.set()
    assert HEAD_SECONDS * 0.8 < time.monotonic() - began < HEAD_SECONDS + 3
    if begun and begun != b"\r\n":
        assert problem_in(answer, 408)["type"] == "/problems/head-timeout"


def test_a_body_below_the_least_rate_ends_in_408(connect: Callable[..., socket.socket]) -> None:
    connection, began = connect(), time.monotonic()
    connection.sendall(UPLOAD + nifti(400))
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.2):
            try:
                connection.sendall(b"a" * 20)  # 100 bytes a second, and never still for long
            except OSError:
                return

    threading.Thread(target=drip).start()
    answer = read(connection)
    stop.set()
    evidence = problem_in(answer, 408)["evidence"]
    assert evidence == {"idle_seconds": IDLE_SECONDS, "least_bytes_per_second": 1000}
    assert time.monotonic() - began < IDLE_SECONDS + 4


def test_slow_bodies_on_all_places_do_not_keep_others_out(port: int, connect: Callable[..., socket.socket]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

        def seconds_to_post() -> float:
            began = time.perf_counter()
            answer = client.post("/v1/jobs", files={"file": ("scan.nii", nifti(1 << 20))})
            assert answer.status_code == 202, answer.text
            return time.perf_counter() - began

        alone = statistics.median(seconds_to_post() for _ in range(9))
        slow = [connect() for _ in range(128)]
        for connection in slow:
            connection.sendall(UPLOAD)
        # A slow machine takes its time to hear of them all; from then on they are slow.
        assert until(lambda: _uploads(client) >= len(slow), 20)
        time.sleep(CROWDED_SECONDS + 0.3)
        beside = [seconds_to_post() for _ in range(9)]
    print(
        f"a post takes {statistics.median(beside) / alone:.2f}x as long beside 128 slow bodies ({alone * 1000:.0f} ms)"
    )
    assert max(beside) < max(10 * alone, 1.0)
    assert problem_in(read(slow[0]), 408)["type"] == "/problems/request-timeout"


def test_one_client_s_connections_leave_room_for_others(port: int, connect: Callable[..., socket.socket]) -> None:
    assert until(lambda: not _is_full(port), 10)
    limit = int(LIMITS["MAX_CONNECTIONS_PER_CLIENT"])
    connections = [connect() for _ in range(limit + 1)]
    answer = problem_in(read(connections[-1]), 429)
    assert (answer["type"], answer["evidence"]) == ("/problems/client-limit", {"limit": limit, "of": "connections"})
    other = connect(OTHER)
    other.sendall(GET + b"Connection: close\r\n\r\n")
    assert read(other).startswith(b"HTTP/1.1 200")


def test_connections_in_all_are_limited_and_come_free_again(port: int, connect: Callable[..., socket.socket]) -> None:
    def full() -> list[socket.socket]:
        return [connect(f"127.0.0.{10 + n % 4}") for n in range(int(LIMITS["MAX_CONNECTIONS"]) + 20)]

    connections = full()
    answer = read(connections[-1])
    assert problem_in(answer, 503)["type"] == "/problems/too-many-connections"
    assert b"Retry-After: " in answer
    for connection in connections:
        connection.close()
    assert until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), 10)


def _uploads(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("lobewise_uploads "))


def _is_full(port: int) -> bool:
    return not answers(f"http://127.0.0.1:{port}/healthz")


def test_streams_and_waits_of_one_client_are_limited(port: int) -> None:
    def client(source: str) -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=source)
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=30)

    with client(STRANGER) as stranger, client(OTHER) as other, ExitStack() as streams:
        job_id = stranger.post("/v1/jobs", files={"file": ("scan.nii", nifti())}).json()["id"]
        path = f"/v1/jobs/{job_id}/events"
        for _ in range(2):
            assert streams.enter_context(stranger.stream("GET", path)).status_code == 200
        refused = stranger.get(path)
        assert (refused.status_code, refused.json()["evidence"]) == (429, {"limit": 2, "of": "streams"})
        assert "retry-after" in refused.headers
        assert streams.enter_context(other.stream("GET", path)).status_code == 200

        def post(client: httpx.Client) -> httpx.Response:
            form = {"file": ("scan.nii", nifti())}
            return client.post("/v1/jobs", files=form, headers={"Prefer": "wait=3"})

        first = threading.Thread(target=post, args=(stranger,))
        first.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert "preference-applied" not in post(stranger).headers
        assert time.monotonic() - began < 2
        assert post(other).headers["preference-applied"] == "wait=3"
        first.join()


def test_files_of_the_gateway_are_its_user_s_alone(port: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    httpx.post(f"http://127.0.0.1:{port}/v1/jobs", files={"file": ("scan.nii", nifti())}).raise_for_status()
    folder: Path = max(tmp_path_factory.getbasetemp().glob("gateway*/data"), key=lambda found: found.stat().st_mtime)
    found = [folder, *folder.rglob("*")]
    assert any(path.name == "input" for path in found)
    assert {path for path in found if path.stat().st_mode & 0o077} == set()
