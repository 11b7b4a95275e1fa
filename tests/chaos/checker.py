"""Reads a history and says where the promise was broken. Knows nothing of the service but what its clients saw."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from tests.chaos.history import Event

FINAL: Final = frozenset({"succeeded", "failed", "cancelled"})

#: What may be seen after what: a poll may miss any step, but nothing follows the end.
STEPS: Final[Mapping[str, frozenset[str]]] = {
    "queued": frozenset({"queued", "running", *FINAL}),
    "running": frozenset({"running", "queued", *FINAL}),
    **{status: frozenset({status}) for status in FINAL},
}
LOST_WORKERS: Final = frozenset({"/problems/poison", "/problems/attempts-exhausted"})


@dataclass(frozen=True)
class Violation:
    """A broken promise, and the events that show it."""

    rule: str
    name: str
    detail: str


@dataclass
class Case:
    """All that was seen of one scan.

    Attributes:
        order: what its client asked for; its `opacity` must be what the report shows.
    """

    name: str
    order: dict[str, Any] = field(default_factory=dict)
    posts: list[Event] = field(default_factory=list)
    reads: list[Event] = field(default_factory=list)
    cancels: list[Event] = field(default_factory=list)
    purges: list[Event] = field(default_factory=list)
    starts: list[Event] = field(default_factory=list)
    blobs: dict[str, Any] | None = None

    @property
    def job_ids(self) -> set[str]:
        return {post.data["job"] for post in self.posts if post.data["status"] in (200, 202)}

    @property
    def is_accepted(self) -> bool:
        return bool(self.job_ids)

    @property
    def is_purged(self) -> bool:
        """Whether somebody tried; an answer that got lost may have been a yes."""
        return bool(self.purges)

    @property
    def last(self) -> dict[str, Any]:
        return self.reads[-1].data if self.reads else {}


def cases_of(history: Iterable[Event]) -> dict[str, Case]:
    """The events by scan."""
    cases: dict[str, Case] = defaultdict(lambda: Case(""))
    for event in history:
        if not event.name:
            continue
        case = cases[event.name]
        case.name = event.name
        if event.kind == "blobs":
            case.blobs = event.data
        elif event.kind in ("post", "read", "cancel", "purge", "start"):
            getattr(case, event.kind + "s").append(event)
            case.order = event.data.get("order", case.order)
    return dict(cases)


def check(history: Sequence[Event]) -> list[Violation]:
    """Every broken promise."""
    return [violation for case in cases_of(history).values() for rule in RULES for violation in rule(case)]


def _one_job_a_key(case: Case) -> Iterator[Violation]:
    if len(case.job_ids) > 1:
        yield Violation("one job a key", case.name, f"its key was answered with {sorted(case.job_ids)}")


def _nothing_lost(case: Case) -> Iterator[Violation]:
    if case.is_accepted and not case.is_purged and case.last.get("status") not in FINAL:
        yield Violation("nothing lost", case.name, f"accepted, and at the end {case.last.get('status', 'never seen')}")


def _legal_steps(case: Case) -> Iterator[Violation]:
    seen = [read for read in case.reads if "status" in read.data]
    for before, after in pairwise(seen):
        first, second = before.data, after.data
        if second["status"] not in STEPS[first["status"]]:
            yield Violation("legal steps", case.name, f"{first['status']}, then {second['status']}")
        if second["attempt"] < first["attempt"] and second["status"] not in FINAL:  # an earlier attempt may win
            yield Violation("legal steps", case.name, f"attempt {first['attempt']}, then {second['attempt']}")


def _never_changed(case: Case) -> Iterator[Violation]:
    ended = [read.data for read in case.reads if read.data.get("status") in FINAL]
    for key in ("revision", "report_sha256", "mask_sha256"):
        found = {data[key] for data in ended if data.get(key)}
        if len(found) > 1:
            yield Violation("never changed", case.name, f"{key} had {len(found)} values after the end")


def _right_result(case: Case) -> Iterator[Violation]:
    for read in case.reads:
        opacity = read.data.get("opacity")
        if opacity is not None and opacity != case.order["opacity"]:
            yield Violation("right result", case.name, f"{opacity} % for {case.order['opacity']} %")


def _right_outcome(case: Case) -> Iterator[Violation]:
    status, problem, deed = case.last.get("status"), case.last.get("problem"), case.order.get("deed")
    if status == "succeeded" and deed in ("not-chest", "die"):
        yield Violation("right outcome", case.name, f"succeeded, though the order was {deed}")
    if status == "cancelled" and not case.cancels:
        yield Violation("right outcome", case.name, "cancelled, though nobody asked")
    if status == "failed" and not (problem in LOST_WORKERS or (deed, problem) == ("not-chest", NOT_CHEST)):
        yield Violation("right outcome", case.name, f"{problem}, though the order was {deed}")


NOT_CHEST: Final = "/problems/lungs-not-found"


def _cancel_or_finish(case: Case) -> Iterator[Violation]:
    """Who is told that it was too late must see another end, and who gets a cancelled job must see one."""
    for cancel in case.cancels:
        if cancel.data["status"] == 409 and case.last.get("status") == "cancelled" and len(case.cancels) == 1:
            yield Violation("cancel or finish", case.name, "cancelled, though the answer was that it had ended")
        if cancel.data.get("shown") == "cancelled" and case.last.get("status") not in (None, "cancelled"):
            yield Violation("cancel or finish", case.name, f"shown as cancelled, then {case.last['status']}")


def _complete_blobs(case: Case) -> Iterator[Violation]:
    """The storage itself, as it was at the end."""
    if case.blobs is None:
        return
    for fault in case.blobs["faults"]:
        yield Violation("complete results", case.name, fault)
    outcome = case.blobs["outcome"]
    if case.last.get("status") in FINAL and outcome != case.last["status"]:
        yield Violation("complete results", case.name, f"{case.last['status']} for clients, {outcome} in the storage")


RULES: Final[Sequence[Callable[[Case], Iterator[Violation]]]] = (
    _one_job_a_key,
    _nothing_lost,
    _legal_steps,
    _never_changed,
    _right_result,
    _right_outcome,
    _cancel_or_finish,
    _complete_blobs,
)
