"""What is played, and how much of it."""

from dataclasses import dataclass, replace
from typing import Final, Literal

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Phase:
    """Clients that run at the same time, for so long.

    Attributes:
        uploads_each: after so many a client sends no more, so that the disk does not fill.
        pace: 'retry-after', or one poll every so many seconds.
        rate: polls a second, whoever makes them; in place of pollers.
        p99_ms: of the polls; a slower one fails the run.
        ramp_seconds: clients that post begin one after the other; polls begin once all do.
        is_probe: looks for the point of saturation, so that its threshold fails nothing.
    """

    name: str
    seconds: int
    uploaders: int = 0
    uploads_each: int = 0
    pollers: int = 0
    pace: Literal["retry-after"] | float = "retry-after"
    rate: int = 0
    p99_ms: int = 50
    ramp_seconds: int = 12
    is_probe: bool = False

    @property
    def begin_seconds(self) -> int:
        """When the polls begin."""
        return self.ramp_seconds if self.uploaders else 0

    @property
    def parts(self) -> dict[str, "Phase"]:
        """Who posts and who polls, apart."""
        parts = {"posts": replace(self, pollers=0, rate=0), "polls": replace(self, uploaders=0)}
        return {name: part for name, part in parts.items() if part.uploaders or part.pollers or part.rate}


FULL: Final = (
    Phase("500 poll as Retry-After says", 30, pollers=500),
    Phase("500 poll every second", 30, pollers=500, pace=1.0),
    Phase("50 post", 30, uploaders=50, uploads_each=6),
    Phase("50 post, 500 poll as Retry-After says", 40, uploaders=50, uploads_each=8, pollers=500),
    Phase("50 post, 500 poll every second", 40, uploaders=50, uploads_each=8, pollers=500, pace=1.0),
)
PROBES: Final = (
    *(Phase(f"{n} polls/s", 10, rate=n, is_probe=True) for n in (250, 500, 750, 1000, 1500)),
    *(
        Phase(f"{n} post", 12, uploaders=n, uploads_each=60 // n + 2, ramp_seconds=2, is_probe=True)
        for n in (1, 2, 4, 8, 16)
    ),
)
LIGHT: Final = (
    Phase("2 post, 10 poll", 4, uploaders=2, uploads_each=3, pollers=10, pace=0.2, p99_ms=500, ramp_seconds=1),
)
