"""What is played, and how much of it."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Phase:
    """Clients that run at the same time, for so long.

    Attributes:
        uploads_each: after so many a client sends no more, so that the disk does not fill.
        pace: 'retry-after', or one poll every so many seconds.
        rate: polls a second, whoever makes them; in place of pollers.
        p99_ms: of the polls; a slower one fails the run.
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
    is_probe: bool = False

    def for_k6(self) -> dict[str, Any]:
        return asdict(self)


FULL: Final = (
    Phase("500 poll as Retry-After says", 30, pollers=500),
    Phase("500 poll every second", 30, pollers=500, pace=1.0),
    Phase("50 post", 30, uploaders=50, uploads_each=6),
    Phase("50 post, 500 poll as Retry-After says", 40, uploaders=50, uploads_each=8, pollers=500),
    Phase("50 post, 500 poll every second", 40, uploaders=50, uploads_each=8, pollers=500, pace=1.0),
)
PROBES: Final = (
    *(Phase(f"{rate} polls/s", 10, rate=rate, is_probe=True) for rate in (250, 500, 750, 1000, 1500, 2000)),
    *(Phase(f"{n} post", 12, uploaders=n, uploads_each=60 // n + 2, is_probe=True) for n in (1, 2, 4, 8, 16)),
)
LIGHT: Final = (Phase("2 post, 10 poll", 4, uploaders=2, uploads_each=3, pollers=10, pace=0.2, p99_ms=500),)
