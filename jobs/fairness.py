"""In which order a worker looks into the queues: urgent first, and yet none of them is ever starved.

The order of `Priority` is strict but for some turns: every fourth job is `routine` and every sixteenth `batch`, if one
is waiting. A flood of `batch` so delays a `stat` by no more than the job in hand and one other, and a flood of `stat`
leaves `routine` three sixteenths of the workers and `batch` one.
"""

from collections.abc import Sequence
from typing import Final

from kombu.utils.scheduling import round_robin_cycle

ROUTINE_TURN: Final = 4
BATCH_TURN: Final = 16


class FairQueues(round_robin_cycle):
    """kombu's `queue_order_strategy` of a worker; `items` are the queues, most urgent first."""

    def __init__(self, items: Sequence[str] = ()) -> None:
        super().__init__(list(items))  # type: ignore[no-untyped-call]  # kombu does not type it
        self._taken = 0

    def consume(self, n: int) -> list[str]:
        """The queues in the order in which the next message is looked for."""
        first = favoured(self._taken + 1)
        queues = self.items[:n]
        return queues[first : first + 1] + queues[:first] + queues[first + 1 :]

    def rotate(self, last_used: str) -> str:
        """A message was taken from `last_used`: the next turn begins."""
        self._taken += 1
        return last_used


def favoured(turn: int) -> int:
    """Which queue a turn (from 1 on) begins with: 0 is the most urgent."""
    if turn % BATCH_TURN == 0:
        return 2
    return 1 if turn % ROUTINE_TURN == 0 else 0
