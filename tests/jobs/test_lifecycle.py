"""Everything that can happen to one job, by exhaustion (`lifecycle`); and each way in which its design could be wrong.

`make test-states` (`LOBEWISE_TEST_STATES`) searches the larger worlds too.
"""

import os

import pytest

from tests.support.lifecycle import World, explore

SMALL = {
    "two workers and the reaper": World(max_attempts=1, cancels=False),
    "a client that deletes": World(max_attempts=1, cancels=False, purges=True, alone=True),
    "a client that cancels": World(max_attempts=1, alone=True),
    "a wiped Redis": World(max_attempts=1, cancels=False, wipes=1, looks=True, alone=True),
}
LARGE = {
    "two attempts": World(max_attempts=2, cancels=False),
    "two workers and a client that cancels": World(max_attempts=1),
    "two workers and a client that deletes": World(max_attempts=1, cancels=False, purges=True),
    "two attempts, a client that cancels and one that deletes": World(max_attempts=2, purges=True, alone=True),
    "two wipes, two attempts": World(max_attempts=2, cancels=False, wipes=2, looks=True, alone=True),
}
WRONG = {
    "no fence": (World(max_attempts=2, cancels=False), "published by an attempt that was over"),
    "overwrite": (World(max_attempts=1, cancels=False), "a manifest was changed"),
    "late counter": (World(max_attempts=2, cancels=False), "two workers make the same attempt"),
    "masks last": (World(max_attempts=1, cancels=False), "succeeded, but its results are not all there"),
    "no tombstone": (World(max_attempts=1, cancels=False, purges=True, alone=True), "a deleted job is shown"),
    "stale rebuild": (World(max_attempts=1, cancels=False, wipes=2, looks=True), "an end that was told is another"),
    "unguarded reconciler": (
        World(max_attempts=2, cancels=False, wipes=1, looks=True),
        "an end that was told is another",
    ),
}
is_long = "LOBEWISE_TEST_STATES" in os.environ


def check(world: World) -> None:
    found = explore(world)
    print(f"{found.states} states, {found.steps} steps")
    assert not found.problem, "\n".join([found.problem, *found.trace])


@pytest.mark.parametrize("name", SMALL)
def test_whatever_happens_every_promise_holds_and_an_end_can_be_reached(name: str) -> None:
    check(SMALL[name])


@pytest.mark.timeout(0)
@pytest.mark.skipif(not is_long, reason="minutes: make test-states")
@pytest.mark.parametrize("name", LARGE)
def test_so_it_is_in_larger_worlds(name: str) -> None:
    check(LARGE[name])


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_design_is_noticed(fault: str) -> None:
    world, promise = WRONG[fault]
    found = explore(world.with_fault(fault), liveness=False)
    print(f"{found.problem}: {len(found.trace)} steps; {found.states} states")
    assert promise in found.problem


def test_without_a_reaper_jobs_are_lost() -> None:
    found = explore(World(max_attempts=1, cancels=False, reconciles=False, alone=True))
    assert found.stuck
    assert found.problem == "it can never end from here"
