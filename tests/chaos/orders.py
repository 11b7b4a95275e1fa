"""The scans of the campaign: an NRRD header that says what the worker shall do with them."""

import json
from dataclasses import asdict, dataclass
from random import Random
from typing import Final, Literal, get_args

Deed = Literal["score", "not-chest", "die", "hungry"]
Priority = Literal["stat", "routine", "batch"]
HEAD: Final = b"NRRD0004\n# order: "


@dataclass(frozen=True)
class Order:
    """What happens to a scan.

    Attributes:
        name: what its client calls it.
        opacity: percent of the lungs that its report must show.
        seconds: how long scoring takes.
        deed: it is scored; it is no chest; it kills every worker; it needs more memory than there is unless the worker
            is frugal.
        priority: of its job; the same whenever it is posted, or its idempotency key would not fit.
    """

    name: str
    opacity: int
    seconds: float = 0.0
    deed: Deed = "score"
    priority: Priority = "routine"

    def to_scan(self) -> bytes:
        return HEAD + json.dumps(asdict(self)).encode() + b"\n\n"

    @classmethod
    def of_scan(cls, scan: bytes) -> "Order":
        return cls(**json.loads(scan.removeprefix(HEAD)))


def draw_order(name: str, rng: Random) -> Order:
    """Mostly short work, some long, a few that fail as they should."""
    kind = rng.random()
    seconds = rng.uniform(1.0, 4.0) if rng.random() < 0.08 else rng.uniform(0.0, 0.2)
    deed: Deed = "not-chest" if kind < 0.05 else "die" if kind < 0.055 else "hungry" if kind < 0.07 else "score"
    priority = rng.choice(get_args(Priority))
    return Order(name, rng.randint(0, 100), round(seconds, 3), deed, priority)
