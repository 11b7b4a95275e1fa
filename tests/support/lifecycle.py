"""The life of one job as a small model, and a search through everything that can happen to it.

A state holds the durable facts (blobs), the view (Redis) and how far each actor has come. Every step is one question to
one store, named after the function in `jobs` that asks it. Any process may be killed, any lease may run out
and any message may come twice between any two steps. `explore` visits every state that can be reached, breadth first.

`faults` are the ways in which the design could be wrong; `test_lifecycle` asks that each is noticed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

IDLE = ("idle", 0, 0, False)


class State(NamedTuple):
    """Attempts are numbers from 1; sets of attempts are bits."""

    # The object store
    claims: int = 0
    """The last attempt with a `claim.json`."""
    ended: int = 0
    stored: int = 0
    """Attempts whose report and masks are all there."""
    manifest: str = ""
    """`s` and the attempt, `f` or `c`."""
    cancel: bool = False
    purged: bool = False
    # Redis
    live: str = ""
    """`q`, `r` or the manifest; empty where the job is unknown."""
    live_attempt: int = 0
    lease: tuple[int, int] = (-1, 0)
    """Worker (2: nobody yet, granted by a rebuild) and attempt; -1 for none."""
    message: bool = False
    """Whether there is one in a queue. A broker may give it twice."""
    is_removed: bool = False
    whole: int = 0
    """How often it was wiped."""
    # Actors: where they are, attempt, previous attempt or what was read, whether they begin to publish too late
    workers: tuple[tuple[str, int, int, bool], ...] = (IDLE, IDLE)
    canceller: str = "idle"
    purger: str = "idle"
    reconciler: tuple[str, int, str, int] = ("idle", 0, "", 0)
    told: str = ""
    """The end that a client was told."""

    def to(self, **changes: object) -> "State":
        return self._replace(**changes)


@dataclass(frozen=True)
class World:
    """Who takes part, and what is wrong with the design."""

    max_attempts: int = 2
    cancels: bool = True
    purges: bool = False
    wipes: int = 0
    looks: bool = False
    reconciles: bool = True
    alone: bool = False
    """One worker instead of two."""
    faults: frozenset[str] = frozenset()

    def with_fault(self, fault: str) -> "World":
        return replace(self, faults=frozenset({fault}))


Step = tuple[str, State]

# Facts that several steps ask for


def has(bits: int, attempt: int) -> bool:
    return bool(bits >> attempt & 1)


def durable(s: State) -> tuple[str, int]:
    """`JobStore.state`: what the blobs alone say, and of which attempt."""
    if s.manifest:
        return s.manifest, 0
    return ("q" if not s.claims or has(s.ended, s.claims) else "r"), s.claims


def seen(s: State) -> str:
    """`JobService.get`."""
    return s.live or ("" if s.purged else durable(s)[0])


def is_final(shown: str) -> bool:
    return shown not in ("", "q", "r")


def show(s: State, shown: str, attempt: int, allowed: bool = True) -> State:
    """`LiveView.put`: never over an end, over a later attempt or over a tombstone."""
    if not allowed or is_final(s.live) or s.is_removed or (not is_final(shown) and s.live and s.live_attempt > attempt):
        return s
    return s.to(live=shown, live_attempt=attempt, lease=(-1, 0) if is_final(shown) else s.lease)


def create_manifest(s: State, outcome: str, w: World) -> State:
    """`JobStore.create_manifest`."""
    return s.to(manifest=outcome) if not s.manifest or "overwrite" in w.faults else s


def swept(s: State) -> State:
    """`JobStore.delete_all_but_tombstone`: all but the tombstone."""
    return s.to(claims=0, ended=0, stored=0, manifest="", cancel=False)


def stop_reason(s: State, attempt: int) -> bool:
    """What `Lease.fence` looks for."""
    return bool(s.purged or s.manifest or has(s.ended, attempt) or s.claims > attempt or s.cancel)


def is_cancelled(s: State, attempt: int) -> bool:
    """Whether that is all that it finds."""
    return s.cancel and not stop_reason(s.to(cancel=False), attempt)


# Workers: `worker.tasks.work_on`


def worker_steps(s: State, i: int, w: World) -> Iterator[Step]:
    where, attempt, previous, late = s.workers[i]

    def at(state: State, place: str, attempt: int = attempt, previous: int = previous, late: bool = late) -> State:
        now = IDLE if place == "idle" else (place, attempt, previous, late)
        return state.to(workers=(now, state.workers[1]) if i == 0 else (state.workers[0], now))

    def dropped(state: State) -> State:  # Lease.drop
        return at(state.to(lease=(-1, 0)) if state.lease == (i, attempt) else state, "idle")

    match where:
        case "idle":
            if s.message and not s.purged:
                yield "deliver; WorkerApi.claim: files", at(s.to(message=False), "lease", s.claims + 1)
                yield "deliver, and later again; WorkerApi.claim: files", at(s, "lease", s.claims + 1)
            return
        case "lease":
            free = s.lease[0] < 0
            yield "LiveView.lease", at(s.to(lease=(i, attempt)), "begin") if free else at(s, "idle")
        case "begin":
            yield "WorkerApi.claim: files", begin(s, at)
        case "settle":
            ending = s if "no settling" in w.faults else s.to(ended=s.ended | 1 << previous)
            ended = at(ending, "give up" if previous >= w.max_attempts else "claim", previous=0)
            yield "WorkerApi.claim: create_ending", ended
        case "give up":
            yield "finalize.fail_if_exhausted: create_manifest", at(create_manifest(s, "f", w), "show")
        case "settle cancel":
            yield "WorkerApi.claim: create_manifest", at(create_manifest(s, "c", w), "show")
        case "claim":
            if "late counter" in w.faults:
                yield "no claim", at(s, "put")
            elif s.claims >= attempt:
                yield "AttemptStore.create_claim: it is there", dropped(s)
            else:
                yield "AttemptStore.create_claim", at(s.to(claims=attempt), "fence claim")
        case "fence claim":
            refused = at(s, "settle cancel") if is_cancelled(s, attempt) else dropped(s)
            yield "Lease.fence", refused if stop_reason(s, attempt) else at(s, "put")
        case "put":
            yield "LiveView.put running", at(show(s, "r", attempt, s.lease == (i, attempt)), "work")
        case "work":
            yield from work(s, i, w, at)
        case "fence":
            is_late = stop_reason(s, attempt)
            if "no fence" in w.faults:
                yield "no fence", at(s, "manifest", late=late or is_late)
            elif is_late:
                yield "Lease.fence: LeaseLostError", dropped(s) if s.cancel else at(s, "idle")
            else:
                yield "Lease.fence", at(s, "manifest")
        case "fence failure":
            yield "Lease.fence", at(s, "idle") if stop_reason(s, attempt) else at(s, "fail")
        case "fail":
            yield "WorkerApi.fail: create_manifest", at(create_manifest(s, "f", w), "show")
        case "manifest":
            after = create_manifest(s, f"s{attempt}", w)
            won = after.manifest == f"s{attempt}" and s.manifest != after.manifest
            yield "JobStore.create_manifest", at(after, "show", late=late and won)
        case "show":
            shown = show(s, s.manifest, attempt) if s.manifest else s
            yield "finalize.show_end", at(shown, "purged?") if w.purges else dropped(shown)
        case "purged?":
            yield "JobStore.is_purged", at(s, "remove traces") if s.purged else dropped(s)
        case "remove traces":
            yield "finalize.remove_traces", dropped(swept(s.to(is_removed=True, live="", live_attempt=0)))
        case "end":
            yield "finalize.end_attempt: create_ending", at(s.to(ended=s.ended | 1 << attempt), "over?")
        case "over?":
            yield "finalize.end_if_decided", at(s, over(s, attempt, w) or "requeue")
        case "requeue":
            put = show(s, "q", attempt, s.lease == (i, attempt))
            yield "LiveView.put queued", dropped(put)
    yield "kill", at(s, "idle")
    if not s.message:  # the broker gives its message to another
        yield "kill, deliver again", at(s.to(message=True), "idle")


def begin(s: State, at: Callable[..., State]) -> State:
    if s.manifest:
        return at(s, "show")
    if s.cancel:
        return at(s, "settle cancel")
    return at(s, "settle", previous=s.claims) if s.claims else at(s, "claim")


def work(s: State, i: int, w: World, at: Callable[..., State]) -> Iterator[Step]:
    attempt = s.workers[i][1]
    is_late = stop_reason(s, attempt)
    stored = s if "masks last" in w.faults else s.to(stored=s.stored | 1 << attempt)
    yield "WorkerApi.succeed: _store_mask, report", at(stored, "fence", late=is_late)
    yield "WorkerApi.fail", at(s, "fence failure")
    yield "WorkerApi.retry", at(s, "end")
    if is_cancelled(s, attempt):
        yield "WorkerApi.confirm_cancel", at(s, "settle cancel")
    mine = s.lease in ((i, attempt), (2, attempt))
    lost = s.lease[0] < 0 and (not s.live or (s.live, s.live_attempt) == ("r", attempt))
    if (mine or lost) and not stop_reason(s, attempt) and s.lease != (i, attempt):
        yield "LiveView.renew_lease", s.to(lease=(i, attempt))


def over(s: State, attempt: int, w: World) -> str:
    """`finalize.end_if_decided` and what follows from the number of attempts."""
    if s.purged:
        return "remove traces"
    if s.manifest:
        return "show"
    if s.cancel:
        return "settle cancel"
    return "give up" if attempt >= w.max_attempts else ""


# Clients


def canceller_steps(s: State, w: World) -> Iterator[Step]:
    match s.canceller:
        case "idle":
            if w.cancels and not s.purged:
                open_ = not s.manifest
                yield "JobService.cancel: _require_open", s.to(canceller="request" if open_ else "done")
            return
        case "request":
            yield "JobStore.request_cancel", s.to(cancel=True, canceller="look")
        case "look":
            yield "JobService.get", s.to(canceller="end" if seen(s) == "q" else "done")
        case "end":
            yield "JobService.cancel: create_manifest", create_manifest(s, "c", w).to(canceller="show")
        case "show":
            yield (
                "finalize.show_end",
                (show(s, s.manifest, 0) if s.manifest else s).to(canceller="purged?" if w.purges else "done"),
            )
        case "purged?":
            yield "JobStore.is_purged", s.to(canceller="remove traces" if s.purged else "done")
        case "remove traces":
            yield "finalize.remove_traces", swept(s.to(is_removed=True, live="", live_attempt=0)).to(canceller="done")
    if s.canceller != "done":
        yield "kill", s.to(canceller="done")


def purger_steps(s: State, w: World) -> Iterator[Step]:
    match s.purger:
        case "idle":
            if w.purges:
                yield "JobStore.mark_purged", s.to(purged=True, purger="remove traces")
            return
        case "remove traces":
            yield (
                "LiveView.remove_traces",
                s.to(is_removed="no tombstone" not in w.faults, live="", live_attempt=0, purger="sweep"),
            )
        case "sweep":
            yield "JobStore.delete_all_but_tombstone", swept(s).to(purger="done")
    if s.purger not in ("done", "killed"):
        yield "kill", s.to(purger="killed")


def client_steps(s: State, w: World) -> Iterator[Step]:
    """`JobService.get`, which shows an end that only the blobs know."""
    if w.looks and not s.told and is_final(seen(s)) and not s.purged:
        after = s.to(told=seen(s))
        yield "JobService.get: told the end", show(after, s.manifest, 0) if not s.live else after


# The house


def reconciler_steps(s: State, w: World) -> Iterator[Step]:
    where, attempt, read, since = s.reconciler
    idle = ("idle", 0, "", 0)
    if not w.reconciles:
        return
    match where:
        case "idle":
            if s.live == "r" and s.lease[0] < 0 and (s.claims or s.purged):
                yield (
                    "RecoveryView.running_without_lease; Reconciler._recover: files",
                    s.to(reconciler=("over?", s.claims, "", 0)),
                )
            if s.live == "q" and not s.message:
                yield "Reconciler._publish", s.to(message=True)
            if not s.live and not s.purged:
                shown, of = durable(s)
                yield "Reconciler.rebuild: begin, JobStore.state", s.to(reconciler=("restore", of, shown, s.whole))
            if s.live and s.purged:
                yield "Reconciler._remove_if_gone", s.to(live="", live_attempt=0, is_removed=True)
            if s.purged and swept(s) != s:
                yield "Cleanup._remove_leftovers", swept(s).to(live="", live_attempt=0, is_removed=True)
            return
        case "over?":
            place = over(s, 0, w)
            yield "finalize.end_if_decided", s.to(reconciler=(place or "end", attempt, "", 0))
        case "end":
            yield (
                "finalize.end_attempt: create_ending",
                s.to(ended=s.ended | 1 << attempt, reconciler=("over again?", attempt, "", 0)),
            )
        case "over again?":
            yield "finalize.end_if_decided", s.to(reconciler=(over(s, attempt, w) or "requeue", attempt, "", 0))
        case "requeue":
            allowed = (s.live == "r" and s.lease[0] < 0) or "unguarded reconciler" in w.faults
            put = show(s, "q", attempt, allowed)
            yield "LiveView.put queued, publish", put.to(reconciler=idle, message=put.message or put != s)
        case "give up":
            yield (
                "finalize.fail_if_exhausted: create_manifest",
                create_manifest(s, "f", w).to(reconciler=("show", 0, "", 0)),
            )
        case "settle cancel":
            yield (
                "finalize.end_if_decided: create_manifest",
                create_manifest(s, "c", w).to(reconciler=("show", 0, "", 0)),
            )
        case "show":
            yield (
                "finalize.show_end",
                (show(s, s.manifest, 0) if s.manifest else s).to(
                    reconciler=("purged?", 0, "", 0) if w.purges else idle
                ),
            )
        case "purged?":
            yield "JobStore.is_purged", s.to(reconciler=("remove traces", 0, "", 0) if s.purged else idle)
        case "remove traces":
            yield "finalize.remove_traces", swept(s.to(is_removed=True, live="", live_attempt=0)).to(reconciler=idle)
        case "restore":
            granted = s.to(lease=(2, attempt)) if read == "r" and s.lease[0] < 0 else s
            yield "Reconciler._restore: lease", granted.to(reconciler=("restore put", attempt, read, since))
        case "restore put":
            fresh = not s.live and (since == s.whole or "stale rebuild" in w.faults)
            put = show(s, read, attempt, fresh)
            yield "LiveView.put rebuilt", put.to(reconciler=idle)
    yield "kill", s.to(reconciler=idle)


def misfortunes(s: State, w: World) -> Iterator[Step]:
    if s.lease[0] >= 0:
        yield "a lease runs out", s.to(lease=(-1, 0))
    if s.message:
        yield "a message is lost", s.to(message=False)
    if s.whole < w.wipes:
        yield (
            "wipe",
            s.to(live="", live_attempt=0, lease=(-1, 0), message=False, is_removed=False, whole=s.whole + 1),
        )


def steps(s: State, w: World) -> Iterator[Step]:
    for i in range(1 if w.alone else 2):
        for name, after in worker_steps(s, i, w):
            yield f"worker {i}: {name}", after
    for who, found in (
        ("canceller", canceller_steps(s, w)),
        ("purger", purger_steps(s, w)),
        ("client", client_steps(s, w)),
        ("reaper", reconciler_steps(s, w)),
        ("", misfortunes(s, w)),
    ):
        for name, after in found:
            yield f"{who}: {name}", after


# Promises


def broken(s: State, w: World) -> Iterator[str]:
    """Promises that a state breaks."""
    if s.claims > w.max_attempts and not s.purged:
        yield "an attempt too many"
    if s.manifest.startswith("s") and not s.purged and not has(s.stored, int(s.manifest[1:])):
        yield "succeeded, but its results are not all there"
    at_work = [attempt for where, attempt, _, _ in s.workers if where in ("work", "fence", "manifest")]
    if len(at_work) != len(set(at_work)) and not s.purged:
        yield "two workers make the same attempt"
    if any(where == "show" and late for where, _, _, late in s.workers):
        yield "published by an attempt that was over before it began to publish"
    if s.told and not s.purged and seen(s) != s.told:
        yield "an end that was told is another, or none, now"
    if s.purger == "done" and s.live and not s.whole:
        yield "a deleted job is shown"


def broken_by(before: State, after: State) -> Iterator[str]:
    """Promises that a step breaks."""
    if before.manifest and after.manifest != before.manifest and not after.purged:
        yield "a manifest was changed"
    if after.claims < before.claims and not after.purged:
        yield "the count of attempts fell"


def is_settled(s: State) -> bool:
    """Final for the blobs and for clients, or deleted and gone."""
    if s.purged:
        return not s.live and swept(s) == s
    return bool(s.manifest) and s.live == s.manifest


# The search


@dataclass
class Found:
    """Attributes:
    trace: the shortest way to what is broken, if anything is.
    stuck: how many states no settled one can be reached from.
    """

    states: int = 0
    steps: int = 0
    problem: str = ""
    trace: list[str] = field(default_factory=list)
    stuck: int = 0


def canonical(s: State, w: World) -> State:
    """The two workers are alike."""
    first, second = s.workers
    if w.alone or first <= second:
        return s
    lease = (1 - s.lease[0], s.lease[1]) if s.lease[0] in (0, 1) else s.lease
    return s.to(workers=(second, first), lease=lease)


def explore(w: World, liveness: bool = True) -> Found:
    """Everything that can happen; stops at the first broken promise."""
    start = State(live="q", message=True)
    numbers: dict[State, int] = {start: 0}
    came: list[tuple[int, str]] = [(-1, "accept")]
    edges: list[list[int]] = [[]]
    found, queue = Found(), deque([start])
    while queue:
        state = queue.popleft()
        number = numbers[state]
        for name, raw in steps(state, w):
            found.steps += 1
            after = canonical(raw, w)
            known = numbers.get(after)
            problems = [*broken_by(state, after), *(broken(after, w) if known is None else ())]
            if known is None:
                known = numbers[after] = len(came)
                came.append((number, name))
                edges.append([])
                queue.append(after)
            edges[known].append(number)
            if problems:
                found.states, found.problem = len(came), problems[0]
                found.trace = [*trace_to(number, came), name]
                return found
    found.states = len(came)
    if liveness:
        settled = [number for state, number in numbers.items() if is_settled(state)]
        reach = backwards(settled, edges)
        found.stuck = found.states - len(reach)
        stuck = next((number for number in range(found.states) if number not in reach), None)
        if stuck is not None:
            found.problem, found.trace = "it can never end from here", trace_to(stuck, came)
    return found


def backwards(numbers: Iterable[int], edges: list[list[int]]) -> set[int]:
    reached = set(numbers)
    queue = deque(reached)
    while queue:
        for before in edges[queue.popleft()]:
            if before not in reached:
                reached.add(before)
                queue.append(before)
    return reached


def trace_to(number: int, came: list[tuple[int, str]]) -> list[str]:
    names: list[str] = []
    while number > 0:
        number, name = came[number]
        names.append(name)
    return names[::-1]
