"""The whole service with its blobs on S3: a scan goes there in parts, its masks come from there, nothing stays."""

import gzip
import hashlib
from pathlib import Path

import httpx
import pytest
from lobewise_client import Client

from pipeline.io.write import write_ct
from pipeline.phantom import PhantomRecipe, make_phantom
from tests.support.seaweed import S3Server

from .conftest import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BUCKET = "end-to-end"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    write_ct(path, make_phantom(PhantomRecipe(seed=11, spacing_mm=(4.0, 4.0, 5.0), percent_opacity=15.0)).volume)
    return path.read_bytes()


def test_a_scan_goes_in_by_parts_and_its_masks_come_from_the_bucket(
    tmp_path: Path, s3_server: S3Server, scan: bytes
) -> None:
    s3_server.make_bucket(BUCKET)
    with (
        serving(tmp_path, LOBEWISE_BLOB_URL=f"s3://{BUCKET}/hospital/a") as address,
        Client(address, parts_above_bytes=0) as client,
        httpx.Client(base_url=address, timeout=120) as http,
    ):
        job = client.score(scan, wait_seconds=400).job
        masks = {name: fetched(http, job.id, name) for name in ("lungs", "lobes", "lesions", "high-opacity")}
        assert all(gzip.decompress(mask)[344:347] == b"n+1" for mask in masks.values())
        assert client.mask(job.id, "lobes") == masks["lobes"]
        assert not list((tmp_path / "data").rglob("*.nii.gz")), "nothing of it lies in the data folder"
        client.delete(job.id)
    left = {key for key in s3_server.keys(BUCKET) if "/jobs/" in key or "/uploads/" in key}
    assert left == {f"hospital/a/jobs/{job.id}/purged.json"}
    assert s3_server.unfinished(BUCKET) == set()


def fetched(client: httpx.Client, job_id: str, name: str) -> bytes:
    """By its presigned address, which must lead to what the gateway itself gives."""
    address = client.get(f"/v1/jobs/{job_id}/masks/{name}/url").json()
    assert "X-Amz-Signature" in address["url"]
    mask = httpx.get(address["url"], timeout=60).content
    assert hashlib.sha256(mask).hexdigest() == address["sha256"]
    assert mask == client.get(f"/v1/jobs/{job_id}/masks/{name}").content
    return mask
