"""What a call does, step by step, apart from how it is done.

A call is a generator: it yields one of these steps and gets its result. `client` takes the steps in the calling thread,
`aio` in an event loop; what the steps are is written once, in `calls`.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Body(Protocol):
    """A request's body that is too large for the memory; `pieces` begins again from the start each time."""

    @property
    def size_bytes(self) -> int: ...

    def pieces(self) -> Iterator[bytes]: ...

    def sent(self, piece_bytes: int) -> None:
        """So much of it is on its way."""


@dataclass(frozen=True)
class Request:
    """One request. `silence_seconds`: so long may the other side say nothing; None as for all requests."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Body | None = None
    silence_seconds: float | None = None


@dataclass(frozen=True)
class Reply:
    """The answer; header names are in small letters. `content` is empty where it is still to be read."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""


@dataclass(frozen=True)
class Send:
    """Send a request and read the whole answer: a `Reply`. httpx's errors are raised where it was yielded."""

    request: Request


@dataclass(frozen=True)
class Open:
    """Send a request and read the answer's head alone: a `Reply`. One that was open before is closed."""

    request: Request


@dataclass(frozen=True)
class Read:
    """The next bytes of what is open; none at its end."""


@dataclass(frozen=True)
class Close:
    """Read no more of what is open."""


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Call:
    """Call a function that may wait for the disk."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Give:
    """Something for those who iterate over the call."""

    value: Any


@dataclass(frozen=True)
class Together:
    """Several calls at the same time: the list of their results.

    Attributes:
        stop: called when the whole is broken off; the calls then end soon.
    """

    calls: "Sequence[Steps[Any]]"
    stop: Callable[[], None]


Step = Send | Open | Read | Close | Sleep | Call | Give | Together
Steps = Generator[Step, Any, T]
