"""Runs a campaign: clients at work, faults one after the other, then peace, and a last look at everything."""

import hashlib
import json
import logging
import math
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, Literal

from tests.chaos import faults
from tests.chaos.checker import FINAL, LOST_WORKERS, Case, Violation, cases_of, check
from tests.chaos.clients import Caller, Clients, Job
from tests.chaos.cluster import Cluster
from tests.chaos.history import Event, History, read_history
from tests.chaos.proxy import FailingProxy
from tests.support.processes import answers, until
from tests.support.seaweed import seaweed

log = logging.getLogger("chaos")

Timing = Literal["fast", "shipped"]

#: So that thousands of jobs fit into minutes. Everything else is as shipped.
FAST: Final = {
    "LOBEWISE_LEASE_SECONDS": "2",
    "LOBEWISE_HEARTBEAT_SECONDS": "0.5",
    "LOBEWISE_REAP_SECONDS": "1",
    "LOBEWISE_RETRY_SECONDS": "0.3",
    "LOBEWISE_CANCEL_GRACE_SECONDS": "1",
    "LOBEWISE_IN_FLIGHT_SECONDS": "4",
    "LOBEWISE_DEAF_SECONDS": "3",
}

#: A campaign kills more often than a scan ends workers: an innocent one must not be taken for poison.
COMMON: Final = {"LOBEWISE_MAX_ATTEMPTS": "6"}

#: Address space of a worker (RLIMIT_AS).
MEMORY_BYTES: Final = 4 << 30
DISK_MIB: Final = 256

#: Within which all must be finished once nothing happens any more.
PEACE_SECONDS: Final = 180.0


@dataclass(frozen=True)
class Plan:
    """What a campaign does; the same seed draws the same scans and faults, though not the same moments.

    Attributes:
        jobs: scans that are posted.
        kills: `kill -9` among the faults.
        others: other faults.
        pause_seconds: between two faults, on average.
    """

    seed: int
    jobs: int
    kills: int
    others: int
    store: Literal["folder", "s3"] = "folder"
    timing: Timing = "fast"
    pause_seconds: float = 0.7
    gateways: int = 2
    workers: int = 2


@dataclass
class Outcome:
    """What a campaign showed.

    Attributes:
        heal_seconds: of each fault: from when it was healed until a worker began a scan.
        restarted: scans that were begun more than once.
    """

    plan: Plan
    violations: list[Violation]
    seconds: float
    accepted: int
    ended: dict[str, int]
    faults: dict[str, int]
    heal_seconds: list[float] = field(repr=False)
    restarted: int
    given_up_innocent: int
    peace_seconds: float

    @property
    def is_kept(self) -> bool:
        return not self.violations

    def lines(self) -> Iterator[str]:
        """The outcome for people."""
        plan = self.plan
        yield f"seed {plan.seed}, {plan.store}, {plan.timing} timing: {self.accepted} scans in {self.seconds:.0f} s"
        yield "faults: " + ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items()))
        yield "ended: " + ", ".join(f"{count} {status}" for status, count in sorted(self.ended.items()))
        yield f"begun more than once: {self.restarted}; given up after too many lost workers: {self.given_up_innocent}"
        yield (
            f"working again after a fault: median {percentile(self.heal_seconds, 50):.1f} s, "
            f"p95 {percentile(self.heal_seconds, 95):.1f} s, worst {percentile(self.heal_seconds, 100):.1f} s"
        )
        yield f"all finished {self.peace_seconds:.1f} s after the last fault"
        counts = Counter(violation.rule for violation in self.violations)
        yield f"promise: {'kept' if self.is_kept else 'BROKEN ' + str(dict(counts))}"
        for violation in self.violations[:20]:
            yield f"  {violation.rule}: {violation.name}: {violation.detail}"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def run(plan: Plan, folder: Path) -> Outcome:
    """Do it; logs, history and blobs stay in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    history = History(folder / "history.jsonl")
    with staged(plan, folder, history) as scene:
        clients = Clients(scene.cluster.gateway_ports, history, plan.seed, plan.jobs)
        until(lambda: answers(f"{scene.cluster.address}/readyz"), 90)
        clients.start()
        _do_harm(plan, scene, clients)
        clients.allowed = plan.jobs
        healed = time.monotonic()
        until(lambda: clients.is_done, PEACE_SECONDS, 0.2)
        peace_seconds = time.monotonic() - healed
        clients.stop()
        _look_at_all(scene.cluster, clients, history)
        _look_at_blobs(scene.cluster, clients, history)
    return _outcome(plan, list(read_history(folder / "history.jsonl")), time.monotonic() - begun, peace_seconds)


@contextmanager
def staged(plan: Plan, folder: Path, history: History) -> Iterator[faults.Scene]:
    """A running service, and what the faults need."""
    with ExitStack() as stack:
        settings = {**COMMON, **(FAST if plan.timing == "fast" else {})}
        rng = Random(plan.seed)
        proxy, clock, ballast = None, _fake_clock(folder, settings), None
        if plan.store == "s3":
            proxy = stack.enter_context(_bucket(folder, settings, rng))
        else:
            ballast = stack.enter_context(_small_disk(folder, settings))
        cluster = Cluster.made(folder, settings, plan.gateways, plan.workers)
        for worker in cluster.workers:
            worker.memory_bytes = MEMORY_BYTES
        stack.callback(cluster.stop)
        cluster.start()
        lease_seconds = float(settings.get("LOBEWISE_LEASE_SECONDS", 20))
        yield faults.Scene(cluster, history, rng, lease_seconds, ballast, proxy, clock)


def _do_harm(plan: Plan, scene: faults.Scene, clients: Clients) -> None:
    """The faults in a drawn order, spread over the jobs."""
    others = faults.fitting(scene)
    names = [*faults.KILLS] * math.ceil(plan.kills / len(faults.KILLS))
    todo = names[: plan.kills] + [[*others][n % len(others)] for n in range(plan.others)]
    scene.rng.shuffle(todo)
    for number, name in enumerate(todo):
        # Side by side with the work: a fault harms nobody when nobody works.
        clients.allowed = plan.jobs * (number + 1) / len(todo)
        enough = plan.jobs * (number - 1) / len(todo)
        until(partial(clients.has_finished, enough), 60)
        time.sleep(scene.rng.expovariate(1 / plan.pause_seconds))
        done = {**faults.KILLS, **others}[name](scene)
        scene.history.note("heal", fault=name, done=done)
        log.info("%s: %s (%d of %d scans finished)", name, done, clients.finished, plan.jobs)


def _look_at_all(cluster: Cluster, clients: Clients, history: History) -> None:
    """Every accepted scan once more, through every gateway."""
    for port in cluster.gateway_ports:
        with Caller([port], Random(0)) as client:
            for job in [*clients.settled, *clients.open.values()]:
                if not job.is_purged:
                    clients.read(client, job)
    history.note("heal", fault="end", done="")


def _look_at_blobs(cluster: Cluster, clients: Clients, history: History) -> None:
    """The storage itself, without the service: is everything there that the manifests name?"""
    from jobs.store.job_store import JobStore
    from jobs.store.object_store import open_object_store

    store = JobStore(open_object_store(cluster.settings["LOBEWISE_BLOB_URL"], None))
    for job in clients.settled:
        if not job.is_purged:
            outcome, found = _examine(store, job)
            history.note("blobs", job.order.name, outcome=outcome, faults=found)


def _examine(store: Any, job: Job) -> tuple[str | None, list[str]]:
    manifest = store.manifest(job.id)
    if manifest is None:
        return None, ["it has no manifest"]
    found = []
    for mask in manifest.masks:
        data = store.blobs.read(mask.key)
        if data is None or hashlib.sha256(data).hexdigest() != mask.sha256:
            found.append(f"mask {mask.name} is not the one that the manifest names")
    if manifest.outcome == "succeeded" and store.blobs.read(manifest.report_key) is None:
        found.append("its report is missing")
    if manifest.outcome == "succeeded" and len(manifest.masks) != 4:
        found.append(f"it has {len(manifest.masks)} masks")
    return manifest.outcome, found


def _outcome(plan: Plan, history: list[Event], seconds: float, peace_seconds: float) -> Outcome:
    cases = cases_of(history)
    accepted = [case for case in cases.values() if case.is_accepted]
    return Outcome(
        plan=plan,
        violations=check(history),
        seconds=seconds,
        accepted=len(accepted),
        ended=dict(Counter(_end_of(case) for case in accepted)),
        faults=dict(Counter(e.data["fault"] for e in history if e.kind == "heal" and e.data["fault"] != "end")),
        heal_seconds=heal_seconds(history),
        restarted=sum(len(case.starts) > 1 for case in accepted),
        given_up_innocent=sum(
            case.last.get("problem") in LOST_WORKERS and case.order["deed"] != "die" for case in accepted
        ),
        peace_seconds=peace_seconds,
    )


def _end_of(case: Case) -> str:
    if case.is_purged:
        return "deleted"
    status = case.last.get("status", "never seen")
    return status if status in FINAL else f"still {status}"


def heal_seconds(history: list[Event]) -> list[float]:
    """From every heal to the next start of a scan, by whichever worker."""
    starts = [event.at for event in history if event.kind == "start"]
    waits = []
    for event in history:
        if event.kind == "heal":
            later = [at - event.at for at in starts if at > event.at]
            waits += [min(later)] if later else []
    return waits


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed."""
    if not values:
        return math.nan
    return sorted(values)[max(math.ceil(percent / 100 * len(values)) - 1, 0)]


@contextmanager
def _small_disk(folder: Path, settings: dict[str, str]) -> Iterator[Path | None]:
    """The blobs on a disk of their own, which may be filled; in the folder where nothing may be mounted."""
    blobs = folder / "blobs"
    blobs.mkdir(exist_ok=True)
    settings["LOBEWISE_BLOB_URL"] = blobs.resolve().as_uri()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(blobs)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        log.warning("no disk may be mounted here: none will be full")
        yield None
        return
    try:
        yield blobs / "ballast"
    finally:
        subprocess.run(["umount", "-l", str(blobs)], check=True)


@contextmanager
def _bucket(folder: Path, settings: dict[str, str], rng: Random) -> Iterator[FailingProxy]:
    """A real S3 server behind the proxy."""
    weed = folder / "weed"
    weed.mkdir(exist_ok=True)
    with seaweed(weed) as server:
        server.make_bucket("lobewise")
        proxy = FailingProxy(int(server.endpoint.rpartition(":")[2]), rng)
        settings |= server.environment
        settings |= {"LOBEWISE_BLOB_URL": "s3://lobewise/chaos", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
        os.environ.update(server.environment)  # for our own last look
        yield proxy
        proxy.close()


def _fake_clock(folder: Path, settings: dict[str, str]) -> Path | None:
    """Let gateways and workers have a wall clock that may jump."""
    library, clock = folder / "clock.so", folder / "clock"
    source = Path(__file__).with_name("clock.c")
    build = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    if shutil.which("cc") is None or subprocess.run(build, check=False).returncode:
        log.warning("no C compiler: the clock will not jump")
        return None
    faults.set_clock(clock, 0)
    settings |= {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(clock)}
    return clock
