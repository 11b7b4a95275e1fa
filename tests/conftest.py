"""Both kinds of storage that jobs may have: a folder, and a bucket on a real S3 server."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.seaweed import S3Server, seaweed

# Most tests send the same small scans again and again, and want to see them computed; those of `reuse` say so. Here, so
# that the processes which they start know it, too.
os.environ.setdefault("LOBEWISE_REUSE_RESULTS", "false")

pytest_plugins = ["tests.support.scans"]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Started for the first test that asks; this process, and those that it starts, find it by the environment."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.make_bucket("lobewise")
        yield server


@pytest.fixture(params=["folder", "s3"])
def blob_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of its own for each test: once a folder, once a prefix in a bucket."""
    if request.param == "folder":
        return (tmp_path / "data" / "blobs").as_uri()
    request.getfixturevalue("s3_server")
    return f"s3://lobewise/{uuid.uuid4()}"
