"""Every order of steps that hypothesis can think of, on the real service: its blobs, its Redis, its Celery messages.

Clients, workers, heartbeats, reapers and sweepers stop before each question to a store (`interleaving`) and go on,
fail or die as hypothesis says. After each rule the promises of `docs/state-machine.md` are looked at; at the end all
that still runs is killed or finished, honest workers come, and every accepted job must be final.

`LOBEWISE_TEST_STATES` is the number of examples; `make test-states` tries many.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs import embedded_redis, states
from jobs.attempts import Lease
from jobs.backends import Backends
from jobs.bootstrap import Connection, assemble
from jobs.errors import IdempotencyInFlightError, JobNotFoundError, JobPurgedError, UnavailableError, WrongStateError
from jobs.live.connection import ViewFreshness
from jobs.live.feed import FeedLimits
from jobs.live.keys import PREFIX, Keys
from jobs.live.pagination import Query
from jobs.live.workers import WorkerStats
from jobs.models import (
    InputInfo,
    JobRecord,
    JobState,
    JobStatus,
    LobeScores,
    LungVolumes,
    MaskName,
    Priority,
    Provenance,
    Report,
    SeverityScores,
)
from jobs.queue import queue_name
from jobs.recovery import finalize
from jobs.recovery.reconciler import Reconciler
from jobs.settings import JobsSettings
from jobs.states import new_id
from jobs.store.job_store import JobStore
from jobs.store.keys import job_key
from jobs.store.object_store import ObjectStore
from jobs.worker_api import NO_DICOM
from pipeline.errors import LungsNotFoundError
from tests.support.interleaving import Actor, GatedLive, GatedObjectStore, GatedQueue, this_actor
from worker import task

EXAMPLES = int(os.environ.get("LOBEWISE_TEST_STATES", "50"))
STEPS = 60
MAX_ATTEMPTS = 3
DIGEST = "of software and weights"
LOBES = ("left_upper", "left_lower", "right_upper", "right_middle", "right_lower")
EXPECTED = (JobNotFoundError, JobPurgedError, WrongStateError, IdempotencyInFlightError)
LEGAL = {
    JobStatus.QUEUED: set(JobStatus),
    JobStatus.RUNNING: set(JobStatus),
    **{status: {status} for status in JobStatus if status.is_final},
}


class Analysis:
    """Does as it is told; its masks hold the worker's name."""

    def __init__(self, plan: str, worker: str) -> None:
        self.plan, self.worker = plan, worker

    def read(self, path: Path) -> SimpleNamespace:
        return SimpleNamespace(content=path.read_bytes(), identity=None)

    def quantify(self, _: SimpleNamespace, progress: Callable[[str, float], None], **_more: bool) -> str:
        progress("lungs", 0.5)
        if self.plan == "unscorable":
            raise LungsNotFoundError("There are no lungs.", evidence={})
        if self.plan == "fault":
            raise RuntimeError("a fault of ours")
        return self.worker


def write_masks(worker: str, folder: Path) -> dict[MaskName, Path]:
    paths = {name: folder / f"{name}.nii.gz" for name in MaskName}
    for name, path in paths.items():
        path.write_text(f"{name} by {worker}")
    return paths


def report_of(worker: str, *, job_id: str, input_sha256: str, seconds: dict[str, float]) -> Report:
    lobe = {"volume_ml": 1.0, "percent_opacity": 1.0, "percent_high_opacity": 0.0}
    scores = {"severity_score": 1, "high_opacity_score": 0}
    return Report(
        job_id=job_id,
        severity=SeverityScores(
            percent_opacity=12.5, percent_high_opacity=0, lung_severity_score=5, lung_high_opacity_score=0
        ),
        lungs=LungVolumes(volume_ml=1, opacity_ml=1, high_opacity_ml=0),
        lobes=[LobeScores.model_validate({"lobe": n, "label": i, **lobe, **scores}) for i, n in enumerate(LOBES, 1)],
        landmarks=[],
        quality=[],
        provenance=Provenance(input_sha256=input_sha256, software=worker, models=[], device="cpu", seconds=seconds),
    )


@dataclass
class Seen:
    """What a client and the disk have shown of a job so far."""

    id: str
    is_late: bool = False
    """Its deadline is over: no worker may begin it."""
    accepted: bool = False
    purged: bool = False
    may_be_shown: bool = False
    """Redis did not answer, or was wiped, after it was deleted: until the next comparison with the blobs."""
    state: JobState | None = None
    documents: dict[str, bytes] = field(default_factory=dict)
    """Create-only ones, by name."""


@dataclass
class Running:
    """An actor, and what it works on."""

    actor: Actor
    kind: str
    job: Seen | None = None
    message: str | None = None
    owner: "Running | None" = None
    lease: Lease | None = None
    result: object = None


class World:
    """What examples share: one server, and the clients to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.embedded = embedded_redis.join(folder / "valkey")
        self.server = redis.Redis.from_url(self.embedded.url, decode_responses=True)
        self.server.config_set("appendonly", "no")  # only the test wipes it
        self.settings = JobsSettings(
            data_dir=folder, redis_url=self.embedded.url, lease_seconds=3600, max_attempts=MAX_ATTEMPTS,
            retention_seconds=24 * 3600, reap_seconds=600, retry_seconds=600, broker_timeout_seconds=10,
            reuse_results=True,
        )  # fmt: skip
        self.live = GatedLive(self.embedded.url, 10, ViewFreshness(0.0), FeedLimits(events=1000, seconds=3600))
        self.queue = GatedQueue(self.settings, self.live)
        self.numbers = itertools.count()

    def jobs(self) -> Connection:
        """An empty service."""
        self.server.flushall()
        self.live.workers.announce("ready", 3600, (), WorkerStats(peak_memory_bytes=1, result_digest=DIGEST))
        blobs = GatedObjectStore(self.folder / f"example-{next(self.numbers)}")
        return assemble(Backends(self.settings, JobStore(blobs), self.live, self.queue))

    def close(self) -> None:
        self.queue.close()
        self.live.close()
        self.server.close()
        self.embedded.close()


WORLD: list[World] = []
COUNTS = {"examples": 0, "rules": 0, "steps": 0, "kills": 0, "faults": 0, "wipes": 0, "reused": 0}


class JobMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = WORLD[0]
        self.server = self.world.server
        service = self.world.jobs()
        self.tenants = service.tenants
        self.use("default")
        self.seen: list[Seen] = []
        self.running: list[Running] = []
        self.names = itertools.count(1)
        self.mercy = True
        COUNTS["examples"] += 1

    def use(self, tenant: str) -> None:
        """Do all that follows as this tenant's clients and workers."""
        self.jobs = self.tenants.of(tenant)
        self.parts = self.jobs.backends
        self.root = self.parts.store.blobs.folder
        self.prefix = Keys.of(tenant).prefix
        self.queues = [queue_name(priority, tenant) for priority in Priority]

    # Actors

    def start(self, kind: str, call: Callable[[], object], **about: Any) -> Running:
        running = Running(None, kind, **about)  # type: ignore[arg-type]

        def act() -> None:
            running.result = call()

        running.actor = Actor(f"{kind}-{next(self.names)}", act)
        running.actor.running = running  # type: ignore[attr-defined]
        running.actor.machine = self  # type: ignore[attr-defined]
        self.running.append(running)
        return running

    def advance(self, running: Running, steps: int, order: str = "go") -> None:
        for _ in range(steps):
            running.actor.go()
        if order != "go":
            running.actor.go(order)  # type: ignore[arg-type]
        COUNTS["steps"] += steps
        COUNTS["kills"] += order == "kill"
        COUNTS["faults"] += order.startswith("fail")
        self.tidy()

    def tidy(self) -> None:
        """Bury the dead with all their threads, and look at what others came back with."""
        for running in self.running:
            if running.owner is not None and running.owner.actor.was_killed:
                running.actor.was_killed = True
            if running.actor.was_killed:
                running.actor.go("kill")
        for running in [r for r in self.running if r.actor.is_done]:
            self.running.remove(running)
            self.came_back(running)

    def came_back(self, running: Running) -> None:
        actor = running.actor
        if actor.was_killed:
            return
        if running.message is not None:
            self.server.hdel("unacked", running.message)
            self.server.zrem("unacked_index", running.message)
        if actor.error is not None:
            if isinstance(actor.error, UnavailableError) and actor.was_disturbed:
                return
            if isinstance(actor.error, EXPECTED):
                return
            raise actor.error
        if running.kind == "accept" and running.job is not None:
            running.job.accepted = True
        if running.kind == "purge" and running.job is not None:
            running.job.purged = True
            running.job.may_be_shown = actor.was_disturbed
        if running.kind == "cancel" and running.job is not None and isinstance(running.result, JobState):
            manifest = self.document(running.job, "manifest.json")
            if running.result.status.is_final and manifest is not None:
                assert json.loads(manifest)["outcome"] == running.result.status

    # Rules: clients

    @initialize(mercy=st.booleans(), reconciled=st.booleans(), tenant=st.sampled_from(["default", "left"]))
    def begin(self, mercy: bool, reconciled: bool, tenant: str = "default") -> None:
        self.mercy = mercy
        self.use(tenant)
        if reconciled:
            self.jobs.reconciler.rebuild()

    steps = st.one_of(st.just(99), st.integers(0, 25))
    orders = st.sampled_from(["go", "go", "kill", "fail-before", "fail-after"])

    @precondition(lambda self: len(self.seen) < 3)
    @rule(
        priority=st.sampled_from(Priority),
        steps=steps,
        order=orders,
        is_late=st.sampled_from([False, False, True]),
        is_equal=st.booleans(),
    )
    def accept(self, priority: Priority, steps: int, order: str, is_late: bool = False, is_equal: bool = False) -> None:
        job = Seen(self.next_id(), is_late=is_late)
        self.seen.append(job)
        scan = b"the same scan" if is_equal else b"the scan of " + job.id.encode()
        record = JobRecord(
            id=job.id,
            created_at=states.now(),
            priority=priority,
            not_after=states.now() if is_late else None,
            input=InputInfo(size_bytes=len(scan), sha256=hashlib.sha256(scan).hexdigest()),
        )

        def call() -> None:
            self.parts.store.blobs.write(job_key(job.id, "input"), scan)
            self.jobs.service.accept(record)

        self.advance(self.start("accept", call, job=job), steps, order)

    @precondition(lambda self: self.seen)
    @rule(index=st.integers(0, 9), steps=steps, order=orders)
    def cancel(self, index: int, steps: int, order: str) -> None:
        job = self.pick(index)
        self.advance(self.start("cancel", lambda: self.jobs.service.cancel(job.id), job=job), steps, order)

    @precondition(lambda self: self.seen)
    @rule(index=st.integers(0, 9), steps=steps, order=orders)
    def purge(self, index: int, steps: int, order: str) -> None:
        job = self.pick(index)
        self.advance(self.start("purge", lambda: self.jobs.service.purge(job.id), job=job), steps, order)

    # Rules: workers

    @precondition(lambda self: self.seen)
    @rule(plan=st.sampled_from(["succeed", "succeed", "succeed", "fault", "unscorable"]), steps=steps, order=orders)
    def deliver(self, plan: str, steps: int, order: str) -> None:
        message = self.take_message()
        if message is not None:
            self.advance(self.work(json.loads(message)["headers"]["id"], plan, message), steps, order)

    @precondition(lambda self: self.seen)
    @rule(index=st.integers(0, 9), plan=st.sampled_from(["succeed", "fault"]), steps=steps, order=orders)
    def deliver_twice(self, index: int, plan: str, steps: int, order: str) -> None:
        """A message that came before, as when a broker gives it again."""
        self.advance(self.work(self.pick(index).id, plan, None), steps, order)

    @precondition(lambda self: any(r.lease for r in self.running))
    @rule(index=st.integers(0, 9), steps=steps, order=orders, overdue=st.booleans())
    def beat(self, index: int, steps: int, order: str, overdue: bool) -> None:
        worker = self.pick_of([r for r in self.running if r.lease], index)
        lease = worker.lease
        assert lease is not None

        def call() -> None:
            lease._stop_reason = lease._stop_reason or lease._find_stop_reason()
            if lease._stop_reason and overdue and lease.on_overdue:
                lease.on_overdue(lease)

        self.advance(self.start("beat", call, owner=worker, job=worker.job), steps, order)

    # Rules: the house

    @rule(is_first=st.booleans(), steps=steps, order=orders)
    def reconcile(self, is_first: bool, steps: int, order: str) -> None:
        self.server.delete(PREFIX + "reaper")  # the leader before fell silent
        reconciler = Reconciler(self.parts, self.jobs.cleanup)
        if not is_first:
            reconciler._rebuilt_at = reconciler._cleaned_up_at = 1e12
        self.advance(self.start("reap", reconciler.reconcile), steps, order)

    @rule(steps=steps, order=orders)
    def rebuild(self, steps: int, order: str) -> None:
        self.advance(self.start("rebuild", self.jobs.reconciler.rebuild), steps, order)

    @rule(days=st.sampled_from([0, 2]), steps=steps, order=orders)
    def clean_up(self, days: int, steps: int, order: str) -> None:
        now = states.now() + timedelta(days=days)
        self.advance(self.start("sweep", lambda: self.jobs.cleanup.clean_up(now)), steps, order)

    # Rules: others go on, fail, die

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 9), steps=steps, order=orders)
    def go_on(self, index: int, steps: int, order: str) -> None:
        self.advance(self.pick_of(self.running, index), steps, order)

    # Rules: misfortune

    @precondition(lambda self: self.seen)
    @rule(index=st.integers(0, 9))
    def expire_lease(self, index: int) -> None:
        self.server.delete(f"{self.prefix}lease:{self.pick(index).id}")

    @rule()
    def time_passes(self) -> None:
        """Enough for every pause and every patience, not for leases."""
        for key in self.server.scan_iter(f"{self.prefix}job:*"):
            for name in ("since_ms", "published_ms", "retry_ms"):
                if self.server.hexists(key, name):
                    self.server.hset(key, name, 1)
        for tag in self.server.zrange("unacked_index", 0, -1):
            self.server.zadd("unacked_index", {tag: 1})

    @precondition(lambda self: self.seen)
    @rule()
    def lose_messages(self) -> None:
        self.server.delete(*self.queues)

    @rule()
    def deliver_again(self) -> None:
        """What dead workers held comes back to its queue."""
        held = {r.message for r in self.running}
        for tag, raw in self.server.hgetall("unacked").items():
            if tag not in held:
                message, _, queue = json.loads(raw)
                self.server.rpush(queue, json.dumps(message))
                self.server.hdel("unacked", tag)
                self.server.zrem("unacked_index", tag)

    @rule()
    def wipe(self) -> None:
        COUNTS["wipes"] += 1
        self.server.flushall()
        for job in self.seen:
            job.may_be_shown = True

    # What must hold, always

    @invariant()
    def promises(self) -> None:
        COUNTS["rules"] += 1
        for job in self.seen:
            self.documents_never_change(job)
            self.attempts_are_counted(job)
            self.results_are_whole(job)
            self.a_client_sees_legal_steps(job)

    def documents_never_change(self, job: Seen) -> None:
        is_purged = (self.folder(job) / "purged.json").exists()
        for path in self.folder(job).rglob("*.json"):
            name = path.relative_to(self.folder(job)).as_posix()
            if name.endswith("report.json"):
                continue
            if not is_purged:  # there a late word may lie, until it is swept
                assert job.documents.setdefault(name, path.read_bytes()) == path.read_bytes(), name
        if not is_purged and job.accepted:
            missing = [name for name in job.documents if not (self.folder(job) / name).exists()]
            assert not missing
            assert (self.folder(job) / "input").exists(), "an accepted job has its scan"

    def attempts_are_counted(self, job: Seen) -> None:
        if (self.folder(job) / "purged.json").exists():
            return
        numbers = sorted(int(path.parent.name) for path in self.folder(job).glob("attempts/*/claim.json"))
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) <= (0 if job.is_late else MAX_ATTEMPTS)

    def results_are_whole(self, job: Seen) -> None:
        data = self.document(job, "manifest.json")
        if data is None or self.document(job, "purged.json") is not None:
            return
        manifest = json.loads(data)
        if manifest["outcome"] != "succeeded":
            return
        report = Report.model_validate_json((self.root / manifest["report_key"]).read_bytes())
        workers = {report.provenance.software}
        assert report.job_id == job.id
        assert report.provenance.reused_from == manifest.get("reused_from")
        assert {mask["name"] for mask in manifest["masks"]} == set(MaskName)
        for mask in manifest["masks"]:
            content = (self.root / mask["key"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == mask["sha256"]
            workers.add(content.decode().partition(" by ")[2])
        if "reused_from" in manifest:
            assert len(workers) == 1, "all of it is one attempt's work"
            COUNTS["reused"] += 1
            return
        claim = json.loads((self.folder(job) / f"attempts/{manifest['attempt']}/claim.json").read_bytes())
        assert workers == {claim["worker"]}, "all of it is one attempt's work"

    def a_client_sees_legal_steps(self, job: Seen) -> None:
        if not job.accepted:
            return
        try:
            state = self.jobs.service.get(job.id)
        except JobPurgedError:
            assert (self.folder(job) / "purged.json").exists()
            return
        assert not job.purged or job.may_be_shown, f"a deleted job came back as {state.status}"
        if job.state is not None and not job.purged:
            assert state.status in LEGAL[job.state.status], f"{job.state.status} became {state.status}"
            if job.state.status.is_final:
                assert state == job.state
        job.state = state

    # The end

    def teardown(self) -> None:
        try:
            self.settle()
            self.everything_ended()
        finally:
            self.finish_all()

    def finish_all(self) -> None:
        for running in self.running:
            running.actor.was_killed = True
            running.actor.go("kill")
        shutil.rmtree(self.root)

    def settle(self) -> None:
        """All that runs is killed, or comes to its end; then time passes, and honest workers do what there is to do."""
        while self.running:  # one that comes to its end may leave another, to show it later
            if self.mercy:
                self.running[0].actor.finish()
            else:
                self.running[0].actor.go("kill")
            self.tidy()
        for round_ in range(4 * MAX_ATTEMPTS):
            for job in self.seen:
                self.server.delete(f"{self.prefix}lease:{job.id}")
            self.time_passes()
            self.deliver_again()
            self.server.delete(PREFIX + "reaper")
            reconciler = Reconciler(self.parts, self.jobs.cleanup)
            if round_:
                reconciler._rebuilt_at = 1e12
            reconciler.reconcile()
            while message := self.take_message():
                worker = self.work(json.loads(message)["headers"]["id"], "succeed", message)
                worker.actor.finish()
                self.tidy()
            self.promises()

    def everything_ended(self) -> None:
        final = {}
        for job in self.seen:
            data = self.document(job, "job.json")
            if self.document(job, "purged.json") is not None:
                names = [path.name for path in self.folder(job).rglob("*") if path.is_file()]
                assert names == ["purged.json"], names
                with pytest.raises(JobPurgedError):
                    self.jobs.service.get(job.id)
                assert not self.traces(job.id)
                assert not list((self.root / "results").rglob(job.id))
            elif data is not None and data != b'{"void":true}':
                state = self.jobs.service.get(job.id)
                assert state.status.is_final, f"it is still {state.status}"
                assert state == self.parts.store.state(job.id)
                assert not job.is_late or state.reused_from or state.status in (JobStatus.FAILED, JobStatus.CANCELLED)
                final[job.id] = state.status
            else:
                assert not job.accepted
        for wanted in (frozenset[JobStatus](), *(frozenset({status}) for status in JobStatus)):
            listed = {state.id for state in self.jobs.service.list(Query(status=wanted), limit=99).items}
            assert listed == {i for i, s in final.items() if not wanted or s in wanted}
        assert self.server.exists(self.prefix + "epoch")

    def traces(self, job_id: str) -> list[str]:
        """Keys of the live view that still name a job."""
        found = [key for key in self.server.scan_iter(f"*{job_id}*") if ":purged:" not in key]
        for key in self.server.scan_iter(f"{PREFIX}*", _type="zset"):
            found += [key for member in self.server.zrange(key, 0, -1) if job_id in member]
        return found

    # Helpers

    def next_id(self) -> str:
        """Behind all others: within a millisecond chance decides the order of ids, and with it that of steps."""
        return next(new for new in iter(new_id, None) if all(new > job.id for job in self.seen))

    def work(self, job_id: str, plan: str, message: str | None) -> Running:
        job = next(job for job in self.seen if job.id == job_id)
        name = f"worker-{next(self.names)}"

        def die() -> None:
            running.actor.was_killed = True

        context = task.WorkerContext(self.jobs.worker, Analysis(plan, name), name, die, result_digest=DIGEST)  # type: ignore[arg-type]
        running = self.start("work", lambda: task.work_on(context, job_id), job=job)
        running.message = running.actor.name if message else None
        if message:
            self.server.hset("unacked", running.actor.name, json.dumps([json.loads(message), "", self.queues[1]]))
            self.server.zadd("unacked_index", {running.actor.name: int(self.server.time()[0])})
        return running

    def take_message(self) -> str | None:
        return next((raw for raw in map(self.server.rpop, self.queues) if raw), None)

    def pick(self, index: int) -> Seen:
        return self.pick_of(self.seen, index)

    def pick_of(self, things: list[Any], index: int) -> Any:
        return things[index % len(things)]

    def folder(self, job: Seen) -> Path:
        return self.root / "jobs" / job.id

    def document(self, job: Seen, name: str) -> bytes | None:
        path = self.folder(job) / name
        return path.read_bytes() if path.exists() else None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The heartbeat is a rule, not a thread; an end is shown later by an actor; masks and reports are small."""

    def enter(lease: Lease) -> Lease:
        this_actor().running.lease = lease  # type: ignore[union-attr]
        return lease

    class Later:
        """In place of the thread, which would go on into the next example, and show it a job of this one."""

        def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], **_: object) -> None:
            self.call = lambda: target(*args)

        def start(self) -> None:
            actor: Any = this_actor()
            process = actor.running.owner or actor.running
            actor.machine.start("show", self.call, owner=process, job=process.job)

    monkeypatch.setattr(Lease, "__enter__", enter)
    monkeypatch.setattr(finalize, "threading", SimpleNamespace(Thread=Later))
    monkeypatch.setattr(finalize, "SHOW_EVERY_SECONDS", 0)
    logging.disable()
    monkeypatch.setattr(task, "write_masks", write_masks)
    # Stored as masks are, and shown by nothing that is told of a job.
    monkeypatch.setattr(task, "write_images", lambda *_scan_result_folder, **_: {})
    monkeypatch.setattr(task, "make_products", lambda *_given, **_: NO_DICOM)
    monkeypatch.setattr(task, "report_of", report_of)
    with tempfile.TemporaryDirectory() as folder:
        WORLD[:] = [World(Path(folder))]
        yield
        WORLD[0].close()
    logging.disable(logging.NOTSET)


def profile(**more: Any) -> settings:
    return settings(
        stateful_step_count=STEPS,
        deadline=None,
        derandomize="LOBEWISE_TEST_STATES" not in os.environ,
        suppress_health_check=list(HealthCheck),
        **more,
    )


@pytest.mark.timeout(0)
def test_every_order_of_steps_keeps_the_promises(world: None) -> None:
    run_state_machine_as_test(JobMachine, settings=profile(max_examples=EXAMPLES, print_blob=True))
    print(COUNTS)


def _overwrite(blobs: GatedObjectStore, key: str, data: bytes, **named: bool) -> bool:
    if not key.endswith("manifest.json"):
        return ObjectStore.create(blobs, key, data, **named)
    blobs.write(key, data)
    return True


def _late_worker(machine: JobMachine) -> Running:
    """It has passed the fence, and is about to create its manifest."""
    machine.begin(mercy=True, reconciled=True)
    machine.accept(Priority.STAT, 99, "go")
    machine.deliver("succeed", 0, "go")
    worker = machine.running[0]
    while not re.match(r"(create|write) .*/manifest\.json", str(worker.actor.step)):
        assert not worker.actor.is_done, worker.actor.error
        worker.actor.go()
    return worker


def cancelled_meanwhile(machine: JobMachine) -> None:
    worker = _late_worker(machine)
    machine.cancel(0, 99, "go")
    machine.expire_lease(0)
    machine.reconcile(False, 99, "go")
    assert machine.jobs.service.get(machine.seen[0].id).status == JobStatus.CANCELLED
    machine.promises()
    machine.advance(worker, 99)
    machine.promises()


def deleted_meanwhile(machine: JobMachine) -> None:
    worker = _late_worker(machine)
    machine.purge(0, 99, "go")
    machine.advance(worker, 2)  # the manifest, and showing it
    machine.promises()


WRONG = {
    "overwrite": (cancelled_meanwhile, (GatedObjectStore, "create", _overwrite)),
    "no tombstone": (deleted_meanwhile, (GatedLive, "remove_traces", lambda live, job_id: live.remove(job_id))),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_service_is_noticed(name: str, world: None, monkeypatch: pytest.MonkeyPatch) -> None:
    play, wrong = WRONG[name]
    right = JobMachine()
    play(right)
    right.teardown()
    monkeypatch.setattr(*wrong)
    machine = JobMachine()
    with pytest.raises(AssertionError):
        play(machine)
    monkeypatch.undo()
    machine.finish_all()


def test_jobs_are_listed_in_the_order_of_their_ids_each_time(tmp_path: Path) -> None:
    blobs = GatedObjectStore(tmp_path / "blobs")
    keys = [f"jobs/{new_id()}/input" for _ in range(50)]
    for key in keys:
        blobs.write(key, b"a scan")
    assert list(blobs.keys("jobs/")) == sorted(keys)


def test_an_end_that_is_shown_later_is_shown_by_a_step_of_the_same_example(world: None) -> None:
    machine = JobMachine()
    worker = _late_worker(machine)
    machine.advance(worker, 1, "fail-before")  # the manifest, and not showing it
    machine.advance(worker, 99)
    assert [running.kind for running in machine.running] == ["show"]
    machine.go_on(0, 99, "go")
    assert machine.parts.live.status(machine.seen[0].id) == JobStatus.SUCCEEDED
    machine.teardown()


def test_an_attempt_that_passed_the_fence_may_win_though_the_next_was_seen(world: None) -> None:
    machine = JobMachine()
    late = _late_worker(machine)
    machine.expire_lease(0)
    machine.deliver_twice(0, "succeed", 12, "go")
    machine.promises()
    assert machine.seen[0].state is not None
    assert machine.seen[0].state.attempt == 2
    machine.advance(late, 99)
    machine.promises()
    assert (machine.seen[0].state.status, machine.seen[0].state.attempt) == (JobStatus.SUCCEEDED, 1)
    machine.teardown()
