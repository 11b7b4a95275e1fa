"""After a DELETE nothing is left of a job: the stores are looked through, down to the embedded server's files."""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from jobs import states
from jobs.batches import BatchItem, BatchRecord
from jobs.bootstrap import Connection
from jobs.models import DicomIdentity, DicomProduct, JobRecord, MaskName
from jobs.settings import JobsSettings
from jobs.store.keys import job_key
from jobs.worker_api import DicomResult
from tests.jobs.conftest import report_for, upload
from tests.support.processes import until

NAME = b"Wilhelmine"
SCAN = b"the scan of Wilhelmine Schnabel"
SHA256 = hashlib.sha256(SCAN).hexdigest()
DIGEST = "d" * 64


@pytest.fixture
def settings(settings: JobsSettings) -> JobsSettings:
    return settings.model_copy(
        update={"reuse_results": True, "callback_allowlist": ("https://receiver.example/",), "reap_seconds": 60.0}
    )


def values(server: "redis.Redis[bytes]") -> Iterator[tuple[bytes, str]]:
    """Every key with what it holds."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": server.get,
        b"hash": server.hgetall,
        b"list": lambda key: server.lrange(key, 0, -1),
        b"set": server.smembers,
        b"zset": lambda key: server.zrange(key, 0, -1, withscores=True),
        b"stream": server.xrange,
    }
    for key in server.scan_iter():
        yield key, repr(read[server.type(key)](key))


def leave_unfinished(jobs: Connection, key: str) -> None:
    """As a worker does that is killed while it stores a mask."""
    blobs = jobs.backends.store.blobs
    if blobs.bucket is None:
        path = (blobs.folder or Path()) / f"{key}#1"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SCAN)
        return
    client, at = blobs.bucket._client, blobs.bucket._at(key)
    begun = client.create_multipart_upload(**at)
    client.upload_part(**at, UploadId=begun["UploadId"], PartNumber=1, Body=SCAN)


def unfinished(jobs: Connection) -> list[object]:
    blobs = jobs.backends.store.blobs
    return list(blobs.bucket.unfinished("jobs/") if blobs.bucket else (blobs.folder or Path()).rglob("*#*"))


IDENTITY = DicomIdentity(
    study_uid="1.2.3",
    series_uid="1.2.4",
    frame_of_reference_uid="1.2.5",
    images=[],
    attributes={"PatientName": "Wilhelmine"},
)


def a_job_with_everything(jobs: Connection, folder: Path) -> tuple[str, str]:
    """The ids of a job and of its batch."""
    job_id, batch_id, now = states.new_id(), states.new_id(), states.now()
    assert jobs.service.idempotency.begin("key of Wilhelmine", job_id) is None
    record = JobRecord(
        id=job_id,
        created_at=now,
        input=upload(jobs, job_id, SCAN),
        client_reference="Wilhelmine-4711",
        callback_url="https://receiver.example/?token=Wilhelmine",
        batch_id=batch_id,
    )
    items = [BatchItem(job_id=job_id)]
    jobs.service.batches.accept(BatchRecord(id=batch_id, created_at=now, items=items), [record])
    mask = folder / "mask"
    mask.write_bytes(b"lungs of Wilhelmine")
    with jobs.worker.claim(job_id, "test") as lease:
        leave_unfinished(jobs, job_key(job_id, "attempts/1/lungs.nii.gz"))
        dicom = DicomResult(IDENTITY, dict.fromkeys(DicomProduct, mask))
        jobs.worker.succeed(lease, report_for(job_id), dict.fromkeys(MaskName, mask), digest=DIGEST, dicom=dicom)
    jobs.backends.store.blobs.create(job_key(job_id, "callbacks/1/1.json"), b'{"url": "Wilhelmine"}')
    assert jobs.service.get(job_id).client_reference == "Wilhelmine-4711"
    return job_id, batch_id


def test_nothing_is_left_in_any_store(jobs: Connection, tmp_path: Path) -> None:
    blobs = jobs.backends.store.blobs
    with redis.Redis.from_url(jobs.settings.redis_url or "") as server:
        server.config_set("rdbcompression", "no")  # or its files could not be looked through
        job_id, batch_id = a_job_with_everything(jobs, tmp_path)
        before = {key: blobs.read(key) or b"" for key in blobs.keys("")}
        assert sum(NAME in data for data in before.values()) >= 4, "what is looked for would be found"
        assert f"results/score/{SHA256}/{DIGEST}/{job_id}" in before
        assert any("Wilhelmine" in value for _, value in values(server))
        assert unfinished(jobs)

        jobs.service.purge(job_id)

        after = {key: blobs.read(key) or b"" for key in blobs.keys("")}
        assert not [key for key, data in after.items() if NAME in data or SHA256 in key or SHA256.encode() in data]
        key = hashlib.sha256(b"key of Wilhelmine").hexdigest()
        assert {key for key, data in after.items() if job_id in key or job_id.encode() in data} == {
            f"jobs/{job_id}/purged.json",  # when, and that it answers 410
            f"idempotency/{key}/1.json",  # so that a repetition makes no second job
            f"batches/{batch_id}/batch.json",  # which jobs it had
        }
        assert not unfinished(jobs)
        left = dict(values(server))
        assert not [key for key, value in left.items() if "Wilhelmine" in value or SHA256 in value]
        known = {f"lobewise:purged:{job_id}".encode(), b"lobewise:feed"}
        of_job = {key for key, value in left.items() if job_id in value or job_id.encode() in key}
        assert {key for key in of_job if key.startswith(b"lobewise:")} <= known

        # The embedded server's own files still hold what was deleted, until they are written anew.
        files = [path for path in (tmp_path / "data" / "valkey").rglob("*") if path.is_file()]
        assert any(NAME in path.read_bytes() for path in files)
        jobs.cleanup.clean_up()
        assert until(lambda: not server.info("persistence")["aof_rewrite_in_progress"], 30)
    assert until(lambda: not files_with_name(tmp_path / "data"), 30), files_with_name(tmp_path / "data")


def files_with_name(folder: Path) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and NAME in path.read_bytes():
                found.append(path)
        except FileNotFoundError:  # just written anew
            found.append(path)
    return found


def test_a_bucket_lists_no_version_and_no_part_of_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("s3_server")
    from jobs.bootstrap import connect

    url = f"s3://lobewise/{uuid.uuid4()}"
    jobs = connect(JobsSettings(data_dir=tmp_path / "data", redis_url=None, blob_url=url, reuse_results=True))
    try:
        job_id, _ = a_job_with_everything(jobs, tmp_path)
        jobs.service.purge(job_id)
    finally:
        jobs.close()
    prefix = urlsplit(url).path.strip("/") + f"/jobs/{job_id}/"
    listed = server.client.list_object_versions(Bucket="lobewise", Prefix=prefix)
    assert [item["Key"] for item in listed.get("Versions", ())] == [f"{prefix}purged.json"]
    assert not listed.get("DeleteMarkers")
    assert not [key for key in server.unfinished("lobewise") if key.startswith(prefix)]
