"""A real S3 server for tests: SeaweedFS, on the loopback interface alone, in a folder of its own."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

from tests.support.processes import free_ports, running, until

START_SECONDS = 90.0
REGION = "us-east-1"
ACCESS_KEY, SECRET_KEY = "lobewise-tests", "a-secret-of-the-tests-alone"

#: Each also has a gRPC port; none is left at its default, where another server may be.
PORTS = ("master", "volume", "filer", "s3", "admin", "webdav")


@dataclass(frozen=True)
class S3Server:
    """A running server and the credentials of its only user."""

    endpoint: str
    client: Any = field(repr=False)
    folder: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to find it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }

    def make_bucket(self, name: str) -> str:
        self.client.create_bucket(Bucket=name)
        return name

    def delete_bucket(self, name: str) -> None:
        for key in self.keys(name):
            self.client.delete_object(Bucket=name, Key=key)
        self.client.delete_bucket(Bucket=name)

    def keys(self, bucket: str) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {item["Key"] for page in pages for item in page.get("Contents", ())}

    def folder_holds(self, text: bytes) -> bool:
        """Whether anything that the server keeps, also of what was deleted, has these bytes."""
        return any(text in path.read_bytes() for path in self.folder.rglob("*") if path.is_file())

    def unfinished(self, bucket: str) -> set[str]:
        """Keys of multipart uploads that have neither been completed nor aborted."""
        return {item["Key"] for item in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())}


@contextmanager
def seaweed(folder: Path) -> Iterator[S3Server]:
    """`weed mini` until the end of the block."""
    ports = free_ports(2 * len(PORTS))
    endpoint = f"http://127.0.0.1:{ports[PORTS.index('s3')]}"
    command = [Path(sys.executable).with_name("weed"), *_arguments(folder, ports)]
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    try:
        with running(command, keys, folder / "log", folder) as process:
            client = _client(endpoint)
            _await_answer(process, client, folder / "log")
            yield S3Server(endpoint, client, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for port in ports[len(PORTS) :]:  # it leaves these sockets behind
            for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):  # noqa: S108
                path.unlink()


def _arguments(folder: Path, ports: list[int]) -> list[str]:
    http, grpc = ports[: len(PORTS)], ports[len(PORTS) :]
    addresses = [f"-{name}.port={port}" for name, port in zip(PORTS, http, strict=True)]
    addresses += [f"-{name}.port.grpc={port}" for name, port in zip(PORTS, grpc, strict=True) if name != "webdav"]
    return [
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-master.telemetry=false",
        f"-filer.localSocket={folder / 'filer.sock'}",
        f"-s3.localSocket={folder / 's3.sock'}",
        *addresses,
    ]


def _client(endpoint: str) -> Any:
    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=2),
    )


def _await_answer(process: "subprocess.Popen[bytes]", client: Any, log: Path) -> None:
    """Ready once it can make a bucket: its parts start one after the other."""

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            client.create_bucket(Bucket="first")
            client.put_object(Bucket="first", Key="ready", Body=b"yes")
        except Exception:
            return False
        return True

    assert until(is_ready, START_SECONDS, 0.3), log.read_text()
