"""A patient's name is planted wherever a scan and a request may hold one, and looked for in all that the service wrote.

Real gateway, worker and sender with the embedded Valkey; the scans are read, in the sandbox, and de-identified.
"""

import asyncio
import gzip
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis

from jobs import embedded_redis, states
from jobs.bootstrap import connect
from jobs.models import InputInfo, JobRecord
from jobs.settings import JobsSettings
from tests.support.canary import (
    CANARY,
    NAME,
    ROOT_UID,
    plain_parts,
    planted_dicom,
    planted_metaimage,
    planted_nifti,
    planted_nrrd,
    planted_zip,
)
from tests.support.collector import Collector, collecting
from tests.support.processes import free_ports, running, until
from tests.support.reading_worker import Reading
from tests.support.receiver import Receiver, receiving
from worker.task import WorkerContext, work_on

#: What a client says of its own accord is stored: its reference, and the addresses that it gives.
GIVEN = "referenz-des-klienten"
HU = np.random.default_rng(1).integers(-1000, 400, (6, 8, 10), dtype=np.int16)
WORKER = Path(__file__).parents[1] / "support" / "reading_worker.py"

pytestmark = pytest.mark.timeout(240)


@dataclass
class Written:
    """What the service wrote and answered, by where it was found."""

    folder: Path
    texts: dict[str, bytes]
    outcomes: dict[str, str]
    valkey: str

    def having(self, name: bytes) -> list[str]:
        found = [where for where, text in self.texts.items() if name in text]
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return found + [str(f.relative_to(self.folder)) for f in files if any(name in p for p in _parts(f))]


def _parts(path: Path) -> list[bytes]:
    return plain_parts(path.read_bytes())


def slices() -> list[bytes]:
    return [planted_dicom(plane, number, 2.0 * number - 40) for number, plane in enumerate(HU, 1)]


def scans() -> dict[str, bytes]:
    whole = slices()
    return {
        "DICOM": planted_zip(whole),
        "NIfTI": planted_nifti(HU, packed=True),
        "NRRD": planted_nrrd(HU, packed=True),
        "MetaImage": planted_metaimage(HU),
        "DICOM, cut short": planted_zip([*whole[:-1], whole[-1][:-900]]),
        "no scan": planted_zip([]),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    folder = tmp_path_factory.mktemp("service")
    with ExitStack() as stack:
        receiver, collector = stack.enter_context(receiving()), stack.enter_context(collecting())
        port = free_ports(1)[0]
        environment = {
            **collector.environment(),
            "LOBEWISE_DATA_DIR": str(folder / "data"),
            "LOBEWISE_API_PORT": str(port),
            "LOBEWISE_LOG_LEVEL": "DEBUG",
            "LOBEWISE_DEIDENTIFY": "basic",
            "LOBEWISE_SOURCE_ALLOWLIST": "https://127.0.0.1:1/",
            "LOBEWISE_CALLBACK_ALLOWLIST": receiver.url,
            "LOBEWISE_RETRY_SECONDS": "0.2",
            "LOBEWISE_REAP_SECONDS": "0.5",
            "LOBEWISE_MAX_ATTEMPTS": "2",
            "TMPDIR": str(folder),
        }
        commands = {"gateway": ["-m", "api"], "worker": [str(WORKER)], "sender": ["-m", "api.callback_sender"]}
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30))
        for name, arguments in commands.items():
            stack.enter_context(running([sys.executable, *arguments], environment, folder / f"{name}.log"))
        assert until(lambda: _is_ready(client), 120), (folder / "worker.log").read_text()
        yield collect(client, folder, receiver, collector)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def collect(client: httpx.Client, folder: Path, receiver: Receiver, collector: Collector) -> Written:
    texts: dict[str, bytes] = {}
    ids: dict[str, str] = {}
    for kind, data in scans().items():
        path = "/v1/validate" if kind == "NIfTI" else "/v1/jobs"
        answer = client.post(
            f"{path}?patient={NAME}",
            files={"file": (f"{NAME}.zip", data, f'application/zip; name="{NAME}"')},
            data={"client_reference": GIVEN, "callback_url": f"{receiver.url}?token={GIVEN}"},
            headers={"user-agent": NAME, "referer": f"http://x/{NAME}", "baggage": f"patient={NAME}"},
        )
        assert answer.status_code == 202, answer.text
        ids[kind] = answer.json()["id"]
    source = {"source": {"url": f"https://127.0.0.1:1/ct.nii?patient={GIVEN}"}, "client_reference": GIVEN}
    ids["source"] = client.post("/v1/jobs/from-source", json=source).json()["id"]
    for name, refused in {
        "field": client.post("/v1/jobs", files={NAME: ("scan.nii", b"x")}),
        "path": client.get(f"/v1/jobs/{NAME}"),
    }.items():
        assert 400 <= refused.status_code < 500, name
    # The other two name the field and the path that were asked for, to whoever asked.
    texts["refused content"] = client.post("/v1/jobs", files={"file": (f"{NAME}.txt", CANARY * 30)}).content
    outcomes = {}
    for kind, job_id in ids.items():
        while (status := client.get(f"/v1/jobs/{job_id}").json()["status"]) in ("queued", "running"):
            time.sleep(0.2)
        outcomes[kind] = status
        for part in ("", "/report", "/inspection", "/labels", "/events", "/callback"):
            texts[f"{kind}{part}"] = client.get(f"/v1/jobs/{job_id}{part}").content
        for mask in ("lungs", "lobes", "lesions", "high-opacity"):
            answer = client.get(f"/v1/jobs/{job_id}/masks/{mask}")
            if answer.status_code == 200:
                texts[f"{kind}/{mask}"] = gzip.decompress(answer.content)
        for product in ("seg", "sr"):
            texts[f"{kind}/{product}"] = client.get(f"/v1/jobs/{job_id}/dicom/{product}").content
    for path in ("/v1/jobs", "/v1/events", "/v1/reports.csv", "/v1/reports.ndjson", "/metrics", "/openapi.json"):
        texts[path] = client.get(path).content
    for _ in outcomes.keys() - {"source"}:
        texts[f"callback {len(texts)}"] = receiver.got.get(timeout=30)
    assert until(lambda: any("callback" in span.name for span in collector.spans), 30)
    texts["traces"] = "\n".join(collector.texts).encode()
    url = embedded_redis.running(folder / "data" / "valkey") or ""
    with redis.Redis.from_url(url) as server:
        server.config_set("rdbcompression", "no")
        server.save()
    return Written(folder, texts, outcomes, url)


def test_scans_of_every_kind_came_to_their_ends(written: Written) -> None:
    good = dict.fromkeys(("DICOM", "NIfTI", "NRRD", "MetaImage"), "succeeded")
    assert written.outcomes == {**good, **dict.fromkeys(("DICOM, cut short", "no scan", "source"), "failed")}


def test_the_name_is_in_nothing_that_the_service_wrote(written: Written) -> None:
    names = {path.name for path in written.folder.rglob("*")}
    assert {"gateway.log", "worker.log", "sender.log", "dump.rdb", "deidentified.json", "input"} <= names
    assert {"identity.json", "seg.dcm", "sr.dcm"} <= names
    assert any(name.endswith(".incr.aof") for name in names), "Valkey's log of changes was looked through"
    assert not {"received"} & names, "no scan is left as it came"
    assert all(b"DICM" in written.texts[f"DICOM/{product}"][:132] for product in ("seg", "sr"))
    for trace in (CANARY, CANARY.lower(), CANARY.title(), NAME.encode("utf-16-le"), ROOT_UID.encode()):
        assert written.having(trace) == []
    assert not [path for path in written.folder.rglob("*") if NAME in path.name]


def test_what_a_client_gives_to_be_stored_is_stored_and_in_no_log_trace_or_metric(written: Written) -> None:
    found = written.having(GIVEN.encode())
    assert any(where.endswith("job.json") for where in found), "what is looked for would be found"
    assert not [where for where in found if where.endswith(".log") or where in ("traces", "/metrics")]
    assert not [where for where in found if where.endswith(("manifest.json", "report.json", "inspection.json"))]


def test_what_is_kept_of_a_scan_is_the_scan(written: Written) -> None:
    kept = sorted(path for path in written.folder.glob("data/blobs/jobs/*/attempts/*/input"))
    assert len(kept) == 4, "one for each that could be read"
    assert any(HU.astype("<i2").tobytes() in part for path in kept for part in _parts(path))


def test_without_deidentification_the_name_is_in_the_scan_the_identity_and_the_dicom_products_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = connect(JobsSettings(data_dir=tmp_path))
    try:
        job_id, data = states.new_id(), planted_zip(slices())

        async def upload() -> InputInfo:
            sink = jobs.service.open_upload(job_id)
            await sink.write(data)
            return await sink.finish()

        record = JobRecord(id=job_id, created_at=states.now(), input=asyncio.run(upload()))
        jobs.service.accept(record)
        with caplog.at_level(logging.DEBUG):
            work_on(WorkerContext(jobs.worker, Reading(), "test", stop_hard=lambda: None), job_id)
        assert jobs.service.get(job_id).status == "succeeded"
        blobs = jobs.backends.store.blobs
        named = {key for key in blobs.keys("") if any(CANARY in part for part in plain_parts(blobs.read(key) or b""))}
        own = f"jobs/{job_id}/"
        kept = {f"{own}attempts/1/{name}" for name in ("identity.json", "seg.dcm", "sr.dcm")}
        assert named == {f"{own}input", *kept}
        of_series = {key for key in blobs.keys("") if ROOT_UID.encode() in (blobs.read(key) or b"")}
        assert of_series - named == set()
        for text in (caplog.text, str([vars(record) for record in caplog.records])):
            assert CANARY.decode() not in text
            assert ROOT_UID not in text
        jobs.service.purge(job_id)
        assert set(blobs.keys("jobs/")) == {f"{own}purged.json"}
    finally:
        jobs.close()
