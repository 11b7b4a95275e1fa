"""What a store must promise, whatever it is: the record of jobs rests on it."""

import asyncio
import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.errors import StorageUnavailableError
from jobs.store.object_store import PART_BYTES, ObjectStore, open_object_store
from jobs.store.upload_stream import BlobUpload
from tests.support.seaweed import S3Server

LARGE = bytes(range(256)) * (10 * PART_BYTES // 1024)
"""Two and a half parts of a multipart upload."""


@pytest.fixture
def blobs(blob_url: str) -> ObjectStore:
    return open_object_store(blob_url)


def test_what_is_written_is_read(blobs: ObjectStore) -> None:
    assert blobs.read("a/b") is None
    blobs.write("a/b", b"first")
    blobs.write("a/b", b"second")
    assert blobs.read("a/b") == b"second"


def test_of_many_that_create_a_key_exactly_one_wins(blobs: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: blobs.create("jobs/x/manifest.json", str(n).encode()), range(16)))
    assert won.count(True) == 1
    assert blobs.read("jobs/x/manifest.json") == str(won.index(True)).encode()


@pytest.mark.parametrize(
    ("start", "end"), [(0, None), (0, 1), (5, 9), (1 << 20, (1 << 20) + 7), (len(LARGE) - 3, None)]
)
def test_any_part_of_a_large_blob_can_be_read(blobs: ObjectStore, tmp_path: Path, start: int, end: int | None) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    assert blobs.write_file("large", tmp_path / "large") == hashlib.sha256(LARGE).hexdigest()
    assert b"".join(blobs.pieces("large", start, end)) == LARGE[start:end]


def test_a_large_blob_comes_back_in_pieces_that_fit_in_memory(blobs: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    blobs.write_file("large", tmp_path / "large")
    assert max(map(len, blobs.pieces("large", 0, None))) <= PART_BYTES
    blobs.read_file("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE


def test_a_stream_is_hashed_and_seen_only_once_it_is_whole(blobs: ObjectStore) -> None:
    async def stream() -> str | None:
        sink = BlobUpload(blobs, "scan", len(LARGE))
        for at in range(0, len(LARGE), 700_000):
            await sink.write(LARGE[at : at + 700_000])
            assert not blobs.exists("scan")
        return (await sink.finish()).sha256

    assert asyncio.run(stream()) == hashlib.sha256(LARGE).hexdigest()
    assert blobs.read("scan") == LARGE


def test_a_missing_blob_is_missing_and_not_a_fault(blobs: ObjectStore) -> None:
    assert blobs.info("a") is None
    assert not blobs.exists("a")
    blobs.delete("a")
    with pytest.raises(FileNotFoundError):
        list(blobs.pieces("a", 0, None))


def test_what_is_known_of_a_blob(blobs: ObjectStore) -> None:
    blobs.write("a/b", b"12345")
    info = blobs.info("a/b")
    assert info is not None
    assert (info.key, info.size_bytes) == ("a/b", 5)
    assert info.last_modified.tzinfo is not None


def test_a_listing_has_every_key_below_the_prefix_and_no_other(blobs: ObjectStore) -> None:
    inside = {f"jobs/{n:04d}/job.json" for n in range(60)}
    for key in inside | {"jobsx/1", "other"}:
        blobs.write(key, b"x")
    assert set(blobs.keys("jobs/")) == inside
    assert set(blobs.keys("nothing/")) == set()


def test_a_folder_is_deleted_but_for_what_is_kept(blobs: ObjectStore) -> None:
    for key in ("jobs/a/input", "jobs/a/attempts/1/claim.json", "jobs/a/purged.json", "jobs/ab/input"):
        blobs.write(key, b"x")
    blobs.delete_all("jobs/a/", keep=lambda key: key.endswith("/purged.json"))
    assert set(blobs.keys("jobs/")) == {"jobs/a/purged.json", "jobs/ab/input"}


def test_a_bucket_that_is_gone_is_a_fault_and_not_an_empty_one(s3_server: S3Server) -> None:
    blobs = open_object_store(f"s3://{s3_server.make_bucket('soon-gone')}/in")
    blobs.write("a", b"x")
    s3_server.delete_bucket("soon-gone")
    calls = (
        blobs.check,
        lambda: blobs.read("a"),
        lambda: blobs.info("a"),
        lambda: blobs.create("a", b"x"),
        lambda: blobs.write("a", b"x"),
        lambda: list(blobs.keys("in/")),
        lambda: list(blobs.pieces("a", 0, None)),
        lambda: blobs.delete("a"),
    )
    for call in calls:
        with pytest.raises(StorageUnavailableError):
            call()


def test_a_folder_that_is_gone_is_a_fault_too(tmp_path: Path) -> None:
    blobs = open_object_store((tmp_path / "blobs").as_uri())
    shutil.rmtree(tmp_path / "blobs")
    with pytest.raises(StorageUnavailableError):
        blobs.check()
    with pytest.raises(StorageUnavailableError):
        blobs.info("a")
