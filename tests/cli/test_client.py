"""What the command makes of services that do not answer; the rest is the client library's, or tested end to end."""

import pytest

from cli.client import connected
from cli.local import free_port
from cli.output import ServiceError


def test_a_service_that_does_not_answer_is_named() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceError, match=address), connected(address):
        pass
