"""A listener that accepts and says nothing, and the command line as a process."""

import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.support import command_line

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def silent_service() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def lobewise() -> Run:
    """`lobewise("score", path)` as people run it."""
    return command_line.run
