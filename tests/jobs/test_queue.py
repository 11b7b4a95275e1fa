"""Who is served next: the urgent, and nobody never."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.queue import BATCH_TURN, ROUTINE_TURN, FairQueues

QUEUES = ["stat", "routine", "batch"]


def serve(waiting: dict[str, int], takes: int) -> list[str]:
    """What one worker takes, message by message; nothing new arrives."""
    left, cycle, taken = dict(waiting), FairQueues(QUEUES), []
    for _ in range(takes):
        queue = next((name for name in cycle.consume(3) if left.get(name)), None)
        if queue is None:
            break
        left[queue] -= 1
        taken.append(queue)
        cycle.rotate(queue)
    return taken


def test_when_all_queues_are_full_each_has_its_share() -> None:
    taken = Counter(serve(dict.fromkeys(QUEUES, 1000), 160))
    assert taken == {"stat": 120, "routine": 30, "batch": 10}


def test_a_flood_of_urgent_jobs_starves_nobody() -> None:
    taken = serve({"stat": 1000, "batch": 2, "routine": 2}, 2 * BATCH_TURN)
    assert taken.index("routine") == ROUTINE_TURN - 1
    assert taken.index("batch") == BATCH_TURN - 1
    assert Counter(taken)["batch"] == 2


@pytest.mark.parametrize("already", range(BATCH_TURN))
def test_an_urgent_job_waits_for_one_other_at_most_however_many_wait(already: int) -> None:
    cycle = FairQueues(QUEUES)
    for _ in range(already):
        cycle.rotate("batch")
    ahead = 0
    while cycle.consume(3)[0] != "stat":
        cycle.rotate(cycle.consume(3)[0])
        ahead += 1
    assert ahead <= 1


@given(st.dictionaries(st.sampled_from(QUEUES), st.integers(0, 40)), st.integers(1, 200))
def test_everything_is_served_once_and_nothing_waits_while_a_worker_is_free(
    waiting: dict[str, int], takes: int
) -> None:
    taken = serve(waiting, takes)
    assert len(taken) == min(takes, sum(waiting.values()))
    assert all(count <= waiting[name] for name, count in Counter(taken).items())


@given(st.integers(0, 3), st.integers(0, 100))
def test_each_queue_is_looked_into_once(known: int, turns: int) -> None:
    cycle = FairQueues(QUEUES[:known])
    for _ in range(turns):
        cycle.rotate("stat")
    assert sorted(cycle.consume(known)) == sorted(QUEUES[:known])


def tenants_of(priority: str, count: int) -> list[str]:
    return [priority, *(f"{priority}:tenant-{number}" for number in range(1, count))]


@given(st.integers(1, 6), st.integers(0, 5), st.integers(1, 40))
def test_a_flood_delays_another_tenant_by_no_more_than_its_share(tenants: int, few: int, flood: int) -> None:
    lists = tenants_of("routine", tenants)
    cycle = FairQueues(QUEUES)
    cycle.know(lists[1:])
    left = dict.fromkeys(lists[:-1], flood) | {lists[-1]: few}
    ended = []
    while any(left.values()):
        name = next(name for name in cycle.consume(3) if left.get(name))
        left[name] -= 1
        cycle.rotate(name)
        ended.append(name)
    # Of any as many jobs as there are tenants one is theirs, while they have any.
    for nth, place in enumerate(place for place, name in enumerate(ended) if name == lists[-1]):
        assert place < (nth + 1) * tenants


def test_who_comes_late_is_next_however_often_the_others_were_served() -> None:
    cycle = FairQueues(QUEUES)
    for _ in range(50):
        cycle.rotate("routine:flood")
    cycle.know(["routine:flood", "routine:late"])
    assert [name for name in cycle.consume(3) if name.startswith("routine:")] == ["routine:late", "routine:flood"]


@given(st.integers(1, 5), st.integers(1, 64))
def test_turns_of_priorities_are_the_same_however_many_tenants_there_are(tenants: int, takes: int) -> None:
    def priorities(count: int) -> list[str]:
        cycle = FairQueues(QUEUES)
        cycle.know(name for queue in QUEUES for name in tenants_of(queue, count)[1:])
        return [cycle.rotate(cycle.consume(3)[0]).partition(":")[0] for _ in range(takes)]

    assert priorities(tenants) == priorities(1)
