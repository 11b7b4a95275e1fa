"""What S3 is asked to encrypt, seen on its way to a real server, and what of it lies on that server's disk."""

import asyncio
import os
import re
from asyncio import StreamWriter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.errors import StorageUnavailableError
from jobs.settings import JobsSettings
from jobs.store.keys import upload_key
from jobs.store.object_store import ObjectStore, encryption_of, open_object_store
from jobs.store.upload_stream import BlobUpload
from tests.support.proxy import Proxy
from tests.support.seaweed import S3Server

DATA = b"a scan " * 9
KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"

#: The requests that make an object, by their first line; a part is encrypted as its upload was asked for.
MAKES = re.compile(rb"(PUT (?!.*partNumber=)|POST .*\?uploads)")


class Recorder(Proxy):
    def __init__(self, target_port: int) -> None:
        self.requests: list[bytes] = []
        super().__init__(target_port)

    async def ask(self, data: bytes, server: StreamWriter, client: StreamWriter) -> bool:
        self.requests += re.findall(rb"(?:PUT|POST) /.*?\r\n\r\n", data, re.S)
        return await super().ask(data, server, client)


@pytest.fixture
def recorder(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    recorder = Recorder(int(s3_server.endpoint.rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{recorder.port}")
    yield recorder
    recorder.close()


def write_in_every_way(blobs: ObjectStore, folder: Path) -> None:
    file = folder / "file"
    file.write_bytes(DATA)

    async def stream() -> None:
        upload = BlobUpload(blobs, "in/stream", 1 << 20)
        await upload.write(DATA)
        await upload.finish()

    assert blobs.bucket is not None
    ways: list[Callable[[], object]] = [
        lambda: blobs.create("in/created", DATA),
        lambda: blobs.write("in/written", DATA),
        lambda: blobs.write_file("in/file", file),
        lambda: blobs.write_pieces("in/pieces", iter([DATA * (1 << 17), DATA])),
        lambda: blobs.copy("in/written", "in/copied"),
        lambda: asyncio.run(stream()),
        lambda: blobs.bucket and blobs.bucket.create("parts"),
    ]
    for write in ways:
        with suppress(StorageUnavailableError, FileNotFoundError):  # a server without KMS refuses what asks for it
            write()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"blob_encryption": "AES256"}, {b"x-amz-server-side-encryption": b"AES256"}),
        (
            {"blob_encryption": "aws:kms", "blob_encryption_key": KEY_ID},
            {
                b"x-amz-server-side-encryption": b"aws:kms",
                b"x-amz-server-side-encryption-aws-kms-key-id": KEY_ID.encode(),
            },
        ),
    ],
)
def test_every_request_that_makes_an_object_asks_for_encryption(
    given: dict[str, str], expected: dict[bytes, bytes], recorder: Recorder, tmp_path: Path
) -> None:
    settings = JobsSettings(blob_url=f"s3://lobewise/{tmp_path.name}", **given)  # type: ignore[arg-type]
    write_in_every_way(open_object_store(settings.blob_url or "", None, encryption_of(settings)), tmp_path)
    making = [request for request in recorder.requests if MAKES.match(request)]
    assert len(making) >= 7
    for request in making:
        _, *lines = request.strip().split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        asked = {name: value for name, value in headers.items() if name.startswith(b"x-amz-server-side")}
        assert asked == expected, request.split(b"\r\n")[0]


def test_the_servers_disk_holds_nothing_readable(s3_server: S3Server, tmp_path: Path) -> None:
    url = f"s3://lobewise/{tmp_path.name}"
    plain = open_object_store(url)
    encrypted = open_object_store(url, None, encryption_of(JobsSettings(blob_url=url, blob_encryption="AES256")))
    # Random, since the server packs what can be packed.
    seen, hidden = os.urandom(20_000), os.urandom(20_000)
    plain.write("in/plain", seen)
    encrypted.write("in/encrypted", hidden)
    assert encrypted.read("in/encrypted") == hidden
    head = s3_server.client.head_object(Bucket="lobewise", Key=f"{tmp_path.name}/in/encrypted")
    assert head["ServerSideEncryption"] == "AES256"
    assert s3_server.folder_holds(seen[5000:5064]), "what is looked for would be found"
    assert not s3_server.folder_holds(hidden[5000:5064])


def test_a_folder_is_not_said_to_be_encrypted() -> None:
    with pytest.raises(ValidationError, match="LOBEWISE_BLOB_ENCRYPTION is for a bucket"):
        JobsSettings(blob_encryption="AES256")
    with pytest.raises(ValidationError, match="LOBEWISE_BLOB_ENCRYPTION_KEY needs"):
        JobsSettings(blob_url="s3://b", blob_encryption="AES256", blob_encryption_key=KEY_ID)


def test_without_the_setting_the_bucket_decides(recorder: Recorder, tmp_path: Path) -> None:
    write_in_every_way(open_object_store(f"s3://lobewise/{tmp_path.name}"), tmp_path)
    assert not [request for request in recorder.requests if b"x-amz-server-side" in request.lower()]
    assert upload_key("parts", "scan").encode() in b"".join(recorder.requests)
