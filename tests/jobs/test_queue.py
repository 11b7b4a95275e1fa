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
