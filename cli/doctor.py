"""`lobewise doctor`: whether a process with these settings could do its work here, part by part."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal, cast
from uuid import uuid4

import redis
from rich.console import Console
from rich.markup import escape

from jobs.bootstrap import connect
from jobs.errors import JobsError, SettingsError
from jobs.live.connection import broker_errors
from jobs.settings import GIB, ApiSettings, JobsSettings, misspelt, read_settings
from jobs.store.object_store import ObjectStore, open_object_store
from jobs.tracing import collector_takes


@dataclass(frozen=True)
class BrokerInfo:
    """The server and how it is set.

    Attributes:
        clock_skew_seconds: how far its clock is ahead of ours.
        eviction_policy: `noeviction` is the only one that forgets no job.
        is_append_only: whether a restart keeps what it had.
    """

    server: str
    version: str
    clock_skew_seconds: float
    eviction_policy: str
    is_append_only: bool


def read_broker_info(settings: JobsSettings) -> BrokerInfo:
    """Ask the server of `redis_url`. Raises BrokerUnavailableError."""
    timeout = settings.broker_timeout_seconds
    with (
        broker_errors(),
        redis.Redis.from_url(
            settings.redis_url or "", decode_responses=True, socket_timeout=timeout, socket_connect_timeout=timeout
        ) as client,
    ):
        info = cast("dict[str, Any]", client.info())
        seconds, microseconds = cast("tuple[int, int]", client.time())
    is_valkey = "valkey_version" in info
    return BrokerInfo(
        server="Valkey" if is_valkey else "Redis",
        version=str(info["valkey_version" if is_valkey else "redis_version"]),
        clock_skew_seconds=seconds + microseconds / 1e6 - time.time(),
        eviction_policy=str(info.get("maxmemory_policy", "noeviction")),
        is_append_only=str(info.get("aof_enabled", 0)) == "1",
    )


Verdict = Literal["ok", "warning", "wrong"]

#: A worker unpacks a scan and writes its masks; a folder of blobs fills up.
LEAST_FREE_BYTES: Final = 5 * GIB

#: Signed addresses expire by the clock, and a bucket refuses requests of another time.
LARGEST_SKEW_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and what to do if it is not well."""

    part: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine() -> Iterator[Check]:
    """Each part in turn; one that is broken does not hide the next."""
    try:
        settings = read_settings(JobsSettings)
        read_settings(ApiSettings)
    except SettingsError as error:
        yield Check("settings", "wrong", str(error), "set it as the sentence says; docs/configuration.md has them all")
        return
    wrong = misspelt((JobsSettings, ApiSettings))
    yield Check("settings", "warning" if wrong else "ok", " ".join(wrong) or "as they should be")
    parts: tuple[Callable[[JobsSettings], Iterator[Check]], ...] = (_broker, _blobs, _disk, _weights, _device, _traces)
    for part in parts:
        try:
            yield from part(settings)
        except JobsError as error:
            yield Check(part.__name__.strip("_"), "wrong", str(error), "see that it runs and can be reached from here")


def show(checks: list[Check], console: Console) -> None:
    """One line a check."""
    colours = {"ok": "green", "warning": "yellow", "wrong": "red"}
    for check in checks:
        line = f"[{colours[check.verdict]}]{check.verdict:8}[/]{check.part:10}{escape(check.found)}"
        advice = f" [dim]({escape(check.advice)})[/]" if check.advice and check.verdict != "ok" else ""
        console.print(line + advice, highlight=False, soft_wrap=True)


def as_rows(checks: list[Check]) -> list[dict[str, str]]:
    return [asdict(check) for check in checks]


def _broker(settings: JobsSettings) -> Iterator[Check]:
    jobs = connect(settings)
    try:
        broker_info = read_broker_info(jobs.settings)
        workers = jobs.service.readiness().workers
    finally:
        jobs.close()
    kind = "" if settings.redis_url else "embedded, "
    yield Check("broker", "ok", f"{kind}{broker_info.server} {broker_info.version}, {workers} workers ready")
    if broker_info.eviction_policy != "noeviction":
        found = f"maxmemory-policy is {broker_info.eviction_policy}: a full server would forget jobs"
        yield Check("broker", "wrong", found, "set maxmemory-policy noeviction")
    if not broker_info.is_append_only:
        found = "appendonly is off: after a crash the queue is rebuilt from the blobs, which takes a while"
        yield Check("broker", "warning", found, "set appendonly yes, appendfsync always")
    yield _clock("broker", broker_info.clock_skew_seconds)


def _blobs(settings: JobsSettings) -> Iterator[Check]:
    url = settings.blob_url or (settings.data_dir.resolve() / "blobs").as_uri()
    blobs = open_object_store(url, settings.blob_public_endpoint)
    blobs.check()
    key, begin = f"doctor/{uuid4()}", time.perf_counter()
    try:
        found = _try_out(blobs, key)
    finally:
        blobs.delete(key)
    milliseconds = 1000 * (time.perf_counter() - begin)
    advice = "use a store with create-only writes (If-None-Match): without them two results could win"
    yield Check(
        "blobs", "wrong" if found else "ok", found or f"{url}: written, read, deleted in {milliseconds:.0f} ms", advice
    )
    if (info := _written_at(blobs)) is not None:
        yield _clock("blobs", info)


def _try_out(blobs: ObjectStore, key: str) -> str:
    """What is wrong with the store, if anything."""
    if not blobs.create(key, b"first") or blobs.create(key, b"second"):
        return "a second create-only write of one key was not refused"
    if blobs.read(key) != b"first":
        return "it gave other bytes than it took"
    return ""


def _written_at(blobs: ObjectStore) -> float | None:
    """How far the store's clock is ahead of ours, in seconds."""
    key = f"doctor/{uuid4()}"
    try:
        blobs.write(key, b"clock")
        info = blobs.info(key)
        return None if info is None else info.last_modified.timestamp() - time.time()
    finally:
        blobs.delete(key)


def _clock(part: str, skew_seconds: float) -> Check:
    if abs(skew_seconds) <= LARGEST_SKEW_SECONDS:
        return Check("clock", "ok", f"within {LARGEST_SKEW_SECONDS:.0f} s of the {part}'s")
    found = f"{abs(skew_seconds):.0f} s {'behind' if skew_seconds > 0 else 'ahead of'} the {part}'s"
    return Check("clock", "wrong", found, "synchronise the clocks, with NTP for one")


def _disk(settings: JobsSettings) -> Iterator[Check]:
    folder = settings.data_dir.resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    advice = f"have {LEAST_FREE_BYTES // GIB} GiB free, or set LOBEWISE_DATA_DIR to a larger disk"
    yield Check(
        "disk", "ok" if free >= LEAST_FREE_BYTES else "warning", f"{free / GIB:.1f} GiB free in {existing}", advice
    )


def _weights(settings: JobsSettings) -> Iterator[Check]:
    if find_spec("torch") is None:
        yield Check("weights", "ok", "not needed here: this is no worker (torch is not installed)")
        return
    from cli.models import look_at

    for row in look_at(settings.weights_dir):
        own = settings.weights_dir is not None and row.sha256 != "" and not row.is_ok
        verdict: Verdict = "ok" if row.is_ok else "warning" if own else "wrong"
        advice = "install the package anew, or train and list your own in SHA256SUMS"
        yield Check("weights", verdict, f"{row.name} {row.version}: {row.verdict}", advice)


def _device(settings: JobsSettings) -> Iterator[Check]:
    if find_spec("torch") is None:
        return
    from pipeline.networks.device import choose_device

    try:
        device = choose_device(settings.device)
    except ValueError as error:
        yield Check("device", "wrong", str(error), "set LOBEWISE_DEVICE to auto, or mend the driver")
        return
    slow = device.type == "cpu"
    found = f"{device}" + (": no GPU is used; a scan takes tens of seconds" if slow else "")
    yield Check("device", "ok", found)


def _traces(_settings: JobsSettings) -> Iterator[Check]:
    """Nothing depends on a collector, so that none is no fault."""
    try:
        is_taken = collector_takes()
    except ImportError:
        yield Check("traces", "warning", "OTEL_* variables ask for them", "pip install 'lobewise[tracing]'")
        return
    if is_taken is not None:
        found = "the collector takes them" if is_taken else "the collector does not take them"
        advice = "see that OTEL_EXPORTER_OTLP_ENDPOINT speaks OTLP over HTTP and can be reached from here"
        yield Check("traces", "ok" if is_taken else "warning", found, advice)
