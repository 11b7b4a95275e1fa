"""`lobewise doctor`: whether a process with these settings could do its work here, part by part."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import redis
import typer
from rich.markup import escape

from cli.output import out
from jobs.access.doors import Doors
from jobs.access.keys import KeyRing
from jobs.bootstrap import blobs_of, connect
from jobs.errors import JobsError, SettingsError
from jobs.live.connection import broker_errors
from jobs.outbound import doubts
from jobs.private_files import keep_private, open_to_others
from jobs.settings import GIB, AccessSettings, ApiSettings, JobsSettings, misspelt, read_settings
from jobs.store.object_store import encryption_of, open_object_store
from jobs.tracing import collector_takes

Result = Literal["ok", "warning", "wrong"]

#: A worker unpacks a scan and writes its masks; a folder of blobs fills up.
LEAST_FREE_BYTES: Final = 5 * GIB

#: Signed addresses expire by the clock, and a bucket refuses requests of another time.
LARGEST_SKEW_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and what to do if it is not well."""

    part: str
    result: Result
    found: str
    advice: str = ""


def examine() -> Iterator[Check]:
    """Each part in turn; one that is broken does not hide the next."""
    try:
        settings = read_settings(JobsSettings)
        read_settings(ApiSettings)
        read_settings(AccessSettings)
    except SettingsError as error:
        yield Check("settings", "wrong", str(error), "set it as the sentence says; docs/configuration.md has them all")
        return
    keep_private(settings)
    wrong = misspelt((JobsSettings, ApiSettings))
    yield Check("settings", "warning" if wrong else "ok", " ".join(wrong) or "as they should be")
    parts: list[Callable[[JobsSettings], Iterator[Check]]] = [_broker, _blobs, _files, _access, _disk]
    parts += [_weights, _device, _sandbox]
    for part in [*parts, _outbound, _traces]:
        try:
            yield from part(settings)
        except JobsError as error:
            yield Check(part.__name__.strip("_"), "wrong", str(error), "see that it runs and can be reached from here")


def show(checks: list[Check], *, as_json: bool) -> None:
    """One line a check, for people; for programs JSON."""
    if as_json:
        # Programs know a result as `verdict`: what they read keeps its name.
        rows = [{"part": c.part, "verdict": c.result, "found": c.found, "advice": c.advice} for c in checks]
        typer.echo(json.dumps(rows, indent=2))
        return
    colours = {"ok": "green", "warning": "yellow", "wrong": "red"}
    for check in checks:
        line = f"[{colours[check.result]}]{check.result:8}[/]{check.part:10}{escape(check.found)}"
        advice = f" [dim]({escape(check.advice)})[/]" if check.advice and check.result != "ok" else ""
        out.print(line + advice, highlight=False, soft_wrap=True)


def _broker(settings: JobsSettings) -> Iterator[Check]:
    jobs = connect(settings)
    timeout = settings.broker_timeout_seconds
    try:
        # Of the connected settings: they have the address of the embedded server, where none was given.
        broker = redis.Redis.from_url(
            jobs.settings.redis_url or "", decode_responses=True, socket_timeout=timeout, socket_connect_timeout=timeout
        )
        with broker_errors(), broker:
            info = broker.info()
            seconds, microseconds = broker.time()
        skew_seconds = seconds + microseconds / 1e6 - time.time()
        workers = jobs.service.readiness().workers
    finally:
        jobs.close()
    kind = "" if settings.redis_url else "embedded, "
    # Valkey gives a version of Redis, too: the one that it is compatible with.
    server = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    yield Check("broker", "ok", f"{kind}{server}, {workers} workers ready")
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        found = f"maxmemory-policy is {policy}: a full server would forget jobs"
        yield Check("broker", "wrong", found, "set maxmemory-policy noeviction")
    if str(info.get("aof_enabled", 0)) != "1":
        found = "appendonly is off: after a crash the queue is rebuilt from the blobs, which takes a while"
        yield Check("broker", "warning", found, "set appendonly yes, appendfsync always")
    yield _clock("broker", skew_seconds)


def _blobs(settings: JobsSettings) -> Iterator[Check]:
    url = settings.blob_url or (settings.data_dir.resolve() / "blobs").as_uri()
    blobs = open_object_store(url, settings.blob_public_endpoint, encryption_of(settings))
    blobs.check()
    key, begin = f"doctor/{uuid4()}", time.perf_counter()
    found, skew_seconds = "", None
    result: Result = "wrong"
    try:
        if not blobs.create(key, b"first") or blobs.create(key, b"second"):
            found = "a second create-only write of one key was not refused"
        elif blobs.read(key) != b"first":
            found = "it gave other bytes than it took"
        if (info := blobs.info(key)) is not None:
            skew_seconds = info.last_modified.timestamp() - time.time()
    finally:
        blobs.delete(key)
    if not found:
        milliseconds = 1000 * (time.perf_counter() - begin)
        found, result = f"{url}: written, read, deleted in {milliseconds:.0f} ms", "ok"
    advice = "use a store with create-only writes (If-None-Match): without them two results could win"
    yield Check("blobs", result, found, advice)
    if skew_seconds is not None:
        yield _clock("blobs", skew_seconds)


def _clock(part: str, skew_seconds: float) -> Check:
    if abs(skew_seconds) <= LARGEST_SKEW_SECONDS:
        return Check("clock", "ok", f"within {LARGEST_SKEW_SECONDS:.0f} s of the {part}'s")
    found = f"{abs(skew_seconds):.0f} s {'behind' if skew_seconds > 0 else 'ahead of'} the {part}'s"
    return Check("clock", "wrong", found, "synchronise the clocks, with NTP for one")


def _files(settings: JobsSettings) -> Iterator[Check]:
    folders = [settings.data_dir.resolve(), settings.data_dir.resolve() / "blobs"]
    if (settings.blob_url or "").startswith("file:"):
        folders.append(Path(unquote(urlsplit(settings.blob_url or "").path)))
    found = sorted({path for folder in folders for path in open_to_others(folder, settings.umask)})
    if not found:
        yield Check("files", "ok", "others on this machine cannot read what is stored")
        return
    which = ", ".join(map(str, found[:3])) + (", ..." if len(found) > 3 else "")
    # Earlier versions left it to the umask that they were started with. Nobody changes them unasked: a folder may be
    # shared on purpose.
    advice = f"chmod -R go= {found[0]}, or set LOBEWISE_UMASK if others are to"
    yield Check("files", "warning", f"others on this machine may read or enter {which}", advice)


def _access(settings: JobsSettings) -> Iterator[Check]:
    access, host = read_settings(AccessSettings), read_settings(ApiSettings).host
    ring = KeyRing(blobs_of(settings))
    ring.refresh()
    doors = Doors(access, ring)
    states = Counter(state.status() for state in ring.states)
    counted = ", ".join(f"{count} {status}" for status, count in sorted(states.items())) or "no keys"
    issuer = f"; tokens of {access.oidc_issuer}" if access.oidc_issuer else ""
    try:
        doors.require_guarded(host)
    except SettingsError as error:
        yield Check("access", "wrong", str(error), "docs/access.md")
        return
    is_locked_out = not doors.are_open and not states["valid"] and not (access.oidc_issuer or access.first_key)
    advice = "lobewise keys create" if is_locked_out else "set LOBEWISE_ACCESS=required unless the network is closed"
    result: Result = "warning" if is_locked_out or access.access == "open" else "ok"
    yield Check("access", result, f"{doors.words()}; {counted}{issuer}", advice)


def _disk(settings: JobsSettings) -> Iterator[Check]:
    kept = settings.retention_seconds
    found = "scans and results are kept until somebody deletes them"
    if kept is not None:
        found = f"finished jobs are deleted after {kept / 86400:.1f} days"
    advice = "set LOBEWISE_RETENTION_SECONDS, 2592000 for 30 days"
    yield Check("retention", "warning" if kept is None else "ok", found, advice)
    folder = settings.data_dir.resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    advice = f"have {LEAST_FREE_BYTES // GIB} GiB free, or set LOBEWISE_DATA_DIR to a larger disk"
    result: Result = "ok" if free >= LEAST_FREE_BYTES else "warning"
    yield Check("disk", result, f"{free / GIB:.1f} GiB free in {existing}", advice)


def _weights(settings: JobsSettings) -> Iterator[Check]:
    if find_spec("torch") is None:
        yield Check("weights", "ok", "not needed here: this is no worker (torch is not installed)")
        return
    from cli.models import look_at

    for row in look_at(settings.weights_dir):
        # Weights of one's own are scored with though nobody lists them; shipped ones that changed are damaged.
        own = settings.weights_dir is not None and row.sha256 != "" and not row.is_ok
        result: Result = "ok" if row.is_ok else "warning" if own else "wrong"
        advice = "install the package anew, or train and list your own in SHA256SUMS"
        yield Check("weights", result, f"{row.name} {row.version}: {row.result}", advice)


def _device(settings: JobsSettings) -> Iterator[Check]:
    if find_spec("torch") is None:
        return
    from pipeline.networks.device import choose_device

    try:
        device = choose_device(settings.device)
    except ValueError as error:
        yield Check("device", "wrong", str(error), "set LOBEWISE_DEVICE to auto, or mend the driver")
        return
    slow = ": no GPU is used; a scan takes tens of seconds" if device.type == "cpu" else ""
    yield Check("device", "ok", f"{device}{slow}")


def _sandbox(settings: JobsSettings) -> Iterator[Check]:
    if find_spec("torch") is None:
        return
    from pipeline.io.confinement import Protection
    from pipeline.io.sandbox import protections_here

    missing = sorted(set(Protection) - protections_here())
    result: Result = "ok" if not missing else "wrong" if settings.sandbox == "required" else "warning"
    found = f"the reader reaches: {', '.join(missing)}" if missing else "the reader reaches nothing but its scan"
    yield Check("sandbox", result, found, "have Linux 5.13 or newer with Landlock, and libseccomp")


def _outbound(settings: JobsSettings) -> Iterator[Check]:
    allowed = (*settings.source_allowlist, *settings.callback_allowlist)
    if not allowed:
        return
    refused = doubts(allowed, settings.outbound_networks)
    found = " ".join(refused) or f"{len(allowed)} prefixes of addresses are allowed"
    advice = "list the network there, or take the prefix off its list"
    yield Check("outbound", "warning" if refused else "ok", found, advice)


def _traces(_settings: JobsSettings) -> Iterator[Check]:
    # Nothing depends on a collector, so that none is no fault.
    try:
        is_taken = collector_takes()
    except ImportError:
        yield Check("traces", "warning", "OTEL_* variables ask for them", "pip install 'lobewise[tracing]'")
        return
    if is_taken is not None:
        found = "the collector takes them" if is_taken else "the collector does not take them"
        advice = "see that OTEL_EXPORTER_OTLP_ENDPOINT speaks OTLP over HTTP and can be reached from here"
        yield Check("traces", "ok" if is_taken else "warning", found, advice)
