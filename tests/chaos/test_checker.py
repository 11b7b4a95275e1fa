"""The checker finds every broken promise in histories that hold one, and none in those that do not."""

from typing import Any

import pytest

from tests.chaos.campaign import heal_seconds, percentile
from tests.chaos.checker import cases_of, check
from tests.chaos.history import Event, History, read_history

ORDER = {"name": "a", "opacity": 25, "seconds": 0.0, "deed": "score", "priority": "routine"}
POSTED = ("post", {"status": 202, "job": "1", "order": ORDER})
QUEUED = ("read", {"status": "queued", "attempt": 0})
RUNNING = ("read", {"status": "running", "attempt": 1})
DONE = (
    "read",
    {"status": "succeeded", "attempt": 1, "opacity": 25, "revision": "x", "report_sha256": "r", "mask_sha256": "m"},
)
CANCELLED = ("read", {"status": "cancelled", "attempt": 1, "revision": "y"})
CANCEL = ("cancel", {"status": 202, "shown": "running"})
Seen = tuple[str, dict[str, Any]]


def history(*seen: Seen) -> list[Event]:
    return [Event(float(at), kind, "a", data) for at, (kind, data) in enumerate(seen)]


def changed(seen: Seen, **fields: Any) -> Seen:
    return seen[0], {**seen[1], **fields}


def failed(problem: str) -> Seen:
    return "read", {"status": "failed", "attempt": 1, "problem": problem, "revision": "z"}


@pytest.mark.parametrize(
    "seen",
    [
        (POSTED, QUEUED, RUNNING, DONE, DONE),
        (POSTED, QUEUED, RUNNING, changed(QUEUED, attempt=1), changed(RUNNING, attempt=2), changed(DONE, attempt=2)),
        (POSTED, QUEUED, RUNNING, changed(RUNNING, attempt=2), DONE),
        (POSTED, RUNNING, CANCEL, CANCELLED),
        (("post", {"status": 503, "job": None, "order": ORDER}), POSTED, POSTED, DONE),
        (POSTED, RUNNING, CANCEL, DONE),
        (POSTED, RUNNING, failed("/problems/poison")),
        (POSTED, QUEUED, ("purge", {"status": 204})),
        (("post", {"status": 503, "job": None, "order": ORDER}),),
        (POSTED, DONE, ("blobs", {"outcome": "succeeded", "faults": []})),
    ],
)
def test_a_kept_promise_is_no_violation(seen: tuple[Seen, ...]) -> None:
    assert check(history(*seen)) == []


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        ("nothing lost", (POSTED, QUEUED)),
        ("nothing lost", (POSTED,)),
        ("one job a key", (POSTED, changed(POSTED, job="2"), DONE)),
        ("legal steps", (POSTED, DONE, RUNNING, DONE)),
        ("legal steps", (POSTED, DONE, ("read", {"status": "failed", "attempt": 1, "problem": "/problems/poison"}))),
        ("legal steps", (POSTED, changed(RUNNING, attempt=2), RUNNING, DONE)),
        ("never changed", (POSTED, DONE, changed(DONE, revision="other"))),
        ("never changed", (POSTED, DONE, changed(DONE, report_sha256="other"))),
        ("never changed", (POSTED, DONE, changed(DONE, mask_sha256="other"))),
        ("right result", (POSTED, changed(DONE, opacity=26))),
        ("right outcome", (POSTED, CANCELLED)),
        ("right outcome", (POSTED, failed("/problems/lungs-not-found"))),
        ("right outcome", (changed(POSTED, order={**ORDER, "deed": "not-chest"}), DONE)),
        ("cancel or finish", (POSTED, ("cancel", {"status": 409, "shown": None}), CANCELLED)),
        ("cancel or finish", (POSTED, ("cancel", {"status": 202, "shown": "cancelled"}), DONE)),
        ("complete results", (POSTED, DONE, ("blobs", {"outcome": "succeeded", "faults": ["its report is missing"]}))),
        ("complete results", (POSTED, DONE, ("blobs", {"outcome": "failed", "faults": []}))),
    ],
)
def test_a_broken_promise_is_found(rule: str, seen: tuple[Seen, ...]) -> None:
    assert rule in {violation.rule for violation in check(history(*seen))}


def test_a_history_survives_the_process_that_wrote_it(tmp_path: Any) -> None:
    path = tmp_path / "history.jsonl"
    one, other = History(path), History(path)
    one.note("start", "a", pid=1)
    other.note("read", "a", status="running", attempt=1)
    path.open("ab").write(b'{"at": 1.0, "kind": "cut o')
    kinds = [event.kind for event in read_history(path)]
    assert kinds == ["start", "read"]
    assert len(cases_of(read_history(path))["a"].starts) == 1


def test_healing_lasts_until_the_next_start() -> None:
    events = [
        Event(1.0, "heal"),
        Event(1.5, "start", "a"),
        Event(2.0, "heal"),
        Event(6.0, "start", "b"),
        Event(9.0, "heal"),
    ]
    assert heal_seconds(events) == [0.5, 4.0]
    assert percentile([0.5, 4.0], 50) == 0.5
    assert percentile([0.5, 4.0], 95) == 4.0
