"""Scans that come in parts: resumed, checked, taken by a job, or swept."""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from jobs import states
from jobs.bootstrap import Connection, connect
from jobs.errors import (
    JobNotFoundError,
    JobPurgedError,
    StorageUnavailableError,
    UploadClosedError,
    UploadIncompleteError,
    UploadMismatchError,
    UploadNotFoundError,
    UploadTooLargeError,
    UrlNotValidError,
)
from jobs.models import JobRecord, JobStatus, MaskName
from jobs.recovery.cleanup import VOID_KEPT
from jobs.settings import MIB, JobsSettings
from jobs.states import MultipartUploadState, PartState, UrlSignature, new_id
from jobs.store.multipart_uploads import COPY_LIMIT_BYTES
from jobs.store.object_store import RESERVE
from tests.support.seaweed import S3Server

Connect = Callable[..., Connection]

PART_BYTES = 5 * MIB
SCAN = bytes(range(256)) * (12 * MIB // 256 + 1)
"""Two whole parts and one that has what is left."""
SHA256 = hashlib.sha256(SCAN).hexdigest()


@pytest.fixture
def settings(settings: JobsSettings) -> JobsSettings:
    return settings.model_copy(update={"upload_part_bytes": PART_BYTES})


@pytest.fixture
def other(jobs: Connection) -> Iterator[Connect]:
    """The same store and broker under other settings."""
    opened: list[Connection] = []

    def other(**changes: object) -> Connection:
        opened.append(connect(jobs.settings.model_copy(update=changes)))
        return opened[-1]

    yield other
    for each in opened:
        each.close()


def data_of(part: PartState, scan: bytes = SCAN) -> bytes:
    start = (part.number - 1) * PART_BYTES
    return scan[start : start + part.size_bytes]


def send(jobs: Connection, upload_id: str, part: PartState, data: bytes) -> None:
    """As a client does on S3, and as the gateway does on a folder. Raises httpx.HTTPStatusError, JobsError."""
    if isinstance(part.url, UrlSignature):
        asyncio.run(write_part(jobs, upload_id, part.number, part.url, data))
    else:
        httpx.put(part.url or "", content=data, timeout=60).raise_for_status()


async def write_part(jobs: Connection, upload_id: str, number: int, signed: UrlSignature, data: bytes) -> None:
    sink, _ = jobs.service.uploads.open_part(upload_id, number, signed)
    await sink.write(data)
    await sink.finish()
    jobs.service.uploads.require_part_in_time(upload_id, number)


def uploaded(jobs: Connection, scan: bytes = SCAN, sha256: str | None = SHA256) -> MultipartUploadState:
    """All parts are there, but it is not complete."""
    upload = jobs.service.uploads.create(len(scan), sha256)
    for part in reversed(upload.parts):
        send(jobs, upload.record.id, part, data_of(part, scan))
    return upload


def stored(jobs: Connection) -> set[str]:
    return {key for folder in ("jobs/", "uploads/") for key in jobs.backends.store.blobs.keys(folder)}


def nothing_is_left(jobs: Connection) -> bool:
    bucket = jobs.backends.store.blobs.bucket
    return stored(jobs) == set() and (bucket is None or not list(bucket.unfinished("")))


def accept(jobs: Connection, upload_id: str) -> str:
    job_id = new_id()
    scan = jobs.service.uploads.copy_input(upload_id, job_id)
    return jobs.service.accept(JobRecord(id=job_id, created_at=states.now(), input=scan, upload_id=upload_id)).id


def test_parts_are_sent_in_any_order_and_become_the_scan_of_a_job(jobs: Connection, tmp_path: Path) -> None:
    upload = uploaded(jobs)
    assert [part.size_bytes for part in upload.parts] == [PART_BYTES, PART_BYTES, len(SCAN) - 2 * PART_BYTES]
    done = jobs.service.uploads.complete(upload.record.id)
    assert done.completion is not None
    assert (done.completion.size_bytes, done.completion.sha256) == (len(SCAN), SHA256)
    assert jobs.service.uploads.head(upload.record.id, 9) == SCAN[:9]
    job_id = accept(jobs, upload.record.id)
    assert jobs.service.get(job_id).input.sha256 == SHA256
    with jobs.worker.claim(job_id, "test") as lease:
        assert jobs.worker.fetch_input(lease, tmp_path).read_bytes() == SCAN
    assert stored(jobs) >= {f"jobs/{job_id}/input"}
    assert not [key for key in stored(jobs) if key.startswith("uploads/")]
    with pytest.raises(UploadNotFoundError):
        jobs.service.uploads.get(upload.record.id)


def test_an_interrupted_upload_tells_which_parts_are_still_to_be_sent(jobs: Connection) -> None:
    upload = jobs.service.uploads.create(len(SCAN))
    send(jobs, upload.record.id, upload.parts[1], data_of(upload.parts[1]))
    resumed = jobs.service.uploads.get(upload.record.id)
    assert [part.is_received for part in resumed.parts] == [False, True, False]
    with pytest.raises(UploadIncompleteError) as caught:
        jobs.service.uploads.complete(upload.record.id)
    assert caught.value.evidence["missing_parts"] == [1, 3]
    for part in (resumed.parts[0], resumed.parts[2]):
        send(jobs, upload.record.id, part, data_of(part))
    done = jobs.service.uploads.complete(upload.record.id)
    assert done.completion is not None
    assert done.completion.sha256 == SHA256
    assert all(part.is_received for part in done.parts)


def test_a_part_that_is_sent_again_counts_as_it_came_last(jobs: Connection) -> None:
    upload = uploaded(jobs)
    send(jobs, upload.record.id, upload.parts[0], bytes(PART_BYTES))
    time.sleep(2.1)  # the server of the tests tells the later of two parts by whole seconds
    send(jobs, upload.record.id, upload.parts[0], data_of(upload.parts[0]))
    jobs.service.uploads.complete(upload.record.id)


def test_completing_again_changes_nothing(jobs: Connection) -> None:
    upload = uploaded(jobs, sha256=None)
    first = jobs.service.uploads.complete(upload.record.id)
    assert jobs.service.uploads.complete(upload.record.id) == first
    assert jobs.service.uploads.get(upload.record.id) == first
    assert len(stored(jobs)) == 3, "upload.json, completed.json and the scan"


def test_of_many_that_complete_at_once_all_see_the_same_scan(jobs: Connection) -> None:
    upload_id = uploaded(jobs).record.id
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: jobs.service.uploads.complete(upload_id), range(4)))
    assert len({state.completion for state in done}) == 1
    assert len(stored(jobs)) == 3, "upload.json, completed.json and one scan"
    accept(jobs, upload_id)


def test_a_crash_before_the_digest_was_checked_loses_nothing(jobs: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = uploaded(jobs)
    with monkeypatch.context() as patch:
        patch.setattr(
            jobs.service.uploads, "_verify", lambda *_: (_ for _ in ()).throw(StorageUnavailableError("crash"))
        )
        with pytest.raises(StorageUnavailableError):
            jobs.service.uploads.complete(upload.record.id)
    assert all(part.is_received for part in jobs.service.uploads.get(upload.record.id).parts)
    done = jobs.service.uploads.complete(upload.record.id)
    assert done.completion is not None
    assert done.completion.sha256 == SHA256
    accept(jobs, upload.record.id)
    assert not [key for key in stored(jobs) if key.startswith("uploads/")]


def test_other_bytes_than_announced_are_refused_and_deleted(jobs: Connection) -> None:
    upload = uploaded(jobs, scan=bytes(len(SCAN)), sha256=SHA256)
    with pytest.raises(UploadMismatchError) as caught:
        jobs.service.uploads.complete(upload.record.id)
    assert caught.value.evidence["expected_sha256"] == SHA256
    assert nothing_is_left(jobs)


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_part_of_another_size_never_becomes_one(jobs: Connection, difference: int) -> None:
    """S3 refuses it, since the length is signed; the gateway refuses it by its size, which the API tests hold."""
    upload = jobs.service.uploads.create(PART_BYTES)
    if isinstance(upload.parts[0].url, UrlSignature) and difference < 0:
        send(jobs, upload.record.id, upload.parts[0], bytes(PART_BYTES - 1))  # a part that was cut on the disk
    else:
        with pytest.raises((httpx.HTTPStatusError, UploadTooLargeError)):
            send(jobs, upload.record.id, upload.parts[0], bytes(PART_BYTES + difference))
    assert not jobs.service.uploads.get(upload.record.id).parts[0].is_received
    with pytest.raises(UploadIncompleteError):
        jobs.service.uploads.complete(upload.record.id)


def test_an_aborted_upload_leaves_nothing_and_takes_nothing(jobs: Connection) -> None:
    upload = jobs.service.uploads.create(len(SCAN))
    send(jobs, upload.record.id, upload.parts[0], data_of(upload.parts[0]))
    jobs.service.uploads.abort(upload.record.id)
    with pytest.raises((UploadNotFoundError, httpx.HTTPStatusError)):
        send(jobs, upload.record.id, upload.parts[1], data_of(upload.parts[1]))
    for call in (jobs.service.uploads.get, jobs.service.uploads.complete, jobs.service.uploads.abort):
        with pytest.raises(UploadNotFoundError):
            call(upload.record.id)
    assert nothing_is_left(jobs)


def test_a_completed_upload_takes_no_more_parts(jobs: Connection) -> None:
    upload = uploaded(jobs)
    jobs.service.uploads.complete(upload.record.id)
    with pytest.raises((UploadClosedError, httpx.HTTPStatusError)):
        send(jobs, upload.record.id, upload.parts[0], bytes(PART_BYTES))
    jobs.service.uploads.abort(upload.record.id)
    assert nothing_is_left(jobs)


def test_a_job_takes_only_a_completed_upload(jobs: Connection) -> None:
    upload = jobs.service.uploads.create(len(SCAN))
    with pytest.raises(UploadIncompleteError):
        accept(jobs, upload.record.id)
    for upload_id in (new_id(), "x", "../../etc"):
        with pytest.raises(UploadNotFoundError):
            accept(jobs, upload_id)


def test_more_than_the_limit_is_refused_at_once(jobs: Connection) -> None:
    with pytest.raises(UploadTooLargeError):
        jobs.service.uploads.create(jobs.settings.max_upload_bytes + 1)
    assert nothing_is_left(jobs)


def test_parts_grow_with_the_scan_so_that_they_stay_few(jobs: Connection, other: Connect) -> None:
    large = other(max_upload_bytes=1 << 40).service.uploads
    upload = large.create(COPY_LIMIT_BYTES)
    assert len(upload.parts) <= 1000
    assert sum(part.size_bytes for part in upload.parts) == COPY_LIMIT_BYTES


def test_an_expired_upload_is_gone_and_swept_with_all_its_parts(jobs: Connection, other: Connect) -> None:
    hasty = other(upload_seconds=5)
    kept, expired = uploaded(jobs), uploaded(hasty, scan=b"a small scan", sha256=None)
    time.sleep(5.1)
    for call in (jobs.service.uploads.get, jobs.service.uploads.complete):
        with pytest.raises(UploadNotFoundError):
            call(expired.record.id)
    assert jobs.cleanup.clean_up() == 1
    assert jobs.service.uploads.complete(kept.record.id).completion is not None
    jobs.service.uploads.abort(kept.record.id)
    assert nothing_is_left(jobs)


def test_what_a_crash_left_is_swept_but_not_before_its_time(jobs: Connection, other: Connect) -> None:
    blobs = jobs.backends.store.blobs
    blobs.write(f"jobs/{new_id()}/input", b"a scan that never became a job")
    blobs.write(f"uploads/{new_id()}/parts/1", b"a part whose upload is gone")
    if blobs.bucket is not None:
        blobs.bucket.create("jobs/never/input")
    if blobs.folder is not None:
        (blobs.folder / "jobs" / "input#1").write_bytes(b"a write that was killed")
    assert jobs.cleanup.clean_up() == 0
    time.sleep(1.1)
    assert other(upload_seconds=1).cleanup.clean_up() == 3
    jobs.cleanup.clean_up(states.now() + VOID_KEPT + timedelta(days=1))  # what bars a late request is kept for so long
    assert nothing_is_left(jobs)
    files = blobs.folder.rglob("*") if blobs.folder is not None else ()
    assert {path.name for path in files if path.is_file()} <= {RESERVE}


def test_a_job_is_purged_when_its_retention_is_over(
    jobs: Connection, other: Connect, finished: Callable[..., str]
) -> None:
    old, queued = finished(jobs), accept(jobs, uploaded_and_completed(jobs))
    assert jobs.cleanup.clean_up() == 0, "jobs are kept where no retention is set"
    forgetful = other(retention_seconds=5)
    time.sleep(5.1)
    fresh = finished(jobs)
    assert forgetful.cleanup.clean_up() == 1
    assert {key for key in stored(jobs) if old in key} == {f"jobs/{old}/purged.json"}
    assert jobs.service.get(fresh).status == JobStatus.SUCCEEDED
    assert jobs.service.get(queued).status == JobStatus.QUEUED, "what waits is never too old"


def test_a_deleted_job_is_forgotten_in_the_end(jobs: Connection, other: Connect, finished: Callable[..., str]) -> None:
    job_id = finished(jobs)
    jobs.service.purge(job_id)
    assert jobs.cleanup.clean_up() == 0
    with pytest.raises(JobPurgedError):
        jobs.service.get(job_id)
    time.sleep(2.1)
    assert other(tombstone_seconds=1).cleanup.clean_up() == 1
    assert nothing_is_left(jobs)
    with pytest.raises(JobNotFoundError):
        jobs.service.get(job_id)


def test_a_purge_that_was_cut_off_is_ended(jobs: Connection, finished: Callable[..., str]) -> None:
    job_id = finished(jobs)
    jobs.service.purge(job_id)
    jobs.backends.store.blobs.write(f"jobs/{job_id}/attempts/2/lungs.nii.gz", b"from a worker that was killed")
    assert jobs.cleanup.clean_up() == 1
    assert stored(jobs) == {f"jobs/{job_id}/purged.json"}
    assert jobs.cleanup.clean_up() == 0


def test_a_purge_also_takes_what_a_crash_left_of_its_upload(jobs: Connection) -> None:
    upload_id = uploaded_and_completed(jobs)
    job_id = new_id()
    scan = jobs.service.uploads.copy_input(upload_id, job_id)
    jobs.backends.store.create_job(JobRecord(id=job_id, created_at=states.now(), input=scan, upload_id=upload_id))
    jobs.service.purge(job_id)
    assert stored(jobs) == {f"jobs/{job_id}/purged.json"}


def uploaded_and_completed(jobs: Connection) -> str:
    upload_id = uploaded(jobs).record.id
    jobs.service.uploads.complete(upload_id)
    return upload_id


def test_the_reaper_sweeps(jobs: Connection, other: Connect) -> None:
    sweeping = other(upload_seconds=1, sweep_seconds=0.1)
    sweeping.service.uploads.create(PART_BYTES)
    deadline = time.monotonic() + 30
    while not nothing_is_left(jobs):
        sweeping.reconciler.reconcile()
        assert time.monotonic() < deadline
        time.sleep(0.1)


class TestOnS3:
    @pytest.fixture
    def blob_url(self, s3_server: S3Server) -> str:  # noqa: ARG002
        return f"s3://lobewise/{new_id()}"

    def test_an_address_is_good_for_its_part_alone(self, jobs: Connection) -> None:
        upload = jobs.service.uploads.create(2 * PART_BYTES)
        url, data = str(upload.parts[0].url), bytes(PART_BYTES)
        assert upload.record.multipart_id in url
        for changed in (
            url.replace("partNumber=1", "partNumber=2"),
            url.replace(upload.record.id, new_id()),
            re.sub("X-Amz-Expires=[0-9]+", "X-Amz-Expires=90000", url),
            re.sub("(X-Amz-Signature=)....", r"\g<1>0000", url),
        ):
            assert changed != url
            assert httpx.put(changed, content=data, timeout=60).status_code in (400, 403, 404)
        assert httpx.get(url).status_code == 403
        assert not any(part.is_received for part in jobs.service.uploads.get(upload.record.id).parts)

    def test_an_address_expires(self, jobs: Connection, other: Connect) -> None:
        hasty = other(url_seconds=1)
        upload = hasty.service.uploads.create(PART_BYTES)
        time.sleep(2.1)
        assert httpx.put(str(upload.parts[0].url), content=bytes(PART_BYTES), timeout=60).status_code == 403
        assert not jobs.service.uploads.get(upload.record.id).parts[0].is_received

    def test_what_others_write_to_the_bucket_is_left_alone(self, jobs: Connection, other: Connect) -> None:
        bucket = jobs.backends.store.blobs.bucket
        assert bucket is not None
        theirs = bucket._client.create_multipart_upload(**bucket._at("backups/1"))["UploadId"]
        time.sleep(1.1)
        assert other(upload_seconds=1).cleanup.clean_up() == 0
        assert [upload.multipart_id for upload in bucket.unfinished("")] == [theirs]
        bucket.abort("backups/1", theirs)

    def test_a_mask_has_an_address_of_its_own_for_a_while(self, jobs: Connection, finished: Callable[..., str]) -> None:
        mask = jobs.service.mask(finished(jobs), MaskName.LOBES)
        url = mask.signed_url(5) or ""
        answer = httpx.get(url)
        assert (answer.status_code, answer.content) == (200, b"a mask")
        assert answer.headers["content-disposition"] == 'attachment; filename="lobes.nii.gz"'
        assert httpx.get(url.replace("lobes.nii.gz?", "lungs.nii.gz?")).status_code == 403
        time.sleep(6)
        assert httpx.get(url).status_code == 403

    def test_clients_may_know_the_endpoint_by_another_name(
        self, jobs: Connection, other: Connect, s3_server: S3Server
    ) -> None:
        public = s3_server.endpoint.replace("127.0.0.1", "localhost")
        upload = other(blob_public_endpoint=public).service.uploads.create(PART_BYTES)
        assert str(upload.parts[0].url).startswith(public)
        send(jobs, upload.record.id, upload.parts[0], bytes(PART_BYTES))
        jobs.service.uploads.complete(upload.record.id)

    def test_a_bucket_that_is_gone_is_a_fault_of_ours(self, settings: JobsSettings, s3_server: S3Server) -> None:
        bucket = s3_server.make_bucket("gone-while-uploading")
        jobs = connect(settings.model_copy(update={"blob_url": f"s3://{bucket}/x"}))
        upload = jobs.service.uploads.create(PART_BYTES)
        s3_server.client.delete_bucket(Bucket=bucket)
        for call in (
            lambda: jobs.service.uploads.create(PART_BYTES),
            lambda: jobs.service.uploads.get(upload.record.id),
            lambda: jobs.service.uploads.complete(upload.record.id),
            lambda: jobs.service.uploads.abort(upload.record.id),
            jobs.cleanup.clean_up,
        ):
            with pytest.raises(StorageUnavailableError):
                call()
        assert not jobs.service.readiness().blobs
        jobs.close()


class TestOnAFolder:
    @pytest.fixture
    def blob_url(self, tmp_path: Path) -> str:
        return (tmp_path / "blobs").as_uri()

    def test_a_ticket_is_good_for_its_part_alone_and_for_a_while(self, jobs: Connection) -> None:
        upload, another = jobs.service.uploads.create(2 * PART_BYTES), jobs.service.uploads.create(2 * PART_BYTES)
        signed = upload.parts[0].url
        assert isinstance(signed, UrlSignature)
        late = UrlSignature(signed.expires + 1, signed.signature)
        forged = UrlSignature(signed.expires, "é" + signed.signature[1:])
        for upload_id, number, shown in (
            (upload.record.id, 2, signed),
            (another.record.id, 1, signed),
            (upload.record.id, 1, late),
            (upload.record.id, 1, forged),
            (upload.record.id, 1, UrlSignature(signed.expires, "")),
        ):
            with pytest.raises(UrlNotValidError):
                jobs.service.uploads.open_part(upload_id, number, shown)
        past = jobs.service.uploads._parts.signer.sign(upload.record.id, 1, int(time.time()) - 5)
        with pytest.raises(UrlNotValidError, match="expired"):
            jobs.service.uploads.open_part(upload.record.id, 1, past)

    def test_all_gateways_of_a_folder_sign_with_one_key_that_nobody_else_reads(
        self, jobs: Connection, other: Connect
    ) -> None:
        upload = jobs.service.uploads.create(PART_BYTES)
        send(other(), upload.record.id, upload.parts[0], bytes(PART_BYTES))
        assert (jobs.settings.data_dir / "signing-key").stat().st_mode & 0o777 == 0o600
        stranger = other(signing_key=SecretStr("k" * 32))
        with pytest.raises(UrlNotValidError):
            send(stranger, upload.record.id, upload.parts[0], bytes(PART_BYTES))

    def test_a_part_that_comes_while_its_upload_ends_is_taken_back(self, jobs: Connection) -> None:
        upload = jobs.service.uploads.create(PART_BYTES)
        signed = upload.parts[0].url
        assert isinstance(signed, UrlSignature)

        async def late() -> None:
            sink, _ = jobs.service.uploads.open_part(upload.record.id, 1, signed)
            await sink.write(bytes(PART_BYTES))
            jobs.service.uploads.abort(upload.record.id)
            await sink.finish()
            jobs.service.uploads.require_part_in_time(upload.record.id, 1)

        with pytest.raises(UploadNotFoundError):
            asyncio.run(late())
        assert nothing_is_left(jobs)


def test_expiry_is_the_operators(jobs: Connection) -> None:
    record = jobs.service.uploads.create(1).record
    assert record.expires_at - record.created_at == timedelta(seconds=jobs.settings.upload_seconds)
