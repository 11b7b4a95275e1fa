"""What clients send is read in small pieces, and through one buffer that mixes nothing up."""

import hashlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from api.protocol import PIECE_BYTES
from tests.api.conftest import serving

MIB = 1 << 20


async def digests(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the largest piece of the body and the digest of all; to GET with 16 MiB."""
    if scope["type"] != "http":
        return
    digest, largest, message = hashlib.sha256(), 0, dict[str, Any]()
    while message.get("more_body", not message):
        message = dict(await receive())
        digest.update(message["body"])
        largest = max(largest, len(message["body"]))
    body = bytes(16 * MIB) if scope["method"] == "GET" else f"{largest} {digest.hexdigest()}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(digests) as address:
        yield address


def test_bodies_that_come_at_the_same_time_stay_apart(address: str) -> None:
    bodies = [bytes([number]) * (4 * MIB) for number in range(8)]
    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = list(threads.map(lambda body: httpx.post(address, content=body).text, bodies))
    assert [answer.split()[1] for answer in answers] == [hashlib.sha256(body).hexdigest() for body in bodies]


def test_gateways_of_one_process_keep_their_bytes_apart() -> None:
    bodies = [bytes([number]) * (64 * MIB) for number in range(2)]
    with serving(digests) as one, serving(digests) as other, ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda address, body: httpx.post(address, content=body).text, (one, other), bodies))
    assert [answer.split()[1] for answer in answers] == [hashlib.sha256(body).hexdigest() for body in bodies]


def test_no_piece_is_larger_than_two_reads(address: str) -> None:
    largest = int(httpx.post(address, content=bytes(8 * MIB)).text.split()[0])
    assert 0 < largest <= 2 * PIECE_BYTES


def test_a_request_that_comes_byte_by_byte_is_read(address: str) -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            connection.sendall(bytes([byte]))
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.endswith(hashlib.sha256(b"abc").hexdigest().encode())


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_wish_for_another_protocol_is_ignored_and_the_body_read(pieces: int, address: str) -> None:
    """As Java's client has it in the first request of a connection."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\n"
    with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as connection:
        for _ in range(2):
            for part in [head + b"abc"] if pieces == 1 else [head, b"abc"]:
                connection.sendall(part)
            answer = b""
            while not answer.endswith(hashlib.sha256(b"abc").hexdigest().encode()):
                piece = connection.recv(4096)
                assert piece, answer
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_wish_that_comes_in_two_reads_is_ignored_too(cut: int, address: str) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUPGRADE: h2c\r\nContent-Length: 3\r\n\r\n"
    at = head.index(b"\r\nUPGRADE") + cut
    with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in (head[:at], head[at:], b"abc"):
            connection.sendall(part)
            time.sleep(0.02)
        answer = b""
        while not answer.endswith(hashlib.sha256(b"abc").hexdigest().encode()):
            piece = connection.recv(4096)
            assert piece, answer
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_body_may_hold_what_a_head_may_not(address: str) -> None:
    """Nothing of it is renamed, wherever it is cut."""
    body = b"\r\nUpgrade: h2c\r\nUp"
    for cut in range(len(body)):
        request = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=20) as connection:
            connection.sendall(request + body[:cut])
            time.sleep(0.005)
            connection.sendall(body[cut:])
            answer = b"".join(iter(lambda: connection.recv(4096), b""))  # read there and then
        assert answer.endswith(hashlib.sha256(body).hexdigest().encode())


def test_a_large_answer_waits_for_a_slow_reader(address: str) -> None:
    with httpx.stream("GET", address) as answer:
        assert sum(len(piece) for piece in answer.iter_raw(4096)) == 16 * MIB


def test_connections_are_used_again(address: str) -> None:
    with httpx.Client() as client:
        assert len({client.post(address, content=b"x").text for _ in range(3)}) == 1


def test_what_is_no_http_is_refused(address: str) -> None:
    with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        assert b"".join(iter(lambda: connection.recv(4096), b"")).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_whoever_still_sends_when_the_answer_comes_gets_it(version: bytes) -> None:
    """A connection that is closed with bytes unread is reset, and what was written into it may be lost."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await receive()
            await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": b"too large"})

    with (
        serving(refuse) as address,
        socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=20) as connection,
    ):
        connection.sendall(b"POST / HTTP/%s\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (version, 8 * MIB))
        for _ in range(8):
            connection.sendall(bytes(MIB))
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"too large" in answer
    assert (b"transfer-encoding: chunked" in answer) is (version == b"1.1")
