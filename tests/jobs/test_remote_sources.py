"""Only what the operator allows is fetched, and only the bytes that were announced."""

import hashlib
import uuid
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from jobs import remote_sources
from jobs.allowlist import is_allowed
from jobs.errors import (
    SourceMismatchError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceUnavailableError,
)
from jobs.models import ScanSource
from jobs.remote_sources import FetchLimits, fetch
from jobs.settings import JobsSettings
from tests.support.seaweed import S3Server

ALLOWED = ("https://pacs.example/ct", "https://other.example:8443/", "s3://scans/in")
URL = "https://pacs.example/ct/1.nii.gz"
DATA = bytes(range(256)) * 5000


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "https://PACS.example/ct/a/b",
        "https://pacs.example:443/ct/1",
        "https://other.example:8443/x",
        "s3://scans/in/1",
    ],
)
def test_addresses_below_an_allowed_prefix(url: str) -> None:
    assert is_allowed(url, ALLOWED)


@pytest.mark.parametrize(
    "url",
    [
        "http://pacs.example/ct/1",
        "https://pacs.example/ctx/1",
        "https://pacs.example/",
        "https://pacs.example.evil.example/ct/1",
        "https://pacs.example@evil.example/ct/1",
        "https://user@pacs.example/ct/1",
        "https://pacs.example:444/ct/1",
        "https://pacs.example/ct/../admin",
        "https://pacs.example/ct/%2e%2e/admin",
        "https://pacs.example/ct/%252e%252e/admin",
        "https://pacs.example/ct/%25252e%25252e/admin",
        "https://pacs.example/ct/%2525252525252e",
        "https://pacs.example/ct\\..\\admin",
        "https://pacs.example/ct/%5c..%5cadmin",
        "https://pacs.example/ct/..%5cadmin",
        "https://pacs.example/ct%2f..%2fadmin",
        "https://pacs.example/ct/..;/admin",
        "https://pacs.example/ct/..;x=y/admin",
        "https://pacs.example/ct/.;/admin",
        "https://pacs.example/ct/..%3b/admin",
        "https://pacs.example/ct/..%20/admin",
        "https://pacs.example/ct/%ef%bc%8e%ef%bc%8e/admin",
        "https://pacs.example/ct/1%00.nii",
        "https://pacs.example/ct/1%0d%0ax",
        "https://pacs.example:0/ct/1",
        "https://evil.example\\@pacs.example/ct/1",
        "https://pacs.example:port/ct/1",
        "https://pacs.exämple/ct/1",
        "https://169.254.169.254/ct",
        "https://2852039166/ct",
        "https://0xa9.0xfe.0xa9.0xfe/ct",
        "https://pacs.example./ct/1",
        "s3://scans/other",
        "s3://in/scans",
        "file:///etc/passwd",
        "",
    ],
)
def test_addresses_that_only_look_like_it(url: str) -> None:
    assert not is_allowed(url, ALLOWED)


def test_nothing_is_allowed_by_default() -> None:
    assert not is_allowed(URL, JobsSettings().source_allowlist)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> dict[str, httpx.Response]:
    """What the server of the scans answers, by address; httpx does all else."""
    answers: dict[str, httpx.Response] = {}

    transport = httpx.MockTransport(lambda request: answers[str(request.url)])
    monkeypatch.setattr(remote_sources, "RoutedTransport", lambda **_: transport)
    return answers


def test_a_scan_is_fetched_and_hashed(tmp_path: Path, answer: dict[str, httpx.Response]) -> None:
    answer[URL] = httpx.Response(200, stream=httpx.ByteStream(DATA))
    sha256 = hashlib.sha256(DATA).hexdigest()
    source = ScanSource(url=URL, sha256=sha256)
    info = fetch(source, tmp_path / "scan", allowlist=ALLOWED, limits=FetchLimits(len(DATA)))
    assert (info.size_bytes, info.sha256, info.source) == (len(DATA), sha256, source)
    assert (tmp_path / "scan").read_bytes() == DATA


class TestS3:
    @pytest.fixture
    def address(self, s3_server: S3Server) -> str:
        key = f"in/{uuid.uuid4()}/1 + 2.nii.gz"
        s3_server.client.put_object(Bucket="lobewise", Key=key, Body=DATA)
        return f"s3://lobewise/{quote(key)}"

    def test_a_scan_is_fetched_and_hashed(self, tmp_path: Path, address: str) -> None:
        source = ScanSource(url=address, sha256=hashlib.sha256(DATA).hexdigest())
        info = fetch(source, tmp_path / "scan", allowlist=["s3://lobewise/in"], limits=FetchLimits(len(DATA)))
        assert (info.size_bytes, info.sha256, info.source) == (len(DATA), source.sha256, source)
        assert (tmp_path / "scan").read_bytes() == DATA

    def test_what_can_go_wrong(self, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def attempt(url: str, limit_bytes: int = len(DATA), sha256: str | None = None) -> None:
            source = ScanSource(url=url, sha256=sha256)
            fetch(
                source,
                tmp_path / "scan",
                allowlist=["s3://lobewise/in", "s3://nowhere"],
                limits=FetchLimits(limit_bytes),
            )

        with pytest.raises(SourceMismatchError):
            attempt(address, sha256="0" * 64)
        with pytest.raises(SourceTooLargeError):
            attempt(address, limit_bytes=len(DATA) - 1)
        for url in ("s3://lobewise/in/none", "s3://nowhere/in/none"):
            with pytest.raises(SourceNotFoundError):
                attempt(url)
        with pytest.raises(SourceNotAllowedError):
            attempt("s3://lobewise/jobs/of/others")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
        with pytest.raises(SourceNotFoundError):
            attempt(address)


@pytest.mark.parametrize(
    ("source", "response", "error"),
    [
        (ScanSource(url=URL, sha256="0" * 64), httpx.Response(200, stream=httpx.ByteStream(DATA)), SourceMismatchError),
        (ScanSource(url=URL), httpx.Response(200, stream=httpx.ByteStream(DATA + b"x")), SourceTooLargeError),
        (ScanSource(url=URL), httpx.Response(404), SourceNotFoundError),
        (ScanSource(url=URL), httpx.Response(302, headers={"Location": "https://10.0.0.1/"}), SourceNotAllowedError),
        (ScanSource(url=URL), httpx.Response(302), SourceNotFoundError),
        (ScanSource(url=URL), httpx.Response(304), SourceNotFoundError),
        (ScanSource(url=URL), httpx.Response(503), SourceUnavailableError),
        (ScanSource(url="https://evil.example/"), httpx.Response(200), SourceNotAllowedError),
    ],
)
def test_what_can_go_wrong(
    tmp_path: Path,
    answer: dict[str, httpx.Response],
    source: ScanSource,
    response: httpx.Response,
    error: type[Exception],
) -> None:
    answer[source.url] = response
    with pytest.raises(error):
        fetch(source, tmp_path / "scan", allowlist=ALLOWED, limits=FetchLimits(len(DATA)))
