"""Connections that break in the middle, and answers that get lost."""

from pathlib import Path
from typing import Any

import pytest
from lobewise_client import ConnectionFailedError, Progress, Retry

from jobs.models import MaskName
from tests.api.conftest import Service, mask_bytes, nifti
from tests.support.processes import free_ports

from .conftest import MIB, PART_BYTES, Cut, CuttingProxy, MakeClient


def count_of(proxy: CuttingProxy, words: bytes) -> int:
    return sum(words in line for line in proxy.lines)


def test_an_upload_that_is_cut_sends_the_missing_parts_alone(
    cut_client: Any, proxy: CuttingProxy, service: Service
) -> None:
    scan = nifti(2 * PART_BYTES + MIB)
    proxy.cuts.append(Cut(b"/parts/2", "request", 3 * MIB))
    seen: list[Progress] = []
    job = cut_client.submit(scan, on_progress=seen.append)
    assert proxy.cuts == []
    assert (job.status, job.input.size_bytes) == ("queued", len(scan))
    assert (service.blobs / "jobs" / job.id / "input").read_bytes() == scan
    assert [count_of(proxy, b"/parts/%d?" % number) for number in (1, 2, 3)] == [1, 2, 1]
    assert seen[-1] == Progress("upload", 1.0)


def test_an_upload_goes_on_in_another_process(cut_client: Any, make_client: MakeClient, proxy: CuttingProxy) -> None:
    scan = nifti(2 * PART_BYTES + MIB)
    proxy.cuts += [Cut(b"/parts/3", "request", 1)]
    hasty = make_client(f"http://127.0.0.1:{proxy.port}", retry=Retry(seconds=0), parallel_parts=1)
    with pytest.raises(ConnectionFailedError):
        hasty.upload(scan)
    upload_id = next(line for line in proxy.lines if b"/parts/" in line).split(b"/")[3].decode()
    before = len(proxy.lines)
    upload = cut_client.upload(scan, resume=upload_id)
    assert (upload.id, upload.status) == (upload_id, "complete")
    assert sum(b"/parts/" in line for line in proxy.lines[before:]) == 1
    with pytest.raises(ValueError, match="bytes"):
        cut_client.upload(scan + b"more", resume=upload_id)


@pytest.mark.parametrize("where", ["request", "answer"])
def test_a_submission_that_is_cut_makes_one_job(
    where: str, cut_client: Any, proxy: CuttingProxy, service: Service
) -> None:
    scan = nifti(MIB)
    proxy.cuts.append(Cut(b"POST /v1/jobs", where, MIB // 2 if where == "request" else 0))
    before = {job.id for job in cut_client.list_jobs()}
    job = cut_client.submit(scan, client_reference=f"cut {where}")
    assert proxy.cuts == []
    assert {job.id for job in cut_client.list_jobs()} - before == {job.id}
    assert count_of(proxy, b"POST /v1/jobs") >= 2


def test_a_stream_of_events_that_is_cut_is_asked_for_what_was_missed(
    cut_client: Any, proxy: CuttingProxy, service: Service
) -> None:
    job_id = service.submit()
    proxy.cuts.append(Cut(b"/events", "answer", 1800))
    seen = []
    for job in cut_client.follow(job_id, wait_seconds=60):
        seen.append(job.status)
        if len(seen) == 1:
            service.worker.succeed(job_id)
    assert proxy.cuts == []
    assert seen[-2:] == ["running", "succeeded"]
    assert count_of(proxy, b"/events") == 2


def test_where_no_stream_comes_through_the_job_is_polled(make_client: MakeClient, service: Service) -> None:
    proxy = NoStreams(service.client.base_url.port or 0)
    try:
        client = make_client(f"http://127.0.0.1:{proxy.port}")
        job_id = service.submit()
        seen = []
        for job in client.follow(job_id, wait_seconds=60):
            seen.append(job.status)
            if len(seen) == 1:
                service.worker.succeed(job_id)
        assert (seen[0], seen[-1]) == ("queued", "succeeded")
        polls = [line for line in proxy.lines if line == b"GET /v1/jobs/%s HTTP/1.1" % job_id.encode()]
        assert len(polls) >= 2
    finally:
        proxy.close()


class NoStreams(CuttingProxy):
    """Answers for a gateway whose streams are all taken."""

    async def ask(self, data: bytes, server: Any, client: Any) -> bool:
        if b"/events" in data.partition(b"\r\n")[0]:
            client.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n")
            await client.drain()
            return True
        return await super().ask(data, server, client)


def test_a_mask_that_is_cut_goes_on_where_it_stopped(
    cut_client: Any, proxy: CuttingProxy, service: Service, tmp_path: Path
) -> None:
    job_id = service.submit()
    mask = bytes(range(256)) * (4 * MIB // 256)
    write_mask(service, job_id, mask)
    proxy.cuts.append(Cut(b"/masks/lobes", "answer", MIB))
    path = cut_client.save_mask(job_id, "lobes", tmp_path / "lobes.nii.gz")
    assert proxy.cuts == []
    assert path.read_bytes() == mask
    assert count_of(proxy, b"/masks/lobes") == 2
    assert list(tmp_path.iterdir()) == [path]
    assert cut_client.mask(job_id, "lungs") == mask_bytes(MaskName.LUNGS)


def write_mask(service: Service, job_id: str, mask: bytes) -> None:
    """The job succeeds, with this as its `lobes`."""
    from api import examples

    masks = {}
    for name in MaskName:
        masks[name] = service.worker.folder / f"{job_id}-{name}"
        masks[name].write_bytes(mask if name == MaskName.LOBES else mask_bytes(name))
    with service.jobs.worker.claim(job_id, "test") as lease:
        service.jobs.worker.succeed(lease, examples.REPORT.model_copy(update={"job_id": job_id}), masks)


def test_a_delete_whose_answer_is_lost_is_done(cut_client: Any, proxy: CuttingProxy, service: Service) -> None:
    job_id = service.succeeded()
    proxy.cuts.append(Cut(b"DELETE", "answer", 0))
    cut_client.delete(job_id)
    assert count_of(proxy, b"DELETE") == 2


def test_where_nobody_listens_is_an_error_in_the_end(make_client: MakeClient) -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    client = make_client(address, retry=Retry(seconds=0.3, first_pause_seconds=0.05))
    with pytest.raises(ConnectionFailedError, match=f"{address} does not answer \\(ConnectError\\)"):
        client.submit(nifti())
    with pytest.raises(ConnectionFailedError):
        client.health()
